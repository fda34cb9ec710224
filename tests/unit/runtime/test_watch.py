"""The live tables on a terminal: messages stay, nothing scrolls, and no stuck terminal is waited for."""

import os
from contextlib import ExitStack, contextmanager

import pytest

from tests.terminal import terminal
from vtl_tools.common.errors import SpecError
from vtl_tools.common.runtime.watch import Watch, require_terminal


@contextmanager
def watching(columns=80, lines=24):
    with ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("TERM", "xterm")
        screen = stack.enter_context(terminal(columns, lines))
        stream = stack.enter_context(os.fdopen(os.dup(screen.theirs), "w"))
        yield screen, stream, stack.enter_context(Watch(stream))


def status(frames=0):
    link = {
        "link": "vmnet1", "up": True, "rx_frames": frames, "tx_frames": 0, "rx_octets": 0, "tx_octets": 0,
        "drops": {},
    }  # fmt: skip
    cpu = {"user": 0.0, "system": 0.0}
    stations = {f"station {i:02}": {"link": "vmnet1", "age_s": 1.5} for i in range(40)}
    return {
        "service": "vtl-x", "pid": 7, "uptime_s": 1.0, "cpu_s": cpu, "links": [link], "drops": {},
        "stations": stations,
    }  # fmt: skip


def test_a_warning_that_comes_meanwhile_stays_above_the_table():
    with watching() as (screen, stream, watch):
        watch.show([status()])
        screen.until(lambda: "more lines" in screen.said)
        stream.write("vtl-x: vmnet1: link lost\n")
        stream.flush()
        watch.show([status()])
        screen.until(lambda: screen.said.count("more lines") == 2)
        seen = screen.screen
        assert seen[0].rstrip() == "vtl-x: vmnet1: link lost"
        assert [line.startswith("vtl-x  pid 7") for line in seen].count(True) == 1
        assert not screen.too_wide


def test_the_lines_that_do_not_fit_are_counted():
    with watching(lines=10) as (screen, _, watch):
        for _ in range(3):
            watch.show([status()])
        screen.until(lambda: screen.said.count("more lines") == 3)
        assert screen.top == 0
        assert screen.seen()[-1] == "... 38 more lines; see 'status'"


def test_a_terminal_that_nobody_reads_is_not_waited_for_and_later_shows_a_whole_picture():
    with watching() as (screen, _, watch):
        for _ in range(100):  # more than a pty takes
            watch.show([status()])
        while watch._owed or "more lines" not in screen.said:
            screen.read()
            watch.show([status()])
        before = len(screen.said)
        watch.show([status()])
        screen.until(lambda: "more lines" in screen.said[before:])
        assert [line.startswith("vtl-x  pid 7") for line in screen.seen()].count(True) == 1


def test_a_pipe_and_a_terminal_without_a_cursor_are_refused(monkeypatch):
    reading, writing = os.pipe()
    with os.fdopen(reading), os.fdopen(writing, "w") as stream:
        with pytest.raises(SpecError, match="no terminal to draw on; use another"):
            require_terminal(stream, "use another")
    monkeypatch.setenv("TERM", "dumb")
    with terminal(80) as screen, os.fdopen(os.dup(screen.theirs), "w") as stream:
        with pytest.raises(SpecError, match="cannot move its cursor"):
            require_terminal(stream, "use another")
