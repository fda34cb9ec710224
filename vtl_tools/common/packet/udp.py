"""The UDP header (RFC 768)."""

import struct
from typing import ClassVar, Self, cast

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.checksum import update, update_partial
from vtl_tools.common.packet.view import U16, Buffer, Field, View, u16


def _write_length(view: "UDP", value: int) -> None:
    """Write the length, which the header and the pseudo-header contain.

    A partial sum covers only the latter.
    """
    at = view.off + 4
    old = U16.unpack_from(view.buf, at)[0]
    U16.pack_into(view.buf, at, value)
    if view.off + view.SUM == view.partial_at:
        view.checksum = update_partial(view.checksum, old, value)
    else:
        view._resum(2 * old % 0xFFFF, 2 * value % 0xFFFF)


def _read_length(view: "UDP") -> int:
    value: int = U16.unpack_from(view.buf, view.off + 4)[0]
    return value


class UDP(View):
    """The UDP header at buf[off:], read and written in place."""

    __slots__ = ()
    SIZE = 8
    SUM = 6
    HEADER: ClassVar = struct.Struct("!HHHH")

    sport = u16(0, summed=True)  # source port
    dport = u16(2, summed=True)  # destination port
    length = cast("Field[int]", property(_read_length, _write_length))  # header and payload, in octets
    checksum = u16(6)  # 0: not computed (legal over IPv4, and in tunnels over IPv6: RFC 6935)

    @classmethod
    def at(
        cls, buf: Buffer, off: int, end: int | None = None, partial_at: int = 0, *, whole: bool = True
    ) -> Self:
        """Validate untrusted octets. Raises Malformed, and nothing else.

        end: the end of the IP packet. whole: False in a first fragment, whose length may exceed the end. A
        length of 0 is valid if the datagram is too long for the field, in a super-segment (RFC 2675 section
        4).
        """
        end = len(buf) if end is None else end
        room = end - off
        if off < 0 or room < cls.SIZE or end > len(buf):
            raise Malformed("udp", off)
        length: int = U16.unpack_from(buf, off + 4)[0]
        if length == 0 and room > 0xFFFF:
            length = room
        if length < cls.SIZE or (length > room and whole):
            raise Malformed("udp.length", off)
        return cls(buf, off, off + min(length, room), partial_at)

    @property
    def payload_off(self) -> int:
        """Offset in the buffer of the data."""
        return self.off + self.SIZE

    @property
    def payload(self) -> memoryview:
        """The data, to the datagram's end."""
        return memoryview(self.buf)[self.off + self.SIZE : self.end]

    def _resum(self, old: int, new: int) -> None:
        """Update the checksum for a change.

        0 means none and stays; a sum of 0 is sent as all ones (RFC 768).
        """
        at = self.off + self.SUM
        was = U16.unpack_from(self.buf, at)[0]
        if was and at != self.partial_at:
            U16.pack_into(self.buf, at, update(was, old, new) or 0xFFFF)
