"""All kinds of traffic by which a guest may escape, or its host may answer, as frames.

Each is sent to the service's Ethernet address and to the host's own, since the host would accept both; and
to the world, to the host's address on the guest's link, and to that on the uplink.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Final, NamedTuple

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Solicit
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLDMultAddrRec,
    ICMPv6MLQuery,
    ICMPv6MLReport,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.ntp import NTPHeader
from scapy.packet import Packet, Raw

from vtl_tools.common.packet import address
from vtl_tools.common.selftest.host import LAN4, LAN6, VLAN, WAN4, WAN6
from vtl_tools.common.selftest.odd_traffic import (
    FROM_ELSEWHERE,
    PROTOCOLS,
    TCP_BEHIND_OPTIONS,
    ethertypes,
    extended,
    fragmented,
    link_control,
    malformed,
    options,
    protocol,
    spanning_tree,
    spoofed,
    tagged,
)
from vtl_tools.common.selftest.packets import (
    ALL,
    GATEWAY_MAC,
    HELLO,
    IP4,
    IP6,
    LINK6,
    MAC,
    NAME,
    NOBODY,
    OUTSIDE4,
    OUTSIDE6,
    over4,
    over6,
    over_both,
    syn,
    to_group,
)

_STUN: Final = bytes.fromhex("000100002112a442") + b"leak-test-00"  # RFC 8489: a Binding request
_QUIC: Final = bytes.fromhex("c300000001088394c8f03e5157080000449e") + bytes(1182)  # RFC 9001, appendix A.2
_SSDP: Final = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\n\r\n'


class CarriedConnection(NamedTuple):
    """A TCP connection that must be carried: its target, and the octets that the guest sends."""

    target: str
    port: int
    octets: bytes


@dataclass(frozen=True)
class TrafficKind:
    """One kind of traffic. host_mac: of the host's interface.

    frames: returns the frames to send. calls: connections through Tor after that. asks: a DNS look-up comes
    first. names: names to resolve and, if there is an address, to connect to, without a request to Tor.
    ports, targets: requests to Tor that the frames themselves may cause.
    """

    name: str
    frames: Callable[[str], Iterator[Packet | bytes]] = lambda host_mac: iter(())
    calls: tuple[CarriedConnection, ...] = ()
    asks: bool = False
    names: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    targets: tuple[str, ...] = (OUTSIDE4, OUTSIDE6)


def _udp(port: int, payload: Any = HELLO, *groups: str) -> Callable[[str], Iterator[Packet]]:
    """Return a function that yields datagrams to single hosts, and to groups if given."""
    datagram = UDP(sport=40000, dport=port) / payload

    def frames(host_mac: str) -> Iterator[Packet]:
        yield from over_both(datagram)(host_mac)
        for group in groups:
            yield to_group(group) / datagram

    return frames


def _from_dhcp_client(host_mac: str) -> Iterator[Packet]:
    octets = bytes.fromhex(MAC.replace(":", ""))
    for mac, kind in product((ALL, GATEWAY_MAC, host_mac), ("discover", "request", "inform", "release")):
        boot = BOOTP(chaddr=octets, xid=7) / DHCP(options=[("message-type", kind), "end"])
        yield (
            Ether(src=MAC, dst=mac) / IP(src=NOBODY, dst="255.255.255.255") / UDP(sport=68, dport=67) / boot
        )


def _dhcpv6(host_mac: str) -> Iterator[Packet]:
    for dst, mac in (("ff02::1:2", "33:33:00:01:00:02"), (LAN6, host_mac), (OUTSIDE6, GATEWAY_MAC)):
        yield Ether(src=MAC, dst=mac) / IPv6(src=LINK6, dst=dst) / UDP(sport=546, dport=547) / DHCP6_Solicit()


def _icmp(host_mac: str) -> Iterator[Packet]:
    quoted = IP(src=OUTSIDE4, dst=IP4) / UDP(sport=80, dport=40000)
    errors = (ICMP(type=3, code=3) / quoted, ICMP(type=5, code=1, gw=IP4) / quoted, ICMP(type=11) / quoted)
    echoes = (ICMP(id=7) / HELLO, ICMP(type=13), ICMP(type=17), ICMP(type=10), ICMP(type=9))
    yield from over4(*echoes, *errors, host_mac=host_mac)
    for group in "255.255.255.255", "10.0.2.255", "224.0.0.1", "224.0.0.2":
        yield to_group(group) / ICMP(id=7) / HELLO


def _icmp6(host_mac: str) -> Iterator[Packet]:
    quoted = IPv6(src=OUTSIDE6, dst=IP6) / UDP(sport=80, dport=40000)
    redirect = ICMPv6ND_Redirect(tgt=LINK6, dst=OUTSIDE6) / ICMPv6NDOptDstLLAddr(lladdr=MAC)
    inner = (ICMPv6EchoRequest(id=7, data=HELLO), ICMPv6PacketTooBig(mtu=1280) / quoted)
    yield from over6(*inner, host_mac=host_mac)
    yield from over6(redirect, host_mac=host_mac, hlim=255)
    for group in "ff02::1", "ff02::2", "ff05::1", "ff0e::1":
        yield to_group(group) / ICMPv6EchoRequest(id=7, data=HELLO)


def router(host_mac: str) -> Iterator[Packet]:
    """Yield the advertisements of a guest that acts as a router."""
    prefix = ICMPv6NDOptPrefixInfo(prefixlen=64, prefix="2001:db8:bad::", L=1, A=1)
    told = ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    yield to_group("ff02::1") / ICMPv6ND_RA(routerlifetime=1800) / told / prefix
    for mac, dst in ((host_mac, LAN6), (GATEWAY_MAC, "ff02::1"), (host_mac, "ff02::1")):
        head = Ether(src=MAC, dst=mac) / IPv6(src=LINK6, dst=dst, hlim=255)
        yield head / ICMPv6ND_RA(routerlifetime=1800) / told / prefix


def _routers(host_mac: str) -> Iterator[Packet]:
    """Yield the packets of a guest that looks for a router, and of one that acts as a router."""
    yield to_group("ff02::2") / ICMPv6ND_RS() / ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    for mac, dst in ((host_mac, LAN6), (GATEWAY_MAC, "ff02::1"), (host_mac, "ff02::1")):
        yield Ether(src=MAC, dst=mac) / IPv6(src=LINK6, dst=dst, hlim=255) / ICMPv6ND_RS()
    yield from router(host_mac)


def _neighbours(host_mac: str) -> Iterator[Packet]:
    for target in LAN4, WAN4, OUTSIDE4, "10.0.2.2":
        for mac in ALL, host_mac:
            yield Ether(src=MAC, dst=mac) / ARP(hwsrc=MAC, psrc="10.0.2.77", pdst=target)
            yield Ether(src=MAC, dst=mac) / ARP(op=2, hwsrc=MAC, psrc=target, hwdst=host_mac, pdst=LAN4)
            yield Ether(src=MAC, dst=mac) / ARP(hwsrc=MAC, psrc=target, pdst=target)
    told = ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    for target in LAN6, WAN6, OUTSIDE6:
        for mac, dst in (("33:33:ff:00:00:01", target), (host_mac, target), (host_mac, "ff02::1")):
            head = Ether(src=MAC, dst=mac) / IPv6(src=LINK6, dst=dst, hlim=255)
            yield head / ICMPv6ND_NS(tgt=target) / told
            yield head / ICMPv6ND_NA(tgt=target, R=1, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC)


_IGMP: Final = {  # with their checksums: a query, reports of versions 2 and 3, a leave
    "224.0.0.1": "1100eeff00000000",
    "224.0.12.12": "1600fdf2e0000c0c",
    "224.0.0.22": "2200edf10000000104000000e0000c0c",
    "224.0.0.2": "1700fcf2e0000c0c",
}


def _igmp(host_mac: str) -> Iterator[Packet]:
    for group, octets in _IGMP.items():
        for mac in address.format_mac(address.multicast_mac(address.ip(group))), GATEWAY_MAC, host_mac:
            head = Ether(src=MAC, dst=mac) / IP(src=IP4, dst=group, proto=2, ttl=1)
            yield head / Raw(bytes.fromhex(octets))


def _mld(host_mac: str) -> Iterator[Packet]:
    alert = IPv6ExtHdrHopByHop(options=[RouterAlert()])
    record = ICMPv6MLDMultAddrRec(rtype=4, dst="ff05::c0c")
    for message, group in (
        (ICMPv6MLQuery(), "ff02::1"),
        (ICMPv6MLReport(mladdr="ff05::c0c"), "ff05::c0c"),
        (ICMPv6MLReport2(records=[record]), "ff02::16"),
    ):
        yield to_group(group) / alert / message
        yield Ether(src=MAC, dst=host_mac) / IPv6(src=LINK6, dst=group, hlim=1) / alert / message


def _to_all(host_mac: str) -> Iterator[Packet]:
    datagram, segment = UDP(sport=40000, dport=1900) / HELLO, syn(80)
    for inner in datagram, segment:
        for group in (
            "255.255.255.255",
            "10.0.2.255",
            "224.0.0.1",
            "239.1.2.3",
            "ff02::1",
            "ff05::2",
            "ff0e::9",
        ):
            yield to_group(group) / inner
        for mac in ALL, "01:00:5e:00:00:01":
            yield Ether(src=MAC, dst=mac) / IP(src=IP4, dst=OUTSIDE4) / inner
        yield Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=IP6, dst=OUTSIDE6) / inner


_HOST_PORTS: Final = (22, 80, 9050, 9051)


def _to_host(host_mac: str) -> Iterator[Packet]:
    """Yield SYNs to the host's own addresses, and to unassigned ones."""
    for mac, port in product((GATEWAY_MAC, host_mac), _HOST_PORTS):
        for dst in (
            LAN4,
            WAN4,
            "127.0.0.1",
            "127.0.0.53",
            NOBODY,
            "169.254.169.254",
            "10.0.2.2",
            "192.168.0.1",
        ):
            yield Ether(src=MAC, dst=mac) / IP(src=IP4, dst=dst) / syn(port)
        for dst in LAN6, "::1", "::", f"::ffff:{WAN4}", "::ffff:127.0.0.1", "fe80::1", "fd00::1":
            yield Ether(src=MAC, dst=mac) / IPv6(src=IP6, dst=dst) / syn(port)


