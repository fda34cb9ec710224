"""ICMP errors about segments that are too big for the path (RFC 1191, RFC 8201): they concern the deputy."""

from typing import Final, NamedTuple

from vtl_tools.common.packet import icmp, ip
from vtl_tools.common.packet.icmp import ICMPv4
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import U32

_NUMBER_AT: Final = 4  # SEG.SEQ in a TCP header


class TooBig(NamedTuple):
    """parties: of the segment that was too big, as quick.read() gives them. mtu: of the path, in octets."""

    parties: bytes
    seq: int
    mtu: int


def too_big(pkt: Packet) -> TooBig | None:
    """Return what an ICMP error says; None: it is none about a TCP segment. Raises Malformed."""
    message = pkt.icmp
    if message is None or pkt.is_fragment:
        return None
    if isinstance(message, ICMPv4):
        if (message.type, message.code) != (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED):
            return None
        net: IPv4 | IPv6 = IPv4.quoted(message.buf, message.payload_off, message.end)
        mtu = message.rest & 0xFFFF
    elif message.type == icmp.V6_PACKET_TOO_BIG:
        net = IPv6.quoted(message.buf, message.payload_off, message.end)
        mtu = message.rest
    else:
        return None
    at = net.payload_off
    if net.protocol != ip.TCP or net.is_later_fragment or at + _NUMBER_AT + 4 > net.end:
        return None
    ports = bytes(message.buf[at : at + _NUMBER_AT])
    return TooBig(net.src + net.dst + ports, U32.unpack_from(message.buf, at + _NUMBER_AT)[0], mtu)
