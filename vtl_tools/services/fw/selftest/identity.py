"""Spoofing attacks by the guest: addresses, ARP, DHCP and neighbour discovery; and covert data in these."""

from collections.abc import Iterator
from itertools import product
from typing import Final

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet, Raw

from vtl_tools.common.selftest.packets import ALL, IP4, IP6, LINK6, MAC
from vtl_tools.services.fw.selftest import packets as fw
from vtl_tools.services.fw.selftest.packets import ROUTER4, ROUTER6, ROUTER_MAC, VICTIM4, VICTIM6, VICTIM_MAC
from vtl_tools.services.fw.selftest.scene import Firewalled

_TESTED_S: Final = 1.5
"""Seconds that a service takes to bind or remove an address (RFC 6620 section 3.3)."""
_ARP_OCTETS: Final = 42
_FRAME_OCTETS: Final = 60


def settle_in(play: Firewalled) -> None:
    """Get a lease, learn the router, and claim addresses, as every guest does."""
    _lease(play)
    play.first(fw.announced(), out=False)
    play.first(fw.probe(LINK6), fw.probe(IP6), out=True)
    play.pause(_TESTED_S)
    play.out(Ether(src=MAC, dst=ALL) / ARP(hwsrc=MAC, psrc=IP4, pdst=ROUTER4), due=True)
    told = {"hwsrc": ROUTER_MAC, "psrc": ROUTER4, "hwdst": MAC, "pdst": IP4}
    play.come(Ether(src=ROUTER_MAC, dst=MAC) / ARP(op=2, **told), due=True)
    router = "33:33:00:00:00:02"
    play.out(Ether(src=MAC, dst=router) / IPv6(src=LINK6, dst="ff02::2", hlim=255) / ICMPv6ND_RS(), due=True)
    play.out(fw.solicit(ROUTER6), fw.solicit(ROUTER6, dst=ROUTER6), fw.solicit(VICTIM6, src=IP6), due=True)
    play.out(fw.advert(LINK6, ROUTER6), fw.advert(IP6, ROUTER6), due=True)


_OWN: Final = ("client_id", b"\0the guest's own")


def _lease(play: Firewalled) -> None:
    play.first(fw.dhcp("discover", _OWN), out=True)
    play.first(fw.from_server("offer"), out=False)
    play.first(fw.dhcp("request", _OWN, ("requested_addr", IP4), ("server_id", ROUTER4)), out=True)
    play.first(fw.from_server("ack"), out=False)


def spoof(play: Firewalled) -> None:
    """Send allowed packets from addresses of others, or of no host."""
    own = [fw.called(40_000), fw.called(40_000, six=True), fw.asked(40_000)]
    for mac, frame in product((VICTIM_MAC, ROUTER_MAC, ALL, "00:00:00:00:00:00"), own):
        spoofed = frame.copy()
        spoofed.src = mac
        play.out(spoofed)
    for src in VICTIM4, ROUTER4, "10.0.2.255", "0.0.0.0", "127.0.0.1", "224.0.0.1", "198.51.100.9":  # noqa: S104
        play.out(
            fw.called(40_001, src=src), fw.outward(src, fw.RESOLVER4) / UDP(sport=40_001, dport=53) / b"x"
        )
    for src in VICTIM6, ROUTER6, "::", "::1", "ff02::1", f"::ffff:{IP4}", "2001:db8:7::9", "fd76:746c:0:1::":
        play.out(fw.called(40_001, six=True, src=src))


def arp(play: Firewalled) -> None:
    """Claim others' addresses by ARP, or give others' Ethernet addresses for the own one."""
    for addr in VICTIM4, ROUTER4, fw.SERVICE4, "255.255.255.255":
        for to, at in (ALL, "00:00:00:00:00:00"), (ROUTER_MAC, ROUTER_MAC):
            play.out(
                Ether(src=MAC, dst=to) / ARP(hwsrc=MAC, psrc=addr, pdst=ROUTER4),
                Ether(src=MAC, dst=to) / ARP(hwsrc=MAC, psrc=addr, pdst=addr),
                Ether(src=MAC, dst=to) / ARP(op=2, hwsrc=MAC, psrc=addr, hwdst=at, pdst=ROUTER4),
                Ether(src=MAC, dst=to) / ARP(op=2, hwsrc=MAC, psrc=addr, hwdst=at, pdst=addr),
            )
    for sender, inside in (MAC, VICTIM_MAC), (VICTIM_MAC, MAC), (VICTIM_MAC, VICTIM_MAC):
        play.out(Ether(src=sender, dst=ALL) / ARP(hwsrc=inside, psrc=IP4, pdst=ROUTER4))
        play.out(Ether(src=sender, dst=ALL) / ARP(op=2, hwsrc=inside, psrc=IP4, pdst=ROUTER4))


