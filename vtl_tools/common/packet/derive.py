"""Builds the answer to a packet (paper section 2.4): ACK, RST, SYN-ACK, ARP and ND replies, ICMP errors.

Each function returns a new frame that the caller owns, with the same VLAN tags and full checksums, or None
if the packet calls for no such answer. A broken packet raises Malformed.
"""

from typing import Final

from vtl_tools.common.packet import address, arp, build, icmp, ip, nd, tcp, vnet
from vtl_tools.common.packet.address import ALL_NODES, is_multicast, is_multicast_mac, is_single_host
from vtl_tools.common.packet.icmp import ICMPv4
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.seq import seq_add
from vtl_tools.common.packet.udp import UDP

ERROR4_MAX: Final = 576
"""Maximum octets of an ICMPv4 error, IP header included (RFC 1812 section 4.3.2.3)."""

ERROR6_MAX: Final = 1280
"""The same for ICMPv6: the minimum IPv6 MTU (RFC 4443 section 2.4 c)."""

INTERNETWORK_CONTROL: Final = 0xC0
"""The precedence of ICMPv4 errors, in the TOS octet (RFC 1812 section 4.3.2.5)."""


def _l2_back(pkt: Packet, src_mac: bytes | None = None, dst_mac: bytes | None = None) -> bytes:
    """Return the packet's Ethernet header, tags included, with source and destination swapped."""
    eth = pkt.eth
    tags = bytes(pkt.buf[vnet.VNET + 12 : pkt.l3_off])
    return (dst_mac or eth.src) + (src_mac or eth.dst) + tags


def _asking(pkt: Packet) -> tcp.TCP | None:
    """Return the TCP header if it may be answered: no RST, and between single hosts (RFC 1122 4.2.3.10)."""
    net, segment = pkt.ip, pkt.tcp
    if net is None or segment is None or segment.flags & tcp.RST:
        return None
    return segment if is_single_host(net.src) and is_single_host(net.dst) else None


def _tcp_back(pkt: Packet, seq: int, ack_number: int, flags: int, window: int, options: bytes) -> bytearray:
    net, segment = pkt.ip, pkt.tcp
    assert net is not None
    assert segment is not None
    header = build.tcp_header(segment.dport, segment.sport, seq, ack_number, flags, window, options)
    return build.over_ip(_l2_back(pkt), net.dst, net.src, ip.TCP, header, dont_fragment=True)


def ack(pkt: Packet, *, window: int, timestamp: int | None = None) -> bytearray | None:
    """Return an acknowledgement of a whole TCP segment. None for a RST, and for other protocols.

    window: the value to send, already shifted. timestamp: TSval, if the segment has the option; the default
    is the segment's TSecr, the last TSval that its sender received (RFC 7323 section 3.2).
    """
    segment = _asking(pkt)
    if segment is None:
        return None
    options = b""
    if (theirs := segment.timestamps) is not None:
        options = tcp.encode_options(timestamps=(theirs[1] if timestamp is None else timestamp, theirs[0]))
    number = seq_add(segment.seq, segment.seg_len)
    return _tcp_back(pkt, segment.ack, number, tcp.ACK, window, options)


def rst(pkt: Packet) -> bytearray | None:
    """Return the reset that state CLOSED sends for a segment (RFC 9293 section 3.10.7.1).

    None for a RST, which is never answered, and for other protocols.
    """
    segment = _asking(pkt)
    if segment is None:
        return None
    if segment.flags & tcp.ACK:
        return _tcp_back(pkt, segment.ack, 0, tcp.RST, 0, b"")
    number = seq_add(segment.seq, segment.seg_len)
    return _tcp_back(pkt, 0, number, tcp.RST | tcp.ACK, 0, b"")


def syn_ack(pkt: Packet, *, iss: int, window: int, options: bytes = b"") -> bytearray | None:
    """Return the answer to a SYN (RFC 9293 section 3.10.7.2). None for anything else.

    iss: our initial sequence number. options: as tcp.encode_options() returns them. The ACK covers the SYN
    but not data in the same segment: an endpoint may accept it or let it be retransmitted.
    """
    segment = _asking(pkt)
    if segment is None or not pkt.is_syn:
        return None
    return _tcp_back(pkt, iss, seq_add(segment.seq, 1), tcp.SYN | tcp.ACK, window, options)


def arp_reply(pkt: Packet, mac: bytes) -> bytearray | None:
    """Return the ARP reply that gives `mac` for the requested address (RFC 826).

    None if the packet is no request, and for an announcement, which requests its sender's own address.
    """
    asked = pkt.arp
    if asked is None or asked.oper != arp.REQUEST or asked.spa == asked.tpa:
        return None
    head = arp.ARP.ETHERNET_IPV4 + arp.REPLY.to_bytes(2, "big")
    body = arp.ARP.HEADER.pack(head, mac, asked.tpa, asked.sha, asked.spa)
    return bytearray(vnet.NONE + _l2_back(pkt, mac) + body)


