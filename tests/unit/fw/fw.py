"""What the tests of the firewall speak in: a VM and a peer, and the firewall between them."""

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.rules.rule import IN, OUT, Verdict
from vtl_tools.services.fw.parser import parse
from vtl_tools.services.fw.policy import Policy
from vtl_tools.services.fw.tracker import Tracker

VM_MAC = address.mac("52:54:00:00:00:01")
PEER_MAC = address.mac("52:54:00:00:00:02")
VM, PEER = address.ip("10.0.0.5"), address.ip("192.0.2.1")
VM6, PEER6 = address.ip("2001:db8::5"), address.ip("2001:db8:1::1")
FLAGS = {"F": tcp.FIN, "S": tcp.SYN, "R": tcp.RST, "P": tcp.PSH, ".": tcp.ACK}
ISS = {OUT: 1000, IN: 0xFFFF_FF00}


def rules(text, files=None):
    data = {"fw.rules": text.encode() if isinstance(text, str) else text}
    data |= {name: body.encode() for name, body in (files or {}).items()}

    def read(name, octets):
        if name not in data:
            raise FileNotFoundError(2, "No such file or directory")
        return data[name][:octets]

    return parse("fw.rules", read)


def policy(text):
    return Policy(rules(text))


def ends(direction, six=False):
    """MACs and addresses of a packet of a direction."""
    here, there = (VM6, PEER6) if six else (VM, PEER)
    if direction is OUT:
        return {"src_mac": VM_MAC, "dst_mac": PEER_MAC, "src": here, "dst": there}
    return {"src_mac": PEER_MAC, "dst_mac": VM_MAC, "src": there, "dst": here}


def segment(direction, flags, seq, ack=0, data=b"", *, vm=40000, peer=80, window=8000, options=b"", **more):
    """A TCP segment; seq and ack are relative to each side's initial number."""
    ports = (vm, peer) if direction is OUT else (peer, vm)
    bits = sum(FLAGS[flag] for flag in flags)
    numbers = (ISS[direction] + seq) % 2**32, (ISS[direction.other] + ack) % 2**32 if "." in flags else 0
    return build.tcp(
        **{**ends(direction), **more}, sport=ports[0], dport=ports[1], seq=numbers[0], ack=numbers[1],
        flags=bits, window=window, options=options, payload=data,
    )  # fmt: skip


class Wire:
    """A tracker and a clock. Each saying returns why(), the word for what became of the packet."""

    def __init__(self, text, **options):
        self.now = 1000.0
        self.tracker = Tracker(policy(text), **options)
        self.log = []

    def pass_on(self, frame, direction):
        before = bytes(frame)
        frame = (
            memoryview(frame) if len(self.log) % 2 else frame
        )  # as links hand them over, or tests make them
        decision = self.tracker.receive(frame, direction, self.now)
        assert bytes(frame) == before
        self.log.append(f"{self.now:g} {direction.value} {decision.why}")
        return decision

    def say(self, direction, *args, **kwargs):
        decision = self.pass_on(segment(direction, *args, **kwargs), direction)
        return decision.why if decision.verdict is not Verdict.ALLOW else f"+{decision.why}"

    def out(self, *args, **kwargs):
        return self.say(OUT, *args, **kwargs)

    def come(self, *args, **kwargs):
        return self.say(IN, *args, **kwargs)

    def udp(self, direction, *, vm=5000, peer=53, six=False, **more):
        ports = (vm, peer) if direction is OUT else (peer, vm)
        frame = build.udp(
            **{**ends(direction, six), **more}, sport=ports[0], dport=ports[1], payload=b"question"
        )
        return self._word(frame, direction)

    def ping(self, direction, *, reply=False, identifier=7, six=False):
        frame = build.icmp_echo(**ends(direction, six), identifier=identifier, sequence=1, reply=reply)
        return self._word(frame, direction)

    def raw(self, frame, direction):
        return self._word(frame, direction)

    def _word(self, frame, direction):
        decision = self.pass_on(frame, direction)
        return decision.why if decision.verdict is not Verdict.ALLOW else f"+{decision.why}"

    def wait(self, seconds):
        self.now += seconds
        ended = []
        while (due := self.tracker.deadline()) is not None and due <= self.now:
            ended += self.tracker.wake(self.now)
        return ended

    def open(self, **ports):
        """A connection that the VM makes."""
        assert self.out("S", 0, **ports) == "+new", self.log
        assert self.come("S.", 0, 1, **ports) == "+known", self.log
        assert self.out(".", 1, 1, **ports) == "+known", self.log


__all__ = ["IN", "OUT", "Malformed", "Wire", "ends", "policy", "rules", "segment"]
