"""Recognizes deceptive packets, which are dropped before any rule is asked."""

from vtl_tools.common.packet import ip, nd
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6


def suspicious(net: IPv4 | IPv6) -> str:
    """Return why a packet is dropped before any rule is asked, or "".

    A second fragment header could contradict the first. Neighbour discovery must have none at all (RFC 6980
    section 5). With a source route, the destination address is not the packet's final one (RFC 7126
    section 4.3, RFC 5095).
    """
    if isinstance(net, IPv4):
        return "source-route" if net.has_source_route else ""
    if net.fragment_off:
        if sum(number == ip.FRAGMENT for number, _, _ in net.extensions()) > 1:
            return "fragment-nested"
        at, is_first = net.payload_off, not net.is_later_fragment
        if is_first and net.protocol == ip.ICMPV6 and at < net.end and net.buf[at] in nd.MESSAGES:
            return "fragment-neighbour"
    return "source-route" if net.is_routed else ""
