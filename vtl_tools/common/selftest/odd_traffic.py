"""Unusual and malformed packets for the self-tests, to each possible destination."""

import random
from collections.abc import Callable, Iterator
from itertools import product
from typing import Final

from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_RR, IPOption_SSRR, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    RouterAlert,
)
from scapy.layers.l2 import ARP, LLC, SNAP, STP, Dot3, Ether
from scapy.packet import Packet, Raw

from vtl_tools.common.selftest.host import LAN4, LAN6, VLAN4, WAN4, WAN6
from vtl_tools.common.selftest.packets import (
    ALL,
    GATEWAY_MAC,
    HELLO,
    IP4,
    IP6,
    MAC,
    NOBODY,
    OUTSIDE4,
    OUTSIDE6,
    over4,
    over6,
    syn,
)


def _fragments(inner: Packet, protocol: int, host_mac: str) -> Iterator[Packet]:
    """Yield all fragments, in order and in reverse, the first alone, overlapping ones, and a tiny one."""
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


def fragmented(host_mac: str) -> Iterator[Packet]:
    """Yield fragments of TCP, UDP and ICMP, over both IP versions."""
    for protocol, inner in (6, syn(80)), (17, UDP(sport=40000, dport=53)), (1, ICMP(id=7)):
        yield from _fragments(inner, protocol, host_mac)
    for protocol, inner in (6, syn(80)), (17, UDP(sport=40000, dport=53)), (58, ICMPv6EchoRequest(id=7)):
        yield from _fragments6(inner, protocol, host_mac)


TCP_BEHIND_OPTIONS: Final = 8081


def options(host_mac: str) -> Iterator[Packet]:
    """Yield IPv4 packets with options, above all source routes."""
    for option in (
        IPOption_LSRR(routers=[WAN4, OUTSIDE4]),
        IPOption_SSRR(routers=[WAN4, OUTSIDE4]),
        IPOption_RR(routers=[NOBODY] * 4),
        b"\x44\x0c\x05\x00" + bytes(8),  # timestamps (RFC 791)
        b"\x94\x04\x00\x00",  # router alert (RFC 2113)
    ):
        for inner in UDP(sport=40000, dport=53) / HELLO, ICMP(id=7) / HELLO:
            yield from over4(inner, host_mac=host_mac, options=[option])
        for mac in GATEWAY_MAC, host_mac:
            head = Ether(src=MAC, dst=mac) / IP(src=IP4, dst=OUTSIDE4, options=[option])
            yield head / syn(TCP_BEHIND_OPTIONS)


def extended(host_mac: str) -> Iterator[Packet]:
    """Yield IPv6 packets with extension headers."""
    for extension in (
        IPv6ExtHdrHopByHop(options=[RouterAlert()]),
        IPv6ExtHdrDestOpt(),
        IPv6ExtHdrRouting(addresses=[WAN6, OUTSIDE6]),
        IPv6ExtHdrSegmentRouting(addresses=[OUTSIDE6, WAN6], segleft=1, lastentry=1),
        IPv6ExtHdrFragment(offset=0, m=0, id=7),  # "atomic", which is none (RFC 6946)
        IPv6ExtHdrDestOpt() / IPv6ExtHdrHopByHop(),  # out of order (RFC 8200 section 4.1)
    ):
        inner = (UDP(sport=40000, dport=53) / HELLO, ICMPv6EchoRequest(id=7, data=HELLO))
        yield from over6(*(extension / each for each in inner), host_mac=host_mac)
        for mac in GATEWAY_MAC, host_mac:
            head = Ether(src=MAC, dst=mac) / IPv6(src=IP6, dst=OUTSIDE6)
            yield head / extension / syn(TCP_BEHIND_OPTIONS)
    yield from over6(Raw(HELLO), host_mac=host_mac, nh=59)  # no next header
    yield from over6(Raw(bytes((43, 0, 0, 0, 0, 0, 0, 0)) * 20), host_mac=host_mac, nh=43)


def tagged(*tags: Packet) -> Callable[[str], Iterator[Packet]]:
    """Return a function that yields frames with these VLAN tags."""

    def frames(host_mac: str) -> Iterator[Packet]:
        for mac, inner in product(
            (GATEWAY_MAC, host_mac, ALL), (UDP(sport=40000, dport=53), syn(80), ICMP())
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


def ethertypes(host_mac: str) -> Iterator[Packet | bytes]:
    """Yield frames whose EtherType is not IP, although they contain an IP packet."""
    inner = IP(src=IP4, dst=OUTSIDE4) / UDP(sport=40000, dport=53) / HELLO
    for mac in GATEWAY_MAC, host_mac, ALL:
        for number in (
            0x0600, 0x0805, 0x0842, 0x22F0, 0x22F3, 0x6003, 0x8035, 0x809B, 0x80F3, 0x8137, 0x8809, 0x8847,
            0x8848, 0x8863, 0x8864, 0x886D, 0x8870, 0x888E, 0x8892, 0x88A2, 0x88A4, 0x88B5, 0x88C7, 0x88CA,
            0x88E5, 0x88F7, 0x8902, 0x8906, 0x8914, 0x893A, 0x9000, 0xFFFF,
        ):  # fmt: skip
            yield Ether(src=MAC, dst=mac, type=number) / bytes(inner)
        yield Dot3(src=MAC, dst=mac) / LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800) / inner
        yield Dot3(src=MAC, dst=mac) / LLC(dsap=0xE0, ssap=0xE0, ctrl=3) / HELLO


