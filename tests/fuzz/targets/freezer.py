"""vtl-freeze on the air: frames of a VM, of its peer and of anybody, overheard whole or cut short.

Checked: nothing is raised; each frame that is said in the VM's name is a sound acknowledgement without data,
from its address to its peer; of a connection that was followed from its SYN, nothing is acknowledged that the
VM had not acknowledged itself; while the VM is there nothing is said; frames that are kept for the VM came
from the network; all of it goes out as a state and comes in again.
"""

import json

from tests.fuzz.frames import FRAMES
from tests.fuzz.octets import Octets, blob
from tests.unit.freeze.freeze_talk import PEER_ISS, PEER_MAC, VM_ISS, VM_MAC, Talk
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.freeze import report, state
from vtl_tools.services.freeze.freezer import Freezer

STEPS_MAX = 48
VM_ACK = 1001
"""What the VM of Talk.open() has acknowledged, relative to PEER_ISS."""
FLAGS = (
    tcp.ACK,
    tcp.ACK | tcp.PSH,
    tcp.ACK | tcp.FIN,
    tcp.RST,
    tcp.SYN,
    tcp.SYN | tcp.ACK,
    tcp.RST | tcp.ACK,
    0,
)


class Air:
    """A connection that was followed from its SYN, its VM away; then anybody sends."""

    def __init__(self) -> None:
        self.talk = Talk(4).open()
        self.freezer: Freezer = self.talk.freezer
        self.now = self.talk.now
        self.followed = self.talk.connection
        self.vm_acks = {VM_ACK}
        self.shown: set[bytes] = set()
        """Frames of the network so far."""
        self.freezer.start(self.now)

    def listen(self) -> None:
        """Judge what is said."""
        to_network, to_vm = self.freezer.take()
        assert len(to_network) + len(to_vm) < 600
        for frame in to_network:
            pkt = Packet.at(bytearray(frame))
            assert pkt.verify()
            segment = pkt.tcp
            if segment is None:
                assert pkt.arp is not None or pkt.nd is not None
                continue
            assert segment.flags == tcp.ACK
            assert not len(segment.payload)
            if pkt.ip.src == self.talk.vm_host and (segment.sport, segment.dport) == (80, self.talk.port):
                assert pkt.eth.src == VM_MAC
                ack = (segment.ack - PEER_ISS) % 2**32
                known = self.freezer.table.get(self.followed.key)
                if pkt.ip.dst == self.talk.peer_host and known is self.followed:  # which a reset ends
                    assert ack in self.vm_acks, "acknowledged what the VM had not"
        assert set(to_vm) <= self.shown, "the VM gets what nobody sent"

    def segment(self, take: Octets, from_vm: bool) -> bytearray:
        """Return a segment of the connection whose numbers are near to what is next, or anything."""
        flags, how = take.pick(FLAGS), take.number()
        peer_next, vm_next = VM_ACK + PEER_ISS, 201 + VM_ISS
        seq = (vm_next if from_vm else peer_next) + (take.number() - 100 if how & 1 else take.number(4))
        ack = (peer_next if from_vm else vm_next) + (take.number() - 100 if how & 2 else take.number(4))
        stamps = (take.number(4), take.number(4)) if how & 4 else (5000, 1000)
        here, there = (self.talk.vm_host, self.talk.peer_host)
        macs = (VM_MAC, PEER_MAC)
        ports = (80, self.talk.port)
        if not from_vm:
            here, there, macs, ports = there, here, macs[::-1], ports[::-1]
        return build.tcp(
            src_mac=macs[0], dst_mac=macs[1], src=here, dst=there, sport=ports[0], dport=ports[1],
            seq=seq % 2**32, ack=ack % 2**32 if flags & tcp.ACK else 0, flags=flags, window=take.number(2),
            options=tcp.encode_options(timestamps=None if how & 8 else stamps), payload=bytes(take.number()),
        )  # fmt: skip

    def put(self, frame: bytearray, how: int) -> None:
        """Let a frame be heard: overheard from either side, or on its way to or from the VM."""
        from_vm = bool(how & 1)
        view = memoryview(frame)
        if from_vm and how & 2:
            self.heard_vm(frame)
            self.freezer.from_vm(view, self.now)
        elif how & 2:
            self.shown.add(bytes(frame))
            self.freezer.from_peer(view, self.now)
        else:
            if from_vm:
                self.heard_vm(frame)
            self.freezer.overhear(view[: 60 + (how >> 2)], from_vm, self.now)

    def heard_vm(self, frame: bytearray) -> None:
        """Take note of all that the VM could be meant to acknowledge by a frame, sound or not."""
        try:
            seen = Packet.at(frame).tcp
        except Malformed:
            seen = None
        if seen is not None:
            self.vm_acks.add((seen.ack - PEER_ISS) % 2**32)
        if len(frame) > 56:
            self.vm_acks.add((int.from_bytes(frame[52:56], "big") - PEER_ISS) % 2**32)


def dumped(freezer: Freezer, now: float) -> dict[str, object]:
    """Return what a freezer knows; Ethernet addresses are a set, whose order is by chance."""
    told = json.loads("".join(state.dump(freezer, "vm", now)))
    told["macs"].sort()
    return told


def one(data: bytes) -> None:
    take, air = Octets(data), Air()
    for _ in range(STEPS_MAX):
        if not take.left:
            break
        what = take.number()
        if what % 8 < 4:
            air.put(air.segment(take, from_vm=False), what >> 3 & ~1 | 2)
        elif what % 8 == 4:
            air.put(air.segment(take, from_vm=True), what >> 3 | 1)
        elif what % 8 == 5:
            air.put(bytearray(take.blob()), what >> 3)
        elif what % 8 == 6:
            air.now += take.number(2) / 100
        elif what & 8:
            air.freezer.start(air.now)
        else:
            air.freezer.stop(air.now)
            while air.freezer.thaw():
                pass
        air.listen()
    told = [dumped(air.freezer, air.now)]
    for _ in range(2):
        again = Freezer()
        assert state.load(json.dumps(told[-1]).encode(), "file", again, air.now) == "vm"
        told.append(dumped(again, air.now))
    assert told[1] == told[2]
    assert len(told[0]["connections"]) == len(told[1]["connections"])
    report.report(air.freezer, air.now)


def seeds() -> list[bytes]:
    near = bytes((3, 100, 100))
    say = [bytes((0, flags)) + near + bytes((1, 244, size)) for flags in range(8) for size in (0, 100)]
    vm = bytes((4, 1)) + near + bytes((1, 244, 0))
    made = [
        b"".join(say),
        vm + say[0] + bytes((6, 1, 44)) + say[1] * 4 + bytes((7,)) + say[0],
        b"".join(say[::3]) + vm,
    ]
    made += [bytes((5 + (how << 3),)) + blob(frame) + say[1] for frame in FRAMES for how in (0, 2, 3)]
    return made
