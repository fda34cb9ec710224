"""Spoofing attacks of the guest: addresses, ARP, neighbour discovery and DHCP of others."""

from itertools import product
from typing import Any, Final

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Advertise
from scapy.layers.inet import ICMP, IP, UDP
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
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP, Dot1Q
from scapy.packet import Packet, Raw

from vtl_tools.common.packet import address
from vtl_tools.common.selftest.packets import ALL, IP4, IP6, LINK6, MAC, NOBODY
from vtl_tools.services.fw.selftest import packets as fw
from vtl_tools.services.fw.selftest.fragments import fragments
from vtl_tools.services.fw.selftest.marked import (
    ALL_NODES_MAC,
    Attacks,
    Frame,
    ether,
    mark,
    open_datagram,
    open_syn,
    to_all_nodes,
)
from vtl_tools.services.fw.selftest.packets import (
    OPEN_PORT,
    PEER6,
    ROUTER4,
    ROUTER6,
    ROUTER_MAC,
    SERVICE4,
    SERVICE6,
    VICTIM4,
    VICTIM6,
    VICTIM_MAC,
)

_NO_MAC: Final = "00:00:00:00:00:00"
_MACS: Final = {
    "another Ethernet address": VICTIM_MAC,
    "the router's Ethernet address": ROUTER_MAC,
    "a group's Ethernet address": "01:00:5e:00:00:01",
    "the Ethernet address of all": ALL,
    "no Ethernet address": _NO_MAC,
}
_SOURCES4: Final = (
    VICTIM4, ROUTER4, NOBODY, "127.0.0.1", "255.255.255.255", "10.0.2.255", "224.0.0.1", fw.CALLER4,
)  # fmt: skip
_SOURCES6: Final = (
    VICTIM6, PEER6, ROUTER6, "::", "::1", "ff02::1", f"::ffff:{IP4}", "fe80::77", fw.CALLER6, fw.PREFIX,
)  # fmt: skip
_OFF_LINK6: Final = ("2001:db8:bad::1", "fd76:746c:0:2::5")
"""Of no prefix that the router has announced."""


def senders() -> Attacks:
    """Return what the rules allow, from addresses of others or of nobody."""
    for name, mac in _MACS.items():
        for version, net in ("", IP(src=IP4, dst=ROUTER4)), (", IPv6", IPv6(src=IP6, dst=PEER6)):
            yield _both(name + version, ether(src=mac) / net)
    for source in _SOURCES4:
        yield _both(f"from {source}", ether() / IP(src=source, dst=ROUTER4))
    for source in _SOURCES6:
        yield _both(f"from {source}", ether() / IPv6(src=source, dst=PEER6))
    for source in _OFF_LINK6:
        name = f"from {source}, once claimed"
        claim = IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=source)
        used = IPv6(src=source, dst=PEER6) / open_datagram(name)
        yield name, [to_all_nodes(claim, name), ether() / used]
    name = "a spoofed ping"
    yield name, [ether() / IP(src=VICTIM4, dst=ROUTER4) / ICMP() / Raw(mark(name))]
    name = "a spoofed source in fragments"
    yield name, fragments(IP(src=VICTIM4, dst=ROUTER4, id=40), bytes(open_datagram(name)) + bytes(40), 24)


def _both(name: str, head: Packet) -> tuple[str, list[Frame]]:
    return name, [head.copy() / open_datagram(name), head.copy() / open_syn(name)]


