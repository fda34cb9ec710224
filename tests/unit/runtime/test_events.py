"""The events of a service: who gets them, what happens to those who do not take them, and repeats."""

import asyncio
import json
import re
import socket
from contextlib import contextmanager

import pytest

from tests.schemas import validated
from vtl_tools.common.errors import VTLError
from vtl_tools.common.repeats import PERIOD_S
from vtl_tools.common.runtime import events as module
from vtl_tools.common.runtime.events import FOLLOWERS_MAX, HISTORY_MAX, QUEUE_OCTETS_MAX, Events


@contextmanager
def sockets():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(20)
    with ours, theirs:
        yield ours, theirs


async def following(events: Events, ours: socket.socket, last: int = 0) -> asyncio.Task[None]:
    """A follower that is served."""
    served = asyncio.create_task(events.asked({"last": last}).serve(ours))
    await asyncio.sleep(0)
    return served


def read(octets: bytes) -> list[dict]:
    return [json.loads(line) for line in octets.splitlines()]


def test_an_event_says_when_where_and_what():
    lines: list[str] = []
    Events("vtl-fw", "vmnet1", lambda line: lines.append(line) or True).tell("ready", pid=7)
    (event,) = map(json.loads, lines)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", event.pop("time"))
    assert event == {
        "schema": "event/1", "service": "vtl-fw", "link": "vmnet1", "event": "ready", "pid": 7,
    }  # fmt: skip


def test_a_follower_gets_the_last_events_and_those_that_come():
    async def main():
        events = Events("vtl-fw", "vmnet1")
        for number in range(2 * HISTORY_MAX):
            events.tell("before", number=number)
        with sockets() as (ours, theirs):
            served = await following(events, ours, last=2)
            events.tell("now")
            got = read(theirs.recv(1 << 16))
            assert [(e["event"], e.get("number")) for e in got] == [
                ("before", 2 * HISTORY_MAX - 2), ("before", 2 * HISTORY_MAX - 1), ("now", None),
            ]  # fmt: skip
            theirs.close()
            await served
            assert not events.followers

    asyncio.run(main())


def test_a_slow_follower_loses_events_and_is_told_how_many():
    async def main():
        events = Events("vtl-fw", "vmnet1")
        with sockets() as (ours, theirs):
            served = await following(events, ours)
            told = 0
            while not events.followers[0].lost:
                events.tell("packet", number=(told := told + 1), filler="x" * 1000)
            more = 5
            for _ in range(more - 1):
                events.tell("packet", number=(told := told + 1), filler="x" * 1000)
            theirs.setblocking(False)
            loop, got = asyncio.get_running_loop(), b""
            while b'"lost"' not in got:
                got += await asyncio.wait_for(loop.sock_recv(theirs, 1 << 20), 20)
            events.tell("packet", number=told + 1)
            while not got.endswith(b"\n") or read(got)[-1].get("number") != told + 1:
                got += await asyncio.wait_for(loop.sock_recv(theirs, 1 << 20), 20)
            *first, lost, last = read(got)
            validated(lost)
            assert (lost["event"], lost["count"]) == ("lost", more)
            assert [e["number"] for e in first] == list(range(1, told - more + 1))
            assert last["number"] == told + 1
            theirs.close()
            await served

    asyncio.run(main())


def test_a_follower_that_takes_nothing_is_dropped(monkeypatch):
    monkeypatch.setattr(module, "HUNG_S", 0.01)

    async def main():
        events = Events("vtl-fw", "vmnet1")
        with sockets() as (ours, _):
            served = await following(events, ours)
            while not events.followers[0].lost:
                events.tell("packet", filler="x" * (QUEUE_OCTETS_MAX // 2))
            await asyncio.wait_for(served, 20)
            assert not events.followers
            events.tell("packet")

    asyncio.run(main())


def test_followers_are_few():
    events = Events("vtl-fw", "vmnet1")
    followers = [events.asked({}) for _ in range(FOLLOWERS_MAX)]
    with pytest.raises(VTLError, match="follow already"):
        events.asked({})
    followers[0].close()
    events.asked({"last": 3})
    with pytest.raises(VTLError, match="must be a number"):
        events.asked({"last": "x"})


def test_repeats_of_a_cause_are_told_by_their_number(monkeypatch):
    lines: list[str] = []
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    events = Events("vtl-subnet", "vmnet1", lambda line: lines.append(line) or True)
    for number in range(13):
        events.tell("shortcut", cause="lost", number=number)
        events.tell("shortcut", cause=number, number=number)
    assert len(lines) == 1 + 13
    del lines[:]
    events.tell_repeats(now + PERIOD_S)
    (told,) = map(json.loads, lines)
    assert (told["event"], told["number"], told["repeats"], told["period_s"]) == (
        "shortcut",
        12,
        12,
        PERIOD_S,
    )


def test_causes_of_the_past_leave_their_room_to_others(monkeypatch):
    lines: list[str] = []
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    events = Events("vtl-subnet", "vmnet1", lambda line: lines.append(line) or True)
    for minute in range(3):
        now[0] = 100.0 + minute * PERIOD_S
        for number in range(200):
            events.tell("shortcut", cause=(minute, number))
    assert len(lines) == 600


def test_a_flood_of_causes_is_counted_as_one(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(module.time, "monotonic", lambda: 100.0)
    events = Events("vtl-subnet", "vmnet1", lambda line: lines.append(line) or True)
    for number in range(1000):
        events.tell("shortcut", cause=number, number=number)
    shown = len(lines)
    events.tell_repeats(100.0 + PERIOD_S)
    told = json.loads(lines[-1])
    assert (told["event"], told["repeats"], "number" in told) == ("shortcut", 1000 - shown, False)


def test_a_reader_of_standard_output_that_is_slow_is_told_of_its_loss():
    room, lines = [True], []

    def write(line: str) -> bool:
        if room[0]:
            lines.append(json.loads(line))
        return room[0]

    events = Events("vtl-fw", "vmnet1", write)
    events.tell("one")
    room[0] = False
    events.tell("two")
    events.tell("three")
    room[0] = True
    events.tell("four")
    assert [(e["event"], e.get("count")) for e in lines] == [("one", None), ("lost", 2), ("four", None)]


@pytest.mark.parametrize(
    "said",
    [b"", b"{", b"[" * 10_000, b"\xff", b"7", b'{"event": 7, "time": ""}', b'{"event": "x"}'],
)
def test_a_worker_that_says_nonsense_adds_no_event(said):
    lines: list[str] = []
    Events("vtl-bridge", "vmnet1", lambda line: lines.append(line) or True).forward(said, 0)
    assert not lines


def test_a_link_that_all_workers_lose_is_told_once():
    lines: list[str] = []
    events = Events("vtl-bridge", "vmnet1", lambda line: lines.append(line) or True)
    for up in False, True, False:
        for worker in range(3):
            told = {"event": "link", "time": "2026-01-01T00:00:00.000000Z", "changed": "eth0", "up": up}
            events.forward(json.dumps(told).encode(), worker)
    assert [json.loads(line)["up"] for line in lines] == [False, True, False]
