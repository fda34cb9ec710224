"""Whatever a stream and a wire do, by a seed: every octet once and in order, and nothing left behind."""

from dataclasses import replace
from random import Random

import pytest
from carry import Call, Stream

from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.packet import address
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.relay.budget import BUFFER, RelayLimits
from vtl_tools.common.relay.flow import RELAYED
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.state import Ended, State
from vtl_tools.common.tcp.wire import Path

MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
HOSTS = {4: ("192.0.2.1", "10.0.0.2"), 6: ("2001:db8::1", "fd00::2")}
LIMIT_S = 3000.0
GUESTS = [
    Config(),
    Config(timestamps=False, sack=False, window_scaling=False, delayed_ack_s=0.2),
    Config(receive_buffer=3000, mss=536),
    Config(send_buffer=5000, super_segment=0),
]


class Guest:
    """A guest's own TCP, which sends and takes by chance."""

    def __init__(self, world, port, config):
        self.rng, self.world = world.rng, world
        theirs, ours = (address.ip(text) for text in HOSTS[world.version])
        path = Path(*MACS[::-1], ours, theirs, port, 80)
        self.tcp = Endpoint(path, b"guest", world.now, config, iss=self.rng.getrandbits(32))
        self.tcp.connect()
        self.says = self.rng.randbytes(self.rng.choice([0, 1, 1000, 70_000, 200_000]))
        self.left, self.heard = memoryview(self.says), bytearray()
        self.closed = False

    @property
    def busy(self):
        return self.tcp.readable or self.tcp.state not in (State.CLOSED, State.TIME_WAIT)

    def act(self):
        tcp, rng = self.tcp, self.rng
        while tcp.readable and (tcp.ended is not None or rng.random() < 0.8):
            self.heard += tcp.read(rng.choice([1, 500, 20_000, 100_000]))
        if tcp.ended is not None:
            return
        if self.left and tcp.writable:
            self.left = self.left[tcp.write(self.left[: rng.choice([1, 100, 3000, 100_000])]) :]
        may_close = not self.left and tcp.state in (State.ESTABLISHED, State.CLOSE_WAIT)
        if may_close and not self.closed and rng.random() < 0.3:
            self.closed = True
            tcp.close()


class Server:
    """The other end of a stream, which sends and takes by chance. rude: it may break."""

    def __init__(self, world, rude):
        self.rng, self.world, self.stream = world.rng, world, Stream()
        self.says = self.rng.randbytes(self.rng.choice([0, 1, 1000, 70_000, 300_000]))
        self.left = memoryview(self.says)
        self.rude, self.done = rude, False
        self.stream.room = 0

    def act(self):
        rng, stream = self.rng, self.stream
        if stream.closed or stream.error is not None:
            return
        if rng.random() < 0.5:
            stream.drain(rng.choice([1, 100, 5000, 200_000]))
        if self.left and rng.random() < 0.5:
            size = rng.choice([1, 100, 5000, BUFFER, 200_000])
            stream.bring(bytes(self.left[:size]))
            self.left = self.left[size:]
        elif not self.left and not self.done and rng.random() < 0.3:
            self.done = True
            stream.finish()
        if self.rude and rng.random() < 0.01:
            stream.fail()


