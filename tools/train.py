#!/usr/bin/env python3
"""Work for the compiled modules, by which gcc learns what they execute often: see ParallelBuild in setup.py.

usage: tools/train.py FOLDER      FOLDER has the package vtl_tools, whose compiled modules count what they do

A guest opens connections through a relay to an echo server of this machine, in real time: many short ones and
a few that carry megabytes. The services that keep state of connections see the same frames. Then come
transfers over an emulated path that loses segments, in virtual time. Nothing is needed but the standard
library and a loopback interface; a failure ends with an exception.
"""

import multiprocessing
import socket
import socketserver
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

FOLDER = Path(sys.argv[1]).resolve()
sys.path.insert(0, str(FOLDER))

from vtl_tools.common.device.batch import SLOTS, Batch  # noqa: E402
from vtl_tools.common.packet import address, build  # noqa: E402
from vtl_tools.common.relay import relay  # noqa: E402
from vtl_tools.common.relay.connector import TCPConnector  # noqa: E402
from vtl_tools.common.runtime.pump import Pump  # noqa: E402
from vtl_tools.common.tcp.config import Config  # noqa: E402
from vtl_tools.common.tcp.endpoint import Endpoint  # noqa: E402
from vtl_tools.common.tcp.state import State  # noqa: E402
from vtl_tools.common.tcp.wire import Path as Ends  # noqa: E402
from vtl_tools.services.freeze.freezer import Freezer  # noqa: E402
from vtl_tools.services.fw.parser import parse  # noqa: E402
from vtl_tools.services.fw.policy import Policy  # noqa: E402
from vtl_tools.services.fw.stage import Firewall  # noqa: E402
from vtl_tools.services.udt.transport.base import FlowOpening  # noqa: E402
from vtl_tools.services.udt.transport.flow import MuxFlow  # noqa: E402
from vtl_tools.services.wan.path import WanPath  # noqa: E402
from vtl_tools.services.wan.settings import UNCHANGED, changed  # noqa: E402

LIMIT_S = 60.0
"""CPU time; a training that takes more is a failure."""
SHORT, AT_ONCE, LONG = 1500, 64, 4
"""Connections of 64 octets, how many at a time, and connections of LONG_OCTETS each way."""
SHORT_OCTETS, LONG_OCTETS = 64, 4 << 20
MACS = address.mac("52:54:00:00:00:01"), address.mac("52:54:00:00:00:02")
GUEST, PEER = address.ip("10.0.0.5"), address.ip("192.0.2.1")
HEAD = 152
"""Octets of a frame that vtl-freeze sees."""
RULES = (
    b"deny out tcp to 198.18.0.0/15\nallow out tcp to 192.0.2.0/24 port 1-65535\nallow out udp\ndeny any\n"
)


def check_time() -> None:
    """Raise TimeoutError after LIMIT_S."""
    if time.process_time() > LIMIT_S:
        raise TimeoutError(f"the training takes more than {LIMIT_S:g} s")


class Echo(socketserver.BaseRequestHandler):
    """Sends back what comes."""

    def handle(self) -> None:
        """Serve a connection."""
        while data := self.request.recv(1 << 16):
            self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    """The echo server, which runs in a process of its own."""

    request_queue_size = 2 * AT_ONCE


class Observers:
    """The services that look at each frame that passes: a firewall, a path, and the table of vtl-freeze."""

    def __init__(self) -> None:
        self.firewall = Firewall(Policy(parse("rules", lambda name, octets: RULES)))
        self.freezer = Freezer()
        settings, _ = changed((UNCHANGED, UNCHANGED), {"delay": "1ms", "rate": "10gbit", "loss": "0.1%"})
        self.paths = [WanPath(settings, Random(seed), 1 << 26) for seed in (1, 2)]
        self.kept: list[bytes] = []
        """A few of the peer's segments, for later."""

    def see(self, port: int, batch: Batch, now: float) -> None:
        """Look at frames from the guest (0) or the network (1)."""
        for frame in batch:
            self.freezer.overhear(frame[:HEAD], port == 0, now)
        if port and len(self.kept) < 10_000:
            self.kept += [bytes(frame) for frame in batch]
        self.firewall.on_batch(port, batch, now)
        self.paths[port].push(batch, batch.count, batch.octets, now)
        while self.paths[port].pop(now):
            pass

    def freeze(self, now: float) -> None:
        """Answer the peer's segments for a guest that is away, and let it return."""
        self.freezer.start(now)
        for frame in self.kept:
            self.freezer.from_peer(memoryview(frame), now)
            self.freezer.take()
        self.freezer.stop(now)
        while self.freezer.thaw():
            self.freezer.take()


