"""A firewall's files: rules, from the disk or from standard input, and what is remembered of a link."""

import os
import re
import stat
import sys
from pathlib import Path
from typing import Final

from vtl_tools.services.fw.parser import FILES_MAX, OCTETS_MAX, included, parse
from vtl_tools.services.fw.policy import Policy

STDIN: Final = "<stdin>"
"""What standard input is called, where a file is named."""

_INCLUDE: Final = re.compile(rb'^[ \t]*include[ \t]*"([^"\n]*)"', re.MULTILINE)


class RuleReader:
    """Reads rule files, as parse() asks for them, and keeps what it read, to be sent on."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def __call__(self, name: str, octets: int) -> bytes:
        """Return at most so many octets of a file. Raises OSError."""
        if name not in self.files:
            if name == STDIN:
                self.files[name] = sys.stdin.buffer.read(octets)
            else:
                with Path(name).open("rb") as file:
                    self.files[name] = file.read(octets)
        return self.files[name]

    def gather(self, name: str) -> None:
        """Read a file and what it seems to include, to be sent on, without a look at the rest.

        What cannot be read is left out: whoever parses it misses it, and says so.
        """
        names, octets = [name], 0
        while names and len(self.files) < FILES_MAX and octets <= OCTETS_MAX:
            name = names.pop()
            if name in self.files:
                continue
            try:
                data = self(name, OCTETS_MAX + 1)
            except (OSError, ValueError):
                continue
            octets += len(data)
            names += [included(name, text.decode(errors="replace")) for text in _INCLUDE.findall(data)]

    def load(self, file: str) -> Policy:
        """Read a file with all that it includes, and compile it; - is standard input. Raises RuleError."""
        return Policy(parse(STDIN if file == "-" else file, self))


def full_name(file: str) -> str:
    """Return what a file is called wherever the reader of the name is."""
    return STDIN if file == "-" else str(Path(file).absolute())


def read_private(path: Path, octets: int) -> str | None:
    """Return the text of a file that only we can have written; None if there is none.

    Raises ValueError if it is more than so many octets or others may write it, and OSError.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise ValueError("not a file of our own, of mode 0600")
        data = file.read(octets + 1)
    if len(data) > octets:
        raise ValueError("too large")
    return data.decode("ascii")
