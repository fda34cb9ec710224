"""Packets that are no ordinary ones: other protocols, pieces, broken headers, options, strays.

Each function is an actor of a sequence, and yields after a packet or a few.
"""

import struct

from nft_world import NET4, NET6, PORTS, VM4, VM6, ends

from vtl_tools.common.packet import address, build, icmp, ip
from vtl_tools.common.packet.checksum import checksum
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET


def others(maker):
    """Other protocols, messages of ICMP that are no echo, and what is no IP."""
    random = maker.random
    vm, net, vlan = random.randrange(2), random.randrange(3), maker.vlan()
    protocol = random.choice([47, 50, 89, 253, 132, 136, 33, 1, 58, 2])
    what = random.choice(["protocol", "protocol", "icmp", "frames", "stacked"])
    for _ in range(random.randint(1, 4)):
        out, six = random.random() < 0.6, random.random() < 0.3
        side = ends(out, six, vm, net)
        l2 = build.ethernet(side["src_mac"], side["dst_mac"], 0x86DD if six else 0x0800, vlan)
        if what == "protocol":
            head = build.ip_header(side["src"], side["dst"], protocol, 32)
            frame = bytearray(bytes(VNET) + l2 + head + bytes(32))
            odd = {"sctp"} if protocol in (132, 33, 136) else set()
            flow = ("other", six, vm, net, protocol, vlan)
            maker.emit(out, frame, f"protocol {protocol}{' over 6' if six else ''}", flow, odd)
        elif what == "icmp":
            kind = random.choice([13, 14, 15, 17, 9, 10, 30] if not six else [130, 131, 132, 143, 139, 150])
            head = icmp.ICMP.HEADER.pack(kind, 0, 0, 0x00070001)
            number = ip.ICMPV6 if six else ip.ICMP
            frame = build.over_ip(l2, side["src"], side["dst"], number, head, bytes(12))
            odd = {"timestamps"} if kind in range(13, 19) else set()
            maker.emit(out, frame, f"icmp{'6' if six else ''} type {kind}", ("icmp", six, vm, net, vlan), odd)
        elif what == "frames":
            kind = random.choice([0x88B6, 0x88B6, 0x8863])
            head = build.ethernet(side["src_mac"], side["dst_mac"], kind, vlan)
            maker.emit(out, bytearray(bytes(VNET) + head + bytes(46)), f"ethertype {kind:#x} vlan {vlan}")
        else:
            frame = build.udp(**side, sport=5000 + len(maker.shots), dport=53, payload=b"x", vlan=(5, 7))
            maker.emit(out, frame, "stacked udp", odd={"stacked"})
        yield


def neighbours(maker):
    random = maker.random
    out, vlan = random.random() < 0.6, maker.vlan()
    side, side6 = ends(out), ends(out, True)
    macs = {"src_mac": side["src_mac"], "dst_mac": side["dst_mac"], "vlan": vlan}
    kind = random.choice(["arp", "solicit", "advert", "router", "far", "code"])
    there = random.choice([side6["dst"], address.ALL_NODES, address.solicited_node(side6["dst"])])
    odd = set()
    if kind == "arp":
        frame = build.arp(**macs, sha=side["src_mac"], spa=side["src"], tpa=side["dst"])
    elif kind == "solicit":
        frame = build.neighbor_solicit(**macs, src=side6["src"], dst=there, target=side6["dst"])
    elif kind == "router":
        kind = random.choice([133, 134])
        body = bytes(4 if kind == 133 else 12)
        frame = build.nd_message(**macs, src=side6["src"], dst=there, kind=kind, body=body)
    else:
        frame = build.neighbor_advert(
            **macs, src=side6["src"], dst=there, target=side6["src"], lladdr=side["src_mac"]
        )
        at = VNET + 14 + (0 if vlan is None else 4)
        if kind == "far":
            frame[at + 7] = 64
            odd = {"far-neighbour"}
        elif kind == "code":
            frame[at + 41] = 1
            Packet.at(frame).compute_transport_checksum()
    maker.emit(out, frame, f"neighbour {kind} to {there.hex()} vlan {vlan}", odd=odd)
    yield