def _odd_segments(host_mac: str) -> Iterator[Packet]:
    """Yield segments whose flags open no connection, and one to the sender itself."""
    flags = ("", "F", "SF", "SR", "SAF", "R", "RA", "A", "SA", "PA", "FPU", "FSRPAUEC")
    for each in flags:
        yield from over_both(TCP(sport=40000, dport=80, seq=5, ack=5, flags=each) / HELLO)(host_mac)
    for mac in GATEWAY_MAC, host_mac:
        yield Ether(src=MAC, dst=mac) / IP(src=LAN4, dst=LAN4) / TCP(sport=80, dport=80, flags="A")


_MAPPED: Final = (
    "64:ff9b::127.0.0.1", "64:ff9b::10.0.2.1", "64:ff9b::169.254.169.254",
    "64:ff9b::", "64:ff9b:1::127.0.0.1", "64:ff9b:1:7f00:0:100::", "2002:7f00:1::1",
    "::127.0.0.1", "fe80::1", "ff0e::1",
)  # fmt: skip
"""Addresses that a proxy's own host may take for others: NAT64 (RFC 6052, RFC 8215), 6to4 (RFC 3056)."""


def _mapped(host_mac: str) -> Iterator[Packet]:
    for mac, dst, port in product((GATEWAY_MAC, host_mac), _MAPPED, (22, 80, 9050)):
        yield Ether(src=MAC, dst=mac) / IPv6(src=IP6, dst=dst) / syn(port)


