"""Every kind of traffic by which a guest is known to escape, or its host to answer, as frames.

Each is sent to the service's Ethernet address and to the host's own, since the host would take either up,
and for the world, for the host's address on the guest's link, and for that on the uplink.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, Final, NamedTuple

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Solicit
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_RR, IPOption_SSRR, fragment
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
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    RouterAlert,
)
from scapy.layers.l2 import ARP, LLC, SNAP, STP, Dot1AD, Dot1Q, Dot3, Ether
from scapy.layers.ntp import NTPHeader
from scapy.packet import Packet, Raw

from vtl_tools.common.gateway.network import Network
from vtl_tools.common.leaktest.host import LAN4, LAN6, VLAN, VLAN4, WAN4, WAN6
from vtl_tools.common.packet import address

OUTSIDE4, OUTSIDE6 = "198.51.100.7", "2001:db8:7::7"
"""Who is called in the world."""
NAME: Final = "www.example.com"

MAC: Final = "52:54:00:56:54:4c"
"""The guest's own."""
IP4, IP6, LINK6 = "10.0.2.15", "fd76:746c:0:1::15", "fe80::15"

GATEWAY: Final = Network()
GATEWAY_MAC: Final = address.format_mac(GATEWAY.mac)

_NOBODY: Final = "0.0.0.0"  # noqa: S104
_ALL: Final = "ff:ff:ff:ff:ff:ff"
_HELLO: Final = b"leak test"
_STUN: Final = bytes.fromhex("000100002112a442") + b"leak-test-00"  # RFC 8489: a Binding request
_QUIC: Final = bytes.fromhex("c300000001088394c8f03e5157080000449e") + bytes(1182)  # RFC 9001, appendix A.2
_SSDP: Final = b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\n\r\n'


class Call(NamedTuple):
    """A TCP connection that is carried: the guest sends so many octets, and may have Tor asked for it."""

    target: str
    port: int
    octets: bytes


@dataclass(frozen=True)
class Kind:
    """A class of traffic. host_mac: of the host's interface.

    frames: makes what is sent. calls: what is carried by Tor after that. asks: a look-up by DNS goes before.
    ports, targets: what the frames themselves may have Tor asked for.
    """

    name: str
    frames: Callable[[str], Iterator[Packet | bytes]] = lambda host_mac: iter(())
    calls: tuple[Call, ...] = ()
    asks: bool = False
    ports: tuple[int, ...] = ()
    targets: tuple[str, ...] = (OUTSIDE4, OUTSIDE6)


def _over4(*inner: Packet, host_mac: str, **fields: Any) -> Iterator[Packet]:
    for mac, dst, payload in product((GATEWAY_MAC, host_mac), (OUTSIDE4, LAN4, WAN4), inner):
        yield Ether(src=MAC, dst=mac) / IP(src=IP4, dst=dst, **fields) / payload


def _over6(*inner: Packet, host_mac: str, **fields: Any) -> Iterator[Packet]:
    for mac, dst, payload in product((GATEWAY_MAC, host_mac), (OUTSIDE6, LAN6, WAN6), inner):
        yield Ether(src=MAC, dst=mac) / IPv6(src=IP6, dst=dst, **fields) / payload


def _over_both(*inner: Packet) -> Callable[[str], Iterator[Packet]]:
    def frames(host_mac: str) -> Iterator[Packet]:
        yield from _over4(*inner, host_mac=host_mac)
        yield from _over6(*inner, host_mac=host_mac)

    return frames


def _udp(port: int, payload: Any = _HELLO, *groups: str) -> Callable[[str], Iterator[Packet]]:
    """Datagrams to single hosts, and to groups, if there are any for them."""
    datagram = UDP(sport=40000, dport=port) / payload

    def frames(host_mac: str) -> Iterator[Packet]:
        yield from _over_both(datagram)(host_mac)
        for group in groups:
            yield _to_group(group) / datagram

    return frames


def _to_group(group: str) -> Packet:
    octets = address.ip(group)
    mac = _ALL if group.endswith(".255") else address.format_mac(address.multicast_mac(octets))
    if len(octets) == 4:
        return Ether(src=MAC, dst=mac) / IP(src=IP4, dst=group, ttl=4)
    return Ether(src=MAC, dst=mac) / IPv6(src=LINK6, dst=group, hlim=255)


