"""Addresses of the self-tests' guest and its peers, and packets to them."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, Final

from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.packet import address
from vtl_tools.common.selftest.host import LAN4, LAN6, WAN4, WAN6

OUTSIDE4, OUTSIDE6 = "198.51.100.7", "2001:db8:7::7"
"""The guest's peers in the world."""
NAME: Final = "www.example.com"

MAC: Final = "52:54:00:56:54:4c"
"""The guest's own addresses."""
IP4, IP6, LINK6 = "10.0.2.15", "fd76:746c:0:1::15", "fe80::15"

GATEWAY: Final = GuestAddresses()
GATEWAY_MAC: Final = address.format_mac(GATEWAY.mac)

NOBODY: Final = "0.0.0.0"  # noqa: S104
ALL: Final = "ff:ff:ff:ff:ff:ff"
HELLO: Final = b"leak test"


def over4(*inner: Packet, host_mac: str, **fields: Any) -> Iterator[Packet]:
    """Yield IPv4 packets to each possible receiver."""
    for mac, dst, payload in product((GATEWAY_MAC, host_mac), (OUTSIDE4, LAN4, WAN4), inner):
        yield Ether(src=MAC, dst=mac) / IP(src=IP4, dst=dst, **fields) / payload


def over6(*inner: Packet, host_mac: str, **fields: Any) -> Iterator[Packet]:
    """Yield IPv6 packets to each possible receiver."""
    for mac, dst, payload in product((GATEWAY_MAC, host_mac), (OUTSIDE6, LAN6, WAN6), inner):
        yield Ether(src=MAC, dst=mac) / IPv6(src=IP6, dst=dst, **fields) / payload


def over_both(*inner: Packet) -> Callable[[str], Iterator[Packet]]:
    """Return a function that yields packets of both IP versions."""

    def frames(host_mac: str) -> Iterator[Packet]:
        yield from over4(*inner, host_mac=host_mac)
        yield from over6(*inner, host_mac=host_mac)

    return frames


def to_group(group: str) -> Packet:
    """Return the headers of a packet to a group, or to the broadcast address."""
    octets = address.ip(group)
    mac = ALL if group.endswith(".255") else address.format_mac(address.multicast_mac(octets))
    if len(octets) == 4:
        return Ether(src=MAC, dst=mac) / IP(src=IP4, dst=group, ttl=4)
    return Ether(src=MAC, dst=mac) / IPv6(src=LINK6, dst=group, hlim=255)


def syn(port: int, **fields: Any) -> Packet:
    """Return a SYN."""
    return TCP(sport=40000, dport=port, seq=1000, flags="S", **fields)
