"""A million foreign frames through every parser and every answer: nothing but Malformed may come out.

A frame is a slice of a buffer of exactly its size, so that a read past its end raises. Each chunk has a
seed of its own; a failure prints the frame, and its chunk replays it.
"""

from contextlib import suppress
from random import Random

import pytest

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build, derive, icmp, ip, nd, tcp
from vtl_tools.common.packet.arp import ARP
from vtl_tools.common.packet.ether import VLAN, Ethernet
from vtl_tools.common.packet.icmp import ICMPv4, ICMPv6
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import TCP
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import View

CHUNK = 100_000
MAC = address.mac("02:00:00:00:00:01")
MACS = {"src_mac": MAC, "dst_mac": address.mac("02:00:00:00:00:02")}
V4 = {"src": address.ip("10.0.0.1"), "dst": address.ip("10.0.0.2")}
V6 = {"src": address.ip("2001:db8::1"), "dst": address.ip("2001:db8::2")}
PORTS = {"sport": 1000, "dport": 80}


def with_extensions(frame: bytearray, *headers: tuple[int, bytes]) -> bytearray:
    """Put extension headers into an IPv6 frame; each starts with an octet for the next one's number."""
    last = frame[30]
    numbers = [number for number, _ in headers] + [last]
    inserted = b"".join(
        bytes((after,)) + body[1:] for after, (_, body) in zip(numbers[1:], headers, strict=True)
    )
    frame[30] = numbers[0]
    frame[64:64] = inserted
    frame[28:30] = (len(frame) - 64).to_bytes(2, "big")
    return frame


def seeds() -> list[bytes]:
    """One valid frame of each kind."""
    syn = tcp.encode_options(mss=1460, window_scale=7, sack_permitted=True, timestamps=(1, 2))
    sack = tcp.encode_options(timestamps=(1, 2), sack=[(1, 2), (3, 4)])
    solicited = address.solicited_node(V6["dst"])
    frames = [build.arp(**MACS, sha=MAC, spa=V4["src"], tpa=V4["dst"])]
    for ends in (V4, V6):
        udp = build.udp(**MACS, **ends, **PORTS, payload=b"datagram")
        error = derive.icmp_error(
            Packet.at(udp), icmp.UNREACHABLE if ends is V4 else icmp.V6_UNREACHABLE, 1, src=ends["dst"]
        )
        assert error is not None
        frames += [
            udp,
            error,
            build.tcp(**MACS, **ends, **PORTS, flags=tcp.SYN, options=syn),
            build.tcp(**MACS, **ends, **PORTS, flags=tcp.ACK, options=sack, payload=b"data", vlan=(1, 2)),
            build.tcp(**MACS, **ends, **PORTS, flags=tcp.ACK, payload=bytes(40), partial=True, gso_size=20),
            build.icmp_echo(**MACS, **ends, identifier=1, sequence=1, payload=b"ping", vlan=9),
        ]
    route4 = build.udp(**MACS, **V4, **PORTS)
    route4[44:44] = bytes((131, 7, 4, 10, 9, 9, 9, 0))
    route4[24], route4[27] = 0x47, 36
    route6 = bytes((0, 4, 0, 2, 0, 0, 0, 0)) + bytes(32)
    plain = bytes(8)
    options = build.nd_option(nd.MTU, bytes((0, 0, 0, 0, 5, 220)))
    options += build.nd_option(nd.PREFIX_INFORMATION, bytes(30))
    frames += [
        route4,
        with_extensions(build.udp(**MACS, **V6, **PORTS), (ip.HOPOPTS, plain), (ip.ROUTING, route6)),
        with_extensions(build.tcp(**MACS, **V6, **PORTS), (ip.FRAGMENT, plain), (ip.DSTOPTS, plain)),
        with_extensions(build.tcp(**MACS, **V6, **PORTS), (ip.AH, bytes((0, 1)) + bytes(10))),
        build.neighbor_solicit(src_mac=MAC, dst_mac=MAC, src=V6["src"], dst=solicited, target=V6["dst"]),
        build.neighbor_advert(**MACS, **V6, target=V6["src"], lladdr=MAC),
        build.nd_message(**MACS, **V6, kind=nd.ROUTER_ADVERT, body=bytes(12), options=options),
        build.nd_message(**MACS, **V6, kind=nd.ROUTER_SOLICIT, body=bytes(4)),
    ]
    return [bytes(frame) for frame in frames]


SEEDS = seeds()


def mutated(rng: Random) -> bytearray:
    """A valid frame with some octets changed, and perhaps cut short, grown, or with other lengths."""
    frame = bytearray(SEEDS[int(rng.random() * len(SEEDS))])
    for _ in range(int(rng.random() * 4)):
        frame[int(rng.random() * len(frame))] = int(rng.random() * 256)
    what = rng.random()
    if what < 0.25:
        del frame[int(rng.random() * len(frame)) :]
    elif what < 0.35:
        frame += bytes(int(rng.random() * 20))
    return frame