def _syn(port: int, **fields: Any) -> Packet:
    return TCP(sport=40000, dport=port, seq=1000, flags="S", **fields)


def _from_dhcp_client(host_mac: str) -> Iterator[Packet]:
    octets = bytes.fromhex(MAC.replace(":", ""))
    for mac, kind in product((_ALL, GATEWAY_MAC, host_mac), ("discover", "request", "inform", "release")):
        boot = BOOTP(chaddr=octets, xid=7) / DHCP(options=[("message-type", kind), "end"])
        yield (
            Ether(src=MAC, dst=mac) / IP(src=_NOBODY, dst="255.255.255.255") / UDP(sport=68, dport=67) / boot
        )


def _dhcpv6(host_mac: str) -> Iterator[Packet]:
    for dst, mac in (("ff02::1:2", "33:33:00:01:00:02"), (LAN6, host_mac), (OUTSIDE6, GATEWAY_MAC)):
        yield Ether(src=MAC, dst=mac) / IPv6(src=LINK6, dst=dst) / UDP(sport=546, dport=547) / DHCP6_Solicit()


def _icmp(host_mac: str) -> Iterator[Packet]:
    quoted = IP(src=OUTSIDE4, dst=IP4) / UDP(sport=80, dport=40000)
    errors = (ICMP(type=3, code=3) / quoted, ICMP(type=5, code=1, gw=IP4) / quoted, ICMP(type=11) / quoted)
    echoes = (ICMP(id=7) / _HELLO, ICMP(type=13), ICMP(type=17), ICMP(type=10), ICMP(type=9))
    yield from _over4(*echoes, *errors, host_mac=host_mac)
    for group in "255.255.255.255", "10.0.2.255", "224.0.0.1", "224.0.0.2":
        yield _to_group(group) / ICMP(id=7) / _HELLO


def _icmp6(host_mac: str) -> Iterator[Packet]:
    quoted = IPv6(src=OUTSIDE6, dst=IP6) / UDP(sport=80, dport=40000)
    redirect = ICMPv6ND_Redirect(tgt=LINK6, dst=OUTSIDE6) / ICMPv6NDOptDstLLAddr(lladdr=MAC)
    inner = (ICMPv6EchoRequest(id=7, data=_HELLO), ICMPv6PacketTooBig(mtu=1280) / quoted)
    yield from _over6(*inner, host_mac=host_mac)
    yield from _over6(redirect, host_mac=host_mac, hlim=255)
    for group in "ff02::1", "ff02::2", "ff05::1", "ff0e::1":
        yield _to_group(group) / ICMPv6EchoRequest(id=7, data=_HELLO)


def _routers(host_mac: str) -> Iterator[Packet]:
    """A guest that looks for a router, and one that plays it."""
    prefix = ICMPv6NDOptPrefixInfo(prefixlen=64, prefix="2001:db8:bad::", L=1, A=1)
    told = ICMPv6NDOptSrcLLAddr(lladdr=MAC)
    yield _to_group("ff02::2") / ICMPv6ND_RS() / told
    yield _to_group("ff02::1") / ICMPv6ND_RA(routerlifetime=1800) / told / prefix
    for mac, dst in ((host_mac, LAN6), (GATEWAY_MAC, "ff02::1"), (host_mac, "ff02::1")):
        head = Ether(src=MAC, dst=mac) / IPv6(src=LINK6, dst=dst, hlim=255)
        yield head / ICMPv6ND_RA(routerlifetime=1800) / told / prefix
        yield head / ICMPv6ND_RS()


def _neighbours(host_mac: str) -> Iterator[Packet]:
    for target in LAN4, WAN4, OUTSIDE4, "10.0.2.2":
        for mac in _ALL, host_mac:
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
        yield _to_group(group) / alert / message
        yield Ether(src=MAC, dst=host_mac) / IPv6(src=LINK6, dst=group, hlim=1) / alert / message