def fragments(maker):
    """A datagram in pieces, of which some are odd: in any order, twice, missing, overlapping."""
    random = maker.random
    six, vm, net, out = (
        random.random() < 0.3,
        random.randrange(2),
        random.randrange(3),
        random.random() < 0.6,
    )
    here, there = random.sample(PORTS, 2)
    vlan, size = maker.vlan(), random.choice([24, 104, 500, 1200])
    total, odd = size + 8, set()
    points = sorted({0, *(random.randrange(8, total) & ~7 for _ in range(random.choice([1, 2, 4])))})
    cuts = [
        (start, (points[i + 1] if i + 1 < len(points) else total) - start, i + 1 == len(points))
        for i, start in enumerate(points)
    ]
    twist = random.choice(
        ["", "", "shuffle", "twice", "missing", "overlap", "within", "beyond", "two-ends", "empty"]
    )
    i = random.randrange(len(cuts))
    start, length, _ = cuts[i]
    if twist == "twice":
        cuts.insert(random.randrange(len(cuts) + 1), cuts[i])
    elif twist == "missing":
        del cuts[i]
    elif twist == "overlap" and start:
        cuts.insert(random.randrange(len(cuts) + 1), (start - 8, min(length, 16) & ~7 or 8, False))
    elif twist == "within" and length > 16:
        cuts.insert(random.randrange(len(cuts) + 1), (start + 8, 8, False))
    elif twist == "beyond":
        cuts.insert(random.randrange(len(cuts) + 1), (total + 16 & ~7, 8, False))
    elif twist == "two-ends":
        cuts.insert(random.randrange(len(cuts) + 1), (total + 8 & ~7, 8, True))
    elif twist == "empty":
        cuts.insert(random.randrange(len(cuts) + 1), (8, 0, False))
    if twist:
        odd = {f"cut-{twist}"}
    if twist == "shuffle":
        random.shuffle(cuts)
    if cuts:
        maker.datagram(out, six, vm, net, here, there, vlan, size, cuts, odd)
    yield


def broken(maker):
    """A datagram whose headers cannot be."""
    random = maker.random
    six, out = random.random() < 0.3, random.random() < 0.6
    size = random.choice([0, 20])
    frame = build.udp(
        **ends(out, six), sport=5000 + len(maker.shots), dport=random.choice(PORTS), payload=bytes(size)
    )
    at = VNET + 14
    kind = random.choice(
        ["version", "length-long", "length-short", "ihl", "sum", "udp-long", "udp-short", "cut", "padded"]
    )
    if kind == "version":
        frame[at] ^= 0xF0
    elif kind == "length-long":
        struct.pack_into("!H", frame, at + (4 if six else 2), len(frame))
    elif kind == "length-short":
        struct.pack_into("!H", frame, at + (4 if six else 2), 6 if six else 24)
    elif kind == "ihl":
        frame[at] = (frame[at] & 0xF0) | random.choice([0, 4, 15])
    elif kind == "sum" and not six:
        frame[at + 10] ^= 1
    elif kind == "udp-long":
        frame[at + (40 if six else 20) + 4] = 9
    elif kind == "udp-short":
        frame[at + (40 if six else 20) + 5] = 7
    elif kind == "cut":
        del frame[at + random.choice([8, 19, 24, 44]) :]
    elif kind == "padded":
        frame += bytes(random.choice([1, 6, 30]))
    if not six and kind not in ("sum", "ihl", "cut", "version"):
        frame[at + 10 : at + 12] = b"\0\0"
        struct.pack_into("!H", frame, at + 10, checksum(frame[at : at + 20]))
    if len(frame) >= at + 20 and (kind != "cut"):
        maker.emit(out, frame, f"broken {kind} {'6' if six else '4'}", odd={f"broken-{kind}"})
    yield


