"""Builds the answer to a rejected packet, in the name of its destination."""

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import derive, icmp
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import Buffer


def refusal(frame: Buffer) -> bytearray | None:
    """Return a reset for TCP, else an ICMP error; None if none may be sent. Accepts any octets."""
    try:
        pkt = Packet.at(frame)
        net = pkt.ip
        if net is None:
            return None
        if pkt.tcp is not None:
            return derive.rst(pkt)
        if isinstance(net, IPv4):
            return derive.icmp_error(pkt, icmp.UNREACHABLE, icmp.ADMIN_PROHIBITED, src=net.dst)
        return derive.icmp_error(pkt, icmp.V6_UNREACHABLE, icmp.V6_ADMIN_PROHIBITED, src=net.dst)
    except Malformed:
        return None
