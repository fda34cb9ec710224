"""The network of vtl-fw's self-test: its stations, the rules, and packets of both sides."""

from typing import Any, Final

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from vtl_tools.common.packet import address
from vtl_tools.common.selftest.packets import ALL, HELLO, IP4, IP6, LINK6, MAC, NOBODY

ROUTER4, ROUTER6, ROUTER_MAC = "10.0.2.2", "fe80::2", "02:00:00:00:02:02"
"""Also the DHCP server."""
VICTIM4, VICTIM6, VICTIM_MAC = "10.0.2.77", "fd76:746c:0:1::77", "52:54:00:00:00:77"
"""Another VM on the network."""
PEER6: Final = "fd76:746c:0:1::2"
"""The router's address on the link, besides its link-local one."""
OPEN_PORT: Final = 9
"""The guest may reach this port of the router by TCP and UDP."""
PREFIX: Final = "fd76:746c:0:1::"
SERVICE4, SERVICE6, SERVICE_PORT = "198.51.100.7", "2001:db8:7::7", 8443
RESOLVER4: Final = "198.51.100.53"
CALLER4, CALLER6 = "198.51.100.9", "2001:db8:7::9"
OWN6: Final = (LINK6, IP6)

FLOWS: Final = 512
RULES: Final = f"""
allow out udp port 67
allow in udp from {ROUTER4} source port 67 port 68
allow out tcp to {SERVICE4}, {SERVICE6} port {SERVICE_PORT}
allow out udp to {RESOLVER4} port 53
allow out tcp to {ROUTER4}, {PEER6} port {OPEN_PORT}
allow out udp to {ROUTER4}, {PEER6} port {OPEN_PORT}
allow in tcp port 22
deny any
"""
_XID: Final = 0x5E1F7E57
SECRET: Final = b"secret of the guest " * 50


def outward(src: str = "", dst: str = SERVICE4, mac: str = MAC) -> Packet:
    """Return the headers of a packet from the guest through the router."""
    head = Ether(src=mac, dst=ROUTER_MAC)
    return head / (IPv6(src=src or IP6, dst=dst) if ":" in dst else IP(src=src or IP4, dst=dst))


def inward(src: str = SERVICE4, dst: str = "", **fields: Any) -> Packet:
    """Return the headers of a packet from the router to the guest."""
    head = Ether(src=ROUTER_MAC, dst=MAC)
    return head / (
        IPv6(src=src, dst=dst or IP6, **fields) if ":" in src else IP(src=src, dst=dst or IP4, **fields)
    )


def asked(sport: int, payload: Packet | bytes = HELLO) -> Packet:
    """Return a question to the resolver."""
    return outward(dst=RESOLVER4) / UDP(sport=sport, dport=53) / payload


def answered(dport: int, payload: Packet | bytes = HELLO) -> Packet:
    """Return the resolver's answer."""
    return inward(RESOLVER4) / UDP(sport=53, dport=dport) / payload


def sentinel(number: int) -> tuple[Packet, Packet]:
    """Return a query that always passes, and its answer."""
    said = b"sentinel %d" % number
    return asked(39_000, said), answered(39_000, said)


def called(sport: int, *, six: bool = False, src: str = "") -> Packet:
    """Return the guest's SYN to the service."""
    head = outward(src, SERVICE6 if six else SERVICE4)
    return head / TCP(sport=sport, dport=SERVICE_PORT, seq=1000, flags="S", window=8000)


def segment(
    sport: int, flags: str, *, out: bool, seq: int, ack: int, data: bytes = b"", six: bool = False
) -> Packet:
    """Return a segment between the guest's port and the service."""
    peer = SERVICE6 if six else SERVICE4
    ports = (sport, SERVICE_PORT) if out else (SERVICE_PORT, sport)
    head = outward(dst=peer) if out else inward(peer)
    return head / TCP(sport=ports[0], dport=ports[1], seq=seq, ack=ack, flags=flags, window=8000) / data


