"""The runtime on links in memory: frames pass, links come and go, its parts say what they should."""

import asyncio
import json
import os
import signal
import socket
import threading
import time
from collections import Counter

import pytest

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.memory import pair
from vtl_tools.common.errors import LinkLostError, NotRunningError, VTLError
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.common.runtime import control
from vtl_tools.common.runtime import runner as runtime
from vtl_tools.common.runtime.runner import Options, Runner, notify, say
from vtl_tools.common.runtime.watch import human
from vtl_tools.common.runtime.workers import ask_all, merge
from vtl_tools.common.stage import Stage
from vtl_tools.services.bridge import Bridge

FRAME = NONE + bytes(60)


@pytest.fixture(autouse=True)
def privileged(monkeypatch) -> None:
    """A runner gives up its process's rights for good; the process here is pytest's."""
    monkeypatch.setattr(runtime, "confine", lambda capabilities, user: None)


@pytest.fixture
def options(tmp_path) -> Options:
    return Options(service="vtl-test", control=tmp_path / "control.sock")


@pytest.mark.parametrize(
    "line",
    [b"", b"[]", b"1", b'{"ok": true}', b'{"ok": true, "result": []}', b"[" * 100_000, b'{"ok": false}'],
)
def test_an_answer_that_is_none_is_told_as_that(line, tmp_path):
    with pytest.raises(NotRunningError, match="before its answer was complete"):
        control.result_of(line, tmp_path)


def meanwhile(function, *arguments) -> threading.Thread:
    """Run something beside the runner, which needs the main thread for its signals."""
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    return thread


