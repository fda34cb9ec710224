"""Finds the connection that an ICMP error refers to."""

from typing import Final, NamedTuple

from vtl_tools.common.packet import icmp, ip
from vtl_tools.common.packet.icmp import ICMPv4
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import U32
from vtl_tools.common.rules.rule import Direction
from vtl_tools.services.fw.flow import flow_key

_ERRORS4: Final = frozenset((icmp.UNREACHABLE, icmp.TIME_EXCEEDED, icmp.PARAMETER_PROBLEM))
_ERRORS6: Final = frozenset(
    (icmp.V6_UNREACHABLE, icmp.V6_PACKET_TOO_BIG, icmp.V6_TIME_EXCEEDED, icmp.V6_PARAMETER_PROBLEM)
)
_REQUESTS: Final = (icmp.ECHO_REQUEST, icmp.V6_ECHO_REQUEST)
_REPLIES: Final = (icmp.ECHO_REPLY, icmp.V6_ECHO_REPLY)


class Quoted(NamedTuple):
    """key: of the connection. direction: of the quoted packet. seq: SEG.SEQ, if it is TCP."""

    key: bytes
    direction: Direction
    seq: int | None


def quoted_flow(pkt: Packet, direction: Direction, vlan: int) -> Quoted | None:
    """Return the quotation of an ICMP error; None: no error, too short, or not for the packet's sender.

    Redirects and source quenches also quote packets, but are no errors: rules judge them. Raises Malformed,
    and nothing else.
    """
    message, net = pkt.icmp, pkt.ip
    if message is None or net is None:
        return None
    four = isinstance(message, ICMPv4)
    if message.type not in (_ERRORS4 if four else _ERRORS6):
        return None
    inner = (IPv4 if four else IPv6).quoted(pkt.buf, message.payload_off, message.end)
    at, end = inner.payload_off, inner.end
    if inner.is_later_fragment or inner.src != net.dst:
        return None
    was = initiator = direction.other
    protocol, ports, seq = inner.protocol, bytes(4), None
    if protocol in (ip.TCP, ip.UDP):
        if at + 8 > end:  # RFC 792: the minimum quotation
            return None
        ports = bytes(pkt.buf[at : at + 4])
        if protocol == ip.TCP:
            seq = U32.unpack_from(pkt.buf, at + 4)[0]
    elif protocol == (ip.ICMP if four else ip.ICMPV6):
        if at + 8 > end or pkt.buf[at] not in (_REQUESTS[not four], _REPLIES[not four]) or pkt.buf[at + 1]:
            return None
        ports = bytes(pkt.buf[at + 4 : at + 6]) * 2
        if pkt.buf[at] == _REPLIES[not four]:
            initiator = direction
    return Quoted(flow_key(was, protocol, inner.src, inner.dst, ports, vlan, initiator), was, seq)
