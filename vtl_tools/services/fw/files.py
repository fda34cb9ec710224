"""Rule files: read from the disk or from standard input, and packed into one file for a running service.

A service cannot read them itself: it has given up the right to, and the user who asks may have another.
"""

import logging
import re
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import log_lines
from vtl_tools.common.rules.position import RuleError
from vtl_tools.services.fw.parser import FILES_MAX, OCTETS_MAX, included, parse
from vtl_tools.services.fw.policy import Policy

log = logging.getLogger(__name__)

STDIN: Final = "<stdin>"
"""The name of standard input, where a file is named."""
NAME_MAX: Final = 4096
"""Octets of a file's name."""
WARNINGS_SHOWN: Final = 20

_INCLUDE: Final = re.compile(rb'^[ \t]*include[ \t]*"([^"\n]*)"', re.MULTILINE)
_HEAD: Final = struct.Struct("!II")
PACKED_MAX: Final = OCTETS_MAX + FILES_MAX * (_HEAD.size + NAME_MAX)
"""Octets of packed files."""


class RuleReader:
    """Reads rule files for parse(). Keeps their octets, so that they can be sent."""

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
        """Read a file and all that it seems to include, without parsing the rest.

        A file that cannot be read is left out: the parser reports it as missing.
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
        """Read a file and all that it includes, and compile it; - is standard input. Raises RuleError."""
        return Policy(parse(STDIN if file == "-" else file, self))


class SentReader:
    """Reads rule files for parse() from what pack() made. Raises VTLError if that is damaged."""

    def __init__(self, packed: bytes) -> None:
        self._files: dict[str, bytes] = {}
        at = count = 0
        while at < len(packed):
            count, name_at = count + 1, at + _HEAD.size
            name_size, size = _HEAD.unpack_from(packed, at) if name_at <= len(packed) else (0, 0)
            start, at = name_at + name_size, name_at + name_size + size
            if name_size > NAME_MAX or at > len(packed) or count > FILES_MAX:
                raise VTLError("reload: damaged rule files; send them by 'vtl-fw reload'")
            self._files[packed[name_at:start].decode("utf-8", "surrogateescape")] = packed[start:at]

    def __call__(self, name: str, octets: int) -> bytes:
        """Return at most so many octets of a file. Raises OSError."""
        if name not in self._files:
            raise FileNotFoundError(2, "not sent along")
        return self._files[name][:octets]


def pack(files: dict[str, bytes]) -> Iterator[bytes]:
    """Yield files by name as pieces of one: for each file two sizes, the name, and the octets."""
    for name, octets in files.items():
        encoded = name.encode("utf-8", "surrogateescape")
        yield _HEAD.pack(len(encoded), len(octets)) + encoded
        yield octets


def full_name(file: str) -> str:
    """Return a name of a file that does not depend on the working directory."""
    return STDIN if file == "-" else str(Path(file).absolute())


def load_rules(file: str, reader: RuleReader | None = None, *, warn: bool = True) -> Policy:
    """Return the policy of a file, and log its warnings. Raises RuleError.

    On a terminal, the line at fault is printed too, if there is one error.
    """
    try:
        policy = (reader or RuleReader()).load(file)
    except RuleError as e:
        if e.text and len(e.lines) == 1 and sys.stderr.isatty():
            print(e.excerpt, file=sys.stderr)
        raise
    if warn:
        log_warnings(file, policy.ruleset.remarks)
    return policy


def log_warnings(file: str, warnings: Sequence[object]) -> None:
    """Log the warnings about a file, WARNINGS_SHOWN at most."""
    for warning in warnings[:WARNINGS_SHOWN]:
        log.warning("%s", warning, extra=log_lines.ALWAYS)
    if len(warnings) > WARNINGS_SHOWN:
        log.warning("%s: %d more warnings; see 'vtl-fw check'", file, len(warnings) - WARNINGS_SHOWN)