def noise(rng: Random) -> bytearray:
    """Random octets, the type of Ethernet apart, which would seldom be one that is looked into."""
    frame = bytearray(rng.randbytes(int(rng.random() * 120)))
    if len(frame) >= 26:
        frame[22:26] = rng.choice(
            (b"\x08\x00\x45\x00", b"\x08\x00\x4f\x00", b"\x86\xdd\x60\x00", b"\x08\x06\x00\x01")
        )
    return frame


def every_field(view: View) -> None:
    for name in FIELDS[type(view)]:
        getattr(view, name)


FIELDS = {
    cls: [name for base in cls.__mro__ for name, field in vars(base).items() if isinstance(field, property)]
    for cls in (Ethernet, VLAN, ARP, IPv4, IPv6, TCP, UDP, ICMPv4, ICMPv6, *nd.MESSAGES.values())
}


def read(pkt: Packet) -> None:
    """Ask for the layers, the flow and the sums: what a service does with a packet."""
    with suppress(Malformed):
        _ = pkt.vlans
    with suppress(Malformed):
        _ = pkt.arp
    with suppress(Malformed):
        _ = pkt.flow, pkt.payload, pkt.end
        _ = pkt.verify(), pkt.gso_size
    with suppress(Malformed):
        _ = pkt.quoted_flow
    with suppress(Malformed):
        _ = pkt.nd


def read_all(pkt: Packet) -> None:
    """Read every field of every layer, and walk all that can be walked."""
    for name in LAYERS:
        with suppress(Malformed):
            found = getattr(pkt, name)
            if isinstance(found, View):
                every_field(found)
    with suppress(Malformed):
        for tag in pkt.vlans:
            every_field(tag)
    with suppress(Malformed):
        if (v4 := pkt.ipv4) is not None:
            list(v4.options())
        if (v6 := pkt.ipv6) is not None:
            list(v6.extensions())
        if (segment := pkt.tcp) is not None:
            list(segment.options())
        if (message := pkt.nd) is not None:
            list(message.options())
            _ = message.source_lladdr, message.target_lladdr


LAYERS = [
    name for base in Packet.__mro__ for name, field in vars(base).items() if isinstance(field, property)
]


def answer(pkt: Packet) -> None:
    """Ask for every derived packet, and change what can be changed."""
    for ask in (
        lambda: derive.ack(pkt, window=1),
        lambda: derive.rst(pkt),
        lambda: derive.syn_ack(pkt, iss=1, window=1),
        lambda: derive.arp_reply(pkt, MAC),
        lambda: derive.nd_reply(pkt, MAC),
        lambda: derive.echo_reply(pkt),
        lambda: derive.udp_reply(pkt, b""),
        lambda: derive.icmp_error(pkt, 1, 1, src=V6["src"] if pkt.ethertype == 0x86DD else V4["src"]),
        lambda: derive.icmp_error(pkt, icmp.V6_PACKET_TOO_BIG, 0, src=pkt.ip.src if pkt.ip else b""),
        pkt.swap,
        lambda: pkt.compute_transport_checksum(),
        pkt.compute_ip_checksum,
    ):
        with suppress(Malformed):
            ask()


@pytest.mark.slow
@pytest.mark.parametrize("chunk", range(10))
def test_foreign_frames_parse_or_are_malformed(chunk):
    rng = Random(chunk)
    for count in range(CHUNK):
        frame = noise(rng) if count % 5 == 0 else mutated(rng)
        size = len(frame)
        try:
            pkt = Packet.at(memoryview(frame + b"beyond")[:size])
            read(pkt)
            if count % 4 == 0:
                read_all(pkt)
            if count % 4 == 2:
                answer(pkt)
        except Malformed:
            continue
        except Exception:
            print(f"frame {count} of chunk {chunk}: {frame.hex()}")
            raise


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_a_valid_frame_cut_anywhere_parses_or_is_malformed(seed):
    for size in range(len(seed) + 1):
        frame = bytearray(seed[:size])
        with suppress(Malformed):
            pkt = Packet.at(frame)
            read(pkt)
            read_all(pkt)
            answer(pkt)
        assert len(frame) == size


@pytest.mark.parametrize(
    "cls", [Ethernet, VLAN, ARP, IPv4, IPv6, TCP, UDP, ICMPv4, ICMPv6, *nd.MESSAGES.values()]
)
def test_any_octets_at_any_place_are_a_header_or_malformed(cls):
    rng = Random(cls.__name__)
    for _ in range(2000):
        octets = bytearray(rng.randbytes(rng.randrange(80)))
        with suppress(Malformed):
            every_field(cls.at(octets, rng.randrange(-2, 80)))
        with suppress(Malformed):
            every_field(cls.at(octets, 0, rng.randrange(90)))


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_every_seed_is_whole(seed):
    pkt = Packet.at(bytearray(seed))
    assert pkt.arp or pkt.transport
    assert pkt.arp or pkt.transport.end <= len(seed)
