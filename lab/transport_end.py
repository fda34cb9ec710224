"""One end of a transport, without a guest: for the tests and the benchmark of vtl-udt's transports.

usage: lab/transport_end.py far  TRANSPORT HOST PORT KEY ENCRYPT
       lab/transport_end.py near TRANSPORT HOST PORT KEY ENCRYPT SESSIONS JOB

ENCRYPT and SESSIONS are numbers. The far end serves by the destination's port: 7 echoes, 19 sends endlessly,
9 reads nothing for as long as the flow lives, and all others are refused. JOB is an object of JSON: `port`;
`flows`, at once; `octets` that each sends and gets back; `seconds` for which it reads, instead; `then`, a job
to do afterwards, again and again until its flows are exact. Both print an object of JSON a line: events, and
at the near end `open` and `done`. VTL_MBIT in the environment is the expected rate of the path.
"""

import hashlib
import json
import os
import select
import socket
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from vtl_tools.common.relay.connector import HUNG_UP, READABLE, WRITABLE
from vtl_tools.common.session.base import PathProfile, Transport
from vtl_tools.common.session.tcp import TCPTransport
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.transport.answerer import Answerer
from vtl_tools.services.udt.transport.base import FlowOpening, IncomingFlow
from vtl_tools.services.udt.transport.carrier import Carriers
from vtl_tools.services.udt.transport.dialer import Dialer
from vtl_tools.services.udt.transport.session import SessionConfig
from vtl_tools.services.udt.transport.srt import SRTTransport
from vtl_tools.services.udt.transport.udt import UDTTransport

TRANSPORTS: dict[str, Callable[[PathProfile], Transport]] = {
    "tcp": TCPTransport,
    "udt": UDTTransport,
    "srt": SRTTransport,
}
ECHO, DISCARD, CHARGEN = 7, 9, 19
PIECE = 1 << 18
CLIENT = bytes([10, 0, 0, 2])
SERVER = bytes([10, 0, 0, 1])
DATA = os.urandom(1 << 20)


def say(event: str, **fields: object) -> None:
    """Print an event."""
    print(json.dumps({"event": event} | fields), flush=True)


def run(part: Carriers, settle: Callable[[float], bool], until: Callable[[], bool]) -> None:
    """Drive sessions as the runner drives a stage. settle: uses the flows; returns whether it has more."""
    poll = select.poll()
    poll.register(part.fileno(), select.POLLIN)
    more = True
    while not until():
        due = part.deadline()
        wait = 0.0 if more else 1.0 if due is None else max(0.0, due - time.monotonic())
        poll.poll(wait * 1000)
        now = time.monotonic()
        moved = part.poll(now)
        more = settle(now) or moved
        part.settle(now)
        due = part.deadline()
        if due is not None and now >= due:
            part.wake(now)
        more = more or part.has_more


class Echo:
    """Sends back what comes; with CHARGEN, sends without end."""

    def __init__(self, flow: IncomingFlow, port: int) -> None:
        self.stream, self.port = flow.stream, port
        self.held = b""
        self.room = memoryview(bytearray(PIECE))
        self.events = READABLE | WRITABLE
        self.got_end = False
        self.is_over = False
        self.stream.on_event = self.on_event

    def on_event(self, events: int, now: float) -> None:
        """Note what is new."""
        self.events |= events
        if events & HUNG_UP & ~READABLE:
            self.is_over = True

    def carry(self) -> None:
        """Move what can be moved."""
        try:
            while not self.is_over:
                if self.port == CHARGEN:
                    self.stream.send(DATA)
                elif self.held:
                    self.held = self.held[self.stream.send(self.held) :]
                elif self.got_end:
                    self.stream.shutdown(socket.SHUT_WR)
                    self.stream.close()
                    self.is_over = True
                elif self.port == DISCARD:
                    return
                else:
                    size = self.stream.recv_into(self.room, PIECE)
                    self.held, self.got_end = bytes(self.room[:size]), not size
        except BlockingIOError:
            return
        except OSError:
            self.is_over = True


def far(transport: Transport, host: str, port: int, key: bytes, config: SessionConfig) -> None:
    """Serve flows until it is killed."""
    flows: list[Echo] = []

    def on_flow(flow: IncomingFlow, now: float) -> None:
        asked = flow.opening.destination_port
        if asked in (ECHO, DISCARD, CHARGEN):
            flow.accept(now)
            flows.append(Echo(flow, asked))
        else:
            flow.refuse(Reason.REFUSED, now)

    def settle(now: float) -> bool:
        for flow in flows:
            if flow.events:
                flow.events = 0
                flow.carry()
        flows[:] = [flow for flow in flows if not flow.is_over]
        return False

    answerer = Answerer(transport, (host, port), key, config, on_flow, event=say)
    say("ready", port=answerer.address[1])
    run(answerer, settle, lambda: False)


