"""Header fields that the direct path reads and changes, by offset in the first octets, for speed.

head: the first HEAD octets of a frame, as bytes, or all of one that is shorter. Nothing is raised for foreign
octets here.
"""

import struct
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import arp, ether, icmp, ip, nd, quick, vnet
from vtl_tools.common.packet.ipv6 import Fragment, IPv6
from vtl_tools.common.packet.quick import L4_OF_4, L4_OF_6
from vtl_tools.common.packet.vnet import VNET

HEAD: Final = L4_OF_6 + 20
"""Octets: to the end of a TCP header without options, behind one of IPv6."""
L3: Final = quick.L3
DST_MAC: Final = slice(VNET, VNET + 6)
SRC_MAC: Final = slice(quick.SRC_MAC, quick.KIND)
ETHERNET: Final = slice(VNET, L3)
KIND: Final = slice(quick.KIND, L3)
SRC4, DST4 = slice(L3 + 12, L3 + 16), slice(L3 + 16, L3 + 20)
SRC6, DST6 = slice(L3 + 8, L3 + 24), slice(L3 + 24, L3 + 40)
ENDS4: Final = slice(L3 + 12, L3 + 20)
ENDS6: Final = slice(L3 + 8, L3 + 40)
V4: Final = ether.IPV4.to_bytes(2, "big")
V6: Final = ether.IPV6.to_bytes(2, "big")
IP: Final = frozenset((V4, V6))
ARP: Final = ether.ARP.to_bytes(2, "big")

_TTL4: Final = L3 + 8
_PROTOCOL4: Final = L3 + 9
_TYPE4: Final = L4_OF_4
_REDIRECT4: Final = bytes((5,))  # RFC 792
_SUM4: Final = L3 + 10
_HOPS6: Final = L3 + 7
_NEXT6: Final = L3 + 6
_TYPE6: Final = L4_OF_6
_FLAGS4: Final = L3 + 6
_DF: Final = 0x40
_NO_OPTIONS: Final = 0x45
_PLAIN6: Final = frozenset((ip.TCP, ip.UDP, ip.ICMPV6, ip.FRAGMENT, ip.ESP, ip.NO_NEXT))
"""Next headers behind which no router has to look; a fragment header hides the rest from routers."""
_SUM: Final = struct.Struct("!H")
_ONE_HOP: Final = 0xFEFF
"""RFC 1624 (3), ~m + m', for a TTL that is one less: it is the high octet of its word."""
HOPS_MAX: Final = 255


def key(head: bytes) -> bytes:
    """Return what frames have in common that go from whom to whom: Ethernet header and IP addresses."""
    return head[ETHERNET] + (head[ENDS4] if head[KIND] == V4 else head[ENDS6])


def ends(head: bytes) -> tuple[bytes, bytes] | None:
    """Return source and destination address of an IP packet; None if it is no whole header of one."""
    if head[KIND] == V4 and len(head) >= L3 + 20 and head[L3] >> 4 == 4:
        return head[SRC4], head[DST4]
    if head[KIND] == V6 and len(head) >= L3 + 40 and head[L3] >> 4 == 6:
        return head[SRC6], head[DST6]
    return None


def arp_sender(head: bytes) -> tuple[bytes, bytes] | None:
    """Return the hardware and protocol address of who sends an ARP packet of Ethernet and IPv4 (RFC 826)."""
    if head[L3 : L3 + 6] != arp.ARP.ETHERNET_IPV4 or len(head) < L3 + 28:
        return None
    return head[L3 + 8 : L3 + 14], head[L3 + 14 : L3 + 18]


def hops(head: bytes, frame: memoryview) -> int:
    """Return how many hops an IP packet may still take.

    0 also if it has something that a router on its way would have to do, or to refuse: options, or a routing
    header; or if it is a redirect, which only the VM's own router may send it (RFC 1122 section 3.2.2.2). One
    of IPv6 has 255 hops, or no host believes it.
    """
    if head[KIND] == V4:
        if head[L3] != _NO_OPTIONS or (head[_PROTOCOL4] == ip.ICMP and _is_redirect(head)):
            return 0
        return head[_TTL4]
    if head[_NEXT6] in _PLAIN6:
        return head[_HOPS6]
    if head[_NEXT6] == ip.HOPOPTS:
        return 0
    try:
        return 0 if IPv6.at(frame, L3, gso=head[1] != vnet.GSO_NONE).routing_off else head[_HOPS6]
    except Malformed:
        return 0


def _is_redirect(head: bytes) -> bool:
    is_later_fragment = head[_FLAGS4] & 0x1F or head[_FLAGS4 + 1]
    return not is_later_fragment and head[_TYPE4 : _TYPE4 + 1] == _REDIRECT4


def is_neighbour_discovery(head: bytes) -> bool:
    """Say whether an ICMPv6 message is of neighbour discovery, which no router passes on (RFC 4861)."""
    if head[KIND] != V6 or len(head) <= _TYPE6 or head[_NEXT6] != ip.ICMPV6:
        return False
    return nd.ROUTER_SOLICIT <= head[_TYPE6] <= icmp.V6_REDIRECT


def largest(frame: memoryview) -> int:
    """Return the octets of the largest IP packet that a frame becomes on the wire.

    A super-segment that is no TCP or UDP right behind the IP header counts whole, and so as too large; and
    with a fragment header, by which the first fragment may be larger than the packet (UFO over IPv6).
    """
    whole = len(frame) - L3
    if frame[1] == vnet.GSO_NONE:
        return whole
    headers = quick.read(frame)
    if headers is None or (headers[1] == ip.UDP and frame[1] != vnet.GSO_UDP_L4):
        return whole + Fragment.SIZE
    data = headers[8]
    size: int = vnet.HEADER.unpack_from(frame)[3]
    return min(whole, data - L3 + size)


def must_not_fragment(head: bytes) -> bool:
    """Say whether a router would tell the sender of an IP packet that it is too large."""
    return head[KIND] == V6 or head[_FLAGS4] & _DF != 0


def hop(frame: memoryview, head: bytes, dst_mac: bytes) -> None:
    """Send an IP packet on to dst_mac, as a router does: one hop less. It has two or more."""
    frame[DST_MAC] = dst_mac
    if head[KIND] == V4:
        frame[_TTL4] = head[_TTL4] - 1
        total = (_SUM.unpack_from(head, _SUM4)[0] ^ 0xFFFF) + _ONE_HOP
        _SUM.pack_into(frame, _SUM4, ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF)
    else:
        frame[_HOPS6] = head[_HOPS6] - 1