def link_control(host_mac: str) -> Iterator[Packet]:
    """Yield LLDP frames."""
    lldp = bytes.fromhex("02070452540056544c0403076574060200780000")
    for mac in "01:80:c2:00:00:0e", "01:80:c2:00:00:03", "01:80:c2:00:00:00", host_mac:
        yield Ether(src=MAC, dst=mac, type=0x88CC) / lldp


def spanning_tree(host_mac: str) -> Iterator[Packet]:
    """Yield frames of the spanning tree protocol."""
    for mac in "01:80:c2:00:00:00", "01:80:c2:00:00:08", "01:00:0c:cc:cc:cd", host_mac, GATEWAY_MAC:
        yield Dot3(src=MAC, dst=mac) / LLC(dsap=0x42, ssap=0x42, ctrl=3) / STP(rootid=0, rootmac=MAC)


PROTOCOLS: Final = {
    "ipip": 4, "dccp": 33, "6in4": 41, "rsvp": 46, "gre": 47, "esp": 50, "ah": 51, "ospf": 89, "etherip": 97,
    "pim": 103, "vrrp": 112, "l2tp": 115, "sctp": 132, "udplite": 136, "mpls": 137, "experimental": 253,
}  # fmt: skip


def protocol(number: int, host_mac: str) -> Iterator[Packet]:
    """Yield packets of one IP protocol."""
    inside4 = bytes(IP(src=IP4, dst=OUTSIDE4) / UDP(sport=40000, dport=53) / HELLO)
    inside6 = bytes(IPv6(src=IP6, dst=OUTSIDE6) / UDP(sport=40000, dport=53) / HELLO)
    payload = {
        4: inside4,
        41: inside6,
        47: bytes.fromhex("00000800") + inside4,
        132: bytes.fromhex("9c400050000000002df2f3a90100001400000007000100000001000100000007"),
    }.get(number, bytes.fromhex("9c40003500140000") + bytes(56))
    yield from over4(Raw(payload), host_mac=host_mac, proto=number)
    yield from over6(Raw(payload), host_mac=host_mac, nh=number)


_SPOOFED4: Final = (
    NOBODY,
    "127.0.0.1",
    LAN4,
    WAN4,
    "192.0.2.77",
    OUTSIDE4,
    "224.0.0.1",
    "255.255.255.255",
)
_SPOOFED6: Final = ("::", "::1", LAN6, WAN6, OUTSIDE6, "ff02::1", f"::ffff:{WAN4}", "2002:c000:201::1")
FROM_ELSEWHERE: Final = 8082


def spoofed(host_mac: str) -> Iterator[Packet]:
    """Yield packets with source addresses that are not the guest's."""
    inner = (UDP(sport=40000, dport=53) / HELLO, syn(FROM_ELSEWHERE))
    for mac, segment in product((GATEWAY_MAC, host_mac), inner):
        for src in _SPOOFED4:
            yield Ether(src=MAC, dst=mac) / IP(src=src, dst=OUTSIDE4) / segment
        for src in _SPOOFED6:
            yield Ether(src=MAC, dst=mac) / IPv6(src=src, dst=OUTSIDE6) / segment
    for src, segment in product(
        (host_mac, GATEWAY_MAC, ALL, "01:00:5e:00:00:01", "00:00:00:00:00:00"), inner
    ):
        for mac in GATEWAY_MAC, host_mac:
            yield Ether(src=src, dst=mac) / IP(src=IP4, dst=OUTSIDE4) / segment


def malformed(host_mac: str) -> Iterator[Packet | bytes]:
    """Yield packets that are broken or truncated."""
    rng = random.Random(1)
    for mac, dst in product((GATEWAY_MAC, host_mac), (OUTSIDE4, WAN4)):
        head = Ether(src=MAC, dst=mac)
        for inner in UDP(sport=40000, dport=53) / HELLO, syn(80), ICMP() / HELLO:
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
            yield head / IP(src=IP4, dst=dst) / UDP(sport=40000, dport=53, len=length) / HELLO
        for size in 1, 20, 40, 200, 1400:
            yield bytes(head)[:12] + bytes(rng.choice(([8, 0], [0x86, 0xDD], [8, 6]))) + rng.randbytes(size)
