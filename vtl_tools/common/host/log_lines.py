"""The log: lines for people on standard error, or in the file of --log.

In a running service, logging delays no frame and never fails; repeated warnings are folded. A message begins
with its subject, as in "%s: down": repeats are told apart by logger, format and subject, and not by text
from outside.
"""

import logging
import os
import stat
import sys
import threading
import time
from collections.abc import Callable, Hashable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, TextIO

from vtl_tools.common.repeats import KINDS_MAX, Repeats, more
from vtl_tools.common.text import printable, stamp

_PRIORITIES: Final = (
    (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7),
)  # fmt: skip
"""syslog's priorities (sd-daemon(3)) of log levels."""
ALWAYS: Final = {"is_always_told": True}
"""The `extra` of a message that is not folded here, as its own code folds it or an operator asked for it."""


class LogHandler(logging.Handler):
    """Writes each record as one printable line, as it may quote text from outside.

    name: of the program, with which each line begins. call_at: set by an event loop; has the numbers of
    folded messages told when they are due.
    """

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.name = name
        self.is_service = self.is_ready = False
        """Whether the program is a service, and whether that has started."""
        self.call_at: Callable[[float, Callable[[], None]], object] | None = None
        self._clock = clock
        self._is_armed = False
        self._has_stamps = self._is_journal = self._is_file = False
        self._repeats: Repeats[Hashable] = Repeats()
        self._texts: dict[Hashable, tuple[int, str]] = {}

    def serve(self, log_file: Path | None = None) -> None:
        """Write as a service does: with time stamps or priorities, unless people look at a terminal."""
        self.is_service = True
        self._is_journal = log_file is None and _is_journal()
        self._is_file = log_file is not None or _is_file()
        self._has_stamps = not self._is_journal and (self._is_file or not os.isatty(2))

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it. Never raises."""
        with suppress(Exception):
            text = self._text(record)
            is_always_told = record.levelno < logging.WARNING or getattr(record, "is_always_told", False)
            if not self.is_service or is_always_told:
                self.tell(text, record.levelno)
                return
            now, kind = self._clock(), _kind(record)
            if (due := self._repeats.deadline()) is not None and due <= now:
                self.tell_repeats()
            if self._repeats.admit(kind, now):
                self._texts[kind] = record.levelno, text.partition("\n")[0]
                self.tell(text, record.levelno)
            self._arm()

    def _text(self, record: logging.LogRecord) -> str:
        text = printable(record.getMessage())
        if record.exc_info:
            lines = logging.Formatter().formatException(record.exc_info).splitlines()
            text = "\n".join([text, *(f"  {printable(line)}" for line in lines)])
        return text

    def tell(self, text: str, level: int = logging.WARNING) -> None:
        """Write lines at once."""
        priority = next((number for least, number in _PRIORITIES if level >= least), 7)
        for line in text.splitlines():
            start = f"<{priority}>" if self._is_journal else f"{stamp()} " if self._has_stamps else ""
            write_line(sys.stderr, f"{start}{self.name}: {line}", is_service=self.is_service)

    def fail(self, problem: str) -> None:
        """Write the last line of a program that failed: as the log's in a file, or if the service ran."""
        if self.is_ready or self._is_journal or self._is_file:
            self.tell(problem, logging.ERROR)
        else:
            write_line(sys.stderr, f"{self.name}: {problem}", is_service=self.is_service)

    def tell_repeats(self) -> None:
        """Write how often the messages were repeated whose time is over."""
        self._is_armed = False
        for kind, count in self._repeats.due(self._clock()):
            level, text = self._texts.get(kind, (logging.WARNING, "a message"))
            self.tell(f"{text} ({more(count, self._repeats.period_s)})", level)
        if self._repeats.deadline() is None or len(self._texts) > 2 * KINDS_MAX:
            self._texts.clear()
        self._arm()

    def _arm(self) -> None:
        due = self._repeats.deadline()
        is_ours = threading.current_thread() is threading.main_thread()
        if due is not None and self.call_at is not None and not self._is_armed and is_ours:
            self._is_armed = True
            self.call_at(due, self.tell_repeats)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """Do nothing: a message that cannot be written must not end the service."""


def _kind(record: logging.LogRecord) -> Hashable:
    args: Any = record.args
    has_subject = str(record.msg).startswith("%s:") and isinstance(args, tuple)
    return record.name, record.msg, str(args[0]) if has_subject else ""


def _is_file() -> bool:
    try:
        return stat.S_ISREG(os.fstat(2).st_mode)
    except OSError:  # it was closed before the start
        return False


def _is_journal() -> bool:
    """Return whether standard error is the journal's socket (systemd.exec(5))."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(2)
        return (found.st_dev, found.st_ino) == (int(device), int(inode))
    except (OSError, ValueError):
        return False


_handler: LogHandler | None = None


def install(name: str) -> LogHandler:
    """Have this program log by a LogHandler, the only one of it."""
    global _handler
    if _handler is None:
        _handler = LogHandler(name)
        logging.basicConfig(level=logging.WARNING, handlers=[_handler])
    _handler.name = name
    return _handler


def serve(producers: int, *, log_file: Path | None, prints_events: bool) -> None:
    """Log and print events as a service from now on; see LogHandler.serve(). Raises OSError for log_file."""
    from vtl_tools.common.host.outlet import open_outlets  # here, as a verb needs none of it

    open_outlets(producers, log_file=log_file, prints_events=prints_events)
    if _handler is not None:
        _handler.serve(log_file)


def write_line(stream: TextIO, line: str, *, is_service: bool | None = None) -> None:
    """Write a line to standard output or standard error. Never raises, and in a service never waits."""
    if is_service if is_service is not None else _handler is not None and _handler.is_service:
        from vtl_tools.common.host.outlet import say

        say(1 if stream is sys.stdout else 2, line)
    else:
        with suppress(OSError, ValueError):
            print(line, file=stream, flush=True)


def handler() -> LogHandler | None:
    """Return the handler of this program, if it has one."""
    return _handler


def tell(line: str) -> None:
    """Write a line of the log that is no message of a logger and is never folded."""
    if _handler is not None:
        _handler.tell(line, logging.INFO)
