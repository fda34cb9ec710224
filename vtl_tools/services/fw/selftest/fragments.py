"""Attacks by fragments: denied packets in fragments, and fragments that do not fit together."""

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6, IPv6ExtHdrFragment
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from vtl_tools.common.selftest.packets import IP4, IP6
from vtl_tools.services.fw.selftest.marked import (
    SHUT_PORT,
    Attacks,
    Frame,
    ether,
    mark,
    open_datagram,
    shut_datagram,
    to_all_nodes,
)
from vtl_tools.services.fw.selftest.packets import OPEN_PORT, PEER6, ROUTER4


def fragments(net: IP, data: bytes, size: int, proto: int = 17) -> list[Frame]:
    """Return an IPv4 packet in fragments that neither overlap nor lie."""
    return [
        part(net, at // 8, data[at : at + size], more=at + size < len(data), proto=proto)
        for at in range(0, len(data), size)
    ]


def part(net: IP, at: int, data: bytes, *, more: bool, proto: int = 17) -> Packet:
    """Return one fragment. at: its offset, in units of 8 octets."""
    net = net.copy()
    net.frag, net.flags, net.proto = at, int(more), proto
    return ether() / net / Raw(data)


def fragments6(data: bytes, size: int, *, ident: int, nh: int = 17) -> list[Frame]:
    """Return what follows an IPv6 header in fragments."""
    return [
        part6(at // 8, data[at : at + size], more=at + size < len(data), ident=ident, nh=nh)
        for at in range(0, len(data), size)
    ]


def part6(at: int, data: bytes, *, more: bool, ident: int, nh: int = 17) -> Packet:
    """Return one fragment of an IPv6 packet. at: its offset, in units of 8 octets."""
    header = IPv6ExtHdrFragment(nh=nh, offset=at, m=int(more), id=ident)
    return ether() / IPv6(src=IP6, dst=PEER6) / header / Raw(data)


def denied() -> Attacks:
    """Return what the rules deny, in fragments."""
    name = "in fragments"
    yield name, fragments(IP(src=IP4, dst=ROUTER4, id=42), bytes(shut_datagram(name)) + bytes(40), 24)
    name = "in fragments, the last first"
    parts = fragments(IP(src=IP4, dst=ROUTER4, id=43), bytes(shut_datagram(name)) + bytes(40), 24)
    yield name, parts[::-1]
    name = "in fragments, and then as another"
    net = IP(src=IP4, dst=ROUTER4, id=64)
    yield (
        name,
        [
            part(net, 3, bytes(8), more=False),
            part(net, 0, bytes(shut_datagram(name)) + bytes(10), more=True),
            part(net, 0, bytes(UDP(sport=5000, dport=OPEN_PORT, len=32)) + bytes(16), more=True),
        ],
    )
    name = "in fragments, IPv6"
    yield name, fragments6(bytes(shut_datagram(name)) + bytes(40), 24, ident=44)


def malformed() -> Attacks:
    """Return fragments that no firewall lets pass: tiny, overlapping, incomplete, beyond the end."""
    yield from _malformed4()
    yield from _malformed6()


def _malformed4() -> Attacks:
    def net(number: int) -> IP:
        return IP(src=IP4, dst=ROUTER4, id=number)

    name = "tiny: the ports alone"
    data = bytes(TCP(sport=5000, dport=SHUT_PORT, flags="S")) + bytes(4) + mark(name)
    yield name, fragments(net(60), data, 8, proto=6)
    name = "tiny: half of UDP's header"
    first = part(net(61), 0, bytes(open_datagram(name))[:4], more=True)
    yield name, [first, part(net(61), 1, mark(name), more=False)]
    name = "tiny: flags at an offset of one"
    data = bytes(TCP(sport=5000, dport=OPEN_PORT, flags="S"))
    yield (
        name,
        [
            part(net(62), 0, data + bytes(12), more=True, proto=6),
            part(net(62), 1, data[8:] + mark(name), more=False, proto=6),
        ],
    )
    name = "overlapping: the ports"
    yield (
        name,
        [
            part(net(63), 0, bytes(open_datagram(name)) + bytes(10), more=True),
            part(net(63), 0, bytes(shut_datagram(name)) + bytes(10), more=True),
            part(net(63), 3, bytes(8), more=False),
        ],
    )
    name = "overlapping: the end"
    yield (
        name,
        [
            part(net(65), 0, bytes(UDP(sport=5000, dport=OPEN_PORT, len=32)) + bytes(24), more=True),
            part(net(65), 2, mark(name) + bytes(10), more=False),
        ],
    )
    name = "overlapping: one within the other"
    yield (
        name,
        [
            part(net(66), 0, bytes(UDP(sport=5000, dport=OPEN_PORT, len=48)) + bytes(40), more=True),
            part(net(66), 2, mark(name) + bytes(2), more=False),
        ],
    )
    name = "the first alone"
    yield name, [part(net(67), 0, bytes(open_datagram(name)) + bytes(10), more=True)]
    name = "the last alone"
    yield name, [part(net(68), 4, mark(name), more=False)]
    name = "beyond 65,535 octets"
    yield name, [part(net(69), 8189, mark(name) + bytes(50), more=False)]
    name = "an odd length with more to come"
    yield name, [part(net(70), 0, bytes(open_datagram(name))[:13] + mark(name), more=True)]
    name = "nothing in it"
    yield (
        name,
        [
            bytes(part(net(71), 1, b"", more=True)) + mark(name),
        ],
    )
    name = "two last ones"
    yield (
        name,
        [
            part(net(72), 3, bytes(8), more=False),
            part(net(72), 5, mark(name) + bytes(2), more=False),
            part(net(72), 0, bytes(UDP(sport=5000, dport=OPEN_PORT, len=48)) + bytes(16), more=True),
        ],
    )
    for number, order in enumerate(((0, 1, 2), (1, 0, 2), (1, 2, 0), (2, 1, 0))):
        name = "overlapping: the first again, in the order " + "".join(map(str, order))
        good, bad = (
            bytes(UDP(sport=5000, dport=port, len=72)) + mark(name) for port in (OPEN_PORT, SHUT_PORT)
        )
        parts = (
            part(net(91 + number), 0, good.ljust(40, b"\0"), more=True),
            part(net(91 + number), 0, bad.ljust(24, b"\0"), more=True),
            part(net(91 + number), 5, bytes(32), more=False),
        )
        yield name, [parts[i] for i in order]


def _malformed6() -> Attacks:
    name = "tiny, IPv6: options alone"
    yield (
        name,
        [
            part6(0, bytes((17, 0, 1, 4, 0, 0, 0, 0)), more=True, ident=80, nh=60),
            part6(1, bytes(shut_datagram(name)), more=False, ident=80, nh=60),
        ],
    )
    name = "tiny, IPv6: the ports alone"
    data = bytes(TCP(sport=5000, dport=SHUT_PORT, flags="S")) + bytes(4) + mark(name)
    yield name, fragments6(data, 8, ident=81, nh=6)
    name = "overlapping, IPv6"
    yield (
        name,
        [
            part6(0, bytes(open_datagram(name)) + bytes(10), more=True, ident=82),
            part6(0, bytes(shut_datagram(name)) + bytes(10), more=True, ident=82),
            part6(3, bytes(8), more=False, ident=82),
        ],
    )
    name = "TCP in three, IPv6, without its end"
    whole = bytes(TCP(sport=5000, dport=OPEN_PORT, flags="S")) + bytes(24) + mark(name) + bytes(10)
    pieces = (0, True), (8, True), (24, False)
    yield name, [part6(at // 8, whole[at : at + 48], more=more, ident=86, nh=6) for at, more in pieces]
    name = "a fragment in a fragment"
    inner = bytes(IPv6ExtHdrFragment(nh=17, id=84)) + bytes(shut_datagram(name))
    yield name, [part6(0, inner, more=False, ident=83, nh=44)]
    name = "neighbour discovery in an atomic fragment"
    message = IPv6(src=IP6, dst="ff02::1", hlim=255) / IPv6ExtHdrFragment(id=85)
    yield name, [to_all_nodes(message / ICMPv6ND_RA(), name)]
    options = bytes((58, 0, 1, 4, 0, 0, 0, 0))
    for name, before, size, nh in (
        ("a router in two fragments", b"", 16, 58),
        ("a router whose fragments hide its type", options, 8, 60),
        ("a router in fragments, behind options", options, 16, 60),
    ):
        message = IPv6(src=IP6, dst="ff02::1", hlim=255) / ICMPv6ND_RA() / Raw(b"\xfd\1" + mark(name))
        parts = fragments6(before + bytes(message)[40:], size, ident=len(name), nh=nh)
        for part in parts:
            part[Ether].dst, part[IPv6].dst, part[IPv6].hlim = "33:33:00:00:00:01", "ff02::1", 255
        yield name, parts
