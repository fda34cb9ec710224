"""Builds new frames, with vnet header and correct checksums.

Addresses are octets (see address.py). Each function returns a bytearray that the caller owns.
partial: leave the transport checksum to the kernel; the vnet header says so. gso_size, with partial: let
the kernel or the card segment the payload into packets of gso_size octets.
"""

import struct
from typing import Final, TypedDict, Unpack

from vtl_tools.common.packet import arp as arp_header
from vtl_tools.common.packet import ether, icmp, ip, nd, vnet
from vtl_tools.common.packet.arp import ARP
from vtl_tools.common.packet.checksum import checksum, pseudo_sum
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP

_SUM_AT: Final = {ip.TCP: TCP.SUM, ip.UDP: UDP.SUM, ip.ICMP: 2, ip.ICMPV6: 2}
_GSO: Final = {(ip.TCP, 4): vnet.GSO_TCPV4, (ip.TCP, 16): vnet.GSO_TCPV6}


Tags = int | tuple[int, ...] | None
"""The TCI of a VLAN tag (equal to its VLAN identifier if the priority is 0), or several, outermost first."""


class IPFields(TypedDict, total=False):
    """Optional fields of an IP header. dont_fragment and ip_id exist in IPv4 only."""

    ttl: int  # 64
    tos: int  # 0; IPv6's traffic class
    ip_id: int  # 0, which is correct for an unfragmented packet (RFC 6864 4.1)
    dont_fragment: bool  # False


def ethernet(src_mac: bytes, dst_mac: bytes, ethertype: int, vlan: Tags = None) -> bytes:
    """Return an Ethernet header, with VLAN tags if given."""
    tags = () if vlan is None else (vlan,) if isinstance(vlan, int) else vlan
    out = dst_mac + src_mac
    for left, tci in zip(range(len(tags) - 1, -1, -1), tags, strict=True):
        out += struct.pack("!HH", ether.STAG if left else ether.CTAG, tci)
    return out + ethertype.to_bytes(2, "big")


def ip_header(src: bytes, dst: bytes, protocol: int, length: int, **fields: Unpack[IPFields]) -> bytes:
    """Return an IPv4 or IPv6 header for a payload of `length` octets.

    A length that does not fit is written as 0.
    """
    ttl, tos = fields.get("ttl", 64), fields.get("tos", 0)
    if len(src) != len(dst):
        raise ValueError("source and destination are of different IP versions")
    if len(src) == 16:
        return IPv6.HEADER.pack(
            0x6000_0000 | tos << 20, length if length < 1 << 16 else 0, protocol, ttl, src, dst
        )
    total = IPv4.SIZE + length
    flags = 0x4000 if fields.get("dont_fragment", False) else 0
    head = (0x45, tos, total if total < 1 << 16 else 0, fields.get("ip_id", 0), flags, ttl, protocol)
    full = checksum(IPv4.HEADER.pack(*head, 0, src, dst))
    return IPv4.HEADER.pack(*head, full, src, dst)


def over_ip(
    l2: bytes,
    src: bytes,
    dst: bytes,
    protocol: int,
    header: bytes,
    payload: bytes | bytearray | memoryview = b"",
    *,
    partial: bool = False,
    gso_size: int = 0,
    **fields: Unpack[IPFields],
) -> bytearray:
    """Return a frame: an Ethernet header, a new IP header, and a transport header with its checksum computed.

    l2: the Ethernet header, VLAN tags included. header: the transport header with options, its checksum 0.
    """
    length = len(header) + len(payload)
    frame = bytearray(vnet.VNET)
    frame += l2
    frame += ip_header(src, dst, protocol, length, **fields)
    start = len(frame)
    frame += header
    frame += payload
    initial = pseudo_sum(src, dst, protocol, length) if protocol != ip.ICMP else 0
    offset = _SUM_AT[protocol]
    if partial:
        value = initial
        gso = _GSO.get((protocol, len(src)), vnet.GSO_UDP_L4) if gso_size else vnet.GSO_NONE
        l2_start = start - vnet.VNET
        hdr_len = l2_start + len(header) if gso_size else 0
        vnet.HEADER.pack_into(frame, 0, vnet.F_NEEDS_CSUM, gso, hdr_len, gso_size, l2_start, offset)
    else:
        value = checksum(memoryview(frame)[start:], initial)
        if protocol == ip.UDP:
            value = value or 0xFFFF  # RFC 768: 0 means no checksum
    frame[start + offset : start + offset + 2] = value.to_bytes(2, "big")
    return frame


def tcp_header(
    sport: int, dport: int, seq: int, ack: int, flags: int, window: int, options: bytes = b"", urgent: int = 0
) -> bytes:
    """Return a TCP header whose checksum is 0. Options are padded to 32 bits by end-of-list octets."""
    options += bytes(-len(options) % 4)
    offset = (TCP.SIZE + len(options)) << 2
    return TCP.HEADER.pack(sport, dport, seq, ack, offset, flags, window, 0, urgent) + options