def arp() -> Attacks:
    """Return claims of others' addresses by ARP, and of the guest's at another's Ethernet address."""
    forms: dict[str, dict[str, Any]] = {
        "ARP: the guest is the router": {"op": 2, "psrc": ROUTER4, "hwsrc": MAC, "pdst": VICTIM4},
        "ARP: the router asks": {"op": 1, "psrc": ROUTER4, "hwsrc": MAC, "pdst": VICTIM4},
        "ARP: gratuitous for another": {"op": 1, "psrc": VICTIM4, "hwsrc": MAC, "pdst": VICTIM4},
        "ARP: the guest is at another's": {"op": 2, "psrc": IP4, "hwsrc": VICTIM_MAC, "pdst": ROUTER4},
        "ARP: another asks for the guest's": {"op": 1, "psrc": IP4, "hwsrc": VICTIM_MAC, "pdst": ROUTER4},
        "ARP: another probes": {"op": 1, "psrc": NOBODY, "hwsrc": VICTIM_MAC, "pdst": IP4},
    }
    for name, fields in forms.items():
        yield name, [ether(dst=ALL) / ARP(**fields, hwdst=_marked_mac(name))]
        tagged = f"{name}, tagged"
        yield tagged, [ether(dst=ALL) / Dot1Q(vlan=0) / ARP(**fields, hwdst=_marked_mac(tagged))]
    for addr in VICTIM4, ROUTER4, SERVICE4, "255.255.255.255":
        name = f"ARP: the guest is {addr}"
        told = {"hwsrc": MAC, "psrc": addr, "hwdst": _marked_mac(name)}
        ways = product((ALL, ROUTER_MAC), (1, 2), (ROUTER4, addr))
        yield name, [ether(dst=to) / ARP(op=op, pdst=target, **told) for to, op, target in ways]
    for inside in MAC, VICTIM_MAC:
        name = f"ARP from another Ethernet address, with {inside} inside"
        told = {"hwsrc": inside, "psrc": IP4, "pdst": ROUTER4, "hwdst": _marked_mac(name)}
        yield name, [ether(src=VICTIM_MAC, dst=ALL) / ARP(op=op, **told) for op in (1, 2)]
    name = "ARP from another Ethernet address, for another"
    claim = ARP(op=2, psrc=ROUTER4, hwsrc=VICTIM_MAC, pdst=VICTIM4, hwdst=_marked_mac(name))
    yield name, [ether(src=VICTIM_MAC, dst=ALL) / claim]


def _marked_mac(name: str) -> str:
    return address.format_mac(mark(name))


def neighbours() -> Attacks:
    """Return neighbour discovery in the name of others, and behind extension headers."""
    advert, lladdr = ICMPv6ND_NA(tgt=PEER6, R=0, S=0, O=1), ICMPv6NDOptDstLLAddr(lladdr=MAC)
    net, routers = (IPv6(src=src, dst="ff02::1", hlim=255) for src in (IP6, PEER6))
    for name, message in {
        "ND: the guest is the router": net / advert / lladdr,
        "ND: the router itself says so": routers / advert / lladdr,
        "ND: the guest is at another's": net
        / ICMPv6ND_NA(tgt=IP6, O=1)
        / ICMPv6NDOptDstLLAddr(lladdr=VICTIM_MAC),
        "ND: the router asks": routers / ICMPv6ND_NS(tgt=VICTIM6) / ICMPv6NDOptSrcLLAddr(lladdr=MAC),
        "ND: another's Ethernet address asks": net
        / ICMPv6ND_NS(tgt=PEER6)
        / ICMPv6NDOptSrcLLAddr(lladdr=VICTIM_MAC),
        "ND: behind hop-by-hop options": net / IPv6ExtHdrHopByHop() / advert / lladdr,
        "ND: behind destination options": net / IPv6ExtHdrDestOpt() / advert / lladdr,
        "ND: from afar": IPv6(src=IP6, dst="ff02::1", hlim=64) / advert / lladdr,
    }.items():
        yield name, [to_all_nodes(message, name)]


