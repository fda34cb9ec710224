"""A VM that is suspended within a connection, with vtl-freeze beside its interface, in virtual time.

An attacker may be there who does not see the connection, and knows all of it but the numbers: see spoof().
"""

import heapq
from contextlib import suppress

from tcp_network import DEFAULTS, HOSTS, MACS, Network

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.seq import seq_between, seq_gt, seq_le
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.services.freeze import state
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.freeze.headers import parse

SNAP = 14 + 8 + 60 + 60 + 10
VM, PEER = 0, 1
EVE = address.mac("02:00:00:00:00:ee")
WINDOW_MAX, ZONE = 1 << 21, 1 << 25
"""More than any window here; and how near a guess of the attacker's may be that does not hit one."""


class FreezeNetwork(Network):
    """End 0 is the VM; its clock stands still while it is suspended.

    one_in: how many segments there are to one that is looked at. watched: whether anything is looked at yet.
    """

    def __init__(self, rng, *, one_in=1, configs=DEFAULTS, **options):
        super().__init__(rng, configs=configs, **options)
        self.freezer = Freezer()
        self.one_in, self.watched = one_in, True
        self.freezer.table.set_sampled(one_in > 1)
        self.runs, self.away_s = True, 0.0
        self.acked = self.stamped = None
        self.attacked = self.heard_vm = False
        self.version = options.get("version", 4)
        self.of_peer = None
        self.said = []

    def miss(self):
        """Look at nothing more, and know it."""
        self.watched = False
        self.freezer.table.set_sampled(True)

    # --- the VM's clock

    @property
    def vm_now(self):
        return self.now - self.away_s if self.runs else self.stood_at

    def suspend(self):
        assert self.runs
        self.stood_at, self.runs = self.vm_now, False

    def resume(self):
        assert not self.runs
        self.away_s, self.runs = self.now - self.stood_at, True

    # --- between the VM and the network

    def looked_at(self, frame, from_vm):
        if not self.watched:
            return
        flags = parse(bytearray(frame), from_vm).flags
        if flags & (SYN | FIN | RST) or self.rng.random() * self.one_in < 1:
            self.heard_vm |= from_vm
            self.freezer.overhear(memoryview(bytes(frame))[:SNAP], from_vm, self.now)

    def pump(self):
        if self.runs:
            for frame in self.ends[VM].transmit(self.vm_now):
                for piece in segment(frame):
                    self.from_vm(piece)
        for frame in self.ends[PEER].transmit(self.now):
            for piece in segment(frame):
                self.of_peer = parse(piece, False)
                self.send(VM, piece)
        self.speak()

    def from_vm(self, frame):
        found = parse(frame, True)
        if found.flags & ACK and (self.acked is None or seq_gt(found.ack, self.acked)):
            self.acked = found.ack
        if found.tsval is not None and (self.stamped is None or seq_gt(found.tsval, self.stamped)):
            self.stamped = found.tsval
        self.looked_at(frame, True)
        self.freezer.from_vm(frame, self.now)
        self.send(PEER, frame)

    def speak(self):
        to_network, to_vm = self.freezer.take()
        for frame in to_network:
            found = parse(bytearray(frame), True)
            assert found.flags == ACK
            assert not found.length
            if not self.attacked or self.would_be_taken(found):
                assert seq_le(found.ack, self.acked), "it acknowledges what the VM did not"
                if found.tsval is not None:
                    assert seq_le(found.tsval, self.stamped), "it is ahead of the VM's clock"
            self.said.append((self.now, found))
            if frame[10:16] == MACS[PEER]:
                self.send(PEER, frame)
            else:
                assert not self.heard_vm, "it is told to another than the VM spoke to"
        for frame in to_vm:
            for piece in segment(bytearray(frame)):
                self.ends[VM].receive(piece, self.vm_now)

    def to_vm(self, frame):
        if self.freezer.frozen:
            self.freezer.from_peer(memoryview(frame), self.now)
        elif self.watched:
            with suppress(Malformed):
                self.looked_at(frame, False)
        if self.runs:
            self.ends[VM].receive(frame, self.vm_now)

    def step(self):
        self.pump()
        peer = self.ends[PEER]
        dues = [] if (due := peer.deadline()) is None else [due]
        if self.runs and (due := self.ends[VM].deadline()) is not None:
            dues.append(due + self.away_s)
        if self.wire:
            dues.append(self.wire[0][0])
        if not dues:
            return False
        self.now = max(self.now, min(dues))
        while self.wire and self.wire[0][0] <= self.now:
            _, _, to, frame = heapq.heappop(self.wire)
            if to == VM:
                self.to_vm(frame)
            else:
                peer.receive(frame, self.now)
        if (due := peer.deadline()) is not None and due <= self.now:
            peer.wake(self.now)
        if self.runs and (due := self.ends[VM].deadline()) is not None and due + self.away_s <= self.now:
            self.ends[VM].wake(max(due, self.vm_now))  # what is subtracted and added again may be less
        return True

    def run_for(self, seconds):
        until = self.now + seconds
        while True:
            self.pump()
            dues = [self.ends[PEER].deadline(), self.wire[0][0] if self.wire else None]
            if self.runs and (due := self.ends[VM].deadline()) is not None:
                dues.append(due + self.away_s)
            due = min((one for one in dues if one is not None), default=None)
            if due is None or due > until:
                break
            self.step()
        self.now = max(self.now, until)

    # --- an attacker

    def would_be_taken(self, found):
        """Whether the peer may look at more of a segment than its number (RFC 9293 section 3.10.7.4)."""
        return seq_between(self.of_peer.ack - 1, found.seq, self.of_peer.ack + WINDOW_MAX)

    def spoof(self, seconds):
        """Put the same guess on the wire several times, as the peer's timer would, within so many seconds."""
        rng = self.rng
        flags = rng.choice((ACK, ACK, ACK, ACK | FIN, SYN | ACK, SYN, RST))
        near_seq = self.of_peer.seq + rng.randint(-70_000, 70_000)
        seq = rng.choice((near_seq, rng.randrange(1 << 32))) if flags != RST else near_seq + ZONE
        ack = self.of_peer.ack + rng.choice((-1, 1)) * rng.randint(WINDOW_MAX, ZONE)
        ack = rng.choice((ack, ack, rng.randrange(1 << 32)))
        if self.would_be_taken(self.of_peer._replace(seq=ack & 0xFFFF_FFFF)):
            return
        length = rng.choice((0, 1, 1000))
        mac = rng.choice((MACS[PEER], EVE))
        vm, peer = map(address.ip, HOSTS[self.version])
        when, pause = self.now + rng.uniform(0, seconds), rng.choice((0.16, 0.3, 1.0, 20.0))
        for i in range(rng.randint(1, 5)):
            stamps = (rng.randrange(1 << 31) + i * 1000, rng.randrange(1 << 32))
            frame = build.tcp(
                src_mac=mac, dst_mac=MACS[VM], src=peer, dst=vm, sport=80, dport=40_000,
                seq=seq & 0xFFFF_FFFF, ack=ack & 0xFFFF_FFFF if flags & ACK else 0, flags=flags,
                window=rng.choice((0, 500)), payload=bytes(length),
                options=tcp.encode_options(timestamps=rng.choice((stamps, None))),
            )  # fmt: skip
            self.put(when, VM, frame)
            when, pause = when + pause, pause * rng.choice((1.5, 2.0))

    # --- freezing

    def freeze(self, seconds, *, late_s=0.0, early_s=0.0, moved=False):
        """Suspend the VM, start late_s later; after `seconds` stop, and resume early_s before that."""
        self.suspend()
        self.run_for(late_s)
        self.freezer.start(self.now)
        self.run_for(seconds / 2)
        if moved:
            text = "".join(state.dump(self.freezer, "vm", self.now)).encode()
            self.freezer = Freezer()
            assert state.load(text, "state", self.freezer, self.now) == "vm"
        self.run_for(max(0.0, seconds / 2 - early_s))
        self.resume()
        self.run_for(early_s)
        self.freezer.stop(self.now)
        while self.freezer.thaw():
            pass
        self.pump()
