"""What is behind a packet in its frame: padding at best, and at worst data that no rule asks for."""

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ether
from vtl_tools.common.packet.arp import ARP
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.packet.vnet import VNET

_L3 = VNET + 14
_V4, _V6 = ether.IPV4.to_bytes(2, "big"), ether.IPV6.to_bytes(2, "big")


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
    if size > 40:
        kind = bytes(frame[VNET + 12 : _L3])
        if (kind == _V4 and frame[_L3 + 2] << 8 | frame[_L3 + 3] == size) or (
            kind == _V6 and (frame[_L3 + 4] << 8 | frame[_L3 + 5]) + 40 == size
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