def neighbour_data() -> Attacks:
    """Return neighbour discovery that the guest may send, but off the link, or with data in it."""
    for dst in SERVICE6, "2001:db8:bad::1", "2001:db8:ffff::fe", "ff0e::1", "ff05::2":
        for what, message in {
            "a solicitation": ICMPv6ND_NS(tgt=dst),
            "an advertisement": ICMPv6ND_NA(tgt=IP6, S=1, O=1),
            "a router solicitation": ICMPv6ND_RS(),
        }.items():
            name = f"ND: {what} to {dst}"
            net = ether() / IPv6(src=IP6, dst=dst, hlim=255)
            options = [Raw(b"\x0e\1" + mark(name)), _option(name, 200, 1296)]
            yield name, [net / message, *(net.copy() / message / option for option in options)]
    for kind, octets in (200, 1296), (200, 8), (1, 24), (14, 1296), (253, 40):
        name = f"ND: {octets} octets in an option of type {kind}"
        option = _option(name, kind, octets)
        to_router = ether() / IPv6(src=LINK6, dst=ROUTER6, hlim=255)
        to_routers = ether(dst="33:33:00:00:00:02") / IPv6(src=LINK6, dst="ff02::2", hlim=255)
        multicast = fw.solicit(ROUTER6)
        multicast[ICMPv6ND_NS].remove_payload()
        yield (
            name,
            [
                multicast / option,
                to_router.copy() / ICMPv6ND_NS(tgt=ROUTER6) / option,
                to_router.copy() / ICMPv6ND_NA(tgt=LINK6, S=1) / option,
                to_routers / ICMPv6ND_RS() / option,
            ],
        )
    name = "ND: two nonces"
    net = ether() / IPv6(src=IP6, dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=PEER6)
    yield name, [net / Raw(b"\x0e\1nonce!") / Raw(b"\x0e\1" + mark(name))]
    name = "ND: an option of an unknown type"
    yield name, [to_all_nodes(IPv6(src=IP6, dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=PEER6), name)]
    name = "ARP in a VLAN"
    told = ARP(op=1, psrc=IP4, hwsrc=MAC, pdst=ROUTER4, hwdst=_marked_mac(name))
    yield name, [ether(dst=ALL) / Dot1Q(vlan=7) / told]


