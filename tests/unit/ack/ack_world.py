"""A guest, vtl-ack, a path that misbehaves by a seed, and a peer, in virtual time."""

import heapq
from itertools import count
from random import Random

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.model.base import LOCAL
from vtl_tools.common.packet import address
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.rules.connections import ConnectionChoice
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import State
from vtl_tools.common.tcp.wire import Path
from vtl_tools.services.ack.budget import AckBudget
from vtl_tools.services.ack.predecessor import Predecessor
from vtl_tools.services.ack.register import OCTETS, Register
from vtl_tools.services.ack.stage import LocalAck

MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
HOSTS = {4: ("10.0.0.1", "10.0.0.2"), 6: ("fd00::1", "fd00::2")}
GUEST, PEER = 0, 1
SMALL = Config(receive_buffer=65535, send_buffer=65535, no_delay=True)


class Way:
    """One direction of a link: delay, and the chances of a frame."""

    def __init__(self, *, delay_s=0.0, loss=0.0, reorder=0.0, duplicate=0.0):
        self.delay_s, self.loss, self.reorder, self.duplicate = delay_s, loss, reorder, duplicate
        self.cut = False


class AckWorld:
    """ends: the endpoints of guest and peer; links: of each, the way to the stage and the way back."""

    def __init__(self, *, taken=(LOCAL,), only=(), buffer=1 << 20, memory=1 << 22, give_up_s=60.0, seed=1,
                 configs=(SMALL, SMALL), version=4, iss=(None, None), delay_s=0.05, loss=0.0, reorder=0.0,
                 duplicate=0.0, local_loss=0.0, local_reorder=0.0, plain=True, register=None):  # fmt: skip
        self.now, self.rng, self.plain = 1000.0, Random(seed), plain
        one, two = (address.ip(text) for text in HOSTS[version])
        paths = Path(*MACS, one, two, 40000, 5001), Path(*MACS[::-1], two, one, 5001, 40000)
        self.ends = [
            Endpoint(path, b"secret", self.now, config, iss=number)
            for path, config, number in zip(paths, configs, iss, strict=True)
        ]
        local = {"delay_s": 1e-4, "loss": local_loss, "reorder": local_reorder}
        far = {"delay_s": delay_s, "loss": loss, "reorder": reorder, "duplicate": duplicate}
        self.links = [(Way(**local), Way(**local)), (Way(**far), Way(**far))]
        self.config = Config(
            receive_buffer=buffer, send_buffer=buffer, no_delay=True, user_timeout_s=give_up_s
        )
        self.arguments = taken, only, buffer, memory
        self.memory = bytearray(OCTETS) if register is None else register
        self.wire, self.order = [], count()
        self.events, self.seen = [], ([], [])
        self.start()

    def start(self):
        """Start the service; the one before it, if there was one, was killed."""
        taken, only, buffer, memory = self.arguments
        register = Register(self.memory)
        self.stage = LocalAck(
            ConnectionChoice.parse("--only", only), taken, self.config, AckBudget(buffer, memory), register,
            Predecessor(register, self.now),
        )  # fmt: skip
        self.stage.event = lambda name, **fields: self.events.append((name, fields))
        self.stage.out = [self._leaves(GUEST), self._leaves(PEER)]

    def _leaves(self, end):
        def leave(batch, now):
            for frame in batch:
                self.put(end, 1, bytearray(frame))

        return leave

    def put(self, end, way, frame):
        """Put a frame on a link. way: 0 to the stage, 1 from it."""
        link = self.links[end][way]
        pieces = segment(frame) if self.plain else [frame]
        chance = self.rng.random
        for piece in pieces:
            if link.cut or chance() < link.loss:
                continue
            for _ in range(2 if chance() < link.duplicate else 1):
                late = self.rng.uniform(0, 2 * link.delay_s) if chance() < link.reorder else 0.0
                due = self.now + link.delay_s + late
                heapq.heappush(self.wire, (due, next(self.order), end, way, bytearray(piece)))

    def step(self):
        """Send what may be sent, then go to the next arrival or deadline. False: nothing will ever happen."""
        self.stage.settle(self.now)
        for i, end in enumerate(self.ends):
            for frame in end.transmit(self.now):
                self.put(i, 0, frame)
        dues = [due for one in (*self.ends, self.stage) if (due := one.deadline()) is not None]
        if self.wire:
            dues.append(self.wire[0][0])
        if not dues:
            return False
        self.now = max(self.now, min(dues))
        while self.wire and self.wire[0][0] <= self.now:
            _, _, end, way, frame = heapq.heappop(self.wire)
            if way == 0:
                self.stage.on_batch(end, Batch.of([frame]), self.now)
            else:
                self.seen[end].append(frame)
                self.ends[end].receive(frame, self.now)
        for one in (*self.ends, self.stage):
            if (due := one.deadline()) is not None and due <= self.now:
                one.wake(self.now)
        return True

    def run(self, done, limit_s=600.0):
        """Go on until something is so."""
        until = self.now + limit_s
        while not done():
            assert self.step(), f"nothing will ever happen: {self.ends} {self.told}"
            assert self.now < until, f"not in time: {self.ends} {self.told}"

    def go(self, seconds):
        """Let time pass."""
        until = self.now + seconds
        while self.now < until and self.step():
            pass

    def open(self, opener=GUEST):
        """Open the connection."""
        first, second = self.ends[opener], self.ends[1 - opener]
        second.listen()
        first.connect()
        self.run(lambda: second.asked)
        second.accept()
        self.run(lambda: all(end.state is State.ESTABLISHED for end in self.ends))

    def transfer(self, sent, limit_s=600.0, chunk=1 << 20):
        """Send both ways at once, close both, and return what came to each end, and when the last did."""
        left = [memoryview(data) for data in sent]
        got, done_at = [bytearray(), bytearray()], [self.now, self.now]

        def turn():
            for i, end in enumerate(self.ends):
                if left[i] is not None and end.state in (State.ESTABLISHED, State.CLOSE_WAIT):
                    left[i] = left[i][end.write(left[i]) :]
                    if not left[i]:
                        end.close()
                        left[i] = None
                while data := end.read(chunk):
                    got[i] += data
                    done_at[i] = self.now
            return all(end.at_eof for end in self.ends)

        self.run(turn, limit_s)
        self.run(lambda: all(end.state in (State.CLOSED, State.TIME_WAIT) for end in self.ends), limit_s)
        return [bytes(data) for data in got], done_at

    @property
    def told(self):
        """The counters of the service."""
        return self.stage.status(self.now)["ack"]