def behind_arp(play: Firewalled) -> None:
    """Send data after ARP and neighbour discovery messages: only the messages may arrive."""
    for octets in (
        bytes(Ether(src=MAC, dst=ALL) / ARP(hwsrc=MAC, psrc=IP4, pdst=ROUTER4)),
        bytes(
            Ether(src=MAC, dst=ROUTER_MAC) / ARP(op=2, hwsrc=MAC, psrc=IP4, hwdst=ROUTER_MAC, pdst=ROUTER4)
        ),
        bytes(fw.solicit(ROUTER6)),
        bytes(fw.advert(IP6, ROUTER6)),
    ):
        may = octets, octets.ljust(_FRAME_OCTETS, b"\0")
        for data in fw.SECRET[:18], fw.SECRET:
            play.out(octets + data, may=(*may, octets + bytes(len(data))))


def dhcp(play: Firewalled) -> None:
    """Request another's lease, or release it in its name."""
    identifier = ("client_id", b"\1" + fw.raw_mac(VICTIM_MAC))
    for kind in "discover", "request":
        wanted = ("requested_addr", VICTIM4)
        play.out(fw.dhcp(kind, identifier), fw.dhcp(kind, identifier, wanted))
        play.out(fw.dhcp(kind, chaddr=VICTIM_MAC), fw.dhcp(kind, wanted, chaddr=VICTIM_MAC))
        play.out(fw.dhcp(kind, mac=VICTIM_MAC), fw.dhcp(kind, src=VICTIM4, ciaddr=VICTIM4))
        play.out(fw.dhcp(kind, ("client_id", b"\0somebody else"), xid=99))
    server = ("server_id", ROUTER4)
    play.out(
        fw.dhcp("release", server, ciaddr=VICTIM4, src=IP4, dst=ROUTER4),
        fw.dhcp("release", server, ciaddr=VICTIM4, src=VICTIM4, dst=ROUTER4),
        fw.dhcp("release", server, chaddr=VICTIM_MAC, ciaddr=VICTIM4, src=IP4, dst=ROUTER4),
        fw.dhcp("decline", server, ("requested_addr", VICTIM4)),
        fw.dhcp("decline", server, identifier, ("requested_addr", VICTIM4)),
    )
    play.guest.send([fw.dhcp("release", server, identifier, ciaddr=IP4, src=IP4, dst=ROUTER4)])
    _lease(play)  # for the case that it was believed


def dhcp_server(play: Firewalled) -> None:
    """Act as a DHCP server."""
    for kind, sport, dport in product(("offer", "ack", "nak"), (67, 68), (67, 68)):
        head = Ether(src=MAC, dst=ALL) / IP(src=IP4, dst="255.255.255.255") / UDP(sport=sport, dport=dport)
        play.out(head / fw.leased(kind, VICTIM4))


def dhcp_in_answer(play: Firewalled) -> None:
    """Take an address by a DHCP answer of an accomplice, sent as the answer to another request."""
    question = fw.outward(dst=fw.RESOLVER4) / UDP(sport=68, dport=53) / b"what is my address?"
    play.out(question, may=[question])
    for xid in 0x5E1F7E57, 0x5E1F7E58, 0:
        told = fw.answered(68, fw.leased("ack", VICTIM4, xid=xid))
        play.come(told, may=[told])
    play.out(fw.called(40_002, src=VICTIM4))
    play.out(Ether(src=MAC, dst=ALL) / ARP(hwsrc=MAC, psrc=VICTIM4, pdst=ROUTER4))


