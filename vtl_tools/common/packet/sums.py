"""Checksums of whole packets, computed from scratch. Writes to fields of a view do not need them."""

from vtl_tools.common.packet.checksum import checksum, ones_sum, pseudo_sum
from vtl_tools.common.packet.icmp import ICMPv4, ICMPv6
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import U16, View

Transport = TCP | UDP | ICMPv4 | ICMPv6


def ip_checksum(net: IPv4) -> int:
    """Return the correct checksum of an IPv4 header (RFC 791 section 3.1)."""
    header = memoryview(net.buf)[net.off : net.payload_off]
    return checksum(header, 0xFFFF - net.checksum)  # 0xFFFF - x takes x out of the sum


def pseudo(net: IPv4 | IPv6, transport: Transport) -> int:
    """Return the pseudo-header's sum, which is the partial checksum; 0 for ICMPv4, which has none."""
    if isinstance(transport, ICMPv4):
        return 0
    return pseudo_sum(net.src, net.final_dst, net.protocol, transport.end - transport.off)


def transport_checksum(net: IPv4 | IPv6, transport: Transport) -> int:
    """Return the correct full transport checksum of a whole packet; never 0 for UDP (RFC 768)."""
    message = memoryview(transport.buf)[transport.off : transport.end]
    full = checksum(message, pseudo(net, transport) + 0xFFFF - transport.checksum)
    if full or isinstance(transport, TCP | ICMPv6):
        return full
    # With no pseudo-header an ICMPv4 message can be all zeros, whose checksum is all ones.
    is_zeros = not (any(message[:2]) or any(message[4:]))
    return 0xFFFF if isinstance(transport, UDP) or is_zeros else 0


def sums_to_ones(view: View, end: int, initial: int) -> bool:
    """Return whether the octets from a header to end include a correct checksum (RFC 1071 section 1)."""
    return ones_sum(memoryview(view.buf)[view.off : end], initial) == 0xFFFF


def fill(net: IPv4 | IPv6, transport: Transport, *, full: bool) -> None:
    """Write the transport checksum of a whole packet, computed from scratch, full or partial."""
    value = transport_checksum(net, transport) if full else pseudo(net, transport)
    U16.pack_into(transport.buf, transport.off + transport.SUM, value)
