"""Dialer and Answerer over a transport of unix sockets: when there are sessions, and how flows share them."""

import errno
import gc
import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.unit.udt.pairs import OPENING, PSK, read, write
from vtl_tools.common.session.base import STALLED_AFTER_S, Address, PacketCounts
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.transport import answerer as answerer_module
from vtl_tools.services.udt.transport.answerer import Answerer
from vtl_tools.services.udt.transport.dialer import WAITING, Dialer, FlowConnector
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.session import SessionConfig

WHERE = ("192.0.2.1", 7000)


class Wire(socket.socket):
    """A connection: one end of a pair of unix sockets."""

    remote: Address = ("192.0.2.2", 40000)

    def connected(self, events: int) -> int | None:
        return 0

    counts = PacketCounts(1000, 250, 0)
    expected = 0.0

    def packets(self) -> PacketCounts:
        return self.counts

    def expect(self, rate: float) -> None:
        self.expected = rate


class Wires:
    """A transport and its listener. code: of connections that fail; made: for which round-trip times."""

    name = "wires"
    capabilities: frozenset[int] = frozenset()
    address = WHERE

    def __init__(self) -> None:
        self.code = 0
        self.made: list[float | None] = []
        self.waiting: deque[Wire] = deque()
        self.bell = socket.socketpair()
        for sock in self.bell:
            sock.setblocking(False)

    def check(self) -> None: ...

    def start(self) -> None: ...

    def connect(self, address: Address, rtt_s: float | None = None) -> Wire:
        if self.code:
            raise OSError(self.code, "")
        self.made.append(rtt_s)
        ours, theirs = (Wire(fileno=sock.detach()) for sock in socket.socketpair())
        for sock in ours, theirs:
            sock.setblocking(False)
        self.waiting.append(theirs)
        self.bell[1].send(b"!")
        return ours

    def window(self, rtt_s: float | None) -> int:
        return round(1000 * (0.1 if rtt_s is None else rtt_s))

    def listen(self, address: Address) -> "Wires":
        return self

    def fileno(self) -> int:
        return self.bell[0].fileno()

    def accept(self) -> Wire:
        if not self.waiting:
            raise BlockingIOError
        self.bell[0].recv(1)
        return self.waiting.popleft()

    def close(self) -> None:
        for sock in *self.bell, *self.waiting:
            sock.close()


class Ends:
    """Both modules on one clock. arrived: flows that the far one was asked for, and accepted."""

    def __init__(self, *, sessions: int = 3, psk: bytes = PSK) -> None:
        self.now = 100.0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.arrived: list[MuxFlow] = []
        self.wires = Wires()
        config = SessionConfig()
        self.far = Answerer(self.wires, WHERE, PSK, config, self._on_flow, event=self._note)
        self.near = Dialer(self.wires, WHERE, psk, config, sessions=sessions, event=self._note)
        self.delay_s = 0.0

    def _note(self, name: str, **fields: Any) -> None:
        self.events.append((name, fields))

    def _on_flow(self, flow: MuxFlow, now: float) -> None:
        flow.accept(now)
        self.arrived.append(flow)

    def turn(self, passed: float = 0.0) -> None:
        self.now += passed
        for part in self.far, self.near:
            part.poll(self.now)
            part.settle(self.now)
            due = part.deadline()
            if due is not None and self.now >= due:
                part.wake(self.now)
            self.now += self.delay_s

    def until(self, condition: Callable[[], object], passed: float = 0.01) -> None:
        for _ in range(2000):
            if condition():
                return
            self.turn(passed)
        raise AssertionError("it never happens")

    def open(self) -> tuple[FlowConnector, MuxFlow]:
        known = len(self.arrived)
        connector = self.near.connector(OPENING)
        self.until(lambda: connector.step(0) is not None)
        assert connector.step(0) == b""
        return connector, self.arrived[known]

    def told(self, name: str) -> list[dict[str, Any]]:
        return [fields for event, fields in self.events if event == name]


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends()
    yield made
    made.near.close()
    made.far.close()


def test_a_session_is_ready_before_a_flow_comes(ends: Ends) -> None:
    ends.until(lambda: len(ends.told("peer-up")) == 2)
    assert ends.near.counters().sessions == 1
    assert ends.told("peer-up") == [
        {"peer": "192.0.2.1:7000", "transport": "wires"},
        {"peer": "192.0.2.2:40000", "transport": "wires", "cause": "192.0.2.2:40000"},
    ]


def test_the_first_flows_have_a_connection_each_and_further_ones_share_them(ends: Ends) -> None:
    for _ in range(7):
        ends.open()
        ends.turn()
        ends.turn()
    counts = sorted(len(each.session.flows) for each in ends.near.carriers)
    assert counts == [2, 2, 3]


def test_one_connection_carries_all_flows_where_that_is_asked_for() -> None:
    ends = Ends(sessions=1)
    flows = [ends.open() for _ in range(50)]
    assert len(ends.near.carriers) == 1
    for number, (connector, _) in enumerate(flows):
        assert connector.stream.send(bytes([number]) * 100) == 100
    ends.until(lambda: sum(flow.buffered for _, flow in flows) == 5000)
    assert [read(flow)[0] for _, flow in flows] == list(range(50))
    ends.near.close()
    ends.far.close()


