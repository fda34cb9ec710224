"""A guest and a network with vtl-split --uplink between, in virtual time. Both ends are endpoints of ours."""

import heapq
from itertools import count
from random import Random

from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State
from vtl_tools.common.tcp.wire import Path, parse
from vtl_tools.services.split.uplink import SplitByUplink

MACS = address.mac("02:00:00:00:00:02"), address.mac("02:00:00:00:00:01")
HOSTS = {4: ("10.0.0.2", "192.0.2.1"), 6: ("fd00::2", "2001:db8::1")}
PROMPT = Config(delayed_ack_s=0.0)
DELAYS_S = 0.0005, 0.05
"""One way, to the guest and to the network."""


def path_from(side, version=4, port=40000, dport=80):
    """The path of a connection that the guest (0) or the network (1) opens."""
    us, them = (address.ip(text) for text in HOSTS[version])
    ends = (us, them) if not side else (them, us)
    macs = MACS if not side else MACS[::-1]
    return Path(*macs, *ends, port, dport)


def turned(path):
    return Path(path.remote_mac, path.local_mac, path.remote, path.local, path.remote_port, path.local_port)


class Between:
    """The stage, and what is at its sides: endpoints by the flow of the segments that come to them.

    heard: by side, all frames that came out there, whole. lose(side, pkt): whether the network loses a frame.
    """

    def __init__(self, seed=1, version=4, loss=0.0, **more):
        self.rng, self.now, self.version = Random(seed), 1000.0, version
        self.stage = SplitByUplink(**more)
        for port in (0, 1):
            self.stage.on_mtu(port, 1500)
            self.stage.out[port] = lambda batch, now, port=port: self.out(port, batch)
        self.ends = ({}, {})
        self.heard = ([], [])
        self.refuses = False
        self.lose = lambda side, pkt: side == 1 and self.rng.random() < loss
        self.wire, self.order = [], count()
        announcement = build.arp(
            src_mac=MACS[0], dst_mac=b"\xff" * 6, sha=MACS[0], spa=bytes(4), tpa=address.ip("10.0.0.2")
        )
        self.inject(0, announcement)  # a guest speaks before anybody can connect to it
        self.wire.clear()
        self.heard[1].clear()

    def out(self, side, batch):
        for frame in batch:
            self.heard[side].append(bytes(frame))
            for piece in segment(bytearray(frame)):
                pkt = Packet.at(bytearray(piece))
                assert pkt.verify(), "a right checksum"
                if not self.lose(side, pkt):
                    self.put(side, False, piece)

    def put(self, side, to_stage, frame):
        heapq.heappush(self.wire, (self.now + DELAYS_S[side], next(self.order), side, to_stage, bytes(frame)))

    def inject(self, side, *frames):
        """Let frames come in at a side at once. Their octets are gone after settling."""
        for i in range(0, len(frames), SLOTS):
            batch = Batch.of(frames[i : i + SLOTS])
            self.stage.on_batch(side, batch, self.now)
            self.settle()
            for frame in batch:
                frame[:] = b"\xee" * len(frame)

    def settle(self):
        for _ in range(1000):
            more = [source.poll(self.now) for source in self.stage.sources]
            self.stage.settle(self.now)
            for side in self.stage.sides:
                for paced in *side.relay.flows.values(), *side.active.streams.values():
                    assert paced.armed_at <= paced.endpoint.paced_at, "what is paced leaves in time"
            if not any(more):
                return
        raise AssertionError("it goes round and round")

    def add(self, side, end):
        self.ends[side][end.framer.expected] = end
        return end

    def open(self, side=0, config=PROMPT, **path):
        """Have an end at a side open a connection; return its endpoint."""
        end = Endpoint(path_from(side, self.version, **path), b"end", self.now, config)
        end.connect()
        return self.add(side, end)

    def far(self, end):
        """The other end of a connection, once there is one."""
        side = 1 if end.framer.expected in self.ends[0] else 0
        path = turned(end.path)
        return next((far for far in self.ends[side].values() if far.path == path), None)

    def deliver(self, side, frame):
        """Let a frame come to the ends of a side."""
        buf = bytearray(frame)
        try:
            found = parse(buf)
        except Malformed:
            found = None
        if found is None:
            return
        end = self.ends[side].get(found.flow)
        if end is None or end.ended is not None:
            end = self.add(side, Endpoint(Path.answering(buf), b"far", self.now, PROMPT))
            end.listen()
        end.receive(buf, self.now)
        if end.asked:
            end.refuse() if self.refuses else end.accept()

    def pump(self):
        for side in (0, 1):
            for end in list(self.ends[side].values()):
                for frame in end.transmit(self.now):
                    for piece in segment(frame):
                        if not self.lose(side, Packet.at(bytearray(piece))):
                            self.put(side, True, piece)

    def step(self, until):
        """Go to the next arrival or deadline. False: there is none before that time."""
        self.pump()
        dues = [end.deadline() for ends in self.ends for end in ends.values()] + [self.stage.deadline()]
        if self.wire:
            dues.append(self.wire[0][0])
        due = min((each for each in dues if each is not None), default=None)
        if due is None or due > until:
            self.now = until
            return False
        self.now = max(self.now, due)
        self.stage.wake(self.now)
        for ends in self.ends:
            for end in list(ends.values()):
                if (at := end.deadline()) is not None and at <= self.now:
                    end.wake(self.now)
        coming = ([], [])
        while self.wire and self.wire[0][0] <= self.now:
            _, _, side, to_stage, frame = heapq.heappop(self.wire)
            if to_stage:
                coming[side].append(frame)
            else:
                self.deliver(side, frame)
        for side in (0, 1):
            self.inject(side, *coming[side])
        self.settle()
        return True

    def pass_(self, seconds):
        """Let time pass."""
        until = self.now + seconds
        while self.step(until):
            pass

    def run(self, done, limit_s=1000.0):
        """Let time pass until something is so."""
        until = self.now + limit_s
        while not done():
            assert self.step(until), f"not in time: {self.ends} {self.stage.status(self.now)}"

    def establish(self, side=0, **more):
        """Open a connection; return both ends of it."""
        end = self.open(side, **more)
        self.run(lambda: end.state is State.ESTABLISHED)
        self.run(lambda: self.far(end).state is State.ESTABLISHED)
        return end, self.far(end)

    @property
    def flows(self):
        """Whatever the stage still keeps of connections."""
        told = self.stage.status(self.now)
        opened = told, told["from_network"]
        return [each["connections"] for each in opened] + [each["far"]["connections"] for each in opened]


def carry(between, one, two, says, answers):
    """Send octets both ways and close both; return what came to each end."""
    left, got = [memoryview(says), memoryview(answers)], [bytearray(), bytearray()]

    def turn():
        for i, end in enumerate((one, two)):
            if left[i] is not None and end.state in (State.ESTABLISHED, State.CLOSE_WAIT):
                left[i] = left[i][end.write(left[i]) :]
                if not left[i]:
                    end.close()
                    left[i] = None
            while data := end.read():
                got[i] += data
        return one.at_eof and two.at_eof

    between.run(turn)
    return bytes(got[0]), bytes(got[1])
