"""The log: stamps where nobody adds them, priorities for the journal, repeats folded, and no error from a
full disk.
"""

import logging
import os
import re
import socket

import pytest

from vtl_tools.common.host import outlet
from vtl_tools.common.host.log_lines import LogHandler
from vtl_tools.common.host.outlet import Outlet

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"


class Log:
    """A logger with a handler of its own on a clock of its own, and the lines that it wrote."""

    def __init__(self, monkeypatch):
        self.lines, self.now, self.alarms = [], 0.0, []
        monkeypatch.setattr(outlet, "say", lambda fd, line: self.lines.append(line))
        self.handler = LogHandler("vtl-x", lambda: self.now)
        self.handler.call_at = lambda when, call: self.alarms.append((when, call))
        self.handler.serve()
        self.handler._has_stamps = False
        self.logger = logging.Logger("test", logging.DEBUG)
        self.logger.addHandler(self.handler)


@pytest.fixture
def log(monkeypatch):
    return Log(monkeypatch)


def test_repeats_of_a_subject_are_told_by_their_number(log):
    for port in range(13):
        log.logger.warning("%s: spoofed by port %d", "vmnet1", port)
    log.logger.warning("%s: spoofed by port %d", "vmnet2", 1)
    assert log.lines == ["vtl-x: vmnet1: spoofed by port 0", "vtl-x: vmnet2: spoofed by port 1"]
    ((when, tell),) = log.alarms
    log.now = when
    tell()
    assert log.lines[2:] == ["vtl-x: vmnet1: spoofed by port 0 (12 more in 60 s)"]


def test_text_of_a_guest_makes_no_new_subject(log):
    for name in "a", "b", "c":
        log.logger.warning("dns: %s: refused", name)
    assert log.lines == ["vtl-x: dns: a: refused"]


def test_a_warning_that_comes_again_after_its_minute_is_told_without_a_loop(log):
    log.handler.call_at = None
    log.logger.warning("%s: down", "eth0")
    log.now = 61.0
    log.logger.warning("%s: down", "eth0")
    assert len(log.lines) == 2


def test_messages_that_were_asked_for_are_not_folded(log):
    for _ in range(3):
        log.logger.info("%s: up", "eth0")
    assert len(log.lines) == 3


def test_foreign_text_is_one_line_without_control_characters(log):
    log.logger.warning("%s: %s", "x", "a\nb\x1b[2J")
    assert log.lines == ["vtl-x: x: a\\nb\\x1b[2J"]


def test_lines_have_stamps_in_a_file_and_priorities_in_the_journal(log, monkeypatch):
    log.handler._has_stamps = True
    log.logger.warning("one")
    assert re.fullmatch(f"{STAMP} vtl-x: one", log.lines.pop())
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    log.handler.serve()
    log.logger.error("two")
    log.logger.warning("three")
    log.logger.info("four")
    assert log.lines == ["<3>vtl-x: two", "<4>vtl-x: three", "<6>vtl-x: four"]
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino + 1}")
    log.handler.serve()
    log.logger.error("five")
    assert "<" not in log.lines[-1]


def test_a_message_that_cannot_be_formatted_or_written_raises_nothing(log, monkeypatch):
    log.logger.warning("%d: %s", "no number")
    monkeypatch.setattr(outlet, "say", lambda fd, line: 1 / 0)
    log.logger.warning("x")


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_hangs_loses_whole_lines(kind):
    if kind == "pipe":
        reader, writer = os.pipe()
    else:
        reader, writer = (end.detach() for end in socket.socketpair())
    out = Outlet(writer)
    told = 0
    while out.write(f"{told} {'x' * 5000}"):
        told += 1
    assert told > 10
    assert out.lost == 1
    got = b""
    os.set_blocking(reader, False)
    while True:
        try:
            got += os.read(reader, 1 << 16)
        except BlockingIOError:
            break
    assert out.write("at last")
    got += os.read(reader, 1 << 16)
    words = [line.split()[0] for line in got.decode().splitlines()]
    assert words in ([*map(str, range(told)), "at"], [*map(str, range(told + 1)), "at"])
    assert all(line.endswith(b"x" * 5000) for line in got.splitlines()[:-1])
    os.close(reader)
    assert not out.write("nobody reads")
    assert not out.write("nobody reads")
    os.close(writer)
