"""The IPv6 header and its extension headers (RFC 8200)."""

import struct
from collections.abc import Iterator
from typing import ClassVar, Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ip
from vtl_tools.common.packet.view import U16, Buffer, View, bits, u8, u16, u32

MAX_EXTENSIONS: Final = 8
"""Maximum number of extension headers; a longer chain is Malformed (RFC 8200 4.1 lists 7)."""

EXTENSIONS: Final = frozenset((ip.HOPOPTS, ip.ROUTING, ip.FRAGMENT, ip.AH, ip.DSTOPTS))


class Fragment(View):
    """The fragment header (RFC 8200 section 4.5)."""

    __slots__ = ()
    SIZE = 8
    next_header = u8(0)
    offset_flags = u16(2)
    offset = bits(offset_flags, 3, 13)  # in units of 8 octets
    more = bits(offset_flags, 0, 1)
    identification = u32(4)


class IPv6(ip.IP):
    """The IPv6 header at buf[off:] (RFC 8200 section 3), and its extension headers.

    fragment_off, routing_off: offsets in the buffer of these extension headers. 0: absent.
    """

    __slots__ = ("fragment_off", "routing_off")
    fragment_off: int
    routing_off: int
    SIZE = 40
    SUMS = {ip.TCP: 16, ip.UDP: 6, ip.ICMPV6: 2, ip.DCCP: 6, ip.UDPLITE: 6}  # noqa: RUF012 - ClassVar in the base
    HEADER: ClassVar = struct.Struct("!IHBB16s16s")

    version_class_flow = u32(0)
    traffic_class = bits(version_class_flow, 20, 8)
    dscp = bits(version_class_flow, 22, 6)  # RFC 2474
    ecn = bits(version_class_flow, 20, 2)  # RFC 3168
    flow_label = bits(version_class_flow, 0, 20)
    payload_length = ip.length(4)  # extensions and payload in octets; 0 in a super-segment over 64 KiB
    next_header = u8(6)  # the first; IP.protocol is the last, whose setter updates the checksum
    hop_limit = u8(7)
    ttl = hop_limit  # so that pkt.ip.ttl holds for both versions
    src = ip.address(8, 16)
    dst = ip.address(24, 16, final=True)

    @classmethod
    def at(
        cls, buf: Buffer, off: int, end: int | None = None, partial_at: int = 0, *, gso: bool = False
    ) -> Self:
        """Validate untrusted octets. Raises Malformed, and nothing else.

        end: the end of the frame; payload_length gives the view's own. gso: the frame is a super-segment. A
        payload_length of 0 then means that the length exceeds 16 bits, and the packet ends at the frame's
        end.
        """
        end = len(buf) if end is None else end
        room = end - off - cls.SIZE
        if off < 0 or room < 0 or end > len(buf):
            raise Malformed("ipv6", off)
        if buf[off] >> 4 != 6:
            raise Malformed("ipv6.version", off)
        length: int = U16.unpack_from(buf, off + 4)[0]
        if length == 0 and gso and room > 0xFFFF:
            length = room
        if length > room:
            raise Malformed("ipv6.payload_length", off)
        payload_off = off + cls.SIZE
        view = cls(buf, off, payload_off + length, partial_at, payload_off, off + 6)
        view.fragment_off = view.routing_off = 0
        if buf[off + 6] in EXTENSIONS:
            view._walk()
        return view

    @classmethod
    def quoted(cls, buf: Buffer, off: int, end: int) -> Self:
        """Validate a header quoted by an ICMP error: like at(), but the payload may be truncated."""
        if off < 0 or not off + cls.SIZE <= end <= len(buf):
            raise Malformed("ipv6", off)
        if buf[off] >> 4 != 6:
            raise Malformed("ipv6.version", off)
        payload_off = off + cls.SIZE
        length: int = U16.unpack_from(buf, off + 4)[0]
        view = cls(buf, off, min(end, payload_off + length), 0, payload_off, off + 6)
        view.fragment_off = view.routing_off = 0
        if buf[off + 6] in EXTENSIONS:
            view._walk()
        return view

    def _walk(self) -> None:
        """Parse the extension headers. Stop after the fragment header of a later fragment."""
        buf = self.buf
        for _ in range(MAX_EXTENSIONS):
            protocol, at = buf[self.protocol_at], self.payload_off
            if protocol not in EXTENSIONS or (protocol == ip.HOPOPTS and at != self.off + self.SIZE):
                return  # hop-by-hop options stand first or are no header at all (RFC 8200 4.1)
            if at + 8 > self.end:
                raise Malformed("ipv6.extension", at)
            if protocol == ip.FRAGMENT:
                size = 8
            elif protocol == ip.AH:
                size = (buf[at + 1] + 2) * 4  # RFC 4302 2.2
            else:
                size = (buf[at + 1] + 1) * 8
            if at + size > self.end:
                raise Malformed("ipv6.extension", at)
            self.protocol_at = at
            self.payload_off = at + size
            if protocol == ip.ROUTING:
                self.routing_off = at
            elif protocol == ip.FRAGMENT:
                self.fragment_off = at
                if self.is_later_fragment:
                    return
        if buf[self.protocol_at] in EXTENSIONS:
            raise Malformed("ipv6.extension", self.payload_off)

    def extensions(self) -> Iterator[tuple[int, int, int]]:
        """Iterate over the extension headers as (protocol number, offset in the buffer, size in octets)."""
        number, at = self.next_header, self.off + self.SIZE
        while at < self.payload_off:
            if number == ip.FRAGMENT:
                size = 8
            else:
                size = (self.buf[at + 1] + 2) * 4 if number == ip.AH else (self.buf[at + 1] + 1) * 8
            yield number, at, size
            number = self.buf[at]
            at += size

    @property
    def header_length(self) -> int:
        """Header and extensions, in octets."""
        return self.payload_off - self.off

    @property
    def fragment(self) -> Fragment | None:
        """The fragment header, if there is one."""
        return Fragment(self.buf, self.fragment_off, self.end) if self.fragment_off else None

    @property
    def is_fragment(self) -> bool:
        """Whether this is a fragment, first or later. An atomic fragment counts as whole (RFC 6946)."""
        at = self.fragment_off
        return at != 0 and U16.unpack_from(self.buf, at + 2)[0] & 0xFFF9 != 0

    @property
    def is_later_fragment(self) -> bool:
        """Whether this is a later fragment, which has no transport header."""
        at = self.fragment_off
        return at != 0 and U16.unpack_from(self.buf, at + 2)[0] & 0xFFF8 != 0

    @property
    def has_source_route(self) -> bool:
        """Whether there is a routing header of any type."""
        return self.routing_off != 0

    @property
    def is_routed(self) -> bool:
        """Whether a routing header has segments left, so that dst is not the final destination."""
        at = self.routing_off
        return at != 0 and self.buf[at + 3] != 0  # segments left

    @property
    def final_at(self) -> int:
        """Offset in the buffer of the destination address of the pseudo-header."""
        at = self.routing_off
        if not self.is_routed:
            return self.off + 24
        size = (self.buf[at + 1] + 1) * 8
        kind = self.buf[at + 2]
        if size < 24 or kind not in (0, 2, 4):
            return self.off + 24
        return at + 8 if kind == 4 else at + 8 + ((size - 8) // 16 - 1) * 16

    @property
    def final_dst(self) -> bytes:
        """The destination in the pseudo-header (RFC 8200 8.1).

        The last address of a routing header of type 0 or 2 (RFC 6275), or the first of a segment list (type
        4, RFC 8754). dst if no segments are left, or the type is unknown.
        """
        at = self.final_at
        return bytes(self.buf[at : at + 16])