class Guest:
    """The link of the relay: a guest, whose connections each send octets, have them back, and close."""

    def __init__(self, port: int, observers: Observers) -> None:
        self.port, self.observers = port, observers
        self.relay = relay.Relay(self.dial, b"secret" * 8, send=self.take)
        self.pump = Pump(self.relay, [self], 0.0)  # type: ignore[list-item]
        self.ends: dict[int, Endpoint] = {}
        self.unsent: dict[int, memoryview] = {}
        self.missing: dict[int, int] = {}
        self.batch, self.answers = Batch(), Batch()
        self.next_port = 10_000

    def dial(self, path: Ends) -> TCPConnector:
        """Connect to the echo server, whoever is called."""
        return TCPConnector(("127.0.0.1", self.port), socket.AF_INET)

    def open(self, octets: bytes) -> None:
        """Begin a connection."""
        self.next_port += 1
        ends = Ends(*MACS, GUEST, PEER, self.next_port, 80)
        end = self.ends[self.next_port] = Endpoint(ends, b"secret", time.monotonic(), Config())
        self.unsent[self.next_port], self.missing[self.next_port] = memoryview(octets), len(octets)
        end.connect()

    def read(self) -> Batch:
        """Return the frames that the guest sends."""
        now = time.monotonic()
        self.batch.clear()
        for number, end in self.ends.items():
            if self.batch.count > SLOTS // 2:
                break
            if (left := self.unsent[number]) and end.state is State.ESTABLISHED:
                self.unsent[number] = left[end.write(left) :]
            for frame in end.transmit(now)[: SLOTS - self.batch.count]:
                self.batch.append(frame)
        if self.batch.count:
            self.observers.see(0, self.batch, now)
        return self.batch

    def take(self, frames: Sequence[Sequence[bytes | memoryview]], now: float) -> None:
        """Take frames of the relay, each in pieces."""
        self.answers.clear()
        for pieces in frames:
            frame = b"".join(pieces)
            if self.answers.count == SLOTS:
                self.observers.see(1, self.answers, now)
                self.answers.clear()
            self.answers.append(frame)
            number = int.from_bytes(frame[46:48], "big")
            if (end := self.ends.get(number)) is None:
                continue
            end.receive(bytearray(frame), now)
            while data := end.read():
                self.missing[number] -= len(data)
            if not self.missing[number] and end.state is State.ESTABLISHED:
                end.close()
        if self.answers.count:
            self.observers.see(1, self.answers, now)

    def turn(self) -> None:
        """Have the relay take and send what there is; end what has ended."""
        check_time()
        self.pump.turn(0.01)
        now = time.monotonic()
        for one in self.relay, *self.ends.values():
            if (due := one.deadline()) is not None and due <= now:
                one.wake(now)
        self.relay.settle(now)
        over = State.TIME_WAIT, State.CLOSED
        for number in [number for number, end in self.ends.items() if end.state in over]:
            if self.missing[number]:
                raise ConnectionError(f"a connection ended {self.missing[number]} octets too early")
            for kept in self.ends, self.unsent, self.missing:
                del kept[number]


def through_relay(port: int) -> None:
    """Open connections, each with the next one as soon as it ends."""
    observers = Observers()
    guest = Guest(port, observers)
    work = [(SHORT, AT_ONCE, bytes(SHORT_OCTETS)), (LONG, 1, bytes(LONG_OCTETS))]
    for count, at_once, octets in work:
        begun = 0
        while begun < count or guest.ends:
            while begun < count and len(guest.ends) < at_once:
                guest.open(octets)
                begun += 1
            guest.turn()
    observers.freeze(time.monotonic())
    guest.relay.close()


