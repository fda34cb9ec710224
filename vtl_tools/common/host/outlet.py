"""Lines on standard error or standard output that never wait for a reader or a disk.

A line for a pipe, a terminal or a socket that has no room is lost, and counted. A file on a disk is written
by another process (scribe).
"""

import contextlib
import fcntl
import os
import select
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vtl_tools.common.host.record_file import LogFile, Target
from vtl_tools.common.host.scribe import Scribe

_QUEUE: Final = 1 << 18
_PIPE: Final = 1 << 20
"""Octets that a pipe shall hold for a reader that is late."""
PATIENCE_S: Final = 0.05
"""Seconds that a reader has for each PIPE_BUF octets where the program is no service yet."""


class Outlet:
    """Writes whole lines to a descriptor. lost: lines for which there was no room."""

    def __init__(self, fd: int, producers: int = 1, target: Target | None = None) -> None:
        self.lost = 0
        self._rest = b""
        self.scribe: Scribe | None = None
        self._write: Callable[[bytes], int] = lambda octets: os.write(fd, octets)
        try:
            mode = os.fstat(fd).st_mode
        except OSError:  # it was closed before the start
            mode = 0
        if target is not None or stat.S_ISREG(mode):
            name = {1: "standard output", 2: "standard error"}.get(fd, str(fd))
            self.scribe = Scribe(target or Target(fd, name), _QUEUE, producers, 0.0)
        elif stat.S_ISSOCK(mode):
            own = os.dup(fd)
            self._write = lambda octets: _send(own, octets)
        else:
            self._write = _unblocked(fd, mode)

    def write(self, line: str) -> bool:
        """Write a line. False: there is no room, or no reader. Never waits and never raises."""
        octets = line.encode(errors="backslashreplace") + b"\n"
        if self.scribe is not None:
            written = self.scribe.put(octets)
        else:
            written = self._send(self._rest) and self._send(octets, is_new=True)
        self.lost += not written
        return written

    def _send(self, octets: bytes, *, is_new: bool = False) -> bool:
        """Write octets, of which a part may be left for the next call. False: not one was written."""
        done = 0
        with contextlib.suppress(OSError, ValueError):
            while done < len(octets):
                done += self._write(octets[done : done + select.PIPE_BUF])
        if not is_new or done:
            self._rest = octets[done:]
        return done == len(octets) or (is_new and done > 0)


def _send(fd: int, octets: bytes) -> int:
    """Write to a socket, or raise BlockingIOError."""
    sock = socket.socket(fileno=fd)
    try:
        return sock.send(octets, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    finally:
        sock.detach()


def _unblocked(fd: int, mode: int) -> Callable[[bytes], int]:
    """Return a function that writes to a pipe or a terminal, or raises BlockingIOError.

    O_NONBLOCK would hold for all programs that share the descriptor, such as the shell, so it is opened
    again.
    """
    with contextlib.suppress(OSError):
        own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        if stat.S_ISFIFO(mode):
            with contextlib.suppress(OSError):
                fcntl.fcntl(own, fcntl.F_SETPIPE_SZ, _PIPE)
        return lambda octets: os.write(own, octets)
    room = select.poll()
    room.register(fd, select.POLLOUT)

    def write(octets: bytes) -> int:
        if not room.poll(0):
            raise BlockingIOError
        return os.write(fd, octets)

    return write


_outlets: dict[int, Outlet] = {}


def open_outlets(producers: int, *, log_file: Path | None, prints_events: bool) -> None:
    """Have say() write without waiting from now on. log_file: takes the place of standard error.

    Raises OSError if it cannot be opened.
    """
    log = None if log_file is None else LogFile(log_file)
    _outlets[2] = Outlet(2, producers, log)
    if prints_events:
        _outlets[1] = Outlet(1, producers)


def say(fd: int, line: str, patience_s: float = PATIENCE_S) -> bool:
    """Print a line on standard output (1) or standard error (2). Return whether it was printed. Never raises.

    A service does not wait. Another program waits patience_s for each PIPE_BUF octets.
    """
    if (outlet := _outlets.get(fd)) is not None:
        return outlet.write(line)
    octets = line.encode(errors="backslashreplace") + b"\n"
    room = select.poll()
    try:
        room.register(fd, select.POLLOUT)
        for start in range(0, len(octets), select.PIPE_BUF):
            if not room.poll(patience_s * 1000):
                return False
            os.write(fd, octets[start : start + select.PIPE_BUF])
    except OSError:
        return False
    return True
