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


def stamp(seconds: float | None = None, *, exact: bool = True) -> str:
    """Return a time as RFC 3339 writes it, in UTC: to the microsecond, or unless `exact` to the second.

    seconds: since 1970; None: now.
    """
    when = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return f"{when.replace(tzinfo=None).isoformat(timespec='microseconds' if exact else 'seconds')}Z"


def host_and_port(host: str, port: int) -> str:
    """Return HOST:PORT, or [HOST]:PORT of an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