def options(maker):
    """IPv4 options and IPv6 extension headers."""
    random = maker.random
    six, out = random.random() < 0.6, random.random() < 0.6
    side = ends(out, six, random.randrange(2), random.randrange(3))
    dport, odd = random.choice(PORTS), set()
    frame = build.udp(**side, sport=5000 + len(maker.shots), dport=dport, payload=b"options!")
    at = VNET + 14
    if not six:
        kind, data = random.choice([
            ("alert", b"\x94\x04\0\0"), ("nop", b"\1\1\1\1"),
            ("loose", bytes((131, 7, 4)) + side["dst"] + b"\0"), ("bad", b"\x94\x09\0\0"),
            ("record", bytes((7, 7, 4, 0, 0, 0, 0, 0))),
        ])  # fmt: skip
        frame = frame[: at + 20] + data + frame[at + 20 :]
        frame[at] = 0x45 + len(data) // 4
        struct.pack_into("!H", frame, at + 2, len(frame) - at)
        frame[at + 10 : at + 12] = b"\0\0"
        struct.pack_into("!H", frame, at + 10, checksum(frame[at : at + 20 + len(data)]))
    else:
        kind, chain = random.choice([
            ("hop", [(0, b"\1\4\0\0\0\0")]), ("dst", [(60, b"\1\4\0\0\0\0")]),
            ("both", [(0, b"\1\4\0\0\0\0"), (60, b"\1\4\0\0\0\0")]),
            ("late-hop", [(60, b"\1\4\0\0\0\0"), (0, b"\1\4\0\0\0\0")]),
            ("routed", [(43, bytes((0, 1, 0, 0, 0, 0)))]), ("was-routed", [(43, bytes((0, 0, 0, 0, 0, 0)))]),
            ("atomic", [(44, b"\0\0\0\0\0\7")]), ("ah", [(51, bytes(14))]), ("none", [(59, bytes(6))]),
            ("many", [(60, b"\1\4\0\0\0\0")] * 9), ("mobility", [(135, bytes(6))]),
        ])  # fmt: skip
        body, following = bytes(frame[at + 40 :]), 17
        for number, data in reversed(chain):
            size = 2 if number == 51 else len(data) // 8
            body = bytes((following, 0 if number == 44 else size)) + data + body
            following = number
        frame = frame[: at + 40] + body
        frame[at + 6] = following
        struct.pack_into("!H", frame, at + 4, len(body))
    odd.add(f"option-{kind}")
    label = f"udp{'6' if six else ''} >{dport} with {kind}"
    maker.emit(out, frame, label, odd=odd)
    yield


def strays(maker):
    """Packets with addresses of the wrong side, or of none."""
    random = maker.random
    six, out = random.random() < 0.3, random.random() < 0.6
    side = ends(out, six, random.randrange(2), random.randrange(3))
    here, there = (
        [address.ip(a) for a in (VM6 if six else VM4)],
        [address.ip(a) for a in (NET6 if six else NET4)],
    )
    kind = random.choice(["turned", "same", "multicast", "broadcast", "unspecified"])
    ports = {"sport": random.choice([7000, 7001]), "dport": random.choice(PORTS)}
    if kind == "turned":
        side["src"], side["dst"] = side["dst"], side["src"]
        ports = {"sport": ports["dport"], "dport": ports["sport"]}
    elif kind == "same":
        side["src"], side["dst"] = random.choice(here), random.choice(here + there)
    elif kind == "multicast":
        side["dst"] = address.ip("ff02::fb" if six else "224.0.0.251")
    elif kind == "broadcast" and not six:
        side["dst"] = b"\xff" * 4
    elif kind == "unspecified":
        side["src"] = bytes(16 if six else 4)
    if random.random() < 0.5:
        frame = build.udp(**side, **ports, payload=b"stray")
    else:
        frame = build.tcp(**side, **ports, seq=1, ack=1, flags=random.choice([2, 16, 18, 4]), window=1000)
    maker.emit(out, frame, f"stray {kind} {ports}", ("strays",), {f"stray-{kind}"})
    yield
