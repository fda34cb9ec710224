"""The IPv4 header and its options (RFC 791)."""

import struct
from collections.abc import Iterator
from typing import ClassVar, Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ip
from vtl_tools.common.packet.checksum import update
from vtl_tools.common.packet.options import walk_options
from vtl_tools.common.packet.view import U16, Buffer, bits, u8, u16

RECORD_ROUTE: Final = 7
TIMESTAMP: Final = 68
LOOSE_SOURCE_ROUTE: Final = 131
STRICT_SOURCE_ROUTE: Final = 137
ROUTER_ALERT: Final = 148  # RFC 2113


class IPv4(ip.IP):
    """The IPv4 header at buf[off:] (RFC 791 section 3.1). Every write updates its checksum."""

    __slots__ = ()
    SIZE = 20
    SUM = 10
    SUMS = {ip.TCP: 16, ip.UDP: 6, ip.DCCP: 6, ip.UDPLITE: 6}  # noqa: RUF012 - ClassVar in the base
    HEADER: ClassVar = struct.Struct("!BBHHHBBH4s4s")

    version_ihl = u8(0, summed=True)
    ihl = bits(version_ihl, 0, 4)  # header length in 32-bit words
    tos = u8(1, summed=True)
    dscp = bits(tos, 2, 6)  # RFC 2474
    ecn = bits(tos, 0, 2)  # RFC 3168
    total_length = ip.length(2)  # header and payload in octets; 0 in a super-segment over 64 KiB
    identification = u16(4, summed=True)
    flags_fragment = u16(6, summed=True)
    dont_fragment = bits(flags_fragment, 14, 1)
    more_fragments = bits(flags_fragment, 13, 1)
    fragment_offset = bits(flags_fragment, 0, 13)  # in units of 8 octets
    ttl = u8(8, summed=True)
    checksum = u16(10)  # of the header
    src = ip.address(12, 4)
    dst = ip.address(16, 4, final=True)

    @classmethod
    def at(
        cls, buf: Buffer, off: int, end: int | None = None, partial_at: int = 0, *, gso: bool = False
    ) -> Self:
        """Validate untrusted octets. Raises Malformed, and nothing else.

        end: the end of the frame; total_length gives the view's own. gso: the frame is a super-segment. A
        total_length of 0 then means that the length exceeds 16 bits, and the packet ends at the frame's end.
        """
        end = len(buf) if end is None else end
        room = end - off
        if off < 0 or room < cls.SIZE or end > len(buf):
            raise Malformed("ipv4", off)
        first = buf[off]
        size = (first & 0x0F) << 2
        total: int = U16.unpack_from(buf, off + 2)[0]
        if first >> 4 != 4 or size < cls.SIZE:
            raise Malformed("ipv4.version_ihl", off)
        if total == 0 and gso and room > 0xFFFF:
            total = room
        if not size <= total <= room:
            raise Malformed("ipv4.total_length", off)
        return cls(buf, off, off + total, partial_at, off + size, off + 9)

    @classmethod
    def quoted(cls, buf: Buffer, off: int, end: int) -> Self:
        """Validate a header quoted by an ICMP error: like at(), but the payload may be truncated."""
        if off < 0 or not off + cls.SIZE <= end <= len(buf):
            raise Malformed("ipv4", off)
        size = (buf[off] & 0x0F) << 2
        if buf[off] >> 4 != 4 or not cls.SIZE <= size <= end - off:
            raise Malformed("ipv4.version_ihl", off)
        total: int = U16.unpack_from(buf, off + 2)[0]
        return cls(buf, off, max(off + size, min(end, off + total)), 0, off + size, off + 9)

    @property
    def header_length(self) -> int:
        """Header and options, in octets."""
        return self.payload_off - self.off

    @property
    def is_fragment(self) -> bool:
        """Whether this is a fragment, first or later."""
        return self.flags_fragment & 0x3FFF != 0

    @property
    def is_later_fragment(self) -> bool:
        """Whether this is a later fragment, which has no transport header."""
        return self.flags_fragment & 0x1FFF != 0

    def options(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over the options as (type octet, data). Stops at an invalid length."""
        for kind, at, size in walk_options(self.buf, self.off + self.SIZE, self.payload_off):
            yield kind, bytes(self.buf[at + 2 : at + size])

    @property
    def has_source_route(self) -> bool:
        """Whether there is a loose or strict source route; most networks drop such packets (RFC 7126)."""
        return self._source_route()[1] > 0

    @property
    def is_routed(self) -> bool:
        """Whether a source route has hops left, so that dst is not the final destination."""
        at, size = self._source_route()
        return size >= 7 and self.buf[at + 2] <= size  # RFC 791: a pointer past the length is an end

    @property
    def final_at(self) -> int:
        """Offset in the buffer of the destination address of the pseudo-header."""
        if not self.is_routed:
            return self.off + 16
        at, size = self._source_route()
        return at + 3 + ((size - 3) // 4 - 1) * 4

    @property
    def final_dst(self) -> bytes:
        """The destination in the pseudo-header: the last address of a source route with hops left, or dst."""
        at = self.final_at
        return bytes(self.buf[at : at + 4])

    def _source_route(self) -> tuple[int, int]:
        """Return offset in the buffer and size of the source route option; (0, 0) if there is none."""
        if self.payload_off - self.off > self.SIZE:
            for kind, at, size in walk_options(self.buf, self.off + self.SIZE, self.payload_off):
                if kind in (LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE) and size >= 3:
                    return at, size
        return 0, 0

    def _resum(self, old: int, new: int) -> None:
        """Update the header checksum for a change.

        It is full in every frame, even if the transport's is partial.
        """
        at = self.off + self.SUM
        U16.pack_into(self.buf, at, update(U16.unpack_from(self.buf, at)[0], old, new))