def _fragments(inner: Packet, protocol: int, host_mac: str) -> Iterator[Packet]:
    """All parts, in order and in reverse, the first alone, parts that overlap, and one that is tiny."""
    inner = inner / Raw(bytes(1200))
    for mac, dst in product((GATEWAY_MAC, host_mac), (OUTSIDE4, LAN4, WAN4)):
        head, number = Ether(src=MAC, dst=mac), random.getrandbits(16)
        parts = fragment(IP(src=IP4, dst=dst, id=number) / inner, fragsize=600)
        yield from (head / part for part in (*parts, *parts[::-1], parts[0]))
        other = IP(src=IP4, dst=dst, id=number ^ 1, proto=protocol)
        yield head / other.copy() / Raw(bytes(inner)[:8])
        for field in {"flags": "MF"}, {"frag": 1}:  # the second would end a TCP header (RFC 1858)
            part = IP(src=IP4, dst=dst, id=number ^ 2, proto=protocol, **field)
            yield head / part / Raw(bytes(inner)[:8])


def _fragments6(inner: Packet, protocol: int, host_mac: str) -> Iterator[Packet]:
    for mac, dst in product((GATEWAY_MAC, host_mac), (OUTSIDE6, LAN6, WAN6)):
        head = IPv6(src=IP6, dst=dst)
        whole = bytes(head / inner / Raw(bytes(1200)))[40:]
        number = random.getrandbits(32)
        for at, more in ((0, 1), (600, 0)):
            part = IPv6ExtHdrFragment(nh=protocol, offset=at // 8, m=more, id=number)
            yield Ether(src=MAC, dst=mac) / head / part / Raw(whole[at : at + 600])


def _fragmented(host_mac: str) -> Iterator[Packet]:
    for protocol, inner in (6, _syn(80)), (17, UDP(sport=40000, dport=53)), (1, ICMP(id=7)):
        yield from _fragments(inner, protocol, host_mac)
    for protocol, inner in (6, _syn(80)), (17, UDP(sport=40000, dport=53)), (58, ICMPv6EchoRequest(id=7)):
        yield from _fragments6(inner, protocol, host_mac)


_TCP_BEHIND_OPTIONS: Final = 8081


def _options(host_mac: str) -> Iterator[Packet]:
    for option in (
        IPOption_LSRR(routers=[WAN4, OUTSIDE4]),
        IPOption_SSRR(routers=[WAN4, OUTSIDE4]),
        IPOption_RR(routers=[_NOBODY] * 4),
        b"\x44\x0c\x05\x00" + bytes(8),  # timestamps (RFC 791)
        b"\x94\x04\x00\x00",  # router alert (RFC 2113)
    ):
        for inner in UDP(sport=40000, dport=53) / _HELLO, ICMP(id=7) / _HELLO:
            yield from _over4(inner, host_mac=host_mac, options=[option])
        for mac in GATEWAY_MAC, host_mac:
            head = Ether(src=MAC, dst=mac) / IP(src=IP4, dst=OUTSIDE4, options=[option])
            yield head / _syn(_TCP_BEHIND_OPTIONS)


def _extended(host_mac: str) -> Iterator[Packet]:
    for extension in (
        IPv6ExtHdrHopByHop(options=[RouterAlert()]),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(addresses=[WAN6, OUTSIDE6]),
        IPv6ExtHdrSegmentRouting(addresses=[OUTSIDE6, WAN6], segleft=1, lastentry=1),
        IPv6ExtHdrFragment(offset=0, m=0, id=7),  # "atomic", which is none (RFC 6946)
        IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop(),  # out of order (RFC 8200 section 4.1)
    ):
        inner = (UDP(sport=40000, dport=53) / _HELLO, ICMPv6EchoRequest(id=7, data=_HELLO))
        yield from _over6(*(extension / each for each in inner), host_mac=host_mac)
        for mac in GATEWAY_MAC, host_mac:
            head = Ether(src=MAC, dst=mac) / IPv6(src=IP6, dst=OUTSIDE6)
            yield head / extension / _syn(_TCP_BEHIND_OPTIONS)
    yield from _over6(Raw(_HELLO), host_mac=host_mac, nh=59)  # no next header
    yield from _over6(Raw(bytes((43, 0, 0, 0, 0, 0, 0, 0)) * 20), host_mac=host_mac, nh=43)


def _tagged(*tags: Packet) -> Callable[[str], Iterator[Packet]]:
    def frames(host_mac: str) -> Iterator[Packet]:
        for mac, inner in product(
            (GATEWAY_MAC, host_mac, _ALL), (UDP(sport=40000, dport=53), _syn(80), ICMP())
        ):
            head = Ether(src=MAC, dst=mac)
            for tag in tags:
                head = head / tag
            for dst in OUTSIDE4, LAN4, VLAN4:
                yield head.copy() / IP(src=IP4, dst=dst) / inner
            if not isinstance(inner, ICMP):
                yield head.copy() / IPv6(src=IP6, dst=OUTSIDE6) / inner
            yield head.copy() / ARP(hwsrc=MAC, psrc=IP4, pdst=VLAN4)

    return frames


def _ethertypes(host_mac: str) -> Iterator[Packet | bytes]:
    inner = IP(src=IP4, dst=OUTSIDE4) / UDP(sport=40000, dport=53) / _HELLO
    for mac in GATEWAY_MAC, host_mac, _ALL:
        for number in (
            0x0600, 0x0805, 0x0842, 0x22F0, 0x22F3, 0x6003, 0x8035, 0x809B, 0x80F3, 0x8137, 0x8809, 0x8847,
            0x8848, 0x8863, 0x8864, 0x886D, 0x8870, 0x888E, 0x8892, 0x88A2, 0x88A4, 0x88B5, 0x88C7, 0x88CA,
            0x88E5, 0x88F7, 0x8902, 0x8906, 0x8914, 0x893A, 0x9000, 0xFFFF,
        ):  # fmt: skip
            yield Ether(src=MAC, dst=mac, type=number) / bytes(inner)
        yield Dot3(src=MAC, dst=mac) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800) / inner
        yield Dot3(src=MAC, dst=mac) / LLC(dsap=0xE0, ssap=0xE0, ctrl=3) / _HELLO


