"""vtl-fw as a stage: a slow judge that knows neither its table nor its ways must allow all that leaves.

The judge reads what left as a link without offload sends it, puts fragments together, and knows five-tuples
only: a packet of the VM is for a service that the rules name, or of a connection that was allowed to begin;
what reaches the VM likewise, or is about such a connection. With an identity, all that the VM sends is from
its Ethernet address and its IP addresses; of one that learns, those that a DHCP server acknowledged, and of
prefixes of at least 32 bits that a router announced. Checked as well: nothing is raised, each frame leaves or
is counted, and a reload ends what the new rules deny.
"""

from contextlib import suppress
from ipaddress import ip_network

from tests.fuzz.frames import FRAMES
from tests.fuzz.octets import Octets, blob
from tests.unit.fw.fw import IN, OUT, PEER_MAC, VM, VM6, VM_MAC, ends, policy, segment
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.packet import arp, build, ether, icmp, ip, nd, offload, tcp
from vtl_tools.common.packet.address import ALL_NODES, is_link_local, link_local, solicited_node
from vtl_tools.common.packet.icmp import ICMPv4, ICMPv6
from vtl_tools.common.packet.packet import Flow, Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rules.rule import Direction
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.stage import Firewall

GIVEN, LEARNED = 1, 2
POLICY = policy("allow out tcp port 80\nallow out udp port 53, 67\nallow out icmp, icmp6 type echo-request\n"
                "allow in tcp port 22\nallow in udp port 68\nreject out tcp port 25\ndeny any\n")  # fmt: skip
CLOSED = policy("deny any\n")
STEPS_MAX = 32
FRAMES_MAX = 6
FLAGS = ("S", "S.", ".", "P.", "F.", "R", "R.", "FSRP.")


def reverse(flow: Flow) -> Flow:
    return flow[0], flow[3], flow[4], flow[1], flow[2]