def claim(play: Firewalled) -> None:
    """Take IPv6 addresses that another station has claimed, by packets that the network accepts."""
    theirs = fw.probe(VICTIM6, VICTIM_MAC)
    play.come(theirs, may=[theirs])
    play.pause(_TESTED_S)
    for addr in VICTIM6, ROUTER6:
        play.out(
            fw.probe(addr), fw.advert(addr), fw.advert(addr, ROUTER6), fw.advert(addr, R=1),
            fw.solicit(ROUTER6, src=addr), fw.called(40_003, six=True, src=addr),
        )  # fmt: skip
    head = Ether(src=MAC, dst=ROUTER_MAC) / IPv6(src=LINK6, dst=ROUTER6, hlim=255)
    play.out(head / ICMPv6ND_NA(tgt=VICTIM6, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MAC))
    play.out(head / ICMPv6ND_NA(tgt=IP6, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=VICTIM_MAC))
    play.out(head / ICMPv6ND_NS(tgt=ROUTER6) / ICMPv6NDOptSrcLLAddr(lladdr=VICTIM_MAC))


def lock_out(play: Firewalled) -> None:
    """As another VM, claim the guest's IPv6 addresses by one packet each. The guest must keep them."""
    for addr in IP6, LINK6:
        theirs = (
            fw.advert(addr, mac=VICTIM_MAC),
            fw.probe(addr, VICTIM_MAC),
            fw.solicit(addr, src=addr, mac=VICTIM_MAC),
        )
        play.come(*theirs, may=theirs)
    play.pause(_TESTED_S)
    play.settle()
    play.out(fw.called(40_004, six=True), fw.solicit(ROUTER6), due=True)


def routers(play: Firewalled) -> None:
    """Act as a router."""
    for prefix, src, lifetime in product((fw.PREFIX, "2001:db8:bad::"), (LINK6, ROUTER6), (0, 1800)):
        head = Ether(src=MAC, dst="33:33:00:00:00:01") / IPv6(src=src, dst="ff02::1", hlim=255)
        told = ICMPv6NDOptSrcLLAddr(lladdr=MAC) / ICMPv6NDOptPrefixInfo(prefix=prefix, prefixlen=64, L=1, A=1)
        play.out(head / ICMPv6ND_RA(routerlifetime=lifetime) / told)
    for src, dst in product((LINK6, ROUTER6), (VICTIM6, "ff02::1")):
        head = Ether(src=MAC, dst=VICTIM_MAC) / IPv6(src=src, dst=dst, hlim=255)
        play.out(head / ICMPv6ND_Redirect(tgt=LINK6, dst=fw.SERVICE6) / ICMPv6NDOptDstLLAddr(lladdr=MAC))


def data_in_discovery(play: Firewalled) -> None:
    """Hide data in neighbour discovery, and send it off the link."""
    play.out(*_with_data())
    for dst in fw.SERVICE6, "2001:db8:ffff::fe", "ff0e::1", "ff05::2":
        head = Ether(src=MAC, dst=ROUTER_MAC) / IPv6(src=IP6, dst=dst, hlim=255)
        for message in ICMPv6ND_NS(tgt=dst), ICMPv6ND_NA(tgt=IP6, S=1, O=1), ICMPv6ND_RS():
            play.out(head / message, head / message / _option(200, 1296))


def _with_data() -> Iterator[Packet]:
    group = fw.solicit(ROUTER6)
    for option in _option(200, 1296), _option(200, 8), _option(1, 24), _option(14, 1296), _option(253, 40):
        bare = {"src": LINK6, "hlim": 255}
        yield (
            Ether(src=MAC, dst=group.dst)
            / IPv6(dst=group[IPv6].dst, **bare)
            / ICMPv6ND_NS(tgt=ROUTER6)
            / option
        )
        yield Ether(src=MAC, dst=ROUTER_MAC) / IPv6(dst=ROUTER6, **bare) / ICMPv6ND_NS(tgt=ROUTER6) / option
        yield (
            Ether(src=MAC, dst=ROUTER_MAC) / IPv6(dst=ROUTER6, **bare) / ICMPv6ND_NA(tgt=LINK6, S=1) / option
        )
        yield Ether(src=MAC, dst="33:33:00:00:00:02") / IPv6(dst="ff02::2", **bare) / ICMPv6ND_RS() / option


def _option(kind: int, octets: int) -> Raw:
    """Return an option of this size, full of data (RFC 4861 section 4.6)."""
    return Raw(bytes((kind, octets // 8)) + fw.SECRET[: octets - 2].ljust(octets - 2, b"."))
