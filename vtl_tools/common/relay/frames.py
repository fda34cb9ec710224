"""Reads frames of the guest before their flow is known."""

import struct
from typing import Final

from vtl_tools.common.packet.address import is_single_host
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.seq import seq_lt
from vtl_tools.common.packet.vnet import NONE, VNET
from vtl_tools.common.tcp.wire import Path, Segment, is_intact

# A frame with a plain ACK: with timestamps, without data. Read are the protocol; addresses, ports and
# SEG.SEQ; SEG.ACK; data offset and flags; the start of the options.
_ACK4: Final = struct.Struct(f"!{VNET + 14}x9xc2x16sI2s6x4s8x")
_ACK6: Final = struct.Struct(f"!{VNET + 14}x6xcx40sI2s6x4s8x")
_SIZE4: Final = VNET + 14 + 20 + 32
_SIZE6: Final = VNET + 14 + 40 + 32
_TCP: Final = b"\x06"
_STAMPED_ACK: Final = b"\x80\x10"
_STAMPS: Final = b"\x01\x01\x08\x0a"
_TO_MAC: Final = 10
_FROM_MAC: Final = 16
_KIND: Final = 22  # numbers, as the compiler computes with these
_ETHERTYPE: Final = VNET + 12
_IP: Final = (0x08, 0x86)  # the first octets of IPv4's and IPv6's Ethertypes; a tag's is 0x81, 0x88 or 0x91
_SYN_MAX: Final = VNET + 14 + 8 + 60 + 60
"""Octets of a frame with a SYN and no data: with tags, and with all the options of IP and TCP."""


def newest_acks(frames: list[memoryview]) -> list[memoryview]:
    """Return frames without each plain ACK that the next frame repeats with a higher number.

    A guest acknowledges every super-segment of bulk data, so that several ACKs come in one batch.
    """
    protocol: bytes  # the kinds are declared, since an unpack does not tell them
    parties: bytes
    ack: int
    flags: bytes
    option: bytes
    kept: list[memoryview] = []
    last, last_ack = b"", 0
    for frame in frames:
        flow, size = b"", len(frame)
        if size in (_SIZE4, _SIZE6):
            found = _ACK4.unpack(frame) if size == _SIZE4 else _ACK6.unpack(frame)
            protocol, parties, ack, flags, option = found
            if flags == _STAMPED_ACK and protocol == _TCP and option == _STAMPS:
                flow = parties
                if flow == last and seq_lt(last_ack, ack):
                    kept.pop()
                last_ack = ack
        last = flow
        kept.append(frame)
    return kept


def is_broken(segment: Segment, frame: memoryview) -> bool:
    """Tell whether a checksum is wrong. It is computed last, so that a SYN flood costs little."""
    return segment.sum_is_due and not is_intact(frame)


def start_of(frame: memoryview) -> bytes:
    """Return a frame, without the end of a long one, for those who read more of it than an octet or two."""
    return frame.tobytes() if len(frame) <= _SYN_MAX else bytes(frame[:_SYN_MAX])


def syn_alone(frame: memoryview, start: bytes) -> bytes:
    """Return a SYN's frame without data and padding, of which a link carries up to 64 KiB."""
    if len(start) == len(frame):
        return start
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


def path_back(flow: bytes, start: bytes) -> Path:
    """Return the path to the sender of a frame of a flow."""
    at = len(flow) - 4
    remote, local = flow[: at // 2], flow[at // 2 : at]
    remote_port, local_port = flow[at] << 8 | flow[at + 1], flow[at + 2] << 8 | flow[at + 3]
    return Path(start[_TO_MAC:_FROM_MAC], start[_FROM_MAC:_KIND], local, remote, local_port, remote_port)


def why_nobodys(start: bytes, path: Path) -> str | None:
    """Return why no host can have a connection by a frame that starts so: the reason of its drop."""
    if start[_ETHERTYPE] not in _IP:
        return "vlan"
    if path.local_mac[0] & 1 or not (is_single_host(path.local) and is_single_host(path.remote)):
        return "not-unicast"
    return None
