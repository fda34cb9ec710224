"""The octets behind a packet in its frame: padding at best, and at worst data that no rule asks for."""

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ether
from vtl_tools.common.packet.arp import ARP
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.quick import Headers
from vtl_tools.common.packet.view import Buffer


def blank(pkt: Packet) -> None:
    """Fill what is behind an IP or ARP packet with zeros, in place. Raises Malformed, and nothing else.

    A frame of another type has no length that could be known.
    """
    if pkt.ethertype == ether.ARP:
        fill(pkt.buf, pkt.l3_off + ARP.SIZE)
    elif (net := pkt.ip) is not None:
        fill(pkt.buf, net.end)


def check(frame: Buffer, headers: Headers | None, now: float) -> str:
    """Blank the frame's padding; return why it cannot be, or "". As Identity.check(), for any sender."""
    if headers is not None:
        if (end := headers[9]) != len(frame):
            fill(frame, end)
        return ""
    try:
        blank(Packet.at(frame))
    except Malformed as err:
        return f"malformed-{err.what.partition('.')[0]}"
    return ""


def fill(buf: Buffer, end: int) -> None:
    """Overwrite what is behind `end` by zeros."""
    if end < len(buf):
        buf[end:] = bytes(len(buf) - end)