_OF_HOST: Final = (
    "localhost", "www.localhost", "localhost.localdomain", "ip6-localhost", "127.0.0.1", "2130706433",
    "0x7f000001", "0", "printer.local", "router.lan", "host.internal", "1.0.0.127.in-addr.arpa",
)  # fmt: skip
"""Names that a proxy which is not Tor could find its own host by, or its network."""


def syn_to(target: str) -> Iterator[Packet]:
    """Yield SYNs to an address, at the service's Ethernet address."""
    net = IPv6(src=IP6, dst=target) if ":" in target else IP(src=IP4, dst=target)
    for port in 22, 80, 9050:
        yield Ether(src=MAC, dst=GATEWAY_MAC) / net / syn(port)


def query(name: str, kind: str = "A") -> Packet:
    """Return a question to a name server."""
    return DNS(id=7, rd=1, qd=DNSQR(qname=name, qtype=kind))


def _foreign_dns(host_mac: str) -> Iterator[Packet]:
    for message in query("foreign.example.com"), query("foreign.example.com", "TXT"), Raw(HELLO):
        yield from over_both(UDP(sport=40000, dport=53) / message)(host_mac)
    group = to_group("224.0.0.251") / UDP(sport=5353, dport=53)
    yield group / query("foreign.example.com")


