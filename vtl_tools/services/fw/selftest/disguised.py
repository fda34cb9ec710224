"""Attacks by form: denied packets in forms that a firewall may misread, and malformed packets."""

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_SSRR
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q
from scapy.packet import Raw

from vtl_tools.common.selftest.packets import IP4, IP6, MAC
from vtl_tools.services.fw.selftest.fragments import fragments
from vtl_tools.services.fw.selftest.marked import (
    SHUT_PORT,
    Attacks,
    ether,
    mark,
    open_datagram,
    shut_datagram,
)
from vtl_tools.services.fw.selftest.packets import OPEN_PORT, PEER6, ROUTER4, VICTIM4, VICTIM6


def tagged() -> Attacks:
    """Return what the rules allow, but behind VLAN tags, which they do not."""
    for name, tags in {
        "a VLAN": [Dot1Q(vlan=7)],
        "a priority": [Dot1Q(vlan=0, prio=7)],
        "two tags": [Dot1Q(vlan=1), Dot1Q(vlan=7)],
        "a service tag": [Dot1AD(vlan=7)],
        "both kinds of tags": [Dot1AD(vlan=1), Dot1Q(vlan=7)],
        "three tags": [Dot1Q(vlan=0), Dot1Q(vlan=0), Dot1Q(vlan=7)],
    }.items():
        frame = ether()
        for tag in tags:
            frame /= tag
        yield name, [frame / IP(src=IP4, dst=ROUTER4) / open_datagram(name)]
        yield f"{name}, IPv6", [frame / IPv6(src=IP6, dst=PEER6) / open_datagram(f"{name}, IPv6")]
    name = "another's address in a VLAN"
    yield name, [ether() / Dot1Q(vlan=7) / IP(src=VICTIM4, dst=ROUTER4) / open_datagram(name)]


def disguised() -> Attacks:
    """Return what the rules deny, in forms that a firewall may misread."""
    four, six = IP(src=IP4, dst=ROUTER4), IPv6(src=IP6, dst=PEER6)
    for name, packet in {
        "plain": four / shut_datagram("plain"),
        "plain, IPv6": six / shut_datagram("plain, IPv6"),
        "a SYN": four / TCP(dport=SHUT_PORT, flags="S") / Raw(mark("a SYN")),
        "behind IP options": IP(src=IP4, dst=ROUTER4, options=[IPOption_NOP()] * 8)
        / shut_datagram("behind IP options"),
        "behind hop-by-hop options": six / IPv6ExtHdrHopByHop() / shut_datagram("behind hop-by-hop options"),
        "behind destination options": six / IPv6ExtHdrDestOpt() / shut_datagram("behind destination options"),
        "an atomic fragment": six / IPv6ExtHdrFragment(id=50) / shut_datagram("an atomic fragment"),
        "IPv6 in IPv4": IP(src=IP4, dst=ROUTER4, proto=41) / six / open_datagram("IPv6 in IPv4"),
        "IPv4 in IPv4": IP(src=IP4, dst=ROUTER4, proto=4) / four / open_datagram("IPv4 in IPv4"),
        "IPv4 in IPv6": IPv6(src=IP6, dst=PEER6, nh=4) / four / open_datagram("IPv4 in IPv6"),
        "GRE": IP(src=IP4, dst=ROUTER4, proto=47) / Raw(b"\0\0\x08\0") / four / open_datagram("GRE"),
        "an unknown protocol": IP(src=IP4, dst=ROUTER4, proto=253) / Raw(mark("an unknown protocol")),
        "UDP-Lite": IP(src=IP4, dst=ROUTER4, proto=136) / Raw(bytes(shut_datagram("UDP-Lite"))),
        "no next header": IPv6(src=IP6, dst=PEER6, nh=59) / Raw(mark("no next header")),
        "an authentication header": IPv6(src=IP6, dst=PEER6, nh=51)
        / Raw(b"\x11\4" + bytes(22))
        / Raw(bytes(shut_datagram("an authentication header"))),
        "ICMP of the other version": IP(src=IP4, dst=ROUTER4, proto=58)
        / Raw(b"\x80\0\0\0\0\0\0\0")
        / Raw(mark("ICMP of the other version")),
        "an ICMP redirect": four
        / ICMP(type=5, code=1, gw=IP4)
        / IP(src=ROUTER4, dst=VICTIM4)
        / open_datagram("an ICMP redirect"),
        "an ICMP error about nothing": four
        / ICMP(type=3, code=4)
        / IP(src=ROUTER4, dst=IP4)
        / open_datagram("an ICMP error about nothing"),
        "an echo reply": four / ICMP(type=0) / Raw(mark("an echo reply")),
    }.items():
        yield name, [ether() / packet]
    for name, kind in {
        "an unknown ethertype": 0x88B5, "MPLS": 0x8847, "PPPoE": 0x8864, "RARP": 0x8035,
        "802.1X": 0x888E, "MACsec": 0x88E5, "LLDP": 0x88CC, "an obsolete tag": 0x9100,
    }.items():  # fmt: skip
        yield name, [ether(type=kind) / Raw(bytes(four / open_datagram(name)))]
    name = "a length for a type"
    yield name, [ether(type=60) / LLC(dsap=0x42, ssap=0x42, ctrl=3) / Raw(mark(name))]
    name = "SNAP"
    snap = LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800)
    yield name, [ether(type=60) / snap / four / shut_datagram(name)]