def test_flows_that_come_before_the_session_wait_for_it(ends: Ends) -> None:
    connector = ends.near.connector(OPENING)
    assert connector.step(0) is None
    ends.until(lambda: connector.step(0) is not None)
    assert connector.step(0) == b""


def test_flows_that_are_closed_while_they_wait_are_forgotten(ends: Ends) -> None:
    gc.collect()
    before = count_flows()
    for _ in range(5 * WAITING):
        ends.near.connector(OPENING).stream.close()
    assert count_flows() - before <= WAITING + 1


def count_flows() -> int:
    """Return how many flows there are in memory. A compiled class has no weak references."""
    return sum(isinstance(each, MuxFlow) for each in gc.get_objects())


def test_flows_are_refused_when_the_far_module_is_not_there_and_opened_when_it_is_back(ends: Ends) -> None:
    ends.wires.code = errno.ECONNREFUSED
    connector = ends.near.connector(OPENING)
    ends.until(lambda: connector.step(0) is not None)
    assert connector.step(0) is Reason.HOST_UNREACHABLE
    assert ends.near.why == "connection refused"
    ends.wires.code = 0
    ends.until(lambda: ends.near.is_up, passed=0.2)
    ends.open()


def test_attempts_become_rarer_while_the_far_module_is_not_there(ends: Ends) -> None:
    ends.wires.code = errno.ENETUNREACH
    began, failures = ends.now, []
    fail = ends.near._fail
    ends.near._fail = lambda why, now: (failures.append(now - began), fail(why, now))[1]  # type: ignore[method-assign]
    while ends.now < began + 20:
        ends.turn(0.05)
    assert 10 < len(failures) < 20


def test_a_far_module_that_ends_is_told_with_its_flows_reset(ends: Ends) -> None:
    connector, _ = ends.open()
    ends.far.on_stop(ends.now)
    ends.until(lambda: not ends.near.is_up)
    with pytest.raises(ConnectionResetError):
        connector.stream.send(b"x")
    assert ends.told("peer-down")[-1]["why"] == "ended"


def test_sessions_with_windows_of_another_path_are_replaced_when_they_are_idle() -> None:
    ends = Ends(sessions=3)
    ends.delay_s = 0.5  # a round trip of a second, for which 0.1 s was assumed
    ends.until(lambda: ends.near.carriers and all(each.rtt_s for each in ends.near.carriers))
    assert ends.wires.made[0] is None
    assert min(each.rtt_s or 0.0 for each in ends.near.carriers) > 0.2
    ends.near.close()
    ends.far.close()


def test_another_key_is_refused_again_and_again_and_opens_nothing() -> None:
    ends = Ends(psk=bytes(32))
    connector = ends.near.connector(OPENING)
    ends.until(lambda: connector.step(0) is not None)
    assert connector.step(0) is Reason.HOST_UNREACHABLE
    assert ends.told("peer-refused")[0] == {
        "peer": "192.0.2.2:40000",
        "transport": "wires",
        "why": "has another key, or is a stranger",
        "cause": "192.0.2.2",
    }
    assert not ends.told("peer-up")
    assert not ends.arrived
    assert ends.far.status(0.0)["refused"] == len(ends.told("peer-refused"))
    ends.near.close()
    ends.far.close()


def test_strangers_that_say_nothing_make_room_for_others(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answerer_module, "STRANGERS", 4)
    strangers = [ends.wires.connect(WHERE) for _ in range(30)]
    ends.until(lambda: ends.near.is_up)
    waiting = [each for each in ends.far.carriers if not each.session.is_up]
    assert len(waiting) <= 4
    ends.open()
    for stranger in strangers:
        stranger.close()


def test_counters_tell_of_the_path(ends: Ends) -> None:
    connector, flow = ends.open()
    for _ in range(40):
        connector.stream.send(bytes(10_000))
        ends.turn(0.1)
        read(flow)
    for _ in range(5):
        ends.turn()
    known = ends.near.counters()
    assert known.up
    assert known.flows == 1
    assert known.rtt_s is not None
    assert known.loss == 0.25
    assert known.send_rate == pytest.approx(100_000, rel=0.2)
    busiest = max(ends.near.carriers, key=lambda each: each.session.sent)
    assert isinstance(busiest.connection, Wire)
    assert busiest.connection.expected == pytest.approx(100_000, rel=0.2)
    assert known.sent == ends.far.counters().received > 400_000
    assert write(flow, b"x") == 1


def test_packets_without_octets_tell_that_the_far_module_is_alive_but_not_forever(ends: Ends) -> None:
    ends.until(lambda: ends.near.is_up)
    (carrier,) = ends.near.carriers
    assert isinstance(carrier.connection, Wire)
    began = ends.now
    while carrier.session.is_up:
        carrier.connection.counts = PacketCounts(
            heard=round(ends.now * 10)
        )  # what is sent again, for instance
        ends.now += 0.1
        ends.near.wake(ends.now)
    assert STALLED_AFTER_S <= ends.now - began < STALLED_AFTER_S + 2


def test_a_far_module_of_which_nothing_is_heard_is_dead_within_five_seconds(ends: Ends) -> None:
    ends.until(lambda: ends.near.is_up)
    (carrier,) = ends.near.carriers
    began = ends.now
    while carrier.session.is_up:
        ends.now += 0.1
        ends.near.wake(ends.now)
    assert ends.now - began < 5.0