def wait_for(path) -> None:
    """Wait until a service answers: its socket exists a moment before that."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        with socket.socket(socket.AF_UNIX) as sock:
            if sock.connect_ex(str(path)) == 0:
                return
        time.sleep(0.005)


def test_frames_pass_until_sigterm_and_the_end_is_clean(options, capfd):
    options = options._replace(json=True)
    (outer, left), (right, other) = pair(), pair()

    def use():
        wait_for(options.control)
        try:
            assert control.ask(options.control, "status")["links"][0]["rx_frames"] == 3
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    outer.connect()
    other.connect()
    outer.write(Batch.of([FRAME] * 3))
    thread = meanwhile(use)
    assert Runner(Bridge(), [left, right], options).run() == 0
    thread.join()
    assert [bytes(f) for f in other.read()] == [FRAME] * 3
    assert not options.control.exists()
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [e["event"] for e in events] == ["ready", "stats"]
    assert events[1]["status"]["links"][1]["tx_frames"] == 3


def test_sigint_ends_with_130(options):
    (_, left), (right, _) = pair(), pair()

    def interrupt():
        wait_for(options.control)
        os.kill(os.getpid(), signal.SIGINT)

    thread = meanwhile(interrupt)
    assert Runner(Bridge(), [left, right], options).run() == 130
    thread.join()


def test_the_time_of_a_batch_is_not_before_its_frames_came(options, monkeypatch):
    """The process may not have run for a while before it read them."""
    (outer, left), (right, _) = pair(), pair()
    outer.connect()
    stage, read = Bridge(), left.read
    reads, seconds_after_read = [], []

    def late():
        batch = read()
        reads.append(time.monotonic())
        return batch

    def on_batch(port, batch, now):
        seconds_after_read.append(now - reads[-1])
        runner.stop()

    monkeypatch.setattr(left, "read", late)
    monkeypatch.setattr(stage, "on_batch", on_batch)
    runner = Runner(stage, [left, right], options)
    outer.write(Batch.of([FRAME]))
    runner.run()
    assert len(seconds_after_read) == 1
    assert seconds_after_read[0] >= 0


def test_under_load_links_are_polled_by_one_chain_of_turns(options, monkeypatch):
    """A link that goes on signalling while it is polled must not start a second chain."""
    monkeypatch.setattr("vtl_tools.common.runtime.runner.TURN_S", 0.0002)
    (_, left), (right, _) = pair(), pair()
    signals: list[bool] = []
    chains: list[int] = []
    frames, nothing = Batch.of([FRAME]), Batch()
    runner = Runner(Bridge(), [left, right], options)
    monkeypatch.setattr(left, "read", lambda: frames if len(chains) < 100 else nothing)
    monkeypatch.setattr(left, "signal", signals.append)

    def look():
        """Run once in every pass of the loop."""
        left.handle.wake()  # and nobody hushes it
        chains.append(sum("_pump" in str(handle) for handle in runner._loop._ready))
        if len(chains) < 200:
            runner._loop.call_soon(look)
        else:
            runner.stop()

    runner.verbs["look"] = lambda _: look() or {}

    def use():
        wait_for(options.control)
        control.ask(options.control, "look")

    thread = meanwhile(use)
    assert runner.run() == 0
    thread.join()
    assert max(chains) == 1
    assert signals == [False, True], "polled under load, and told again of each frame when idle"


def test_a_lost_link_ends_a_service_that_was_told_not_to_wait(options):
    options = options._replace(reconnect=False)
    (_, left), (right, _) = pair(), pair()

    def lose():
        wait_for(options.control)
        left.went_down("test")

    thread = meanwhile(lose)
    with pytest.raises(LinkLostError, match="link lost"):
        Runner(Bridge(), [left, right], options).run()
    thread.join()


def test_a_fault_of_a_service_ends_it_rather_than_go_on_half(options):
    class Faulty(Stage):
        def on_batch(self, port, batch, now):
            raise ZeroDivisionError

        def on_stop(self, now):
            left.write(Batch.of([FRAME]))

    (outer, left), (right, _) = pair(), pair()
    outer.connect()
    outer.write(Batch.of([FRAME]))
    with pytest.raises(ZeroDivisionError):
        Runner(Faulty(), [left, right], options).run()
    assert not options.control.exists()
    assert outer.read().count == 1, "its last words are sent all the same"


def test_deadlines_wake_a_stage_and_not_before(options):
    class Clock(Stage):
        woken: float | None = None

        def __init__(self) -> None:
            super().__init__()
            self.due = time.monotonic() + 0.05

        def deadline(self):
            return None if self.woken else self.due

        def wake(self, now):
            if now >= self.due:
                self.woken = now
                os.kill(os.getpid(), signal.SIGTERM)

    (_, left), (right, _) = pair(), pair()
    stage = Clock()
    assert Runner(stage, [left, right], options).run() == 0
    assert stage.woken >= stage.due


def test_the_end_of_all_links_is_the_end_of_the_service(options):
    (outer, left), (right, other) = pair(), pair()
    for device in outer, other:
        device.connect()
        device.close()
    assert Runner(Bridge(), [left, right], options).run() == 0


def test_systemd_is_told(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert systemd.recv(64) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0vtl-test-notify")
        monkeypatch.setenv("NOTIFY_SOCKET", "@vtl-test-notify")
        notify("STOPPING=1")
        assert systemd.recv(64) == b"STOPPING=1"


def test_a_reader_of_events_that_stops_reading_loses_them_and_holds_up_nobody():
    reader, writer = os.pipe()
    said = 0
    while say(writer, "x" * 4000, patience_s=0):
        said += 1
    assert said > 1
    assert not say(writer, "y" * 1_000_000, patience_s=0)
    got = b""
    while len(got) < said * 4001:
        got += os.read(reader, 1 << 16)
    assert got == (b"x" * 4000 + b"\n") * said
    assert say(writer, "z", patience_s=0)
    os.close(reader)
    assert not say(writer, "z", patience_s=0), "and one that has gone likewise"
    os.close(writer)


def test_asking_where_nobody_is_says_so(tmp_path):
    with pytest.raises(NotRunningError):
        control.ask(tmp_path / "none.sock", "status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    with pytest.raises(NotRunningError):
        control.ask(tmp_path / "dead.sock", "status")


def test_an_unknown_verb_is_answered_with_those_there_are(options):
    (_, left), (right, _) = pair(), pair()

    def use():
        wait_for(options.control)
        try:
            with pytest.raises(VTLError, match="the verbs are events, status"):
                control.ask(options.control, "dance")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = meanwhile(use)
    assert Runner(Bridge(), [left, right], options).run() == 0
    thread.join()


def test_statuses_of_workers_add_up():
    one = {"service": "b", "up": True, "age_s": 3.0, "links": [{"link": "a", "rx": 1}], "drops": {"x": 1}}
    two = {"service": "b", "up": False, "age_s": 1.0, "links": [{"link": "a", "rx": 2}], "drops": {"y": 5}}
    assert merge([one, two]) == {
        "service": "b",
        "up": False,
        "age_s": 1.0,
        "links": [{"link": "a", "rx": 3}],
        "drops": {"x": 1, "y": 5},
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (12_345_678, "12.3M"), (9.9e15, "9900.0T")],
)
def test_numbers_for_people(value, text):
    assert human(value) == text


class Asked:
    """A worker as its first process sees it: what was written to it, and what it says."""

    def __init__(self):
        self.reader, self.questions = asyncio.StreamReader(), 0

    def write(self, line):
        self.questions += 1

    def say(self, *answers):
        for answer in answers:
            self.reader.feed_data(json.dumps(answer).encode() + b"\n")


def test_a_worker_that_was_late_is_not_believed_about_the_past():
    async def main():
        one, other = Asked(), Asked()
        streams, owed = {1: (one.reader, one), 2: (other.reader, other)}, Counter()
        one.say({"result": 1})
        with pytest.raises(VTLError, match="worker 2 does not answer"):
            await ask_all(streams, owed, 0.01)
        other.say({"result": "old"}, {"result": 4})
        one.say({"result": 3})
        assert await ask_all(streams, owed, 9.0) == [3, 4]
        assert one.questions == other.questions == 2

    asyncio.run(main())


@pytest.mark.parametrize("said", [b"\n", b"[]\n", b"{}\n", b"[" * 10_000 + b"\n", b"5\n", b"\xff\n"])
def test_a_worker_that_answers_nonsense_is_told_of_in_a_line(said):
    async def main():
        one = Asked()
        one.reader.feed_data(said)
        with pytest.raises(VTLError, match="worker 1 ended, or its answer is no status"):
            await ask_all({1: (one.reader, one)}, Counter())

    asyncio.run(main())


def test_the_only_client_may_be_silent_for_long_and_its_end_is_told(monkeypatch):
    """A worker is asked by its parent, perhaps once a day, and must not outlive it."""
    monkeypatch.setattr(control, "IDLE_S", 0.01)
    ended = threading.Event()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)

    async def use():
        loop = asyncio.get_running_loop()
        server = control.ControlServer(theirs, {"status": lambda _: {"x": 1}}, ended.set)
        await server.start()
        await asyncio.sleep(0.1)
        await loop.sock_sendall(ours, b'{"verb": "status"}\n')
        assert json.loads(await loop.sock_recv(ours, 1000)) == {"ok": True, "result": {"x": 1}}
        assert not ended.is_set()
        ours.close()
        while not ended.is_set():
            await asyncio.sleep(0.01)
        server.close()

    asyncio.run(use())