def _option(name: str, kind: int, octets: int) -> Raw:
    """Return an option of so many octets, full of data (RFC 4861 section 4.6)."""
    data = mark(name) + fw.SECRET
    return Raw(bytes((kind, octets // 8)) + data[: octets - 2].ljust(octets - 2, b"."))


def routers() -> Attacks:
    """Return what only a router sends."""
    router = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::")
    net = IPv6(src=IP6, dst="ff02::1", hlim=255)
    behind_many = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrDestOpt()
    for name, message in {
        "a router": net / router,
        "a router behind options": net / IPv6ExtHdrDestOpt() / router,
        "a router behind many options": net / behind_many / router,
        "a redirect": net / ICMPv6ND_Redirect(tgt=IP6, dst=VICTIM6),
    }.items():
        yield name, [to_all_nodes(message, name)]
    for prefix, src, lifetime in product((fw.PREFIX, "2001:db8:bad::"), (LINK6, ROUTER6), (0, 1800)):
        name = f"a router of {prefix} at {src} for {lifetime} s"
        told = ICMPv6NDOptPrefixInfo(prefix=prefix, prefixlen=64, L=1, A=1)
        head = ether(dst=ALL_NODES_MAC) / IPv6(src=src, dst="ff02::1", hlim=255)
        lladdr = ICMPv6NDOptSrcLLAddr(lladdr=_marked_mac(name))
        yield name, [head / ICMPv6ND_RA(routerlifetime=lifetime) / lladdr / told]
    for src, dst in product((LINK6, ROUTER6), (VICTIM6, "ff02::1")):
        name = f"a redirect from {src} to {dst}"
        head = ether(dst=VICTIM_MAC) / IPv6(src=src, dst=dst, hlim=255)
        lladdr = ICMPv6NDOptDstLLAddr(lladdr=_marked_mac(name))
        yield name, [head / ICMPv6ND_Redirect(tgt=LINK6, dst=SERVICE6) / lladdr]


def dhcp_clients() -> Attacks:
    """Return requests for another's lease, and releases of it in the other's name."""
    mine, others = address.mac(MAC), address.mac(VICTIM_MAC)
    for name, message in {
        "DHCP for another": _asks(others),
        "DHCP with another's identifier": _asks(mine, ("client_id", b"\1" + others)),
        "another's lease given back": _asks(mine, kind="release", ciaddr=VICTIM4),
        "another's address declined": _asks(mine, ("requested_addr", VICTIM4), kind="decline"),
    }.items():
        data = UDP(sport=68, dport=67) / message / Raw(mark(name))
        yield name, [ether(dst=ALL) / IP(src=IP4, dst="255.255.255.255") / data]
    name = "DHCP from another's address"
    yield (
        name,
        [ether() / IP(src=VICTIM4, dst=ROUTER4) / UDP(sport=68, dport=67) / _asks(mine) / Raw(mark(name))],
    )
    server, wanted = ("server_id", ROUTER4), ("requested_addr", VICTIM4)
    identifier = ("client_id", b"\1" + others)
    for kind in "discover", "request":
        for what, frames in {
            "another's identifier": [fw.dhcp(kind, identifier), fw.dhcp(kind, identifier, wanted)],
            "another's hardware address": [
                fw.dhcp(kind, chaddr=VICTIM_MAC),
                fw.dhcp(kind, wanted, chaddr=VICTIM_MAC),
            ],
            "another's Ethernet address": [fw.dhcp(kind, mac=VICTIM_MAC)],
            "another's address": [fw.dhcp(kind, src=VICTIM4, ciaddr=VICTIM4)],
        }.items():
            name = f"DHCP {kind} with {what}"
            yield name, [frame / Raw(mark(name)) for frame in frames]
    name = "a release of another's lease"
    yield (
        name,
        [
            fw.dhcp("release", server, ciaddr=VICTIM4, src=IP4, dst=ROUTER4) / Raw(mark(name)),
            fw.dhcp("release", server, ciaddr=VICTIM4, src=VICTIM4, dst=ROUTER4) / Raw(mark(name)),
            fw.dhcp("release", server, chaddr=VICTIM_MAC, ciaddr=VICTIM4, src=IP4, dst=ROUTER4)
            / Raw(mark(name)),
        ],
    )
    name = "a decline of another's address"
    yield (
        name,
        [
            fw.dhcp("decline", server, wanted) / Raw(mark(name)),
            fw.dhcp("decline", server, identifier, wanted) / Raw(mark(name)),
        ],
    )


def _asks(chaddr: bytes, *options: object, kind: str = "request", ciaddr: str = NOBODY) -> Packet:
    told = [("message-type", kind), *options, "end"]
    return BOOTP(op=1, chaddr=chaddr, ciaddr=ciaddr) / DHCP(options=told)


def dhcp_servers() -> Attacks:
    """Return what only a DHCP server or relay sends."""
    others = address.mac(VICTIM_MAC)
    offer = BOOTP(op=2, chaddr=others, yiaddr=VICTIM4) / DHCP(options=[("message-type", "offer"), "end"])
    for name, ports, message in (
        ("a DHCP server", (67, 68), offer),
        ("a DHCP server on another port", (OPEN_PORT, 68), offer),
        ("a DHCP relay", (67, 67), BOOTP(op=1, chaddr=others, giaddr=IP4) / DHCP(options=["end"])),
        ("an answer to a DHCP server", (68, 67), offer),
    ):
        data = UDP(sport=ports[0], dport=ports[1]) / message / Raw(mark(name))
        yield name, [ether(dst=ALL) / IP(src=IP4, dst="255.255.255.255") / data]
    for kind, sport, dport in product(("offer", "ack", "nak"), (67, 68), (67, 68)):
        name = f"a DHCP {kind} from port {sport} to {dport}"
        head = ether(dst=ALL) / IP(src=IP4, dst="255.255.255.255") / UDP(sport=sport, dport=dport)
        yield name, [head / fw.leased(kind, VICTIM4) / Raw(mark(name))]
    name = "a DHCP server in fragments"
    whole = bytes(UDP(sport=67, dport=68) / offer / Raw(mark(name)))
    yield name, fragments(IP(src=IP4, dst=ROUTER4, id=41), whole, 160)
    name = "a DHCPv6 server"
    data = UDP(sport=547, dport=546) / DHCP6_Advertise() / Raw(mark(name))
    yield name, [ether() / IPv6(src=IP6, dst="fe80::1") / data]