def source_routes() -> Attacks:
    """Return packets with a route of the guest's choice (RFC 7126, RFC 5095)."""
    for name, options in {
        "a loose source route": [IPOption_LSRR(routers=[VICTIM4])],
        "a strict source route": [IPOption_SSRR(routers=[VICTIM4])],
        "a source route behind others": [IPOption_NOP(), IPOption_NOP(), IPOption_LSRR(routers=[VICTIM4])],
    }.items():
        yield name, [ether() / IP(src=IP4, dst=ROUTER4, options=options) / open_datagram(name)]
    name = "a source route in fragments"
    net = IP(src=IP4, dst=ROUTER4, id=90, options=[IPOption_LSRR(routers=[VICTIM4])])
    yield name, fragments(net, bytes(open_datagram(name)) + bytes(40), 24)
    for name, header in {
        "a source route, IPv6": IPv6ExtHdrRouting(type=0, addresses=[VICTIM6], segleft=1),
        "a home address, IPv6": IPv6ExtHdrRouting(type=2, addresses=[VICTIM6], segleft=1),
        "segments, IPv6": IPv6ExtHdrSegmentRouting(addresses=[VICTIM6, PEER6], segleft=1),
    }.items():
        yield name, [ether() / IPv6(src=IP6, dst=PEER6) / header / open_datagram(name)]
        behind = f"{name}, behind options"
        net = IPv6(src=IP6, dst=PEER6) / IPv6ExtHdrDestOpt()
        yield behind, [ether() / net / header.copy() / open_datagram(behind)]


def padded() -> Attacks:
    """Return data behind a packet that may pass."""
    arp = ARP(op=1, psrc=IP4, hwsrc=MAC, pdst=ROUTER4)
    for name, packet in {
        "padding of ARP": arp,
        "padding of IPv4": IP(src=IP4, dst=ROUTER4) / UDP(sport=5000, dport=OPEN_PORT),
        "padding of IPv6": IPv6(src=IP6, dst=PEER6) / UDP(sport=5000, dport=OPEN_PORT),
    }.items():
        yield name, [bytes(ether() / packet) + mark(name)]


def broken() -> Attacks:
    """Return segments of no connection, and packets whose headers and lengths disagree."""
    four, six = IP(src=IP4, dst=ROUTER4), IPv6(src=IP6, dst=PEER6)
    for flags in "A", "SA", "R", "RA", "F", "FA", "PA", "", "FPU", "SR":
        name = f"TCP in the middle: {flags or 'no flag'}"
        yield name, [ether() / four / TCP(dport=OPEN_PORT, flags=flags, seq=7, ack=7) / Raw(mark(name))]
    for name, packet in {
        "a short header": IP(src=IP4, dst=ROUTER4, ihl=4) / open_datagram("a short header"),
        "a header beyond the packet": IP(src=IP4, dst=ROUTER4, ihl=15, len=28)
        / open_datagram("a header beyond the packet"),
        "a length beyond the frame": IP(src=IP4, dst=ROUTER4, len=1400)
        / open_datagram("a length beyond the frame"),
        "a length below the header": IP(src=IP4, dst=ROUTER4, len=10)
        / open_datagram("a length below the header"),
        "another version": IP(src=IP4, dst=ROUTER4, version=5) / open_datagram("another version"),
        "a datagram beyond its packet": four
        / UDP(sport=5000, dport=OPEN_PORT, len=999)
        / Raw(mark("a datagram beyond its packet")),
        "a datagram below its header": four
        / UDP(sport=5000, dport=OPEN_PORT, len=4)
        / Raw(mark("a datagram below its header")),
        "TCP's options beyond the packet": four
        / TCP(dport=OPEN_PORT, flags="S", dataofs=15)
        / Raw(mark("TCP's options beyond the packet")),
        "TCP's header too short": four
        / TCP(dport=OPEN_PORT, flags="S", dataofs=3)
        / Raw(mark("TCP's header too short")),
        "a header chain beyond the packet": IPv6(src=IP6, dst=PEER6, nh=60)
        / Raw(b"\x11\xff" + mark("a header chain beyond the packet")),
        "an IPv6 length beyond the frame": IPv6(src=IP6, dst=PEER6, plen=1400)
        / open_datagram("an IPv6 length beyond the frame"),
    }.items():
        yield name, [ether() / packet]
    name = "IPv6 that says it is IPv4"
    yield name, [ether(type=0x0800) / Raw(bytes(six / open_datagram(name)))]
    name = "IPv4 that says it is IPv6"
    yield name, [ether(type=0x86DD) / Raw(bytes(four / open_datagram(name)))]
    name = "behind ten headers"
    packet = IPv6(src=IP6, dst=PEER6)
    for _ in range(10):
        packet /= IPv6ExtHdrDestOpt()
    yield name, [ether() / packet / shut_datagram(name)]