def nd_reply(pkt: Packet, mac: bytes, *, router: bool = False) -> bytearray | None:
    """Return the neighbour advertisement that gives `mac` for the solicited target (RFC 4861 section 7.2.4).

    None if the packet is no solicitation, or one that section 7.1.1 discards; the checksum is not verified.
    Duplicate address detection, which comes from ::, is answered to all nodes and unsolicited.
    """
    asked, net = pkt.nd, pkt.ipv6
    if not isinstance(asked, nd.NeighborSolicit) or net is None:
        return None
    src, target = net.src, asked.target
    probe = address.is_unspecified(src)
    if net.hop_limit != 255 or asked.code != 0 or is_multicast(target) or is_multicast(src):
        return None
    if probe and (not address.is_solicited_node(net.dst) or asked.source_lladdr is not None):
        return None
    dst = ALL_NODES if probe else src
    l2 = _l2_back(pkt, mac, address.multicast_mac(dst) if probe else None)
    flags = router << 31 | (not probe) << 30 | 1 << 29
    header = bytes((nd.NEIGHBOR_ADVERT, 0, 0, 0)) + flags.to_bytes(4, "big") + target
    header += build.nd_option(nd.TARGET_LLADDR, mac)
    return build.over_ip(l2, target, dst, ip.ICMPV6, header, ttl=255)


def echo_reply(pkt: Packet) -> bytearray | None:
    """Return the answer to an echo request (RFC 792, RFC 4443 section 4.2). None for anything else.

    Also None for a fragment, and for a request to a group (RFC 1122 3.2.2.6 allows silence).
    """
    asked, net = pkt.icmp, pkt.ip
    if asked is None or net is None or not asked.is_echo_request or net.is_fragment:
        return None
    if not is_single_host(net.src) or not is_single_host(net.dst) or is_multicast_mac(pkt.eth.dst):
        return None
    if isinstance(asked, ICMPv4):
        kind, protocol = icmp.ECHO_REPLY, ip.ICMP
    else:
        kind, protocol = icmp.V6_ECHO_REPLY, ip.ICMPV6
    header = icmp.ICMP.HEADER.pack(kind, 0, 0, asked.rest)
    return build.over_ip(_l2_back(pkt), net.dst, net.src, protocol, header, asked.payload)


def icmp_error(
    pkt: Packet, kind: int, code: int, *, src: bytes, src_mac: bytes | None = None, rest: int = 0
) -> bytearray | None:
    """Return an ICMP error about a packet, for its sender (RFC 792, RFC 1812 section 4.3.2; RFC 4443 2.4).

    src: the address that the error comes from, of the packet's IP version. src_mac: its Ethernet address;
    None: the packet's destination. rest: the 4 octets after the checksum, such as the MTU of
    FRAGMENTATION_NEEDED and V6_PACKET_TOO_BIG. The error quotes as much of the packet as is allowed. None if
    no error may be sent: about errors, groups and later fragments, and to senders that are not a single host.
    """
    net = pkt.ip
    if net is None or not may_send_error(pkt, kind, code):
        return None
    if len(src) != len(net.src):
        raise ValueError("src is not of the packet's IP version")
    if isinstance(net, IPv4):
        protocol, room, tos = ip.ICMP, ERROR4_MAX - IPv4.SIZE, INTERNETWORK_CONTROL
    else:
        protocol, room, tos = ip.ICMPV6, ERROR6_MAX - IPv6.SIZE, 0
    quote = memoryview(net.buf)[net.off : min(net.end, net.off + room - icmp.ICMP.SIZE)]
    header = icmp.ICMP.HEADER.pack(kind, code, 0, rest)
    return build.over_ip(_l2_back(pkt, src_mac), src, net.src, protocol, header, quote, tos=tos)


def may_send_error(pkt: Packet, kind: int, code: int) -> bool:
    """Return whether an ICMP error may be sent about a packet (RFC 1122 section 3.2.2, RFC 4443 2.4 e).

    The packet does not reveal a subnet's broadcast address, so its Ethernet destination is checked instead.
    """
    net = pkt.ip
    if net is None or not is_single_host(net.src) or address.is_multicast_mac(pkt.eth.src):
        return False
    if net.is_later_fragment:
        # RFC 4443 does not forbid it, but the fragment may be part of an ICMPv6 error, which it does forbid
        return isinstance(net, IPv6) and net.protocol != ip.ICMPV6
    message = pkt.icmp
    if message is not None and (message.is_error or message.type == icmp.V6_REDIRECT):
        return False
    to_group = is_multicast(net.dst) or is_multicast_mac(pkt.eth.dst)
    if isinstance(net, IPv4):
        return not (to_group or address.is_broadcast(net.dst))
    exempt = kind == icmp.V6_PACKET_TOO_BIG or (kind == icmp.V6_PARAMETER_PROBLEM and code == 2)
    return exempt or not to_group


def udp_reply(pkt: Packet, payload: bytes | bytearray | memoryview) -> bytearray | None:
    """Return a datagram back from the address and port that a UDP datagram was sent to.

    None for other protocols.
    """
    datagram, net = pkt.udp, pkt.ip
    if datagram is None or net is None:
        return None
    header = UDP.HEADER.pack(datagram.dport, datagram.sport, UDP.SIZE + len(payload), 0)
    return build.over_ip(_l2_back(pkt), net.dst, net.src, ip.UDP, header, payload)