NAMES: Final = (NAME, "foreign.example.com", "tcp.example.com")
"""Names that may be resolved, if the service resolves names."""

_LOOKUP: Final = bytes(query("tcp.example.com"))

KINDS: Final = (
    TrafficKind(
        "tcp", calls=(CarriedConnection(OUTSIDE4, 80, HELLO), CarriedConnection(OUTSIDE6, 80, HELLO))
    ),
    TrafficKind("names", asks=True, calls=(CarriedConnection(NAME, 80, HELLO),)),
    TrafficKind("dns, foreign resolver", _foreign_dns),
    TrafficKind(
        "dns over tcp", calls=(CarriedConnection(OUTSIDE4, 53, len(_LOOKUP).to_bytes(2, "big") + _LOOKUP),)
    ),
    TrafficKind(
        "dot, doh", calls=(CarriedConnection(OUTSIDE4, 853, HELLO), CarriedConnection(OUTSIDE6, 443, HELLO))
    ),
    TrafficKind(
        "stun over tcp",
        calls=(CarriedConnection(OUTSIDE4, 3478, _STUN), CarriedConnection(OUTSIDE6, 3478, _STUN)),
    ),
    TrafficKind("tcp to the host", _to_host, ports=_HOST_PORTS, targets=(WAN4, WAN6)),
    TrafficKind("addresses within addresses", _mapped),
    TrafficKind("names of the host", names=_OF_HOST),
    TrafficKind("tcp, odd flags", _odd_segments),
    TrafficKind("udp", _udp(33434)),
    TrafficKind("quic", _udp(443, _QUIC)),
    TrafficKind("stun", _udp(3478, _STUN)),
    TrafficKind("ntp", _udp(123, NTPHeader(), "224.0.1.1")),
    TrafficKind("ssdp", _udp(1900, _SSDP, "239.255.255.250", "ff02::c")),
    TrafficKind("mdns", _udp(5353, query("printer.local"), "224.0.0.251", "ff02::fb")),
    TrafficKind("llmnr", _udp(5355, query("printer"), "224.0.0.252", "ff02::1:3")),
    TrafficKind("netbios", _udp(137, bytes(50), "10.0.2.255", "255.255.255.255")),
    TrafficKind("vpn", _udp(51820, bytes(148))),
    TrafficKind("dhcp", _from_dhcp_client),
    TrafficKind("dhcpv6", _dhcpv6),
    TrafficKind("icmp", _icmp),
    TrafficKind("icmpv6", _icmp6),
    TrafficKind("ipv6 routers", _routers),
    TrafficKind("arp and neighbours", _neighbours),
    TrafficKind("igmp", _igmp),
    TrafficKind("mld", _mld),
    TrafficKind("fragments", fragmented),
    TrafficKind("ipv4 options", options, ports=(TCP_BEHIND_OPTIONS,)),
    TrafficKind("ipv6 extensions", extended, ports=(TCP_BEHIND_OPTIONS,)),
    TrafficKind("vlan", tagged(Dot1Q(vlan=VLAN))),
    TrafficKind("vlan, priority only", tagged(Dot1Q(vlan=0, prio=7))),
    TrafficKind("vlan, double", tagged(Dot1AD(vlan=7), Dot1Q(vlan=VLAN))),
    TrafficKind("vlan, double 802.1q", tagged(Dot1Q(vlan=0), Dot1Q(vlan=VLAN))),
    TrafficKind("other ethertypes", ethertypes),
    TrafficKind("lldp", link_control),
    TrafficKind("stp", spanning_tree),
    *(TrafficKind(name, partial(protocol, number)) for name, number in PROTOCOLS.items()),
    TrafficKind("spoofed sources", spoofed, ports=(FROM_ELSEWHERE,)),
    TrafficKind("broadcast, multicast", _to_all),
    TrafficKind("malformed", malformed),
)
