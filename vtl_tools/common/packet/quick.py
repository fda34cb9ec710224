"""Read the headers of an ordinary frame in one unpack.

An ordinary frame is untagged. It has a whole TCP segment or UDP datagram right behind an IPv4 header without
options, or right behind an IPv6 header. Most frames are ordinary. read() returns None for all others and for
broken ones: the views of packet/packet.py read these, and tell why one is broken.
"""

import struct
from typing import TYPE_CHECKING, Final

from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.packet.vnet import VNET

if TYPE_CHECKING:  # the compiler's own integers: to read octets at such a place takes a third of the time
    from mypy_extensions import i64

SRC_MAC: Final = VNET + 6
KIND: Final = VNET + 12
"""Where the Ethertype of an untagged frame is."""
L3: Final = VNET + 14
"""Where the IP header of an untagged frame is."""
L4_OF_4: Final = L3 + 20
L4_OF_6: Final = L3 + 40
"""Where TCP or UDP is in an ordinary frame, by the version of IP."""

Headers = tuple[bytes, int, bytes, int, int, int, int, int, int, int, int, int]
"""start, protocol, parties, seq, ack, flags, window, l4, data, end, tsval, tsecr.

start: the frame's first octets, up to the Ethertype at least. parties: source and destination address,
source and destination port, as on the wire. l4, data, end: where in the frame the TCP or UDP header starts,
where its data starts, where the packet ends; padding may follow. tsval: NO_OPTIONS without TCP options;
OTHER_OPTIONS where timestamps are not the first option; both are negative. tsecr: 0 then. For UDP the numbers
of TCP are 0, and tsval is NO_OPTIONS.
"""

OTHER_OPTIONS: Final = -1
NO_OPTIONS: Final = -2
_NONE: Final[Headers] = b"", 0, b"", 0, 0, 0, 0, 0, 0, 0, NO_OPTIONS, 0

# virtio_net_hdr and Ethernet addresses; the Ethertype; of IP the version (and IHL), length, (fragment
# offset,) protocol; addresses and ports; SEG.SEQ and SEG.ACK, or UDP's length; data offset, flags and window
# as one number, since each becomes an object. Behind TCP's 20 octets the start of its options, if it has any:
# two no-operations and timestamps, or others.
_V4: Final = struct.Struct(f"!{KIND}sxHxHxxHxBxx12sIIIxxxxIII")
_V6: Final = struct.Struct(f"!{KIND}sHBxxxHBx36sIIIxxxxIII")
_read4: Final = _V4.unpack_from
_read6: Final = _V6.unpack_from
_SIZE4: Final = _V4.size
_SIZE6: Final = _V6.size
_SHORTEST: Final = L4_OF_4 + 8  # a header of UDP
_V4_KIND: Final = 0x08
_V6_KIND: Final = 0x86DD
_V4_START: Final = 0x0045  # the end of the Ethertype; version 4, and a header of 20 octets
_TCP: Final = 6
_UDP: Final = 17
_FRAGMENT: Final = 0x3FFF  # more fragments, or an offset (RFC 791 section 3.1)
_STAMPS_FIRST: Final = 0x0101_080A  # behind two no-operations (RFC 7323 appendix A)
_UDP_OCTETS: Final = 8
_PARTIES4_OCTETS: Final = 12
_PARTIES4: Final = struct.Struct("!4s4sHH")
_PARTIES6: Final = struct.Struct("!16s16sHH")

# For the compiler, which computes with these: where the fields of an ordinary frame are.
_AT_KIND: Final = 22
_AT_IP: Final = 24
_AT_LENGTH4: Final = 26
_AT_FRAGMENT: Final = 30
_AT_PROTOCOL4: Final = 33
_AT_PARTIES4: Final = 36
_AT_TCP4: Final = 44
_AT_LENGTH6: Final = 28
_AT_PROTOCOL6: Final = 30
_AT_PARTIES6: Final = 32
_AT_TCP6: Final = 64
_TCP_OCTETS: Final = 20
_HEAD: Final = 96  # up to the end of the timestamps behind IPv6
_read_head: Final = struct.Struct(f"!{_HEAD}s").unpack_from
_COPIED_MAX: Final = 2048
"""Octets up to which a copy of the whole frame takes less time than one of its head."""


def read(frame: Buffer, whole: bool = True) -> Headers | None:
    """Return the headers of an ordinary frame; None of any other. Nothing is raised for foreign octets.

    whole: whether all of the packet has to be there. Otherwise a frame may be cut behind its TCP header, as a
    capture is, and `end` is where the packet ended.
    """
    headers = unpack(frame, whole)
    return headers if headers[7] else None


