"""Causes of what is logged: peers and strangers can repeat it without end, and a log has one line of each."""

from collections.abc import Hashable
from typing import Final

CAUSES_MAX: Final = 256


class Causes:
    """The causes that were logged. A host may have many addresses: of further causes, nothing is logged."""

    def __init__(self) -> None:
        self._known: set[Hashable] = set()

    def is_first(self, cause: Hashable) -> bool:
        """Note a cause; return whether it is to be logged."""
        if cause in self._known or len(self._known) >= CAUSES_MAX:
            return False
        self._known.add(cause)
        return True
