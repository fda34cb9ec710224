"""Reads frames that belong to no flow of a relay."""

import struct
from typing import Final

from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import NONE, VNET
from vtl_tools.common.tcp.wire import Path, is_intact

_PORTS: Final = struct.Struct("!HH")
_MACS: Final = struct.Struct("!6s6s")
_SYN_MAX: Final = VNET + 14 + 8 + 60 + 60
"""Octets of a frame with a SYN and no data: with tags, and with all the options of IP and TCP."""


def is_broken(frame: memoryview) -> bool:
    """Tell whether a checksum is wrong. It is computed last, so that a SYN flood costs little."""
    return not frame[0] & 3 and not is_intact(frame)


def syn_alone(frame: memoryview) -> bytes:
    """Return a SYN's frame without data and padding, of which a link carries up to 64 KiB."""
    if len(frame) <= _SYN_MAX:
        return bytes(frame)
    pkt = Packet.at(bytearray(frame))
    net, header = pkt.ip, pkt.tcp
    assert net is not None
    assert header is not None
    end = header.payload_off
    if isinstance(net, IPv4):
        net.total_length = end - net.off
    else:
        net.payload_length = end - net.off - IPv6.SIZE
    return NONE + bytes(pkt.buf[VNET:end])


def path_back(flow: bytes, frame: memoryview) -> Path:
    """Return the path to the sender of a frame of a flow."""
    size = (len(flow) - 4) // 2
    local_mac, remote_mac = _MACS.unpack_from(frame, VNET)
    sport, dport = _PORTS.unpack_from(flow, 2 * size)
    return Path(local_mac, remote_mac, flow[size : 2 * size], flow[:size], dport, sport)