def from_caller(
    sport: int, flags: str, *, port: int = 22, seq: int = 7000, ack: int = 0, six: bool = False
) -> Packet:
    """Return a segment of a caller to a port of the guest."""
    head = inward(CALLER6 if six else CALLER4)
    return head / TCP(sport=sport, dport=port, seq=seq, ack=ack, flags=flags, window=8000)


def to_caller(dport: int, flags: str, *, seq: int = 400, ack: int = 7001, six: bool = False) -> Packet:
    """Return the guest's answer to a caller."""
    head = outward(dst=CALLER6 if six else CALLER4)
    return head / TCP(sport=22, dport=dport, seq=seq, ack=ack, flags=flags, window=8000)


def dhcp(
    kind: str, *options: Any, chaddr: str = MAC, ciaddr: str = NOBODY, mac: str = MAC, src: str = NOBODY,
    dst: str = "255.255.255.255", xid: int = _XID,
) -> Packet:  # fmt: skip
    """Return a message of a DHCP client."""
    boot = BOOTP(op=1, chaddr=address.mac(chaddr), ciaddr=ciaddr, xid=xid)
    head = Ether(src=mac, dst=ALL if dst == "255.255.255.255" else ROUTER_MAC) / IP(src=src, dst=dst)
    return head / UDP(sport=68, dport=67) / boot / DHCP(options=[("message-type", kind), *options, "end"])


def leased(kind: str, yiaddr: str = IP4, *, xid: int = _XID) -> Packet:
    """Return a message of a DHCP server, without the headers below."""
    options: list[Any] = [("message-type", kind), ("server_id", ROUTER4), ("lease_time", 3600)]
    options += [("subnet_mask", "255.255.255.0"), ("router", ROUTER4), "end"]
    return BOOTP(op=2, chaddr=address.mac(MAC), yiaddr=yiaddr, siaddr=ROUTER4, xid=xid) / DHCP(
        options=options
    )


def from_server(kind: str) -> Packet:
    """Return the DHCP server's answer."""
    head = Ether(src=ROUTER_MAC, dst=MAC) / IP(src=ROUTER4, dst="255.255.255.255")
    return head / UDP(sport=67, dport=68) / leased(kind)


def probe(target: str, mac: str = MAC) -> Packet:
    """Return the solicitation of duplicate address detection (RFC 4862 section 5.4)."""
    group = _solicited(target)
    head = Ether(src=mac, dst=_group_mac(group)) / IPv6(src="::", dst=group, hlim=255)
    return head / ICMPv6ND_NS(tgt=target)


def solicit(target: str, *, src: str = LINK6, dst: str = "", mac: str = MAC) -> Packet:
    """Return a neighbour solicitation."""
    dst = dst or _solicited(target)
    to = _group_mac(dst) if dst.startswith("ff") else ROUTER_MAC
    head = Ether(src=mac, dst=to) / IPv6(src=src, dst=dst, hlim=255)
    return head / ICMPv6ND_NS(tgt=target) / ICMPv6NDOptSrcLLAddr(lladdr=mac)


def advert(target: str, dst: str = "ff02::1", *, mac: str = MAC, **flags: int) -> Packet:
    """Return a neighbour advertisement."""
    dst = "ff02::1" if dst == "::" else dst
    to = _group_mac(dst) if dst.startswith("ff") else ROUTER_MAC
    head = Ether(src=mac, dst=to) / IPv6(src=target, dst=dst, hlim=255)
    fields = {"R": 0, "S": int(not dst.startswith("ff")), "O": 1, **flags}
    return head / ICMPv6ND_NA(tgt=target, **fields) / ICMPv6NDOptDstLLAddr(lladdr=mac)


def announced() -> Packet:
    """Return the router's advertisement."""
    head = Ether(src=ROUTER_MAC, dst="33:33:00:00:00:01") / IPv6(src=ROUTER6, dst="ff02::1", hlim=255)
    prefix = ICMPv6NDOptPrefixInfo(prefix=PREFIX, prefixlen=64, L=1, A=1)
    return head / ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_MAC) / prefix


def _solicited(target: str) -> str:
    return address.format_ip(address.solicited_node(address.ip(target)))


def _group_mac(group: str) -> str:
    return address.format_mac(address.multicast_mac(address.ip(group)))
