"""TCP headers of frames that may be cut short: what an overhearer keeps of a segment is not all of it."""

import struct
from typing import Final, NamedTuple

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ether, ip, quick, vnet
from vtl_tools.common.packet.checksum import ones_sum
from vtl_tools.common.packet.options import walk_options
from vtl_tools.common.packet.tcp import FIN, TCP, TIMESTAMPS, WINDOW_SCALE
from vtl_tools.common.packet.view import U16, Buffer

USER_TIMEOUT: Final = 28  # RFC 5482

_TCP: Final = struct.Struct("!4sIIBBH")
"""Ports; SEG.SEQ, SEG.ACK, data offset, flags, window."""
_TWO_U32: Final = struct.Struct("!II")
_EXTENSIONS: Final = frozenset((ip.HOPOPTS, ip.ROUTING, ip.DSTOPTS))
_EXTENSIONS_MAX: Final = 8
_SUM_DONE: Final = vnet.F_NEEDS_CSUM | vnet.F_DATA_VALID


class SegmentHeader(NamedTuple):
    """A TCP segment, as its headers tell.

    key: the connection's: addresses of the VM and of its peer, their ports, and the VLAN tags. length:
    SEG.LEN in octets, SYN and FIN included. window: as sent, not shifted. tsval, tsecr: None without the
    option. l3, l4: where in the frame IP and TCP start; end: where the packet ends, unless it is cut short.
    """

    key: bytes
    seq: int
    ack: int
    flags: int
    window: int
    length: int
    tsval: int | None
    tsecr: int | None
    l3: int
    l4: int
    end: int


class SynOptions(NamedTuple):
    """Options of a SYN. scale: the window's shift; None: none. user_timeout: RFC 5482's option is there."""

    scale: int | None
    user_timeout: bool


def address_size(key: bytes) -> int:
    """Return the octets of an address in a connection's key: 4 or 16."""
    return 4 if len(key) < 36 else 16


def parse(frame: Buffer, from_vm: bool) -> SegmentHeader:
    """Take the headers apart. Raises Malformed for what is no TCP segment, or only a fragment of one."""
    headers = quick.read(frame, whole=False)
    if headers is not None and headers[1] == ip.TCP:
        _, _, parties, seq, ack, flags, window, l4, data, end, stamp, tsecr = headers
        l3, tags = quick.L3, b""
    else:
        l3, l4, end, addresses = _locate(frame)
        ports, seq, ack, offset, flags, window = _TCP.unpack_from(frame, l4)
        parties, tags = addresses + ports, bytes(frame[quick.KIND : l3 - 2])
        data, stamp, tsecr = l4 + (offset >> 4) * 4, quick.OTHER_OPTIONS, 0
        if data < l4 + TCP.SIZE or data > end:
            raise Malformed("tcp.data_offset", l4)
    tsval: int | None = stamp
    echo: int | None = tsecr
    if stamp == quick.NO_OPTIONS:
        tsval = echo = None
    elif stamp == quick.OTHER_OPTIONS:
        tsval, echo = _stamps(frame, l4, min(data, len(frame)))
    length = end - data + (flags & FIN) + (flags >> 1 & 1)
    key = (parties if from_vm else quick.reverse(parties)) + tags
    # Half of the time of calling SegmentHeader
    return tuple.__new__(SegmentHeader, (key, seq, ack, flags, window, length, tsval, echo, l3, l4, end))


def _stamps(frame: Buffer, l4: int, end: int) -> tuple[int | None, int | None]:
    for kind, at, size in walk_options(frame, l4 + TCP.SIZE, end):
        if kind == TIMESTAMPS and size == 10:
            tsval, tsecr = _TWO_U32.unpack_from(frame, at + 2)
            return tsval, tsecr
    return None, None


def syn_options(frame: Buffer, segment: SegmentHeader) -> SynOptions:
    """Return what a SYN offers."""
    scale, user_timeout = None, False
    end = min(segment.l4 + (frame[segment.l4 + 12] >> 4) * 4, len(frame))
    for kind, at, size in walk_options(frame, segment.l4 + TCP.SIZE, end):
        if kind == WINDOW_SCALE and size == 3:
            scale = min(frame[at + 2], 14)  # RFC 7323 section 2.3
        elif kind == USER_TIMEOUT and size == 4:
            user_timeout = True
    return SynOptions(scale, user_timeout)


