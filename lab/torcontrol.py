"""Ask a tor process through its control port (tor's control-spec): commands, and events as they come."""

import socket
import time
from collections import deque
from pathlib import Path
from typing import Self

from lab.errors import LabError
from lab.wait import PATIENCE_S

_EVENT = "650"


class Control:
    """A connection to the control port of a tor, as its owner; a context manager.

    path: its unix socket. cookie: the file with the cookie that tor wants to see.
    LabError whenever tor refuses, says nothing for PATIENCE_S, or ends.
    """

    def __init__(self, path: Path, cookie: Path) -> None:
        self._path = path
        self._events: deque[str] = deque()
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("r", newline="\r\n")
            self.ask(f"AUTHENTICATE {cookie.read_bytes().hex()}")
        except OSError as error:
            self._socket.close()
            raise LabError(f"control: {path}: {error}") from None
        except LabError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._lines.close()
        self._socket.close()

    def ask(self, command: str) -> list[str]:
        """Give a command, such as "GETINFO stream-status"; return its answer's lines without the last, OK."""
        deadline = time.monotonic() + PATIENCE_S
        self._arm(deadline)
        self._socket.sendall(f"{command}\r\n".encode())
        while True:
            status, lines = self._reply(deadline)
            if status == _EVENT:
                self._events.extend(lines)
            elif status.startswith("2"):
                return lines[:-1]
            else:
                raise LabError(f"control: {status} {lines[-1]}")

    def event(self, deadline: float) -> str:
        """Return the next line of the events that SETEVENTS asked for; wait for it until `deadline`."""
        while not self._events:
            _, lines = self._reply(deadline)
            self._events.extend(lines)
        return self._events.popleft()

    def _reply(self, deadline: float) -> tuple[str, list[str]]:
        """Read one reply, asked for or not (control-spec section 2.3)."""
        lines: list[str] = []
        while True:
            line = self._line(deadline)
            lines.append(line[4:])
            if line[3:4] == "+":
                while (data := self._line(deadline)) != ".":
                    lines.append(data.removeprefix("."))
            if line[3:4] == " ":
                return line[:3], lines

    def _line(self, deadline: float) -> str:
        self._arm(deadline)
        try:
            line = self._lines.readline()
        except TimeoutError:
            raise LabError(f"control: {self._path}: no answer") from None
        if not line:
            raise LabError(f"control: {self._path}: the connection ended")
        return line.rstrip("\r\n")

    def _arm(self, deadline: float) -> None:
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