def over_a_path(congestion: str) -> None:
    """Transfer octets between two endpoints over a path that delays and loses segments."""
    settings, _ = changed((UNCHANGED, UNCHANGED), {"delay": "10ms", "rate": "100mbit", "loss": "0.5%"})
    paths = [WanPath(settings, Random(seed), 1 << 24) for seed in (3, 4)]
    ways = Ends(*MACS, GUEST, PEER, 40_000, 80), Ends(*reversed(MACS), PEER, GUEST, 80, 40_000)
    now = 1000.0
    ends = [Endpoint(way, b"secret", now, Config(congestion=congestion)) for way in ways]
    ends[1].listen()
    ends[0].connect()
    unsent, missing = memoryview(bytes(LONG_OCTETS)), LONG_OCTETS
    while missing:
        check_time()
        if ends[1].asked:
            ends[1].accept()
        if ends[0].state is State.ESTABLISHED:
            unsent = unsent[ends[0].write(unsent) :]
        while data := ends[1].read():
            missing -= len(data)
        for end, path in zip(ends, paths, strict=True):
            frames = end.transmit(now)
            path.push([memoryview(frame) for frame in frames], len(frames), sum(map(len, frames)), now)
        now = max(now, min(due for one in (*ends, *paths) if (due := due_of(one)) is not None))
        for end, path in zip(reversed(ends), paths, strict=True):
            for frame in path.pop(now):
                end.receive(bytearray(frame), now)
        for end in ends:
            if (due := end.deadline()) is not None and due <= now:
                end.wake(now)


def due_of(one: Endpoint | WanPath) -> float | None:
    """Return when an end or a path has something to do."""
    return one.due() if isinstance(one, WanPath) else one.deadline()


class Wire:
    """The session of two flows, each of which gets the other's octets."""

    def __init__(self) -> None:
        self.peer, self.now = "", 0.0
        ends = FlowOpening(GUEST, 40_000, PEER, 80)
        self.flows = MuxFlow(ends), MuxFlow(ends)
        for flow in self.flows:
            flow.session = self
            flow.opened(1 << 30, 0.0)

    def other(self, flow: MuxFlow) -> MuxFlow:
        """Return the flow at the other end."""
        return self.flows[flow is self.flows[0]]

    def send_data(self, flow: MuxFlow, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Deliver octets."""
        data = b"".join(pieces)
        self.other(flow).arrived(data, 0.0)
        return len(data)

    def end_flow(self, flow: MuxFlow) -> None:
        """Deliver the end."""
        self.other(flow).ended(0.0)

    def read(self, flow: MuxFlow, octets: int) -> None:
        """Take note of nothing."""

    reset = forget = lambda self, flow: None


def over_a_session() -> None:
    """Send octets over flows of vtl-udt, small pieces and large ones, and end them."""
    room = memoryview(bytearray(1 << 17))
    for size in (64, 1448, 65_000) * 100:
        one, two = Wire().flows
        for _ in range(8):
            one.sendmsg((bytes(size), bytes(size)))
            while two.buffered:
                two.recv_into(room, 100_000)
        for flow in one, two:
            flow.shutdown(socket.SHUT_WR)
        for flow in one, two:
            flow.close()


def datagrams_through_a_firewall() -> None:
    """Have a firewall judge datagrams, of new flows and known ones."""
    firewall = Observers().firewall
    macs = {"src_mac": MACS[0], "dst_mac": MACS[1]}
    for number in range(2000):
        ends = {"src": GUEST, "dst": PEER, "sport": 10_000 + number // 4, "dport": 53}
        frame = build.udp(**macs, **ends, payload=b"question")
        firewall.on_batch(0, Batch.of([frame]), number / 1000)


def main() -> None:
    """Do all of it."""
    with Server(("127.0.0.1", 0), Echo) as server:
        serving = multiprocessing.get_context("fork").Process(target=server.serve_forever, daemon=True)
        serving.start()
        try:
            through_relay(server.server_address[1])
        finally:
            serving.kill()
    for congestion in "cubic", "bbr":
        over_a_path(congestion)
    over_a_session()
    datagrams_through_a_firewall()


if __name__ == "__main__":
    main()
