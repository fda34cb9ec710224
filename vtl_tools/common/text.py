"""Text that others wrote, for a terminal: it is shown, and not obeyed."""

import unicodedata
from typing import Final

LENGTH_MAX: Final = 1000
"""Characters of one piece of foreign text that are shown."""

_OBEYED: Final = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
"""Unicode's categories of what is no visible character: controls, changes of direction, line ends."""


def printable(value: object, length_max: int = LENGTH_MAX) -> str:
    """Return a value as text of one line, in which what a terminal might obey is escaped as in Python."""
    text = str(value)
    shown = text if len(text) <= length_max else f"{text[:length_max]}..."
    if shown.isascii() and shown.isprintable():
        return shown
    return "".join(_escaped(c) if unicodedata.category(c) in _OBEYED else c for c in shown)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
