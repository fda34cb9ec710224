"""Two endpoints, a wire that misbehaves by a seed, and a clock that jumps to the next thing that happens."""

import heapq
from itertools import count

from vtl_tools.common.packet import address
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State
from vtl_tools.common.tcp.wire import Path

MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
DEFAULTS = (Config(), Config())
HOSTS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}


def paths(version=4, port=80):
    one, two = (address.ip(text) for text in HOSTS[version])
    return Path(*MACS, one, two, 40000, port), Path(*MACS[::-1], two, one, port, 40000)


class Network:
    """Plain frames with full checksums, each lost, doubled, delayed or damaged by chance.

    done_at: when each end had the last octet of a transfer.
    """

    port = 80

    def __init__(self, rng, *, loss=0.0, reorder=0.0, duplicate=0.0, corrupt=0.0, delay_s=0.01, version=4,
                 configs=DEFAULTS, plain=True, iss=(None, None)):  # fmt: skip
        self.rng, self.now, self.plain = rng, 1000.0, plain
        self.loss, self.reorder, self.duplicate, self.corrupt = loss, reorder, duplicate, corrupt
        self.delay_s = delay_s
        self.wire, self.order = [], count()
        self.frames, self.done_at = 0, [0.0, 0.0]
        self.renew(configs, version, iss)

    def renew(self, configs, version=4, iss=(None, None)):
        """Put new endpoints to the ends."""
        self.ends = [
            Endpoint(path, b"secret", self.now, config, iss=number)
            for path, config, number in zip(paths(version, self.port), configs, iss, strict=True)
        ]

    @property
    def machines(self):
        """All that has deadlines."""
        return self.ends

    def pump(self):
        """Put on the wire what may be sent."""
        for i, end in enumerate(self.ends):
            for frame in end.transmit(self.now):
                for piece in segment(frame) if self.plain else [frame]:
                    self.send(1 - i, piece)

    def send(self, to, frame):
        self.frames += 1
        chance = self.rng.random
        if chance() < self.loss:
            return
        for _ in range(2 if chance() < self.duplicate else 1):
            late = self.rng.uniform(0, 4 * self.delay_s) if chance() < self.reorder else 0.0
            copy = bytearray(frame)
            if chance() < self.corrupt:
                copy[self.rng.randrange(24, len(copy))] ^= 1 << self.rng.randrange(8)
            self.put(self.now + self.delay_s + late, to, copy)

    def put(self, when, to, frame):
        heapq.heappush(self.wire, (when, next(self.order), to, frame))

    def deliver(self, to, frame):
        """Take a frame off the wire."""
        self.ends[to].receive(frame, self.now)

    def step(self):
        """Send what may be sent, then go to the next arrival or deadline. False: nothing will ever happen."""
        self.pump()
        dues = [due for one in self.machines if (due := one.deadline()) is not None]
        if self.wire:
            dues.append(self.wire[0][0])
        if not dues:
            return False
        self.now = max(self.now, min(dues))
        while self.wire and self.wire[0][0] <= self.now:
            _, _, to, frame = heapq.heappop(self.wire)
            self.deliver(to, frame)
        for one in self.machines:
            if (due := one.deadline()) is not None and due <= self.now:
                one.wake(self.now)
        return True

    def run(self, done, limit_s=3600.0):
        until = self.now + limit_s
        while not done():
            assert self.step(), f"nothing will ever happen: {self.ends}"
            assert self.now < until, f"not in time: {self.ends} {[e.info() for e in self.ends]}"

    def open(self, opener=0):
        client, server = self.ends[opener], self.ends[1 - opener]
        server.listen()
        client.connect()
        self.run(lambda: server.asked)
        server.accept()
        self.run(lambda: client.state is State.ESTABLISHED)

    def transfer(self, one=b"", two=b"", limit_s=3600.0, read=1 << 20):
        """Send both ways at once, close both, and return what came to each end."""
        left = [memoryview(one), memoryview(two)]
        got = [bytearray(), bytearray()]

        def turn():
            for i, end in enumerate(self.ends):
                if left[i] is not None and end.state in (State.ESTABLISHED, State.CLOSE_WAIT):
                    left[i] = left[i][end.write(left[i]) :]
                    if not left[i]:
                        end.close()
                        left[i] = None
                while data := end.read(read):
                    got[i] += data
                    self.done_at[i] = self.now
            return all(end.at_eof for end in self.ends)

        self.run(turn, limit_s)
        self.run(lambda: all(end.state in (State.CLOSED, State.TIME_WAIT) for end in self.ends), limit_s)
        return bytes(got[0]), bytes(got[1])
