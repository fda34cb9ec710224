"""Makes untrusted text safe to print on a terminal, and writes times."""

import unicodedata
from datetime import UTC, datetime
from typing import Final

LENGTH_MAX: Final = 1000
"""Maximum characters shown of an untrusted text."""

_OBEYED: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode categories of invisible characters: controls, changes of direction, line ends."""


def printable(value: object, length_max: int = LENGTH_MAX) -> str:
    """Return a value as text of one line. Characters that control a terminal are escaped as in Python."""
    text = str(value)
    shown = text if len(text) <= length_max else f"{text[:length_max]}..."
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(_escaped(c) if unicodedata.category(c) in _OBEYED else c for c in shown)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def stamp() -> str:
    """Return the time as RFC 3339 writes it, in UTC with microseconds."""
    return f"{datetime.now(UTC).replace(tzinfo=None).isoformat(timespec='microseconds')}Z"