def _link_control(host_mac: str) -> Iterator[Packet]:
    lldp = bytes.fromhex("02070452540056544c0403076574060200780000")
    for mac in "01:80:c2:00:00:0e", "01:80:c2:00:00:03", "01:80:c2:00:00:00", host_mac:
        yield Ether(src=MAC, dst=mac, type=0x88CC) / lldp


def _spanning_tree(host_mac: str) -> Iterator[Packet]:
    for mac in "01:80:c2:00:00:00", "01:80:c2:00:00:08", "01:00:0c:cc:cc:cd", host_mac, GATEWAY_MAC:
        yield Dot3(src=MAC, dst=mac) / LLC(dsap=0x42, ssap=0x42, ctrl=3) / STP(rootid=0, rootmac=MAC)


_PROTOCOLS: Final = {
    "ipip": 4, "dccp": 33, "6in4": 41, "rsvp": 46, "gre": 47, "esp": 50, "ah": 51, "ospf": 89, "etherip": 97,
    "pim": 103, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136, "mpls": 137, "experimental": 253,
}  # fmt: skip


def _protocol(number: int, host_mac: str) -> Iterator[Packet]:
    inside4 = bytes(IP(src=IP4, dst=OUTSIDE4) / UDP(sport=40000, dport=53) / _HELLO)
    inside6 = bytes(IPv6(src=IP6, dst=OUTSIDE6) / UDP(sport=40000, dport=53) / _HELLO)
    payload = {
        4: inside4,
        41: inside6,
        47: bytes.fromhex("00000800") + inside4,
        132: bytes.fromhex("9c400050000000002df2f3a90100001400000007000100000001000100000007"),
    }.get(number, bytes.fromhex("9c40003500140000") + bytes(56))
    yield from _over4(Raw(payload), host_mac=host_mac, proto=number)
    yield from _over6(Raw(payload), host_mac=host_mac, nh=number)


_SPOOFED4: Final = (
    _NOBODY,
    "127.0.0.1",
    LAN4,
    WAN4,
    "192.0.2.77",
    OUTSIDE4,
    "224.0.0.1",
    "255.255.255.255",
)
_SPOOFED6: Final = ("::", "::1", LAN6, WAN6, OUTSIDE6, "ff02::1", f"::ffff:{WAN4}", "2002:c000:201::1")
_FROM_ELSEWHERE: Final = 8082


