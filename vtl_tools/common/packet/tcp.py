"""The TCP header and its options (RFC 9293 section 3.1)."""

import struct
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, Self

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.options import walk_options
from vtl_tools.common.packet.view import U16, U32, Buffer, View, bits, u8, u16, u32

FIN: Final = 0x01  # ints, since & of an IntFlag takes fifty times as long
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10
URG: Final = 0x20
ECE: Final = 0x40
CWR: Final = 0x80
AE: Final = 0x100  # in the octet before (RFC 9768)

NOP: Final = 1
MSS: Final = 2
WINDOW_SCALE: Final = 3  # RFC 7323 section 2
SACK_PERMITTED: Final = 4  # RFC 2018 section 2
SACK: Final = 5  # RFC 2018 section 3
TIMESTAMPS: Final = 8  # RFC 7323 section 3
USER_TIMEOUT: Final = 28  # RFC 5482 section 2
FAST_OPEN: Final = 34  # RFC 7413 section 4.1.1
OPTIONS_MAX: Final = 40
"""Octets of options, at most."""

_TWO_U32: Final = struct.Struct("!II")
_TIMESTAMPS_ALONE: Final = 0x0101_080A  # first octets of the options of nearly all segments


class TCP(View):
    """The TCP header at buf[off:], read and written in place. HEADER unpacks all of it at once."""

    __slots__ = ("payload_off",)
    payload_off: int
    """Offset in the buffer of the segment's data."""
    SIZE = 20
    SUM = 16
    HEADER: ClassVar = struct.Struct("!HHIIBBHHH")
    """sport, dport, seq, ack, data offset (upper four bits), flags, window, checksum, urgent."""

    sport = u16(0, summed=True)  # source port
    dport = u16(2, summed=True)  # destination port
    seq = u32(4, summed=True)  # SEG.SEQ
    ack = u32(8, summed=True)  # SEG.ACK, where flags has ACK
    offset_octet = u8(12, summed=True)
    data_offset = bits(offset_octet, 4, 4)  # header length in 32-bit words
    flags = u8(13, summed=True)  # FIN, SYN, ... of this module, without AE
    ae = bits(offset_octet, 0, 1)  # RFC 9768
    window = u16(14, summed=True)  # SEG.WND as sent: not yet shifted by the scale
    checksum = u16(16)
    urgent = u16(18, summed=True)

    @classmethod
    def at(cls, buf: Buffer, off: int, end: int | None = None, partial_at: int = 0) -> Self:
        """Validate untrusted octets. Raises Malformed, and nothing else. end: the IP packet's."""
        end = len(buf) if end is None else end
        room = end - off
        if off < 0 or room < cls.SIZE or end > len(buf):
            raise Malformed("tcp", off)
        size = buf[off + 12] >> 4 << 2
        if not cls.SIZE <= size <= room:
            raise Malformed("tcp.data_offset", off)
        view = cls(buf, off, end, partial_at)
        view.payload_off = off + size
        return view

    @property
    def header_length(self) -> int:
        """Header and options, in octets."""
        return self.payload_off - self.off

    @property
    def payload(self) -> memoryview:
        """The segment's data."""
        return memoryview(self.buf)[self.payload_off : self.end]

    @property
    def seg_len(self) -> int:
        """SEG.LEN: data in octets, and one each for SYN and FIN (RFC 9293 section 3.4)."""
        flags = self.buf[self.off + 13]
        return self.end - self.payload_off + (flags & FIN) + (flags >> 1 & 1)

    def options(self) -> Iterator[tuple[int, bytes]]:
        """Iterate over the options as (kind, data), without no-operations. Stops at an invalid length."""
        for kind, at, size in walk_options(self.buf, self.off + self.SIZE, self.payload_off):
            yield kind, bytes(self.buf[at + 2 : at + size])

    def find_option(self, kind: int, size: int = 0) -> int:
        """Return the offset of an option in the header; 0: absent. size: its size in octets; 0: any size."""
        for found, at, octets in walk_options(self.buf, self.off + self.SIZE, self.payload_off):
            if found == kind and size in (0, octets):
                return at - self.off
        return 0

    def erase_option(self, kind: int) -> bool:
        """Overwrite an option by no-operations, so that the receiver ignores it.

        Return whether it was present.
        """
        for found, at, size in walk_options(self.buf, self.off + self.SIZE, self.payload_off):
            if found == kind:
                self.write(at - self.off, bytes((NOP,)) * size)
                return True
        return False

    @property
    def mss(self) -> int | None:
        """The MSS option, in octets of data without any option (RFC 6691). None: absent."""
        at = self.find_option(MSS, 4)
        return U16.unpack_from(self.buf, self.off + at + 2)[0] if at else None

    @mss.setter
    def mss(self, octets: int) -> None:
        self._write_option(MSS, 4, U16.pack(octets))

    @property
    def window_scale(self) -> int | None:
        """The window scale option as sent; a shift over 14 means 14 (RFC 7323 2.3). None: absent."""
        at = self.find_option(WINDOW_SCALE, 3)
        return self.buf[self.off + at + 2] if at else None

    @window_scale.setter
    def window_scale(self, shift: int) -> None:
        self._write_option(WINDOW_SCALE, 3, bytes((shift,)))

    @property
    def sack_permitted(self) -> bool:
        """Whether the sender of this SYN accepts SACK options."""
        return self.find_option(SACK_PERMITTED, 2) > 0

    def offered(self) -> tuple[int | None, int | None, bool, tuple[int, int] | None]:
        """Return mss, window_scale, sack_permitted and timestamps, read in one pass over the options."""
        buf, mss, shift, sack, stamps = self.buf, None, None, False, None
        for kind, at, size in walk_options(buf, self.off + self.SIZE, self.payload_off):
            if kind == MSS:
                if size == 4 and mss is None:
                    mss = buf[at + 2] << 8 | buf[at + 3]
            elif kind == WINDOW_SCALE:
                if size == 3 and shift is None:
                    shift = buf[at + 2]
            elif kind == SACK_PERMITTED:
                sack = sack or size == 2
            elif kind == TIMESTAMPS and size == 10 and stamps is None:
                stamps = _TWO_U32.unpack_from(buf, at + 2)
        return mss, shift, sack, stamps

    @property
    def sack(self) -> list[tuple[int, int]]:
        """The SACK blocks as (left edge, right edge), in the order sent; at most four."""
        at = self.off + self.find_option(SACK)
        if at == self.off:
            return []
        last = at + 2 + (self.buf[at + 1] - 2) // 8 * 8
        return [_TWO_U32.unpack_from(self.buf, block) for block in range(at + 2, last, 8)]

    @sack.setter
    def sack(self, blocks: list[tuple[int, int]]) -> None:
        self._write_option(SACK, 2 + 8 * len(blocks), b"".join(_TWO_U32.pack(*block) for block in blocks))

    @property
    def timestamps(self) -> tuple[int, int] | None:
        """The timestamps option as (TSval, TSecr). None: absent."""
        at = self._find_timestamps()
        return _TWO_U32.unpack_from(self.buf, self.off + at + 2) if at else None

    @timestamps.setter
    def timestamps(self, pair: tuple[int, int]) -> None:
        at = self._find_timestamps()
        if not at:
            raise ValueError("the segment has no timestamps option to write")
        self.write(at + 2, _TWO_U32.pack(*pair))

    def _find_timestamps(self) -> int:
        at = self.off + self.SIZE
        if self.payload_off >= at + 12 and U32.unpack_from(self.buf, at)[0] == _TIMESTAMPS_ALONE:
            return self.SIZE + 2
        return self.find_option(TIMESTAMPS, 10)

    @property
    def user_timeout(self) -> int | None:
        """The user timeout option's field, in seconds, or in minutes above its highest bit. None: absent."""
        at = self.find_option(USER_TIMEOUT, 4)
        return U16.unpack_from(self.buf, self.off + at + 2)[0] if at else None

    def _write_option(self, kind: int, size: int, data: bytes) -> None:
        at = self.find_option(kind, size)
        if not at:
            raise ValueError(f"the segment has no option of kind {kind} and {size} octets to write")
        self.write(at + 2, data)


def encode_options(
    mss: int | None = None,
    window_scale: int | None = None,
    sack_permitted: bool = False,
    timestamps: tuple[int, int] | None = None,
    sack: Sequence[tuple[int, int]] = (),
    user_timeout: int | None = None,
) -> bytes:
    """Return TCP options as octets, aligned to 32 bits by no-operations, in the order of Linux."""
    out = b""
    if mss is not None:
        out += struct.pack("!BBH", MSS, 4, mss)
    if sack_permitted:
        out += bytes((NOP, NOP, SACK_PERMITTED, 2))
    if timestamps is not None:
        out += struct.pack("!III", _TIMESTAMPS_ALONE, *timestamps)
    if window_scale is not None:
        out += bytes((NOP, WINDOW_SCALE, 3, window_scale))
    if sack:
        out += bytes((NOP, NOP, SACK, 2 + 8 * len(sack))) + b"".join(_TWO_U32.pack(*block) for block in sack)
    if user_timeout is not None:
        out += struct.pack("!BBH", USER_TIMEOUT, 4, user_timeout)
    return out