class World:
    """Guests, the relay, and servers, on one clock."""

    def __init__(self, seed, version, *, loss=0.0, rude=False, memory=256 << 20):
        self.rng, self.version, self.now, self.loss = Random(seed), version, 1000.0, loss
        self.rude = rude
        self.servers, self.calls = {}, []
        self.relay = Relay(
            self.dial,
            b"relay",
            config=replace(RELAYED, delayed_ack_s=0.01),
            limits=RelayLimits(memory=memory),
        )
        self.relay.out[0] = self.hear
        self.wire, self.back = [], []
        self.guests = []
        self.most_held = 0

    def dial(self, path):
        server = Server(self, self.rude)
        self.servers[path.remote_port] = server
        call = Call(*[self.rng.choice([None, BlockingIOError])] * self.rng.randrange(3), b"")
        call.stream = server.stream
        server.stream.edges |= 4
        self.calls.append(call)
        return call

    def hear(self, batch, now):
        for frame in batch:
            pieces = segment(bytearray(frame)) if self.rng.random() < 0.5 else [frame]
            self.back += [bytearray(piece) for piece in pieces if self.rng.random() >= self.loss]

    def deliver(self):
        """Carry what is on the wire; return whether anything was."""
        moved = bool(self.back)
        back, self.back = self.back, []
        by_flow = {guest.tcp.path.local_port: guest for guest in self.guests}
        for frame in back:
            by_flow[Path.answering(frame).local_port].tcp.receive(frame, self.now)
        frames = []
        for guest in self.guests:
            for frame in guest.tcp.transmit(self.now):
                pieces = segment(frame) if self.rng.random() < 0.5 else [frame]
                frames += [piece for piece in pieces if self.rng.random() >= self.loss]
        for i in range(0, len(frames), SLOTS):
            batch = Batch.of(frames[i : i + SLOTS])
            self.relay.on_batch(0, batch, self.now)
            self.relay.settle(self.now)
            for frame in batch:
                frame[:] = b"\xee" * len(frame)
        return moved or bool(frames)

    def quiet(self):
        """Go on until nothing moves any more, which must come about while nobody outside acts."""
        for _ in range(5000):
            moved = self.relay.poll(self.now)
            for server in list(self.servers.values()):
                moved |= server.stream.tell(self.now)
            self.relay.settle(self.now)
            moved |= self.deliver()
            self.most_held = max(self.most_held, self.relay.budget.buffered)
            if not moved:
                break
        else:
            raise AssertionError("it never comes to rest")
        assert not self.relay.poll(self.now)

    def step(self):
        for actor in [*self.guests, *self.servers.values()]:
            actor.act()
        self.quiet()
        self.now += self.rng.choice([0.0, 0.001, 0.05, 0.3])
        if (due := self.relay.deadline()) is not None and due <= self.now:
            self.relay.wake(self.now)
        for call in self.calls:
            if call.outcomes[0] is None:
                call.comes_to(b"")
        for guest in self.guests:
            if (due := guest.tcp.deadline()) is not None and due <= self.now:
                guest.tcp.wake(self.now)

    def run(self, count):
        for i in range(count):
            self.guests.append(Guest(self, 40000 + i, self.rng.choice(GUESTS)))
        end = self.now + LIMIT_S
        while any(guest.busy for guest in self.guests) or self.relay.flows:
            self.step()
            assert self.now < end, (self.relay.list_flows(self.now), [guest.tcp for guest in self.guests])

    def check_end(self):
        """Nothing is left."""
        assert self.relay.budget.buffered == 0
        assert not self.relay.poll(self.now)
        assert self.relay.budget.half_open == 0
        assert all(server.stream.closed for server in self.servers.values())
        buffers = self.relay.budget.free_buffers
        assert len(buffers) <= 256
        assert len({id(buffer) for buffer in buffers}) == len(buffers), "lent twice"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("loss", [0.0, 0.02])
@pytest.mark.parametrize("seed", range(6))
def test_every_octet_arrives_once_and_in_order(seed, loss, version):
    world = World(seed, version, loss=loss)
    world.run(6)
    for guest in world.guests:
        server = world.servers[guest.tcp.path.local_port]
        assert bytes(server.stream.got) == guest.says
        assert bytes(guest.heard) == server.says
        assert server.stream.finished
        assert not server.stream.linger
    world.check_end()


@pytest.mark.parametrize("seed", range(6))
def test_a_small_memory_only_slows(seed):
    world = World(seed, 4, memory=50_000)
    world.run(6)
    for guest in world.guests:
        server = world.servers[guest.tcp.path.local_port]
        assert bytes(server.stream.got) == guest.says
        assert bytes(guest.heard) == server.says
    assert world.most_held <= 50_000 + len(world.guests) * 4 * BUFFER
    world.check_end()


@pytest.mark.parametrize("seed", range(12))
def test_what_breaks_is_cut_and_never_changed(seed):
    world = World(seed, 4, rude=True, loss=0.01)
    world.run(8)
    for guest in world.guests:
        server = world.servers.get(guest.tcp.path.local_port)
        if server is None:
            continue
        assert guest.says.startswith(bytes(server.stream.got))
        assert server.says.startswith(bytes(guest.heard))
        if server.stream.error is None:
            assert guest.tcp.ended in (None, Ended.CLOSED)
            assert bytes(guest.heard) == server.says
    world.check_end()