def _spoofed(host_mac: str) -> Iterator[Packet]:
    inner = (UDP(sport=40000, dport=53) / _HELLO, _syn(_FROM_ELSEWHERE))
    for mac, segment in product((GATEWAY_MAC, host_mac), inner):
        for src in _SPOOFED4:
            yield Ether(src=MAC, dst=mac) / IP(src=src, dst=OUTSIDE4) / segment
        for src in _SPOOFED6:
            yield Ether(src=MAC, dst=mac) / IPv6(src=src, dst=OUTSIDE6) / segment
    for src, segment in product(
        (host_mac, GATEWAY_MAC, _ALL, "01:00:5e:00:00:01", "00:00:00:00:00:00"), inner
    ):
        for mac in GATEWAY_MAC, host_mac:
            yield Ether(src=src, dst=mac) / IP(src=IP4, dst=OUTSIDE4) / segment


def _to_all(host_mac: str) -> Iterator[Packet]:
    datagram, segment = UDP(sport=40000, dport=1900) / _HELLO, _syn(80)
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
            yield _to_group(group) / inner
        for mac in _ALL, "01:00:5e:00:00:01":
            yield Ether(src=MAC, dst=mac) / IP(src=IP4, dst=OUTSIDE4) / inner
        yield Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=IP6, dst=OUTSIDE6) / inner


_HOST_PORTS: Final = (22, 80, 9050, 9051)


def _to_host(host_mac: str) -> Iterator[Packet]:
    """Calls to addresses that are the host's own, or of nobody in the world."""
    for mac, port in product((GATEWAY_MAC, host_mac), _HOST_PORTS):
        for dst in (
            LAN4,
            WAN4,
            "127.0.0.1",
            "127.0.0.53",
            _NOBODY,
            "169.254.169.254",
            "10.0.2.2",
            "192.168.0.1",
        ):
            yield Ether(src=MAC, dst=mac) / IP(src=IP4, dst=dst) / _syn(port)
        for dst in LAN6, "::1", "::", f"::ffff:{WAN4}", "::ffff:127.0.0.1", "fe80::1", "fd00::1":
            yield Ether(src=MAC, dst=mac) / IPv6(src=IP6, dst=dst) / _syn(port)


def _odd_segments(host_mac: str) -> Iterator[Packet]:
    """Flags that open no connection, and a segment to oneself."""
    flags = ("", "F", "SF", "SR", "SAF", "R", "RA", "A", "SA", "PA", "FPU", "FSRPAUEC")
    for each in flags:
        yield from _over_both(TCP(sport=40000, dport=80, seq=5, ack=5, flags=each) / _HELLO)(host_mac)
    for mac in GATEWAY_MAC, host_mac:
        yield Ether(src=MAC, dst=mac) / IP(src=LAN4, dst=LAN4) / TCP(sport=80, dport=80, flags="A")


def _malformed(host_mac: str) -> Iterator[Packet | bytes]:
    rng = random.Random(1)
    for mac, dst in product((GATEWAY_MAC, host_mac), (OUTSIDE4, WAN4)):
        head = Ether(src=MAC, dst=mac)
        for inner in UDP(sport=40000, dport=53) / _HELLO, _syn(80), ICMP() / _HELLO:
            whole = head / IP(src=IP4, dst=dst)
            of6 = head / IPv6(src=IP6, dst=OUTSIDE6)
            for fields in (
                {"version": 5}, {"ihl": 4}, {"ihl": 15}, {"len": 10}, {"len": 4000}, {"len": 0},
                {"chksum": 1}, {"flags": "evil+DF+MF"},
            ):  # fmt: skip
                yield head / IP(src=IP4, dst=dst, **fields) / inner
            for field in {"version": 4}, {"plen": 4000}, {"plen": 3}, {"nh": 0}, {"nh": 255}:
                yield head / IPv6(src=IP6, dst=OUTSIDE6, **field) / inner
            octets = bytes(whole / inner)
            yield from (octets[:size] for size in range(14, len(octets), 3))
            octets = bytes(of6 / inner)
            yield from (octets[:size] for size in range(14, len(octets), 3))
        for offset in 0, 1, 4:
            yield head / IP(src=IP4, dst=dst) / TCP(sport=40000, dport=80, flags="S", dataofs=offset)
        yield head / IP(src=IP4, dst=dst) / TCP(sport=40000, dport=80, flags="S", chksum=1)
        for length in 0, 7, 4000:
            yield head / IP(src=IP4, dst=dst) / UDP(sport=40000, dport=53, len=length) / _HELLO
        for size in 1, 20, 40, 200, 1400:
            yield bytes(head)[:12] + bytes(rng.choice(([8, 0], [0x86, 0xDD], [8, 6]))) + rng.randbytes(size)


