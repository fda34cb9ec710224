"""IPv6 neighbour discovery (RFC 4861): solicitations, advertisements and their options.

A receiver must also check that the hop limit, pkt.ip.ttl, is 255 (sections 6.1 and 7.1).
"""

from collections.abc import Iterator
from typing import Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.icmp import ICMPv6
from vtl_tools.common.packet.view import Buffer, bits, octets, u8, u16, u32

ROUTER_SOLICIT: Final = 133
ROUTER_ADVERT: Final = 134
NEIGHBOR_SOLICIT: Final = 135
NEIGHBOR_ADVERT: Final = 136

SOURCE_LLADDR: Final = 1
TARGET_LLADDR: Final = 2
PREFIX_INFORMATION: Final = 3
MTU: Final = 5
RDNSS: Final = 25  # RFC 8106
DNSSL: Final = 31

_OPTIONS_MAX: Final = 255
"""Maximum number of options: more than a 1,500-octet frame holds. Parsing 64 KiB of them took 3 ms."""


class ND(ICMPv6):
    """Base of the four message types: an ICMPv6 message with options after its fixed part."""

    __slots__ = ()

    @classmethod
    def at(cls, buf: Buffer, off: int, end: int | None = None, partial_at: int = 0) -> Self:
        """Validate untrusted octets. Raises Malformed, and nothing else.

        An option of length 0 or past the end is Malformed, since the packet is to be discarded (section 4.6).
        So is a message of more than 255 options.
        """
        view = super().at(buf, off, end, partial_at)
        at, options = off + cls.SIZE, 0
        while at < view.end:
            options += 1
            if options > _OPTIONS_MAX:
                raise Malformed("nd.options", at)
            if at + 2 > view.end or not 0 < buf[at + 1] * 8 <= view.end - at:
                raise Malformed("nd.option", at)
            at += buf[at + 1] * 8
        return view

    def options(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over the options as (type, octets after the length octet)."""
        for kind, at, size in self.walk():
            yield kind, bytes(self.buf[at + 2 : at + size])

    def walk(self) -> Iterator[tuple[int, int, int]]:
        """Iterate over the options as (type, offset in the buffer, size in octets)."""
        at = self.off + self.SIZE
        while at + 2 <= self.end and (size := self.buf[at + 1] * 8) and at + size <= self.end:
            yield self.buf[at], at, size
            at += size

    def option(self, kind: int) -> bytes | None:
        """Return the octets after the length octet of the first option of a type. None: absent."""
        return next((data for found, data in self.options() if found == kind), None)

    @property
    def source_lladdr(self) -> bytes | None:
        """The Ethernet address of the sender. None: absent."""
        data = self.option(SOURCE_LLADDR)
        return data[:6] if data else None

    @property
    def target_lladdr(self) -> bytes | None:
        """The Ethernet address of the target. None: absent."""
        data = self.option(TARGET_LLADDR)
        return data[:6] if data else None

    def set_lladdr(self, mac: bytes) -> bool:
        """Overwrite the source's or target's Ethernet address in place. Return whether there was one."""
        for kind, at, size in self.walk():
            if kind in (SOURCE_LLADDR, TARGET_LLADDR) and size == 8:
                self.write(at + 2 - self.off, mac[:6])
                return True
        return False


class RouterSolicit(ND):
    """Type 133 (RFC 4861 section 4.1)."""

    __slots__ = ()


class RouterAdvert(ND):
    """Type 134 (RFC 4861 section 4.2)."""

    __slots__ = ()
    SIZE = 16
    cur_hop_limit = u8(4, summed=True)  # 0: unspecified
    flags = u8(5, summed=True)
    managed = bits(flags, 7, 1)  # addresses by DHCPv6
    other = bits(flags, 6, 1)  # other configuration by DHCPv6
    router_lifetime = u16(6, summed=True)  # seconds; 0: not a default router
    reachable_time = u32(8, summed=True)  # milliseconds; 0: unspecified
    retrans_timer = u32(12, summed=True)  # milliseconds; 0: unspecified

    @property
    def mtu_option(self) -> int | None:
        """The link's MTU in octets (section 4.6.4). None: absent."""
        data = self.option(MTU)
        return int.from_bytes(data[2:6], "big") if data else None

    @property
    def prefixes(self) -> list[tuple[bytes, int, int, int, int]]:
        """Prefix information (section 4.6.2): (prefix, prefix length, flags, valid and preferred seconds)."""
        return [
            (
                data[14:30],
                data[0],
                data[1],
                int.from_bytes(data[2:6], "big"),
                int.from_bytes(data[6:10], "big"),
            )
            for kind, data in self.options()
            if kind == PREFIX_INFORMATION and len(data) == 30
        ]


class NeighborSolicit(ND):
    """Type 135 (RFC 4861 section 4.3)."""

    __slots__ = ()
    SIZE = 24
    target = octets(8, 16, summed=True)


class NeighborAdvert(ND):
    """Type 136 (RFC 4861 section 4.4)."""

    __slots__ = ()
    SIZE = 24
    flags = u8(4, summed=True)
    router = bits(flags, 7, 1)
    solicited = bits(flags, 6, 1)
    override = bits(flags, 5, 1)
    target = octets(8, 16, summed=True)


MESSAGES: Final[dict[int, type[ND]]] = {
    ROUTER_SOLICIT: RouterSolicit,
    ROUTER_ADVERT: RouterAdvert,
    NEIGHBOR_SOLICIT: NeighborSolicit,
    NEIGHBOR_ADVERT: NeighborAdvert,
}
