"""What root in a guest may send to get past a firewall, each frame made by scapy and marked.

The firewall is thought to let the guest reach UDP port OPEN, TCP port 80 and pings, untagged, and to deny
the rest, SHUT among it. What only spoofs goes to OPEN, so that no rule would stop it.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.dhcp6 import DHCP6_Advertise
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_LSRR, IPOption_NOP, IPOption_SSRR
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
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
)
from scapy.layers.l2 import ARP, LLC, SNAP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

OPEN, SHUT = 9, 7777
ME, OTHER, PEER = "10.9.0.50", "10.9.0.77", "10.9.0.2"
ME6, OTHER6, PEER6 = "fd09::5", "fd09::77", "fd09::2"
OTHER_MAC, ALL = "52:54:00:bb:00:77", "ff:ff:ff:ff:ff:ff"
NO_OFFLOAD = bytes(10)


def mark(name: str) -> bytes:
    """Six octets that nothing else has."""
    return b"t!" + struct.pack("!I", zlib.crc32(name.encode()))


@dataclass(frozen=True)
class Attack:
    """Frames that belong together. always: no rule lets it pass, since it is broken or made to deceive."""

    name: str
    frames: tuple[bytes, ...]
    always: bool

    def shows_in(self, frame: bytes) -> bool:
        return mark(self.name) in frame


Made = tuple[str, list[Packet | bytes]]


class Attacker:
    """Makes the attacks of a guest of this Ethernet address on a server."""

    def __init__(self, mac: str, server: str) -> None:
        self.mac, self.server = mac, server

    def honest(self, name: str) -> bytes:
        """A datagram that is to pass."""
        return NO_OFFLOAD + bytes(self.ether() / IP(src=ME, dst=PEER) / self.open(name))

    def all(self) -> list[Attack]:
        """Every attack."""
        found = []
        for makers, always in ((self.by_rules(), False), (self.always(), True)):
            for name, frames in makers:
                whole = [f if isinstance(f, bytes) else NO_OFFLOAD + bytes(f) for f in frames]
                found.append(Attack(name, tuple(frame.ljust(70, b"\0") for frame in whole), always))
        assert len({attack.name for attack in found}) == len(found)
        lost = [a.name for a in found if not any(a.shows_in(frame) for frame in a.frames)]
        assert not lost, lost
        return found

    def by_rules(self) -> Iterator[Made]:
        """What the rules deny, and what is spoofed: a firewall that allows it all lets it pass."""
        yield from self.spoofed()
        yield from self.spoofed_neighbours()
        yield from self.data_in_neighbour_discovery()
        yield from self.servers()
        yield from self.tagged()
        yield from self.disguised()

    def always(self) -> Iterator[Made]:
        """What no firewall should let pass."""
        yield from self.broken_fragments()
        yield from self.broken_fragments6()
        yield from self.source_routes()
        yield from self.broken()
        yield from self.padded()

    # --- parts

    def ether(self, **fields: object) -> Packet:
        return Ether(**{"src": self.mac, "dst": self.server, **fields})

    def open(self, name: str) -> Packet:
        return UDP(sport=5000, dport=OPEN) / Raw(mark(name))

    def shut(self, name: str) -> Packet:
        return UDP(sport=5000, dport=SHUT) / Raw(mark(name))

    def to_all_nodes(self, message: Packet, name: str) -> Packet:
        """A message of neighbour discovery, with its mark in an option that nobody knows."""
        return self.ether(dst="33:33:00:00:00:01") / message / Raw(b"\xfd\1" + mark(name))

    # --- who sends

    def spoofed(self) -> Iterator[Made]:
        for name, mac in (
            ("another Ethernet address", OTHER_MAC),
            ("the server's Ethernet address", self.server),
            ("a group's Ethernet address", "01:00:5e:00:00:01"),
            ("no Ethernet address", "00:00:00:00:00:00"),
        ):
            yield name, [self.ether(src=mac) / IP(src=ME, dst=PEER) / self.open(name)]
            yield (
                f"{name}, IPv6",
                [self.ether(src=mac) / IPv6(src=ME6, dst=PEER6) / self.open(f"{name}, IPv6")],
            )
        sources = (OTHER, PEER, "0.0.0.0", "127.0.0.1", "255.255.255.255", "10.9.0.255", "224.0.0.1")
        for source in sources:
            name = f"from {source}"
            yield name, [self.ether() / IP(src=source, dst=PEER) / self.open(name)]
        for source in (OTHER6, PEER6, "::", "::1", "ff02::1", f"::ffff:{ME}", "fe80::77"):
            name = f"from {source}"
            yield name, [self.ether() / IPv6(src=source, dst=PEER6) / self.open(name)]
        for source in "2001:db8:bad::1", "fd09:0:0:1::5":
            name = f"from {source}, once claimed"
            claim = IPv6(src="::", dst="ff02::1", hlim=255) / ICMPv6ND_NS(tgt=source)
            used = IPv6(src=source, dst=PEER6) / self.open(name)
            yield name, [self.to_all_nodes(claim, name), self.ether() / used]
        name = "a spoofed ping"
        yield name, [self.ether() / IP(src=OTHER, dst=PEER) / ICMP() / Raw(mark(name))]
        name = "a spoofed source in fragments"
        yield name, self.fragments(IP(src=OTHER, dst=PEER, id=40), bytes(self.open(name)) + bytes(40), 24)

    def spoofed_neighbours(self) -> Iterator[Made]:
        for name, fields in {
            "ARP: I am the server": {"op": 2, "psrc": PEER, "hwsrc": self.mac, "pdst": OTHER},
            "ARP: the server asks": {"op": 1, "psrc": PEER, "hwsrc": self.mac, "pdst": OTHER},
            "ARP: gratuitous for another": {"op": 1, "psrc": OTHER, "hwsrc": self.mac, "pdst": OTHER},
            "ARP: I am at another's": {"op": 2, "psrc": ME, "hwsrc": OTHER_MAC, "pdst": PEER},
            "ARP: another probes": {"op": 1, "psrc": "0.0.0.0", "hwsrc": OTHER_MAC, "pdst": ME},
        }.items():
            yield name, [self.ether(dst=ALL) / ARP(**fields, hwdst=mark(name).hex(":"))]
            tagged = f"{name}, tagged"
            arp = ARP(**fields, hwdst=mark(tagged).hex(":"))
            yield tagged, [self.ether(dst=ALL) / Dot1Q(vlan=0) / arp]
        name = "ARP from another Ethernet address"
        arp = ARP(op=2, psrc=PEER, hwsrc=OTHER_MAC, pdst=OTHER, hwdst=mark(name).hex(":"))
        yield name, [self.ether(src=OTHER_MAC, dst=ALL) / arp]

        advert, lladdr = ICMPv6ND_NA(tgt=PEER6, R=0, S=0, O=1), ICMPv6NDOptDstLLAddr(lladdr=self.mac)
        net = IPv6(src=ME6, dst="ff02::1", hlim=255)
        for name, message in {
            "ND: I am the server": net / advert / lladdr,
            "ND: the server itself says so": IPv6(src=PEER6, dst="ff02::1", hlim=255) / advert / lladdr,
            "ND: I am at another's": net / ICMPv6ND_NA(tgt=ME6, O=1) / ICMPv6NDOptDstLLAddr(lladdr=OTHER_MAC),
            "ND: the server asks": IPv6(src=PEER6, dst="ff02::1", hlim=255)
            / ICMPv6ND_NS(tgt=OTHER6)
            / ICMPv6NDOptSrcLLAddr(lladdr=self.mac),
            "ND: another's Ethernet address asks": net
            / ICMPv6ND_NS(tgt=PEER6)
            / ICMPv6NDOptSrcLLAddr(lladdr=OTHER_MAC),
            "ND: behind hop-by-hop options": IPv6(src=ME6, dst="ff02::1", hlim=255)
            / IPv6ExtHdrHopByHop()
            / advert
            / lladdr,
            "ND: behind destination options": IPv6(src=ME6, dst="ff02::1", hlim=255)
            / IPv6ExtHdrDestOpt()
            / advert
            / lladdr,
            "ND: from afar": IPv6(src=ME6, dst="ff02::1", hlim=64) / advert / lladdr,
        }.items():
            yield name, [self.to_all_nodes(message, name)]

    def data_in_neighbour_discovery(self) -> Iterator[Made]:
        """Questions that the guest may ask, but to others, or with something to tell."""
        far, here = "2001:db8:bad::1", "ff02::1"
        for name, dst, message in (
            ("ND: a solicitation to the Internet", far, ICMPv6ND_NS(tgt=far)),
            ("ND: an advertisement to the Internet", far, ICMPv6ND_NA(tgt=ME6)),
            ("ND: asks the Internet for routers", far, ICMPv6ND_RS()),
            ("ND: two nonces", here, ICMPv6ND_NS(tgt=PEER6) / Raw(b"\x0e\1nonce!")),
        ):
            net = self.ether() / IPv6(src=ME6, dst=dst, hlim=255)
            yield name, [net / message / Raw(b"\x0e\1" + mark(name))]
        name = "ND: an option that nobody knows"
        net = IPv6(src=ME6, dst=here, hlim=255) / ICMPv6ND_NS(tgt=PEER6)
        yield name, [self.to_all_nodes(net, name)]
        name = "ARP in a VLAN"
        arp = ARP(op=1, psrc=ME, hwsrc=self.mac, pdst=PEER, hwdst=mark(name).hex(":"))
        yield name, [self.ether(dst=ALL) / Dot1Q(vlan=7) / arp]

    def servers(self) -> Iterator[Made]:
        """What only the network's own routers and servers say."""
        router = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptPrefixInfo(prefix="2001:db8:bad::")
        net = IPv6(src=ME6, dst="ff02::1", hlim=255)
        for name, message in {
            "a router": net / router,
            "a router behind options": net / IPv6ExtHdrDestOpt() / router,
            "a router behind many options": net
            / IPv6ExtHdrHopByHop()
            / IPv6ExtHdrDestOpt()
            / IPv6ExtHdrDestOpt()
            / router,
            "a redirect": net / ICMPv6ND_Redirect(tgt=ME6, dst=OTHER6),
        }.items():
            yield name, [self.to_all_nodes(message, name)]
        mine, others = (bytes.fromhex(mac.replace(":", "")) for mac in (self.mac, OTHER_MAC))
        offer = BOOTP(op=2, chaddr=others, yiaddr=OTHER) / DHCP(options=[("message-type", "offer"), "end"])
        for name, ports, message in (
            ("a DHCP server", (67, 68), offer),
            ("a DHCP server on another port", (9, 68), offer),
            ("a DHCP relay", (67, 67), BOOTP(op=1, chaddr=others, giaddr=ME) / DHCP(options=["end"])),
            ("DHCP for another", (68, 67), self.asks(others)),
            ("an answer to a DHCP server", (68, 67), offer),
            ("DHCP with another's identifier", (68, 67), self.asks(mine, ("client_id", b"\1" + others))),
            ("another's lease given back", (68, 67), self.asks(mine, kind="release", ciaddr=OTHER)),
            (
                "another's address declined",
                (68, 67),
                self.asks(mine, ("requested_addr", OTHER), kind="decline"),
            ),
        ):
            data = UDP(sport=ports[0], dport=ports[1]) / message / Raw(mark(name))
            yield name, [self.ether(dst=ALL) / IP(src=ME, dst="255.255.255.255") / data]
        name = "DHCP from another's address"
        data = UDP(sport=68, dport=67) / self.asks(mine) / Raw(mark(name))
        yield name, [self.ether() / IP(src=OTHER, dst=PEER) / data]
        name = "a DHCP server in fragments"
        data = bytes(UDP(sport=67, dport=68) / offer / Raw(mark(name)))
        yield name, self.fragments(IP(src=ME, dst=PEER, id=41), data, 160)
        name = "a DHCPv6 server"
        data = UDP(sport=547, dport=546) / DHCP6_Advertise() / Raw(mark(name))
        yield name, [self.ether() / IPv6(src=ME6, dst="fe80::1") / data]

    @staticmethod
    def asks(chaddr: bytes, *options: object, kind: str = "request", ciaddr: str = "0.0.0.0") -> Packet:
        told = [("message-type", kind), *options, "end"]
        return BOOTP(op=1, chaddr=chaddr, ciaddr=ciaddr) / DHCP(options=told)

    # --- where it goes, and as what

    def tagged(self) -> Iterator[Made]:
        for name, tags in {
            "a VLAN": [Dot1Q(vlan=7)],
            "a priority": [Dot1Q(vlan=0, prio=7)],
            "two tags": [Dot1Q(vlan=1), Dot1Q(vlan=7)],
            "a service tag": [Dot1AD(vlan=7)],
            "both kinds of tags": [Dot1AD(vlan=1), Dot1Q(vlan=7)],
            "three tags": [Dot1Q(vlan=0), Dot1Q(vlan=0), Dot1Q(vlan=7)],
        }.items():
            frame = self.ether()
            for tag in tags:
                frame /= tag
            yield name, [frame / IP(src=ME, dst=PEER) / self.open(name)]
            yield f"{name}, IPv6", [frame / IPv6(src=ME6, dst=PEER6) / self.open(f"{name}, IPv6")]
        name = "another's address in a VLAN"
        yield name, [self.ether() / Dot1Q(vlan=7) / IP(src=OTHER, dst=PEER) / self.open(name)]

    def disguised(self) -> Iterator[Made]:
        """What the rules deny, in forms in which it might not be seen."""
        four, six = IP(src=ME, dst=PEER), IPv6(src=ME6, dst=PEER6)
        for name, packet in {
            "plain": four / self.shut("plain"),
            "plain, IPv6": six / self.shut("plain, IPv6"),
            "a SYN": four / TCP(dport=SHUT, flags="S") / Raw(mark("a SYN")),
            "behind IP options": IP(src=ME, dst=PEER, options=[IPOption_NOP()] * 8)
            / self.shut("behind IP options"),
            "behind hop-by-hop options": six / IPv6ExtHdrHopByHop() / self.shut("behind hop-by-hop options"),
            "behind destination options": six / IPv6ExtHdrDestOpt() / self.shut("behind destination options"),
            "an atomic fragment": six / IPv6ExtHdrFragment(id=50) / self.shut("an atomic fragment"),
            "IPv6 in IPv4": IP(src=ME, dst=PEER, proto=41) / six / self.open("IPv6 in IPv4"),
            "IPv4 in IPv4": IP(src=ME, dst=PEER, proto=4) / four / self.open("IPv4 in IPv4"),
            "IPv4 in IPv6": IPv6(src=ME6, dst=PEER6, nh=4) / four / self.open("IPv4 in IPv6"),
            "GRE": IP(src=ME, dst=PEER, proto=47) / Raw(b"\0\0\x08\0") / four / self.open("GRE"),
            "an unknown protocol": IP(src=ME, dst=PEER, proto=253) / Raw(mark("an unknown protocol")),
            "UDP-Lite": IP(src=ME, dst=PEER, proto=136) / Raw(bytes(self.shut("UDP-Lite"))),
            "no next header": IPv6(src=ME6, dst=PEER6, nh=59) / Raw(mark("no next header")),
            "an authentication header": IPv6(src=ME6, dst=PEER6, nh=51)
            / Raw(b"\x11\4" + bytes(22))
            / Raw(bytes(self.shut("an authentication header"))),
            "ICMP of the other version": IP(src=ME, dst=PEER, proto=58)
            / Raw(b"\x80\0\0\0\0\0\0\0")
            / Raw(mark("ICMP of the other version")),
            "an ICMP redirect": four
            / ICMP(type=5, code=1, gw=ME)
            / IP(src=PEER, dst=OTHER)
            / self.open("an ICMP redirect"),
            "an ICMP error about nothing": four
            / ICMP(type=3, code=4)
            / IP(src=PEER, dst=ME)
            / self.open("an ICMP error about nothing"),
            "an echo reply": four / ICMP(type=0) / Raw(mark("an echo reply")),
        }.items():
            yield name, [self.ether() / packet]
        name = "in fragments"
        yield name, self.fragments(IP(src=ME, dst=PEER, id=42), bytes(self.shut(name)) + bytes(40), 24)
        name = "in fragments, the last first"
        parts = self.fragments(IP(src=ME, dst=PEER, id=43), bytes(self.shut(name)) + bytes(40), 24)
        yield name, parts[::-1]
        name = "in fragments, and then as another"
        net = IP(src=ME, dst=PEER, id=64)
        yield (
            name,
            [
                self.part(net, 3, bytes(8), more=False),
                self.part(net, 0, bytes(self.shut(name)) + bytes(10), more=True),
                self.part(net, 0, bytes(UDP(sport=5000, dport=OPEN, len=32)) + bytes(16), more=True),
            ],
        )
        name = "in fragments, IPv6"
        yield name, self.fragments6(bytes(self.shut(name)) + bytes(40), 24, ident=44)
        for name, kind in {
            "an unknown ethertype": 0x88B5, "MPLS": 0x8847, "PPPoE": 0x8864, "RARP": 0x8035,
            "802.1X": 0x888E, "MACsec": 0x88E5, "LLDP": 0x88CC, "an obsolete tag": 0x9100,
        }.items():  # fmt: skip
            yield name, [self.ether(type=kind) / Raw(bytes(four / self.open(name)))]
        name = "a length for a type"
        yield name, [self.ether(type=60) / LLC(dsap=0x42, ssap=0x42, ctrl=3) / Raw(mark(name))]
        name = "SNAP"
        snap = LLC(dsap=0xAA, ssap=0xAA, ctrl=3) / SNAP(OUI=0, code=0x0800)
        yield name, [self.ether(type=60) / snap / four / self.shut(name)]
        yield self.rewritten("a port that the checksum becomes", four, 34)
        yield self.rewritten("a port that the checksum becomes, IPv6", six, 54)

    def rewritten(self, name: str, net: Packet, at: int) -> Made:
        """A datagram to OPEN whose sum, left to whoever sends it, is to be written where the port is."""
        datagram = bytearray(bytes(self.open(name)) + b"\0\0")
        words = struct.unpack(f"!{len(datagram) // 2}H", datagram)
        struct.pack_into("!H", datagram, len(datagram) - 2, -(sum(words) + SHUT) % 0xFFFF)
        frame = bytes(self.ether() / net / UDP(bytes(datagram)))
        assert frame.endswith(datagram)
        return name, [struct.pack("=BBHHHH", 1, 0, at, 0, at, 2) + frame]

    # --- fragments

    def fragments(self, net: IP, data: bytes, size: int, proto: int = 17) -> list[Packet | bytes]:
        """An IPv4 packet in honest fragments."""
        return [
            self.part(net, at // 8, data[at : at + size], more=at + size < len(data), proto=proto)
            for at in range(0, len(data), size)
        ]

    def part(self, net: IP, at: int, data: bytes, *, more: bool, proto: int = 17) -> Packet:
        net = net.copy()
        net.frag, net.flags, net.proto = at, int(more), proto
        return self.ether() / net / Raw(data)

    def fragments6(self, data: bytes, size: int, *, ident: int, nh: int = 17) -> list[Packet | bytes]:
        return [
            self.part6(at // 8, data[at : at + size], more=at + size < len(data), ident=ident, nh=nh)
            for at in range(0, len(data), size)
        ]

    def part6(self, at: int, data: bytes, *, more: bool, ident: int, nh: int = 17) -> Packet:
        header = IPv6ExtHdrFragment(nh=nh, offset=at, m=int(more), id=ident)
        return self.ether() / IPv6(src=ME6, dst=PEER6) / header / Raw(data)

    def broken_fragments(self) -> Iterator[Made]:
        def net(number: int) -> IP:
            return IP(src=ME, dst=PEER, id=number)

        name = "tiny: the ports alone"
        data = bytes(TCP(sport=5000, dport=SHUT, flags="S")) + bytes(4) + mark(name)
        yield name, self.fragments(net(60), data, 8, proto=6)
        name = "tiny: half of UDP's header"
        first = self.part(net(61), 0, bytes(self.open(name))[:4], more=True)
        yield name, [first, self.part(net(61), 1, mark(name), more=False)]
        name = "tiny: flags at an offset of one"
        data = bytes(TCP(sport=5000, dport=80, flags="S"))
        yield (
            name,
            [
                self.part(net(62), 0, data + bytes(12), more=True, proto=6),
                self.part(net(62), 1, data[8:] + mark(name), more=False, proto=6),
            ],
        )
        name = "overlapping: the ports"
        yield (
            name,
            [
                self.part(net(63), 0, bytes(self.open(name)) + bytes(10), more=True),
                self.part(net(63), 0, bytes(self.shut(name)) + bytes(10), more=True),
                self.part(net(63), 3, bytes(8), more=False),
            ],
        )
        name = "overlapping: the end"
        yield (
            name,
            [
                self.part(net(65), 0, bytes(UDP(sport=5000, dport=OPEN, len=32)) + bytes(24), more=True),
                self.part(net(65), 2, mark(name) + bytes(10), more=False),
            ],
        )
        name = "overlapping: one within the other"
        yield (
            name,
            [
                self.part(net(66), 0, bytes(UDP(sport=5000, dport=OPEN, len=48)) + bytes(40), more=True),
                self.part(net(66), 2, mark(name) + bytes(2), more=False),
            ],
        )
        name = "the first alone"
        yield name, [self.part(net(67), 0, bytes(self.open(name)) + bytes(10), more=True)]
        name = "the last alone"
        yield name, [self.part(net(68), 4, mark(name), more=False)]
        name = "beyond 65,535 octets"
        yield name, [self.part(net(69), 8189, mark(name) + bytes(50), more=False)]
        name = "an odd length with more to come"
        yield name, [self.part(net(70), 0, bytes(self.open(name))[:13] + mark(name), more=True)]
        name = "nothing in it"
        yield (
            name,
            [
                NO_OFFLOAD + bytes(self.part(net(71), 1, b"", more=True)) + mark(name),
            ],
        )
        name = "two last ones"
        yield (
            name,
            [
                self.part(net(72), 3, bytes(8), more=False),
                self.part(net(72), 5, mark(name) + bytes(2), more=False),
                self.part(net(72), 0, bytes(UDP(sport=5000, dport=OPEN, len=48)) + bytes(16), more=True),
            ],
        )
        name = "a sum to be made in a fragment"
        whole = NO_OFFLOAD + bytes(self.part(net(73), 0, bytes(self.open(name)) + bytes(10), more=True))
        yield name, [struct.pack("=BBHHHH", 1, 0, 34, 0, 34, 6) + whole[10:]]

    def broken_fragments6(self) -> Iterator[Made]:
        name = "tiny, IPv6: options alone"
        yield (
            name,
            [
                self.part6(0, bytes((17, 0, 1, 4, 0, 0, 0, 0)), more=True, ident=80, nh=60),
                self.part6(1, bytes(self.shut(name)), more=False, ident=80, nh=60),
            ],
        )
        name = "tiny, IPv6: the ports alone"
        data = bytes(TCP(sport=5000, dport=SHUT, flags="S")) + bytes(4) + mark(name)
        yield name, self.fragments6(data, 8, ident=81, nh=6)
        name = "overlapping, IPv6"
        yield (
            name,
            [
                self.part6(0, bytes(self.open(name)) + bytes(10), more=True, ident=82),
                self.part6(0, bytes(self.shut(name)) + bytes(10), more=True, ident=82),
                self.part6(3, bytes(8), more=False, ident=82),
            ],
        )
        name = "a fragment in a fragment"
        inner = bytes(IPv6ExtHdrFragment(nh=17, id=84)) + bytes(self.shut(name))
        yield name, [self.part6(0, inner, more=False, ident=83, nh=44)]
        name = "neighbour discovery in an atomic fragment"
        message = IPv6(src=ME6, dst="ff02::1", hlim=255) / IPv6ExtHdrFragment(id=85)
        yield name, [self.to_all_nodes(message / ICMPv6ND_RA(), name)]
        options = bytes((58, 0, 1, 4, 0, 0, 0, 0))
        for name, before, size, nh in (
            ("a router in two fragments", b"", 16, 58),
            ("a router whose fragments hide its type", options, 8, 60),
            ("a router in fragments, behind options", options, 16, 60),
        ):
            message = IPv6(src=ME6, dst="ff02::1", hlim=255) / ICMPv6ND_RA() / Raw(b"\xfd\1" + mark(name))
            parts = self.fragments6(before + bytes(message)[40:], size, ident=len(name), nh=nh)
            for part in parts:
                part[Ether].dst, part[IPv6].dst, part[IPv6].hlim = "33:33:00:00:00:01", "ff02::1", 255
            yield name, parts

    # --- what is broken

    def padded(self) -> Iterator[Made]:
        """Data behind a packet that may pass."""
        arp = ARP(op=1, psrc=ME, hwsrc=self.mac, pdst=PEER)
        for name, packet in {
            "padding of ARP": arp,
            "padding of IPv4": IP(src=ME, dst=PEER) / UDP(sport=5000, dport=OPEN),
            "padding of IPv6": IPv6(src=ME6, dst=PEER6) / UDP(sport=5000, dport=OPEN),
        }.items():
            yield name, [bytes(10) + bytes(self.ether() / packet) + mark(name)]

    def source_routes(self) -> Iterator[Made]:
        for name, options in {
            "a loose source route": [IPOption_LSRR(routers=[OTHER])],
            "a strict source route": [IPOption_SSRR(routers=[OTHER])],
            "a source route behind others": [IPOption_NOP(), IPOption_NOP(), IPOption_LSRR(routers=[OTHER])],
        }.items():
            yield name, [self.ether() / IP(src=ME, dst=PEER, options=options) / self.open(name)]
        name = "a source route in fragments"
        net = IP(src=ME, dst=PEER, id=90, options=[IPOption_LSRR(routers=[OTHER])])
        yield name, self.fragments(net, bytes(self.open(name)) + bytes(40), 24)
        for name, header in {
            "a source route, IPv6": IPv6ExtHdrRouting(type=0, addresses=[OTHER6], segleft=1),
            "a home address, IPv6": IPv6ExtHdrRouting(type=2, addresses=[OTHER6], segleft=1),
            "segments, IPv6": IPv6ExtHdrSegmentRouting(addresses=[OTHER6, PEER6], segleft=1),
        }.items():
            yield name, [self.ether() / IPv6(src=ME6, dst=PEER6) / header / self.open(name)]
            behind = f"{name}, behind options"
            net = IPv6(src=ME6, dst=PEER6) / IPv6ExtHdrDestOpt()
            yield behind, [self.ether() / net / header.copy() / self.open(behind)]

    def broken(self) -> Iterator[Made]:
        four, six = IP(src=ME, dst=PEER), IPv6(src=ME6, dst=PEER6)
        for flags in "A", "SA", "R", "RA", "F", "FA", "PA", "", "FPU", "SR":
            name = f"TCP in the middle: {flags or 'no flag'}"
            yield name, [self.ether() / four / TCP(dport=80, flags=flags, seq=7, ack=7) / Raw(mark(name))]
        for name, packet in {
            "a short header": IP(src=ME, dst=PEER, ihl=4) / self.open("a short header"),
            "a header beyond the packet": IP(src=ME, dst=PEER, ihl=15, len=28)
            / self.open("a header beyond the packet"),
            "a length beyond the frame": IP(src=ME, dst=PEER, len=1400)
            / self.open("a length beyond the frame"),
            "a length below the header": IP(src=ME, dst=PEER, len=10)
            / self.open("a length below the header"),
            "another version": IP(src=ME, dst=PEER, version=5) / self.open("another version"),
            "a datagram beyond its packet": four
            / UDP(sport=5000, dport=OPEN, len=999)
            / Raw(mark("a datagram beyond its packet")),
            "a datagram below its header": four
            / UDP(sport=5000, dport=OPEN, len=4)
            / Raw(mark("a datagram below its header")),
            "TCP's options beyond the packet": four
            / TCP(dport=80, flags="S", dataofs=15)
            / Raw(mark("TCP's options beyond the packet")),
            "TCP's header too short": four
            / TCP(dport=80, flags="S", dataofs=3)
            / Raw(mark("TCP's header too short")),
            "a header chain beyond the packet": IPv6(src=ME6, dst=PEER6, nh=60)
            / Raw(b"\x11\xff" + mark("a header chain beyond the packet")),
            "an IPv6 length beyond the frame": IPv6(src=ME6, dst=PEER6, plen=1400)
            / self.open("an IPv6 length beyond the frame"),
        }.items():
            yield name, [self.ether() / packet]
        name = "IPv6 that says it is IPv4"
        yield name, [self.ether(type=0x0800) / Raw(bytes(six / self.open(name)))]
        name = "IPv4 that says it is IPv6"
        yield name, [self.ether(type=0x86DD) / Raw(bytes(four / self.open(name)))]
        name = "behind ten headers"
        packet = IPv6(src=ME6, dst=PEER6)
        for _ in range(10):
            packet /= IPv6ExtHdrDestOpt()
        yield name, [self.ether() / packet / self.shut(name)]