def unpack(frame: Buffer, whole: bool = True) -> Headers:
    """Do what read() does; l4 is 0 of any other frame. To a compiled caller no object is returned."""
    if COMPILED:
        return unpack_octets(frame, whole)
    start: bytes  # the kinds are declared, since an unpack does not tell them
    parties: bytes
    kind: int
    first: int
    length: int
    fragment: int
    protocol: int
    seq: int
    ack: int
    control: int
    option: int
    stamp: int
    tsecr: int
    size = len(frame)
    if size < _SHORTEST:
        return _NONE
    if frame[KIND] == _V4_KIND:
        found = _read4(frame) if size >= _SIZE4 else _V4.unpack(_filled(frame, _SIZE4))
        (start, kind, length, fragment, protocol, parties,
         seq, ack, control, option, stamp, tsecr) = found  # fmt: skip
        if kind != _V4_START or fragment & _FRAGMENT:
            return _NONE
        l4, end = L4_OF_4, L3 + length
    else:
        found = _read6(frame) if size >= _SIZE6 else _V6.unpack(_filled(frame, _SIZE6))
        (start, kind, first, length, protocol, parties,
         seq, ack, control, option, stamp, tsecr) = found  # fmt: skip
        if kind != _V6_KIND or first >> 4 != 6:
            return _NONE
        l4, end = L4_OF_6, L4_OF_6 + length
    if protocol == _TCP:
        words = control >> 28
        data = l4 + (words << 2)
        if words < 5 or data > end or size < (end if whole else data):
            return _NONE
        if words < 8 or option != _STAMPS_FIRST:  # less than twelve octets of options, or others
            stamp, tsecr = OTHER_OPTIONS if words > 5 else NO_OPTIONS, 0
        flags, window = control >> 16 & 0xFF, control & 0xFFFF
        return start, protocol, parties, seq, ack, flags, window, l4, data, end, stamp, tsecr
    data = l4 + _UDP_OCTETS
    if protocol != _UDP or not data <= l4 + (seq >> 16) <= end or size < (end if whole else data):
        return _NONE
    return start, protocol, parties, 0, 0, 0, 0, l4, data, end, NO_OPTIONS, 0


def unpack_octets(frame: Buffer, whole: bool = True) -> Headers:
    """Do what unpack() does, octet by octet: compiled, half the instructions, as no number becomes an object.

    As plain Python this takes several times as long as the unpack.
    """
    size: i64 = len(frame)
    if size < _AT_TCP4 + _UDP_OCTETS:
        return _NONE
    head: bytes = b"" + frame if size <= _COPIED_MAX else _read_head(frame)[0]  # bytes() takes twice as long
    l4: i64
    end: i64
    if head[_AT_KIND] == _V4_KIND:
        if head[_AT_KIND + 1] or head[_AT_IP] != 0x45 or head[_AT_FRAGMENT] & 0x3F or head[_AT_FRAGMENT + 1]:
            return _NONE
        l4, end = _AT_TCP4, _AT_IP + _u16(head, _AT_LENGTH4)
        protocol, parties = head[_AT_PROTOCOL4], head[_AT_PARTIES4 : _AT_TCP4 + 4]
    else:
        if _u16(head, _AT_KIND) != _V6_KIND or head[_AT_IP] >> 4 != 6 or size < _AT_TCP6 + _UDP_OCTETS:
            return _NONE
        l4, end = _AT_TCP6, _AT_TCP6 + _u16(head, _AT_LENGTH6)
        protocol, parties = head[_AT_PROTOCOL6], head[_AT_PARTIES6 : _AT_TCP6 + 4]
    data: i64
    if protocol == _UDP:
        data = l4 + _UDP_OCTETS
        if not data <= l4 + _u16(head, l4 + 4) <= end or size < (end if whole else data):
            return _NONE
        return head, protocol, parties, 0, 0, 0, 0, l4, data, end, NO_OPTIONS, 0
    if protocol != _TCP or size < l4 + _TCP_OCTETS:
        return _NONE
    words: i64 = head[l4 + 12] >> 4
    data = l4 + (words << 2)
    if words < 5 or data > end or size < (end if whole else data):
        return _NONE
    tsval = OTHER_OPTIONS if words > 5 else NO_OPTIONS
    tsecr = 0
    if words >= 8 and u32(head, l4 + 20) == _STAMPS_FIRST:
        tsval, tsecr = u32(head, l4 + 24), u32(head, l4 + 28)
    seq, ack, window = u32(head, l4 + 4), u32(head, l4 + 8), _u16(head, l4 + 14)
    return head, protocol, parties, seq, ack, head[l4 + 13], window, l4, data, end, tsval, tsecr


def _u16(head: bytes, at: "i64") -> int:
    return head[at] << 8 | head[at + 1]


def u32(head: bytes, at: "i64") -> int:
    """Return the number in four octets."""
    number: i64 = head[at]
    number = number << 8 | head[at + 1]
    number = number << 8 | head[at + 2]
    return number << 8 | head[at + 3]


def reverse(parties: bytes) -> bytes:
    """Return the parties of the answer."""
    if len(parties) == _PARTIES4_OCTETS:
        return parties[4:8] + parties[:4] + parties[10:] + parties[8:10]
    return parties[16:32] + parties[:16] + parties[34:] + parties[32:34]


def split(parties: bytes) -> tuple[bytes, bytes, int, int]:
    """Return source and destination address, source and destination port."""
    return (_PARTIES4 if len(parties) == _PARTIES4_OCTETS else _PARTIES6).unpack(parties)


def _filled(frame: Buffer, size: int) -> bytes:
    """Return a copy of a short frame, filled up by zeros, which are behind its end."""
    return bytes(frame).ljust(size, b"\0")


COMPILED: Final = not hasattr(read, "__code__")
"""Whether this runs compiled."""
