"""The octets behind a packet in its frame: padding at best, and at worst data that no rule asks for."""

import struct
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ether
from vtl_tools.common.packet.arp import ARP
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.packet.vnet import VNET

_KIND: Final = VNET + 12
_L3: Final = VNET + 14
_IPV6: Final = 40
_LENGTHS: Final = struct.Struct("!H2xHH")
"""The type of what follows Ethernet; the length as IPv4 has it, and as IPv6 has it."""


def blank(pkt: Packet) -> None:
    """Fill what is behind an IP or ARP packet with zeros, in place. Raises Malformed, and nothing else.

    A frame of another type has no length that could be known.
    """
    if pkt.ethertype == ether.ARP:
        _fill(pkt.buf, pkt.l3_off + ARP.SIZE)
    elif (net := pkt.ip) is not None:
        _fill(pkt.buf, net.end)


def refuse(frame: Buffer, now: float) -> str:
    """Blank the frame's padding; return why it cannot be, or "". As Identity.refuse(), of whoever sends."""
    size = len(frame) - _L3
    if size >= _IPV6:
        kind, total_length, payload_length = _LENGTHS.unpack_from(frame, _KIND)
        if (
            size == total_length
            if kind == ether.IPV4
            else kind == ether.IPV6 and size == payload_length + _IPV6
        ):
            return ""
    try:
        blank(Packet.at(frame))
    except Malformed as err:
        return f"malformed-{err.what.partition('.')[0]}"
    return ""


def _fill(buf: Buffer, end: int) -> None:
    if end < len(buf):
        buf[end:] = bytes(len(buf) - end)