def _locate(frame: Buffer) -> tuple[int, int, int, bytes]:
    """Find a segment behind VLAN tags, IP options or extension headers: IP, TCP, end, addresses."""
    size, l3 = len(frame), quick.L3
    if size < quick.L4_OF_4 + TCP.SIZE:
        raise Malformed("tcp", size)
    ethertype: int = U16.unpack_from(frame, quick.KIND)[0]
    for _ in range(ether.MAX_TAGS):
        if ethertype not in ether.TAGS:
            break
        if l3 + 4 > size:
            raise Malformed("vlan", l3)
        ethertype = U16.unpack_from(frame, l3 + 2)[0]
        l3 += 4
    if ethertype == ether.IPV4:
        return _locate_4(frame, l3, size)
    if ethertype == ether.IPV6:
        return _locate_6(frame, l3, size)
    raise Malformed("ether.type", l3 - 2)


def _locate_4(frame: Buffer, l3: int, size: int) -> tuple[int, int, int, bytes]:
    if l3 + 20 > size or frame[l3] >> 4 != 4:
        raise Malformed("ipv4", l3)
    l4 = l3 + (frame[l3] & 15) * 4
    total: int = U16.unpack_from(frame, l3 + 2)[0]
    if frame[l3 + 9] != ip.TCP or U16.unpack_from(frame, l3 + 6)[0] & 0x3FFF:
        raise Malformed("ipv4.protocol", l3)
    end = l3 + total if total else size  # a super-segment of more than 64 KiB has no length
    if l4 < l3 + 20 or l4 + TCP.SIZE > min(size, end):
        raise Malformed("ipv4.version_ihl", l3)
    return l3, l4, end, bytes(frame[l3 + 12 : l3 + 20])


def _locate_6(frame: Buffer, l3: int, size: int) -> tuple[int, int, int, bytes]:
    if l3 + 40 > size or frame[l3] >> 4 != 6:
        raise Malformed("ipv6", l3)
    payload: int = U16.unpack_from(frame, l3 + 4)[0]
    l4, protocol = l3 + 40, frame[l3 + 6]
    end = l4 + payload if payload else size
    for _ in range(_EXTENSIONS_MAX):
        if protocol not in _EXTENSIONS or l4 + 8 > size or (protocol == ip.HOPOPTS and l4 != l3 + 40):
            break  # hop-by-hop options stand first or are no header at all (RFC 8200 4.1)
        protocol, l4 = frame[l4], l4 + 8 + frame[l4 + 1] * 8
    if protocol != ip.TCP or l4 + TCP.SIZE > min(size, end):
        raise Malformed("ipv6.next_header", l3)
    return l3, l4, end, bytes(frame[l3 + 8 : l3 + 40])


def is_intact(frame: Buffer, segment: SegmentHeader) -> bool:
    """Tell whether a whole segment's checksum is right, or is for somebody else to complete."""
    if segment.end > len(frame):
        return False
    if frame[0] & _SUM_DONE:
        return True
    l3, l4, end = segment.l3, segment.l4, segment.end
    if frame[l3] >> 4 == 4:
        if ones_sum(frame[l3:l4]) != 0xFFFF:
            return False
        addresses = frame[l3 + 12 : l3 + 20]
    else:
        addresses = frame[l3 + 8 : l3 + 40]
    return ones_sum(frame[l4:end], ones_sum(addresses) + ip.TCP + (end - l4)) == 0xFFFF


def ethernet(frame: Buffer, segment: SegmentHeader) -> bytes:
    """Return a frame's Ethernet header, tags included."""
    return bytes(frame[vnet.VNET : segment.l3])


def ethernet_back(frame: Buffer, segment: SegmentHeader) -> bytes:
    """Return the Ethernet header, tags included, by which a frame's sender is answered."""
    at = vnet.VNET
    return bytes(frame[at + 6 : at + 12]) + bytes(frame[at : at + 6]) + bytes(frame[quick.KIND : segment.l3])