class Judge:
    """Knows which connections were allowed to begin: their five-tuples, as their first packets have it."""

    def __init__(self, identity: int) -> None:
        self.begun: set[Flow] = set()
        self.identity = identity
        self.mac = VM_MAC if identity == GIVEN else b""
        """The VM's; empty until it is learned."""
        self.acknowledged = {VM} if identity == GIVEN else set()
        """IPv4 addresses that may be the VM's."""
        self.prefixes = {VM6} if identity == GIVEN else set()
        """How IPv6 addresses may begin that may be the VM's."""
        self.is_closed = False
        self.parts: dict[object, dict[int, tuple[int, bytes, bytes]]] = {}

    def passed(self, frame: bytes, direction: Direction) -> None:
        """Judge a frame that left."""
        try:
            pieces = offload.segment(bytearray(frame))
        except Malformed:  # which no link sends, but the firewall has let it pass
            pieces = [frame]
        for piece in pieces:
            pkt = Packet.at(bytearray(piece))
            if direction is OUT and self.identity:
                self.own(pkt)
            elif direction is IN and self.identity == LEARNED:
                self.learn(pkt)
            if pkt.is_fragment:
                if (whole := self.join(pkt, direction)) is not None:
                    self.judge(Packet.at(whole), direction)
            else:
                self.judge(pkt, direction)

    def own(self, pkt: Packet) -> None:
        self.mac = self.mac or pkt.eth.src
        assert pkt.eth.src == self.mac, "sent from another's Ethernet address"
        if (said := pkt.arp) is not None:
            assert said.sha == self.mac
            assert said.spa in self.acknowledged or (not any(said.spa) and said.oper == arp.REQUEST)
        net = pkt.ip
        if net is None or net.src in self.acknowledged:
            return
        if any(net.src.startswith(prefix) for prefix in self.prefixes):
            return
        if self.identity == LEARNED and len(net.src) == 16 and is_link_local(net.src):
            return
        if not any(net.src):
            assert pkt.nd is not None or pkt.udp is not None or isinstance(pkt.icmp, ICMPv6)
            return
        assert self.identity == LEARNED, "sent from another's address"
        assert pkt.udp is not None, "sent from another's address"
        renewed = dhcp_wire.DHCPMessage.at(pkt.udp.payload)
        assert renewed.kind == dhcp_wire.REQUEST
        assert renewed.ciaddr == net.src

    def learn(self, pkt: Packet) -> None:
        """Take note of all that anybody may have told the VM of its addresses, believed or not."""
        with suppress(Malformed):
            if pkt.udp is not None:
                message = dhcp_wire.DHCPMessage.at(pkt.udp.payload)
                if message.kind == dhcp_wire.ACK:
                    self.acknowledged.add(message.yiaddr)
            elif isinstance(message := pkt.nd, nd.RouterAdvert):
                told = message.prefixes
                self.prefixes.update(prefix[: bits // 8] for prefix, bits, *_ in told if bits >= 32)

    def join(self, pkt: Packet, direction: Direction) -> bytearray | None:
        """Put fragments together, once all have passed; the first that has an octet is believed."""
        net = pkt.ip
        four = len(net.src) == 4
        header = net if four else net.fragment
        offset = (net.fragment_offset if four else header.offset) * 8
        more = net.more_fragments if four else header.more
        start = net.payload_off if four else net.fragment_off + 8
        protocol = net.protocol if four else 0
        key = (
            direction,
            net.src,
            net.dst,
            header.identification,
            protocol,
            tuple(tag.tci for tag in pkt.vlans),
        )
        parts = self.parts.setdefault(key, {})
        head = bytes(pkt.buf[: net.payload_off if four else net.fragment_off])
        first = pkt.buf[net.fragment_off] if not four else 0
        parts.setdefault(offset, (more, bytes(pkt.buf[start : net.end]), head + bytes((first,))))
        at, data = 0, b""
        while at in parts:
            more, octets, _ = parts[at]
            data += octets
            if not more:
                break
            at += len(octets)
        else:
            return None
        head, first = parts[0][2][:-1], parts[0][2][-1]
        del self.parts[key]
        made = bytearray(head + data)
        l3 = pkt.l3_off
        if four:
            made[l3 + 2 : l3 + 4] = (len(made) - l3).to_bytes(2, "big")
            made[l3 + 6 : l3 + 8] = b"\0\0"
        else:
            made[l3 + 4 : l3 + 6] = (len(made) - l3 - 40).to_bytes(2, "big")
            at = l3 + 6
            number, place = made[at], l3 + 40
            while number != ip.FRAGMENT:
                at, number = place, made[place]
                place += (made[place + 1] + 1) * 8
            made[at] = first
        return made

    def judge(self, pkt: Packet, direction: Direction) -> None:
        """A whole packet: why may it pass?"""
        if pkt.ethertype == ether.ARP:
            return
        assert pkt.ip is not None, "not IP, and not ARP"
        flow, inner = pkt.flow, pkt.transport
        assert flow is not None
        if isinstance(inner, ICMPv6) and inner.type in nd.MESSAGES and pkt.ip.ttl == 255 and not inner.code:
            return
        assert not pkt.ip.has_source_route or len(pkt.ip.src) == 16
        if flow in self.begun or reverse(flow) in self.begun:
            return
        if pkt.icmp is not None and pkt.icmp.is_error and (quoted := pkt.quoted_flow) is not None:
            assert quoted in self.begun or reverse(quoted) in self.begun, "about a connection that never was"
            assert quoted[1] == pkt.ip.dst
            return
        assert not pkt.vlans, "no rule names a VLAN"
        assert not self.is_closed, "begun though nothing may"
        if direction is OUT:
            echo = icmp.ECHO_REQUEST if isinstance(inner, ICMPv4) else icmp.V6_ECHO_REQUEST
            if pkt.icmp is not None:
                allowed = pkt.icmp.type == echo
            else:
                allowed = (flow[0], flow[4]) in ((ip.TCP, 80), (ip.UDP, 53), (ip.UDP, 67))
        else:
            allowed = (flow[0], flow[4]) in ((ip.TCP, 22), (ip.UDP, 68))
        assert allowed, f"{direction} {flow} is nothing that a rule allows"
        assert pkt.tcp is None or pkt.is_syn, "a connection begins with a SYN"
        self.begun.add(flow)


class Bench:
    """The stage, and what leaves it."""

    def __init__(self, identity: int) -> None:
        given = [ip_network("10.0.0.5/32"), ip_network("2001:db8::5/128")]
        whose = (None, Identity(VM_MAC, given), Identity())[identity]
        self.stage = Firewall(POLICY, identity=whose)
        self.judge = Judge(identity)
        self.stage.out = [lambda batch, now: self.left(0, batch), lambda batch, now: self.left(1, batch)]
        self.now, self.port, self.passed = 1000.0, 0, 0

    def left(self, port: int, batch: Batch) -> None:
        for frame in batch:
            if port == self.port:
                pkt = Packet.at(bytearray(frame))  # an answer of `reject`, or a question of the identity
                assert pkt.verify()
                assert pkt.is_rst or pkt.nd is not None or pkt.icmp.is_error
                continue
            self.passed += 1
            self.judge.passed(bytes(frame), OUT if port else IN)

    def push(self, direction: Direction, frames: list[bytes]) -> None:
        frames = [frame for frame in frames if len(frame) >= VNET + 14]
        if not frames:
            return
        self.port, self.passed = (0 if direction is OUT else 1), 0
        lost, held = sum(self.stage.drops.values()), len(self.stage.tracker.fragments)
        octets = self.stage.tracker.fragments.octets
        self.stage.on_batch(self.port, Batch.of(frames), self.now)
        self.stage.settle(self.now)
        fragments = self.stage.tracker.fragments
        gone = sum(self.stage.drops.values()) - lost
        if (len(fragments), fragments.octets) == (held, octets):
            assert gone + self.passed >= len(frames), "a frame is neither passed nor counted"

    def reload(self) -> None:
        for _ in self.stage.tracker.replace(CLOSED):
            pass
        self.judge.is_closed = True
        self.judge.begun.clear()


def speak(take: Octets, direction: Direction) -> bytes:
    """Return a packet between the VM and its peer, of a few flows."""
    kind = take.number()
    vm, peer = take.pick((40000, 22, 5000)), take.pick((80, 53, 25, 443))
    six = bool(kind & 8)
    if kind % 8 < 4:
        more = ends(direction, True) if six else {}
        options = tcp.encode_options(timestamps=(take.number(4), 0)) if kind & 64 else b""
        made = segment(direction, take.pick(FLAGS), take.number(), take.number(), bytes(take.number() % 50),
                       vm=vm, peer=peer, options=options, **more)  # fmt: skip
    elif kind % 8 < 6:
        sport, dport = (vm, peer) if direction is OUT else (peer, vm)
        made = build.udp(**ends(direction, six), sport=sport, dport=dport, payload=bytes(take.number()))
    else:
        made = build.icmp_echo(**ends(direction, six), identifier=7, sequence=1, reply=bool(kind & 16))
    for _ in range(kind >> 6):
        made[take.number() % len(made)] = take.number()
    if kind & 32:
        with suppress(Malformed):
            Packet.at(made).compute_ip_checksum()
            Packet.at(made).compute_transport_checksum(full=not kind & 16)
    return bytes(made)


def configure(take: Octets, direction: Direction) -> bytes:
    """Return what an address is learned from: a DHCP message, an advertisement, or a claim."""
    kind = take.number()
    mac = take.pick((VM_MAC, PEER_MAC))
    addresses = (VM, b"\x0a\0\0\6", bytes(4))
    router = link_local(PEER_MAC)
    if kind & 1:
        server = ends(IN)["src"]
        outgoing = direction is OUT
        options = {
            dhcp_wire.MESSAGE_TYPE: bytes((take.pick((1, 3, 5, 7, 4, 8, 2)),)),
            dhcp_wire.REQUESTED_ADDRESS: take.pick(addresses),
            dhcp_wire.SERVER_ID: server,
        }
        if kind & 2:
            options[dhcp_wire.CLIENT_ID] = b"\1" + take.pick((VM_MAC, PEER_MAC))
        if kind & 4:
            options[dhcp_wire.LEASE_TIME] = take.take(4)
        message = dhcp_wire.DHCPMessage(
            1 if outgoing else 2, take.number() & 1, mac, ciaddr=take.pick(addresses),
            yiaddr=take.pick(addresses), options=options,
        )  # fmt: skip
        macs = {"src_mac": VM_MAC, "dst_mac": PEER_MAC} if outgoing else {"src_mac": PEER_MAC, "dst_mac": mac}
        src, dst = (take.pick(addresses), b"\xff" * 4) if outgoing else (server, take.pick(addresses))
        ports = {"sport": 68, "dport": 67} if outgoing else {"sport": take.pick((67, 53)), "dport": 68}
        return bytes(build.udp(**macs, src=src, dst=dst, **ports, payload=message.encode()))
    own = take.pick((VM6, link_local(VM_MAC), VM6[:15] + b"\x09"))
    if direction is IN and kind & 2:
        body = b"\x40\0\x07\x08" + bytes(8)
        bits, lifetimes = take.pick((64, 32, 128, 0)), take.take(4).ljust(8, b"\1")
        option = bytes((bits, 0xC0)) + lifetimes + bytes(4) + VM6[:8] + bytes(8)
        return bytes(build.nd_message(
            src_mac=PEER_MAC, dst_mac=VM_MAC, src=router, dst=ALL_NODES, kind=nd.ROUTER_ADVERT, body=body,
            options=build.nd_option(nd.PREFIX_INFORMATION, option),
        ))  # fmt: skip
    whose = VM_MAC if direction is OUT else PEER_MAC
    if kind & 4:
        return bytes(build.neighbor_advert(
            src_mac=whose, dst_mac=PEER_MAC, src=own, dst=ALL_NODES, target=own, lladdr=whose
        ))  # fmt: skip
    return bytes(build.neighbor_solicit(
        src_mac=whose, dst_mac=PEER_MAC, src=bytes(16) if kind & 8 else own, dst=solicited_node(own),
        target=own,
    ))  # fmt: skip


def cut(frame: bytes, take: Octets) -> list[bytes]:
    """Return an IPv4 packet in fragments, which may overlap."""
    pkt = Packet.at(bytearray(frame))
    try:
        if pkt.ipv4 is None or pkt.is_fragment:
            return [frame]
    except Malformed:
        return [frame]
    head, data = frame[: pkt.ip.payload_off], frame[pkt.ip.payload_off : pkt.ip.end]
    made = []
    for _ in range(1 + take.number() % 3):
        at, size = take.number() % 16, take.number() % 16
        part = bytearray(head + data[at * 8 : (at + size) * 8 or None])
        net = Packet.at(bytearray(frame)).ipv4
        part[26:28] = (len(part) - net.off).to_bytes(2, "big")
        part[30:32] = (at | (0 if at * 8 + size * 8 >= len(data) else 0x2000)).to_bytes(2, "big")
        with suppress(Malformed):
            Packet.at(part).compute_ip_checksum()
        made.append(bytes(part))
    return made


def one(data: bytes) -> None:
    take = Octets(data)
    bench = Bench(take.number() % 3)
    for _ in range(STEPS_MAX):
        if not take.left:
            break
        what = take.number()
        direction = OUT if what & 16 else IN
        if what % 16 < 8:
            bench.push(direction, [speak(take, direction) for _ in range(1 + what % 4)])
        elif what % 16 < 10:
            bench.push(direction, cut(speak(take, direction), take))
        elif what % 16 < 13:
            bench.push(direction, [take.blob() for _ in range(1 + take.number() % FRAMES_MAX)])
        elif what % 16 == 13:
            bench.now += take.number(2) / 10
            bench.stage.wake(bench.now)
        elif what % 16 == 14 and not bench.judge.is_closed:
            bench.reload()
        elif what % 16 == 15:
            bench.push(direction, [configure(take, direction)])
    bench.stage.status(bench.now)


def seeds() -> list[bytes]:
    syn, answer, ack = (
        bytes((16, 0, 0, 0, 0, 0, 0, 0)),
        bytes((0, 0, 0, 0, 1, 0, 1, 0)),
        bytes((16, 0, 0, 0, 2, 1, 1, 9)),
    )
    udp, reply, ping = (
        bytes((16, 4, 2, 1, 20)),
        bytes((0, 4, 2, 1, 20)),
        bytes((16, 6, 0, 0)) + bytes((0, 22, 0, 0)),
    )
    parts = bytes((24, 4, 2, 1, 60, 2, 0, 2, 2, 4, 6, 0))
    talk = (
        syn
        + answer
        + ack
        + udp
        + reply
        + ping
        + parts
        + bytes((16, 0, 0, 2, 0, 0, 0, 0))
        + bytes((13, 0, 50))
    )
    made = [bytes((flag,)) + talk + more for flag in (0, 1, 2) for more in (b"", bytes((14,)) + talk)]
    discover, request = bytes((31, 1, 0, 0, 0, 1, 2, 2, 2)), bytes((31, 1, 0, 1, 0, 1, 2, 2, 2))
    lease = bytes((15, 5, 0, 2, 0, 0, 0, 14, 16, 1, 2, 0, 0, 0))
    advert, claim, udp6 = (
        bytes((15, 2, 0, 0, 0, 0, 0, 14, 16)),
        bytes((31, 8, 0, 0)),
        bytes((16, 12, 2, 1, 20)),
    )
    made += [bytes((2,)) + discover + request + lease + talk, bytes((2,)) + advert + claim + udp6 * 2]
    made += [b"\0" + bytes((what, 0)) + blob(frame) for frame in FRAMES for what in (10, 26)]
    return made