def query(name: str, kind: str = "A") -> Packet:
    """Return a question to a name server."""
    return DNS(id=7, rd=1, qd=DNSQR(qname=name, qtype=kind))


def _foreign_dns(host_mac: str) -> Iterator[Packet]:
    for message in query("foreign.example.com"), query("foreign.example.com", "TXT"), Raw(_HELLO):
        yield from _over_both(UDP(sport=40000, dport=53) / message)(host_mac)
    group = _to_group("224.0.0.251") / UDP(sport=5353, dport=53)
    yield group / query("foreign.example.com")


NAMES: Final = (NAME, "foreign.example.com", "tcp.example.com")
"""What may be looked up, where names are looked up."""

_LOOKUP: Final = bytes(query("tcp.example.com"))

KINDS: Final = (
    Kind("tcp", calls=(Call(OUTSIDE4, 80, _HELLO), Call(OUTSIDE6, 80, _HELLO))),
    Kind("names", asks=True, calls=(Call(NAME, 80, _HELLO),)),
    Kind("dns, foreign resolver", _foreign_dns),
    Kind("dns over tcp", calls=(Call(OUTSIDE4, 53, len(_LOOKUP).to_bytes(2, "big") + _LOOKUP),)),
    Kind("dot, doh", calls=(Call(OUTSIDE4, 853, _HELLO), Call(OUTSIDE6, 443, _HELLO))),
    Kind("stun over tcp", calls=(Call(OUTSIDE4, 3478, _STUN), Call(OUTSIDE6, 3478, _STUN))),
    Kind("tcp to the host", _to_host, ports=_HOST_PORTS, targets=(WAN4, WAN6)),
    Kind("tcp, odd flags", _odd_segments),
    Kind("udp", _udp(33434)),
    Kind("quic", _udp(443, _QUIC)),
    Kind("stun", _udp(3478, _STUN)),
    Kind("ntp", _udp(123, NTPHeader(), "224.0.1.1")),
    Kind("ssdp", _udp(1900, _SSDP, "239.255.255.250", "ff02::c")),
    Kind("mdns", _udp(5353, query("printer.local"), "224.0.0.251", "ff02::fb")),
    Kind("llmnr", _udp(5355, query("printer"), "224.0.0.252", "ff02::1:3")),
    Kind("netbios", _udp(137, bytes(50), "10.0.2.255", "255.255.255.255")),
    Kind("vpn", _udp(51820, bytes(148))),
    Kind("dhcp", _from_dhcp_client),
    Kind("dhcpv6", _dhcpv6),
    Kind("icmp", _icmp),
    Kind("icmpv6", _icmp6),
    Kind("ipv6 routers", _routers),
    Kind("arp and neighbours", _neighbours),
    Kind("igmp", _igmp),
    Kind("mld", _mld),
    Kind("fragments", _fragmented),
    Kind("ipv4 options", _options, ports=(_TCP_BEHIND_OPTIONS,)),
    Kind("ipv6 extensions", _extended, ports=(_TCP_BEHIND_OPTIONS,)),
    Kind("vlan", _tagged(Dot1Q(vlan=VLAN))),
    Kind("vlan, priority only", _tagged(Dot1Q(vlan=0, prio=7))),
    Kind("vlan, double", _tagged(Dot1AD(vlan=7), Dot1Q(vlan=VLAN))),
    Kind("vlan, double 802.1q", _tagged(Dot1Q(vlan=0), Dot1Q(vlan=VLAN))),
    Kind("other ethertypes", _ethertypes),
    Kind("lldp", _link_control),
    Kind("stp", _spanning_tree),
    *(Kind(name, partial(_protocol, number)) for name, number in _PROTOCOLS.items()),
    Kind("spoofed sources", _spoofed, ports=(_FROM_ELSEWHERE,)),
    Kind("broadcast, multicast", _to_all),
    Kind("malformed", _malformed),
)
