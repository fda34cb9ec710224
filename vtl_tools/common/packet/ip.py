"""Common base of IPv4 and IPv6: protocol numbers, and the pseudo-header of transport checksums."""

import struct
from typing import ClassVar, Final, cast

from vtl_tools.common.packet.checksum import update, update_partial
from vtl_tools.common.packet.view import U16, Buffer, Field, View

HOPOPTS: Final = 0
ICMP: Final = 1
TCP: Final = 6
UDP: Final = 17
ROUTING: Final = 43
FRAGMENT: Final = 44
ESP: Final = 50
AH: Final = 51
ICMPV6: Final = 58
NO_NEXT: Final = 59
DSTOPTS: Final = 60
DCCP: Final = 33
UDPLITE: Final = 136


def _read_protocol(view: "IP") -> int:
    return view.buf[view.protocol_at]


def _write_protocol(view: "IP", value: int) -> None:
    old, at = view.protocol, view.transport_sum_at
    view.buf[view.protocol_at] = value
    if view.SUM:
        view._resum(old, value)  # the low octet of its word, in IPv4
    if at:
        view._resum_pseudo_at(at, old, old, value)


class IP(View):
    """Base of IPv4 and IPv6.

    A write to an address, a length or the protocol number also updates the checksum of the transport header
    through the pseudo-header (RFC 9293 3.1, RFC 8200 8.1): by RFC 1624 for a full checksum, without the
    complement for a partial one. A later fragment has no transport header and is not updated.

    payload_off: offset in the buffer of the transport header. protocol_at: offset of the protocol number.
    """

    __slots__ = ("payload_off", "protocol_at")

    SUMS: ClassVar[dict[int, int]]
    """By protocol number: offset in the transport header of a checksum that covers a pseudo-header."""

    protocol = cast("Field[int]", property(_read_protocol, _write_protocol))
    """The protocol at payload_off, such as TCP. In IPv6 it is the last next header value."""

    def __init__(
        self, buf: Buffer, off: int, end: int, partial_at: int, payload_off: int, protocol_at: int
    ) -> None:
        self.buf = buf
        self.off = off
        self.end = end
        self.partial_at = partial_at
        self.payload_off = payload_off
        self.protocol_at = protocol_at

    @property
    def payload(self) -> memoryview:
        """The octets after the header and its options or extensions, to the packet's end."""
        return memoryview(self.buf)[self.payload_off : self.end]

    @property
    def is_later_fragment(self) -> bool:
        """Whether this is a later fragment, which has no transport header."""
        raise NotImplementedError

    @property
    def is_fragment(self) -> bool:
        """Whether this is a fragment, first or later."""
        raise NotImplementedError

    @property
    def final_at(self) -> int:
        """Offset in the buffer of the destination address of the pseudo-header."""
        raise NotImplementedError

    @property
    def final_dst(self) -> bytes:
        """The destination in the pseudo-header: dst, unless a source route replaces it."""
        raise NotImplementedError

    @property
    def is_routed(self) -> bool:
        """Whether a source route has hops left, so that dst is not the final destination."""
        raise NotImplementedError

    @property
    def transport_sum_at(self) -> int:
        """Offset in the buffer of the transport checksum that covers a pseudo-header. 0: there is none."""
        offset = self.SUMS.get(self.buf[self.protocol_at])
        if offset is None or self.is_later_fragment:
            return 0
        at = self.payload_off + offset
        return at if at + 2 <= self.end else 0

    def _resum_pseudo(self, old: int, new: int) -> None:
        """Update the transport checksum for a change of 16-bit words of the pseudo-header."""
        at = self.transport_sum_at
        if at:
            self._resum_pseudo_at(at, self.protocol, old, new)

    def _resum_pseudo_at(self, at: int, protocol: int, old: int, new: int) -> None:
        was = U16.unpack_from(self.buf, at)[0]
        if at == self.partial_at:
            U16.pack_into(self.buf, at, update_partial(was, old, new))
        elif protocol != UDP:
            U16.pack_into(self.buf, at, update(was, old, new))
        elif was:  # RFC 768: 0 is "not computed", and a sum of 0 is sent as all ones
            U16.pack_into(self.buf, at, update(was, old, new) or 0xFFFF)


def address(offset: int, size: int, *, final: bool = False) -> Field[bytes]:
    """Return an address field, which the header's checksum and the pseudo-header both cover.

    final: whether it is the destination, which a source route may replace in the pseudo-header.
    """
    form = struct.Struct(f"{size}s")

    def write(view: IP, value: bytes) -> None:
        if len(value) != size:
            raise ValueError(f"an address of {size} octets is needed, not {len(value)}")
        at = view.off + offset
        # The remainder is the sum, as in checksum.ones_sum; 0 instead of 0xFFFF is harmless here.
        old = int.from_bytes(form.unpack_from(view.buf, at)[0], "big") % 0xFFFF
        new = int.from_bytes(value, "big") % 0xFFFF
        form.pack_into(view.buf, at, value)
        if view.SUM:
            view._resum(old, new)
        if not final or view.final_at == at:
            view._resum_pseudo(old, new)

    def read(view: IP) -> bytes:
        value: bytes = form.unpack_from(view.buf, view.off + offset)[0]
        return value

    return cast("Field[bytes]", property(read, write))


def length(offset: int) -> Field[int]:
    """Return a 16-bit length field.

    The pseudo-header includes it, except for UDP, which has its own (RFC 768).
    """

    def write(view: IP, value: int) -> None:
        at = view.off + offset
        old = U16.unpack_from(view.buf, at)[0]
        U16.pack_into(view.buf, at, value)
        if view.SUM:
            view._resum(old, value)
        if view.protocol != UDP and not view.is_fragment:  # a fragment's length is not the datagram's
            view._resum_pseudo(old, value)

    def read(view: IP) -> int:
        value: int = U16.unpack_from(view.buf, view.off + offset)[0]
        return value

    return cast("Field[int]", property(read, write))