def tcp(
    *,
    src_mac: bytes,
    dst_mac: bytes,
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    seq: int = 0,
    ack: int = 0,
    flags: int = 0,
    window: int = 0,
    options: bytes = b"",
    payload: bytes | bytearray | memoryview = b"",
    urgent: int = 0,
    vlan: Tags = None,
    partial: bool = False,
    gso_size: int = 0,
    **fields: Unpack[IPFields],
) -> bytearray:
    """Return a TCP segment. options: as tcp.encode_options() makes them."""
    l2 = ethernet(src_mac, dst_mac, ether.IPV4 if len(src) == 4 else ether.IPV6, vlan)
    header = tcp_header(sport, dport, seq, ack, flags, window, options, urgent)
    return over_ip(l2, src, dst, ip.TCP, header, payload, partial=partial, gso_size=gso_size, **fields)


def udp(
    *,
    src_mac: bytes,
    dst_mac: bytes,
    src: bytes,
    dst: bytes,
    sport: int,
    dport: int,
    payload: bytes | bytearray | memoryview = b"",
    vlan: Tags = None,
    partial: bool = False,
    gso_size: int = 0,
    **fields: Unpack[IPFields],
) -> bytearray:
    """Return a UDP datagram."""
    l2 = ethernet(src_mac, dst_mac, ether.IPV4 if len(src) == 4 else ether.IPV6, vlan)
    header = UDP.HEADER.pack(sport, dport, UDP.SIZE + len(payload), 0)
    return over_ip(l2, src, dst, ip.UDP, header, payload, partial=partial, gso_size=gso_size, **fields)


def icmp_echo(
    *,
    src_mac: bytes,
    dst_mac: bytes,
    src: bytes,
    dst: bytes,
    identifier: int,
    sequence: int,
    payload: bytes | bytearray | memoryview = b"",
    reply: bool = False,
    vlan: Tags = None,
    **fields: Unpack[IPFields],
) -> bytearray:
    """Return an echo request or reply, ICMPv4 or ICMPv6 by the addresses (RFC 792, RFC 4443 section 4)."""
    if len(src) == 4:
        ethertype, protocol, kind = ether.IPV4, ip.ICMP, icmp.ECHO_REPLY if reply else icmp.ECHO_REQUEST
    else:
        ethertype, protocol, kind = (
            ether.IPV6,
            ip.ICMPV6,
            icmp.V6_ECHO_REPLY if reply else icmp.V6_ECHO_REQUEST,
        )
    header = icmp.ICMP.HEADER.pack(kind, 0, 0, identifier << 16 | sequence)
    l2 = ethernet(src_mac, dst_mac, ethertype, vlan)
    return over_ip(l2, src, dst, protocol, header, payload, **fields)


def arp(
    *,
    src_mac: bytes,
    dst_mac: bytes,
    oper: int = arp_header.REQUEST,
    sha: bytes,
    spa: bytes,
    tha: bytes = bytes(6),
    tpa: bytes,
    vlan: Tags = None,
) -> bytearray:
    """Return an ARP packet (RFC 826). dst_mac: address.BROADCAST for a request."""
    body = ARP.HEADER.pack(ARP.ETHERNET_IPV4 + oper.to_bytes(2, "big"), sha, spa, tha, tpa)
    return bytearray(vnet.NONE + ethernet(src_mac, dst_mac, ether.ARP, vlan) + body)


def nd_option(kind: int, data: bytes) -> bytes:
    """Return a neighbour discovery option, padded by zeros to a multiple of 8 octets (RFC 4861 4.6)."""
    size = (len(data) + 9) // 8
    return bytes((kind, size)) + data.ljust(size * 8 - 2, b"\0")


def nd_message(
    *,
    src_mac: bytes,
    dst_mac: bytes,
    src: bytes,
    dst: bytes,
    kind: int,
    body: bytes,
    options: bytes = b"",
    vlan: Tags = None,
) -> bytearray:
    """Return a neighbour discovery message with hop limit 255.

    body: the octets between checksum and options.
    """
    l2 = ethernet(src_mac, dst_mac, ether.IPV6, vlan)
    header = bytes((kind, 0, 0, 0)) + body + options
    return over_ip(l2, src, dst, ip.ICMPV6, header, ttl=255)


def neighbor_solicit(
    *,
    src_mac: bytes,
    dst_mac: bytes,
    src: bytes,
    dst: bytes,
    target: bytes,
    vlan: Tags = None,
) -> bytearray:
    """Return a neighbour solicitation (RFC 4861 4.3). It contains src_mac, unless src is unspecified."""
    options = nd_option(nd.SOURCE_LLADDR, src_mac) if any(src) else b""
    return nd_message(
        src_mac=src_mac, dst_mac=dst_mac, src=src, dst=dst, kind=nd.NEIGHBOR_SOLICIT, body=bytes(4) + target,
        options=options, vlan=vlan,
    )  # fmt: skip


def neighbor_advert(
    *,
    src_mac: bytes,
    dst_mac: bytes,
    src: bytes,
    dst: bytes,
    target: bytes,
    lladdr: bytes,
    router: bool = False,
    solicited: bool = True,
    override: bool = True,
    vlan: Tags = None,
) -> bytearray:
    """Return a neighbour advertisement (RFC 4861 4.4): `target` has the Ethernet address `lladdr`."""
    flags = router << 31 | solicited << 30 | override << 29
    return nd_message(
        src_mac=src_mac, dst_mac=dst_mac, src=src, dst=dst, kind=nd.NEIGHBOR_ADVERT,
        body=flags.to_bytes(4, "big") + target, options=nd_option(nd.TARGET_LLADDR, lladdr), vlan=vlan,
    )  # fmt: skip
