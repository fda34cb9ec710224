"""Sequences of packets that rules and connections are likely to be hit by."""

from nft_oddities import broken, fragments, neighbours, options, others, strays
from nft_talk import Talk
from nft_world import PORTS, STRANGE_MACS, Shot, ends, l3_at, numbered, payload_octets, split

from vtl_tools.common.packet import build, icmp, ip
from vtl_tools.common.packet.vnet import VNET

ERRORS4 = [(3, 0), (3, 1), (3, 3), (3, 4), (3, 13), (11, 0), (11, 1), (12, 0), (5, 1), (4, 0)]
ERRORS6 = [(1, 0), (1, 1), (1, 4), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (137, 0), (100, 0)]


class Maker:
    """A sequence in the making: shots, and of each IP packet what an ICMP error may quote."""

    def __init__(self, random, judge):
        self.random, self.judge = random, judge
        self.shots = []
        self.sent = []
        self.talks = set()
        self.vlans = random.choices([[None], [None, None, 5], [None, 0, 5, 7], [5]], [6, 2, 1, 1])[0]

    def vlan(self):
        return self.random.choice(self.vlans)

    def emit(self, out, frame, label, flow=(), odd=(), cuts=None, segment=None):
        """Send a packet, as build makes it, and say whether it passes. cuts: in fragments, as for split()."""
        number = len(self.shots) + 1
        odd = set(odd)
        at, kind = l3_at(frame[VNET:])
        if self.random.random() < 0.01:
            side = slice(VNET + 6, VNET + 12) if self.random.random() < 0.5 else slice(VNET, VNET + 6)
            frame[side] = self.random.choice(STRANGE_MACS)
            odd.add("mac")
        whole = numbered(frame, number)
        if kind in (b"\x08\x00", b"\x86\xdd"):
            self.sent.append((out, whole[at:], flow, odd))
        size = payload_octets(whole) if kind in (b"\x08\x00", b"\x86\xdd") else 0
        if cuts is None and not odd and size >= 64 and self.random.random() < 0.15:
            at = self.random.randrange(32, size - 8) & ~7
            cuts = [(0, at, False), (at, size - at, True)]
            if self.random.random() < 0.3:
                cuts.reverse()
        frames = [whole] if cuts is None else split(whole, cuts)
        label = label if cuts is None else f"{label} cut {cuts}"
        self.shots.append(Shot(out, number, frames, label, flow or ("alone", number), odd, segment))
        return self.judge(self.shots[-1])

    # --- actors: each yields after a step

    def talk(self):
        yield from Talk(self).run()

    def datagrams(self):
        random = self.random
        six, vm, net = random.random() < 0.3, random.randrange(2), random.randrange(3)
        here, there = random.sample(PORTS, 2)
        vlan, out = self.vlan(), random.random() < 0.7
        for _ in range(random.randint(1, 8)):
            self.datagram(out, six, vm, net, here, there, vlan)
            yield
            if random.random() < 0.6:
                out = not out
            if random.random() < 0.1:
                here = random.choice(PORTS)

    def datagram(self, out, six, vm, net, here, there, vlan, size=None, cuts=None, odd=()):
        sport, dport = (here, there) if out else (there, here)
        size = self.random.choice([0, 1, 30, 500, 1300]) if size is None else size
        frame = build.udp(**ends(out, six, vm, net), sport=sport, dport=dport, payload=bytes(size), vlan=vlan)
        if self.random.random() < 0.04 and cuts is None:
            checksum_at = len(frame) - size - 2
            if self.random.random() < 0.5:
                frame[checksum_at : checksum_at + 2] = b"\0\0"
                odd = {*odd, "no-sum"}
            else:
                frame[checksum_at] ^= 0x55
                odd = {*odd, "bad-sum"}
        flow = ("udp", six, vm, net, here, there, vlan)
        self.emit(out, frame, f"udp{'6' if six else ''} {sport}>{dport} vlan {vlan} {size}", flow, odd, cuts)

    def echoes(self):
        random = self.random
        six, vm, net, vlan = random.random() < 0.4, random.randrange(2), random.randrange(3), self.vlan()
        out, identifier = random.random() < 0.6, random.choice([7, 8])
        for i in range(random.randint(1, 6)):
            reply = random.random() < 0.5
            way = out != reply if random.random() < 0.8 else not out
            frame = build.icmp_echo(
                **ends(way, six, vm, net), identifier=identifier, sequence=i, reply=reply, vlan=vlan,
                payload=bytes(random.choice([0, 56, 1000])),
            )  # fmt: skip
            odd = set()
            if random.random() < 0.03:
                frame[VNET + 14 + (0 if vlan is None else 4) + (40 if six else 20) + 2] ^= 0x55
                odd = {"bad-sum"}
            kind = "reply" if reply else "request"
            self.emit(way, frame, f"echo {kind} {identifier}", ("echo", six, vm, net, identifier, vlan), odd)
            yield

    def errors(self):
        """Errors about what was sent, to who sent it, or about something else."""
        random = self.random
        for _ in range(random.randint(1, 4)):
            if not self.sent:
                return
            was_out, quoted, flow, was_odd = random.choice(self.sent[-30:])
            six = quoted[0] >> 4 == 6
            odd = {name for name in was_odd if name.startswith("option") or name == "sctp"}
            odd |= {"quote-odd"} if any(name.startswith(("broken", "option")) for name in was_odd) else set()
            odd |= {"quote-sum"} if "broken-sum" in was_odd else set()
            quoted, twist = self._twisted(quoted, 40 if six else 20)
            odd |= {twist} - {""}
            self._error(was_out, six, quoted, () if twist == "quote-other" else flow, odd)
            yield

    def _twisted(self, quoted, at):
        """Return a packet, perhaps with something in it as it was not sent, and what that is called."""
        random, quoted = self.random, bytearray(quoted)
        twist = random.random()
        if twist < 0.1 and at + 4 <= len(quoted):
            quoted[at + random.randrange(4)] ^= 0x40
            return quoted, "quote-other"
        if 0.1 < twist < 0.2 and at + 8 <= len(quoted):
            quoted[at + 4 : at + 8] = b"\x12\x34\x56\x78"
            return quoted, "quote-seq"
        return quoted, ""

    def _error(self, was_out, six, quoted, flow, odd):
        random = self.random
        out = not was_out
        octets = random.choice([20, 24, 28, 40, 48, 60, 200])
        kind, code = random.choice(ERRORS6 if six else ERRORS4)
        side = ends(out, six, random.randrange(2), random.randrange(3))
        target = bytes(quoted[8:24]) if six else bytes(quoted[12:16])
        if random.random() < 0.9:
            side["dst"] = target
        odd = {
            *odd, "error",
            *(["quote-dst"] if side["dst"] != target else []),
            *(["quote-short"] if octets < (48 if six else 28) else []),
            *(["order"] if kind in (4, 5) and not six else []),
            *(["error-type"] if kind == 100 else []),
        }  # fmt: skip
        if random.random() < 0.05:
            out, odd = was_out, {*odd, "quote-way"}
            side = {**ends(out, six), "src": side["src"], "dst": side["dst"]}
        vlan = flow[-1] if flow and flow[0] in ("tcp", "udp", "echo") else None
        if random.random() < 0.05:
            vlan = self.vlan()
        l2 = build.ethernet(side["src_mac"], side["dst_mac"], 0x86DD if six else 0x0800, vlan)
        head = icmp.ICMP.HEADER.pack(kind, code, 0, 1400 if (six, kind) == (True, 2) else 0)
        protocol = ip.ICMPV6 if six else ip.ICMP
        frame = build.over_ip(l2, side["src"], side["dst"], protocol, head, bytes(quoted[:octets]))
        self.emit(out, frame, f"icmp {kind}/{code} about {flow} {octets} octets", flow, odd)


ACTORS = {
    Maker.talk: 10, Maker.datagrams: 5, Maker.echoes: 3, Maker.errors: 5, others: 2, fragments: 4,
    neighbours: 2, broken: 2, options: 2, strays: 3,
}  # fmt: skip


def random_sequence(random, judge, length=80):
    """Return shots of several actors whose packets come in between each other's.

    judge: passes a shot on, and says whether it came out: who gets nothing says nothing.
    """
    maker = Maker(random, judge)
    actors = random.choices(list(ACTORS), list(ACTORS.values()), k=random.choice([2, 4, 8]))
    running = [actor(maker) for actor in actors]
    while running and len(maker.shots) < length:
        actor = random.choice(running)
        try:
            next(actor)
        except StopIteration:
            running.remove(actor)
    return maker.shots
