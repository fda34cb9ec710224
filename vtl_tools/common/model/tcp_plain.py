"""The quick way into a TCP frame: all fields at once, where nothing unusual is in front of them."""

import struct
from typing import Final

from vtl_tools.common.packet import ether, ip, vnet
from vtl_tools.common.packet.tcp import SYN
from vtl_tools.common.packet.view import Buffer

L3: Final = vnet.VNET + 14
"""Where the IP header of a plain frame starts."""

# type; version and IHL, total length, flags and fragment offset, protocol, addresses; the TCP header
_V4: Final = struct.Struct("!22xH BxHxxHxBxx4s4s HHIIHH")
# type; version, payload length, next header, addresses; the TCP header
_V6: Final = struct.Struct("!22xH BxxxHBx16s16s HHIIHH")
_STAMP: Final = struct.Struct("!II")
_TIMESTAMPS_ALONE: Final = 0x0101_080A
_TIMESTAMPS_END: Final = 32


Segment = tuple[bytes, bytes, int, int, int, int, int, int, int, int, int]
"""src, dst, sport, dport, seq, ack, flags, window; where in the frame TCP, its data and the packet end."""


def read(frame: Buffer, version: int, refused: int = SYN) -> Segment | None:
    """Return a plain segment's fields; None if the frame is no such, or broken.

    Plain are: IP of this version right behind Ethernet, no IP options or extensions, no fragment, and none of
    the flags that are refused.
    """
    if version == 4:
        if len(frame) < L3 + 40:
            return None
        fields = _V4.unpack_from(frame)
        kind, first, total, fragment, protocol, src, dst, sport, dport, seq, ack, offset, window = fields
        if kind != ether.IPV4 or first != 0x45 or fragment & 0x3FFF:
            return None
        at, end = L3 + 20, L3 + total
    else:
        if len(frame) < L3 + 60:
            return None
        kind, first, total, protocol, src, dst, sport, dport, seq, ack, offset, window = _V6.unpack_from(
            frame
        )
        if kind != ether.IPV6 or first >> 4 != 6:
            return None
        at, end = L3 + 40, L3 + 40 + total
    data = at + (offset >> 12 << 2)
    if protocol != ip.TCP or offset < 0x5000 or offset & refused or not data <= end <= len(frame):
        return None
    return src, dst, sport, dport, seq, ack, offset & 0xFF, window, at, data, end


def tsval(frame: Buffer, at: int, data: int) -> int | None:
    """Return TSval, if timestamps are the first option, as nearly all senders have it. -1: look closer."""
    if data == at + 20:
        return None
    if data >= at + _TIMESTAMPS_END:
        kind, value = _STAMP.unpack_from(frame, at + 20)
        if kind == _TIMESTAMPS_ALONE:
            return int(value)
    return -1
