"""A guest, vtl-ack, a path that misbehaves by a seed, and a peer, in virtual time."""

from random import Random

from tests.sim.tcp_network import Network
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.model.base import LOCAL
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.rules.connections import ConnectionChoice
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.state import State
from vtl_tools.services.ack.budget import AckBudget
from vtl_tools.services.ack.predecessor import Predecessor
from vtl_tools.services.ack.register import OCTETS, Register
from vtl_tools.services.ack.stage import LocalAck

GUEST, PEER = 0, 1
SMALL = Config(receive_buffer=65535, send_buffer=65535, no_delay=True)


class Way:
    """One direction of a link: delay, and the chances of a frame."""

    def __init__(self, *, delay_s=0.0, loss=0.0, reorder=0.0, duplicate=0.0):
        self.delay_s, self.loss, self.reorder, self.duplicate = delay_s, loss, reorder, duplicate
        self.cut = False


class AckWorld(Network):
    """ends: the endpoints of guest and peer; links: of each, the way to the stage and the way back."""

    port = 5001

    def __init__(self, *, taken=(LOCAL,), only=(), buffer=1 << 20, memory=1 << 22, give_up_s=60.0, seed=1,
                 configs=(SMALL, SMALL), version=4, iss=(None, None), delay_s=0.05, loss=0.0, reorder=0.0,
                 duplicate=0.0, local_loss=0.0, local_reorder=0.0, plain=True, register=None,
                 congestion="newreno"):  # fmt: skip
        super().__init__(Random(seed), version=version, configs=configs, plain=plain, iss=iss)
        local = {"delay_s": 1e-4, "loss": local_loss, "reorder": local_reorder}
        far = {"delay_s": delay_s, "loss": loss, "reorder": reorder, "duplicate": duplicate}
        self.links = [(Way(**local), Way(**local)), (Way(**far), Way(**far))]
        self.config = Config(
            receive_buffer=buffer,
            send_buffer=buffer,
            no_delay=True,
            user_timeout_s=give_up_s,
            congestion=congestion,
        )
        self.arguments = taken, only, buffer, memory
        self.memory = bytearray(OCTETS) if register is None else register
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
                self.pass_on(end, 1, bytearray(frame))

        return leave

    def pass_on(self, end, way, frame):
        """Put a frame on a link. way: 0 to the stage, 1 from it."""
        link = self.links[end][way]
        pieces = segment(frame) if self.plain else [frame]
        chance = self.rng.random
        for piece in pieces:
            if link.cut or chance() < link.loss:
                continue
            for _ in range(2 if chance() < link.duplicate else 1):
                late = self.rng.uniform(0, 2 * link.delay_s) if chance() < link.reorder else 0.0
                self.put(self.now + link.delay_s + late, (end, way), bytearray(piece))

    @property
    def machines(self):
        return *self.ends, self.stage

    def pump(self):
        self.stage.settle(self.now)
        for i, end in enumerate(self.ends):
            for frame in end.transmit(self.now):
                self.pass_on(i, 0, frame)

    def deliver(self, to, frame):
        end, way = to
        if way == 0:
            self.stage.on_batch(end, Batch.of([frame]), self.now)
        else:
            self.seen[end].append(frame)
            self.ends[end].receive(frame, self.now)

    def go(self, seconds):
        """Let time pass."""
        until = self.now + seconds
        while self.now < until and self.step():
            pass

    def open(self, opener=GUEST):
        super().open(opener)
        self.run(lambda: all(end.state is State.ESTABLISHED for end in self.ends))

    @property
    def told(self):
        """The counters of the service."""
        return self.stage.status(self.now)["ack"]