class Job:
    """A flow of the near end: sends, ends, and compares what comes back; or only reads."""

    def __init__(self, dialer: Dialer, number: int, port: int, octets: int | None) -> None:
        opening = FlowOpening(CLIENT, 1024 + number % 60000, SERVER, port)
        self.connector = dialer.connector(opening)
        self.stream = self.connector.stream
        self.octets, self.sent, self.received = octets, 0, 0
        self.start = number * 997 % len(DATA)
        self.room = memoryview(bytearray(PIECE if octets is None or octets > PIECE else max(octets, 1)))
        self.sums = hashlib.sha256(), hashlib.sha256()
        self.is_open = self.is_over = False
        self.result = ""
        self.marks: list[tuple[float, int]] = []
        self.events = WRITABLE
        self.stream.on_event = self.on_event

    def on_event(self, events: int, now: float) -> None:
        """Note what is new."""
        self.events |= events

    def end(self, result: str) -> None:
        """Close the flow, and note how it ended."""
        self.is_over, self.result = True, result
        self.stream.close()

    def carry(self, now: float) -> None:
        """Go on, if something is new."""
        if self.is_over or not self.events:
            return
        self.events = 0
        if not self.is_open:
            answer = self.connector.step(0)
            if answer is None:
                return
            if isinstance(answer, Reason):
                self.end(str(answer))
                return
            self.is_open = True
        try:
            self.send()
            self.read(now)
        except OSError:
            self.end("reset")

    def send(self) -> None:
        """Send, and end the direction behind the last octet."""
        try:
            while self.octets is not None and self.sent < self.octets:
                at = (self.start + self.sent) % len(DATA)
                piece = memoryview(DATA)[at : at + min(65_000, self.octets - self.sent)]
                size = self.stream.send(piece)
                self.sums[0].update(piece[:size])
                self.sent += size
                if self.sent == self.octets:
                    self.stream.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            pass

    def read(self, now: float) -> None:
        """Read what came, and compare it at the end."""
        try:
            while size := self.stream.recv_into(self.room, len(self.room)):
                self.received += size
                if self.octets is None:
                    self.marks.append((now, self.received))
                else:
                    self.sums[1].update(self.room[:size])
        except BlockingIOError:
            return
        same = self.received == self.octets and self.sums[0].digest() == self.sums[1].digest()
        self.end("exact" if same else "differs")

    @property
    def mbit(self) -> float:
        """The rate over the second half of the time."""
        if len(self.marks) < 2:
            return 0.0
        (first, _), (last, octets) = self.marks[0], self.marks[-1]
        then, before = next(mark for mark in self.marks if mark[0] >= (first + last) / 2)
        return (octets - before) * 8e-6 / (last - then) if last > then else 0.0


def near(
    transport: Transport, host: str, port: int, key: bytes, config: SessionConfig, sessions: int, job: Any
) -> None:
    """Do a job."""
    dialer = Dialer(transport, (host, port), key, config, sessions=sessions, event=say)
    run(dialer, lambda now: False, lambda: dialer.is_up or "no attempt" not in dialer.why)
    results = do(dialer, job)
    while "then" in job and set(results) != {"exact"}:
        results = do(dialer, job["then"])
    dialer.on_stop(time.monotonic())
    dialer.close()


def do(dialer: Dialer, job: Any) -> dict[str, int]:
    """Do a job once; return how many flows had which result."""
    began = time.monotonic()
    jobs = [
        Job(dialer, number, job["port"], job.get("octets", 0 if "seconds" not in job else None))
        for number in range(job.get("flows", 1))
    ]

    def settle(now: float) -> bool:
        for each in jobs:
            before = each.is_open
            each.carry(now)
            if each.is_open != before and len(jobs) == 1:
                say("open")
        return False

    def is_done() -> bool:
        return all(each.is_over for each in jobs) or (
            "seconds" in job and time.monotonic() > began + job["seconds"]
        )

    run(dialer, settle, is_done)
    took = time.monotonic() - began
    results: dict[str, int] = {}
    for each in jobs:
        results[each.result] = results.get(each.result, 0) + 1
    mbit = sum(each.mbit for each in jobs)
    say(
        "done", results=results, seconds=took, mbit=mbit, path=dialer.status(time.monotonic()), why=dialer.why
    )
    return results


def main() -> None:
    """Run one end."""
    role, name, host, port, key, encrypt, *rest = sys.argv[1:]
    config = SessionConfig(encrypt=bool(int(encrypt)))
    made = TRANSPORTS[name](PathProfile(rate=float(os.environ.get("VTL_MBIT", "1000")) * 125e3))
    end = partial(far, made) if role == "far" else partial(near, made)
    more = () if role == "far" else (int(rest[0]), json.loads(rest[1]))
    end(host, int(port), bytes.fromhex(key), config, *more)


if __name__ == "__main__":
    main()
