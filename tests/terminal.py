"""A terminal for tests: a pty of any size, and what a person would see on it."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lab.wait import PATIENCE_S
from vtl_tools.common.table import width_of

STYLE = re.compile(r"\x1b\[\d*m")
_TOKEN = re.compile(r"\x1b\[(\d*)([A-Za-z])|\r|\n|[^\x1b\r\n]+|\x1b")


class Terminal:
    """A pty whose output is kept: raw as `said`, and as the lines of a screen that scrolls.

    It does not wrap: too_wide has the lines that a terminal would continue below.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.ours, self.theirs = pty.openpty()
        self.said = ""
        self._octets = b""
        self.screen: list[str] = [""]
        self.row = self.column = self.top = 0
        self.too_wide: list[str] = []
        self.resize(columns, lines)

    def resize(self, columns: int, lines: int) -> None:
        self.columns, self.lines = columns, lines
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self) -> bool:
        """Take what was said, waiting for it; False at the end, when nobody has the terminal any more."""
        assert select.select([self.ours], [], [], PATIENCE_S)[0], self.said
        try:
            octets = os.read(self.ours, 1 << 16)
        except OSError:
            return False
        self._octets += octets
        text = self._octets.decode(errors="ignore")
        self._octets = self._octets[len(text.encode()) :]
        self.said += text
        self._show(text)
        return bool(octets)

    def until(self, condition: Callable[[], object]) -> None:
        while not condition():
            assert self.read(), self.said

    def rest(self) -> str:
        """Close our copy of the other end, and return all that was said until its users have ended."""
        os.close(self.theirs)
        self.theirs = -1
        while self.read():
            pass
        return self.said

    def seen(self) -> list[str]:
        """The lines that are on the screen now."""
        return [line.rstrip() for line in self.screen[self.top :]]

    def _show(self, text: str) -> None:
        for token in _TOKEN.finditer(text):
            count = int(token[1] or 1) if token[2] else 0
            if token[0] == "\r":
                self.column = 0
            elif token[0] == "\n":
                self.row += 1
                while len(self.screen) <= self.row:
                    self.screen.append("")
                self.top = max(self.top, self.row - self.lines + 1)
            elif token[2] == "A":
                self.row = max(self.row - count, self.top)
            elif token[2] == "B":
                self.row = min(self.row + count, self.top + self.lines - 1)
                self.screen += [""] * (self.row + 1 - len(self.screen))
            elif token[2] == "J":
                self.screen[self.row] = self.screen[self.row][: self.column]
                del self.screen[self.row + 1 :]
            elif token[2] == "K":
                self.screen[self.row] = self.screen[self.row][: self.column]
            elif token[2] != "m":
                line = self.screen[self.row].ljust(self.column)
                self.column += len(token[0])
                self.screen[self.row] = line[: self.column - len(token[0])] + token[0] + line[self.column :]
                if width_of(self.screen[self.row]) > self.columns:
                    self.too_wide.append(self.screen[self.row])

    def close(self) -> None:
        for fd in self.ours, self.theirs:
            if fd >= 0:
                os.close(fd)
        self.ours = self.theirs = -1


@contextmanager
def terminal(columns: int, lines: int = 24) -> Iterator[Terminal]:
    made = Terminal(columns, lines)
    try:
        yield made
    finally:
        made.close()


def on_terminal(
    columns: int, command: list[str | Path], environment: Mapping[str, str], lines: int = 24
) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its status and all that it said there."""
    with terminal(columns, lines) as made:
        ends = made.theirs
        with subprocess.Popen(command, stdin=ends, stdout=ends, stderr=ends, env=environment) as process:
            said = made.rest()
        return process.returncode, said.replace("\r\n", "\n")
