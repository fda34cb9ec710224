"""Attacks on the guest's identity that take several steps; those of one step are in `spoofed.py`."""

from typing import Final

from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from vtl_tools.common.packet import address
from vtl_tools.common.selftest.packets import ALL, IP4, IP6, LINK6, MAC
from vtl_tools.services.fw.selftest import packets as fw
from vtl_tools.services.fw.selftest import spoofed
from vtl_tools.services.fw.selftest.packets import ROUTER4, ROUTER6, ROUTER_MAC, VICTIM4, VICTIM6, VICTIM_MAC
from vtl_tools.services.fw.selftest.scene import Firewalled

_TESTED_S: Final = 1.5
"""Seconds that a service takes to bind or remove an address (RFC 6620 section 3.3)."""
FRAME_OCTETS: Final = 60
"""The shortest frame that a card sends."""


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
        may = octets, octets.ljust(FRAME_OCTETS, b"\0")
        for data in fw.SECRET[:18], fw.SECRET:
            play.out(octets + data, may=(*may, octets + bytes(len(data))))


def dhcp(play: Firewalled) -> None:
    """Request another's lease, release it in the other's name, and then request the own one again."""
    for _, frames in spoofed.dhcp_clients():
        play.out(*frames)
    for kind in "discover", "request":
        play.out(fw.dhcp(kind, ("client_id", b"\0somebody else"), xid=99))
    identifier = ("client_id", b"\1" + address.mac(VICTIM_MAC))
    play.guest.send(
        [fw.dhcp("release", ("server_id", ROUTER4), identifier, ciaddr=IP4, src=IP4, dst=ROUTER4)]
    )
    _lease(play)  # for the case that it was believed


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
