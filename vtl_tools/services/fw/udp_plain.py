"""The quick way into a UDP frame: all fields at once, where nothing unusual is in front of them."""

import struct
from typing import Final

from vtl_tools.common.model.tcp_plain import L3
from vtl_tools.common.packet import ether, ip
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import Buffer

# type; version and IHL, total length, flags and fragment offset, protocol, addresses; ports, length
_V4: Final = struct.Struct("!22xH BxHxxHxBxx4s4s 2s2sH")
# type; version, payload length, next header, addresses; ports, length
_V6: Final = struct.Struct("!22xH BxxxHBx16s16s 2s2sH")


def read(frame: Buffer, version: int) -> tuple[bytes, bytes, bytes, bytes] | None:
    """Return both addresses, and both ports as octets; None if the frame is not plain, or broken.

    Plain are: IP of this version right behind Ethernet, no IP options or extensions, no fragment.
    """
    if version == 4:
        if len(frame) < _V4.size:
            return None
        kind, first, total, fragment, protocol, src, dst, sport, dport, length = _V4.unpack_from(frame)
        if kind != ether.IPV4 or first != 0x45 or fragment & 0x3FFF:
            return None
        room = total - 20
    else:
        if len(frame) < _V6.size:
            return None
        kind, first, room, protocol, src, dst, sport, dport, length = _V6.unpack_from(frame)
        if kind != ether.IPV6 or first >> 4 != 6:
            return None
        total = room + 40
    if protocol != ip.UDP or not UDP.SIZE <= length <= room or L3 + total > len(frame):
        return None
    return src, dst, sport, dport
