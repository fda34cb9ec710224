"""Folds messages that repeat: one of a kind is told at once, the others of a minute only by their number."""

from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

Kind = TypeVar("Kind", bound=Hashable)

PERIOD_S: Final = 60.0
"""Seconds in which the repeats of a kind are counted."""
KINDS_MAX: Final = 256
"""Kinds that are counted at once. A message of one more is told only if its kind comes again later."""


def more(count: int, period_s: float) -> str:
    """Return the number of repeats in words."""
    return f"{count} more in {period_s:.0f} s"


class Repeats(Generic[Kind]):
    """Messages by kind, in bounded memory. Times are in seconds, on a monotonic clock.

    A user tells a message if admit() is true, and calls due() now and then for the numbers of the others.
    """

    def __init__(self, period_s: float = PERIOD_S, most: int = KINDS_MAX) -> None:
        self.period_s, self._most = period_s, most
        self._kinds: dict[Kind, tuple[float, int]] = {}  # in the order of the ends of their periods
        self.untold = 0
        """Messages of kinds for which there was no room."""

    def admit(self, kind: Kind, now: float) -> bool:
        """Return whether a message is the first of its kind in this period; else count it."""
        if self.repeat(kind):
            return False
        if len(self._kinds) >= self._most:
            self.untold += 1
            return False
        self._kinds[kind] = now + self.period_s, 0
        return True

    def repeat(self, kind: Kind) -> bool:
        """Count a message if one of its kind was told in this period; return whether it was."""
        if (known := self._kinds.get(kind)) is None:
            return False
        self._kinds[kind] = known[0], known[1] + 1
        return True

    def count(self, kind: Kind, now: float) -> None:
        """Count a message that is not to be told at once, even if it is the first of its kind."""
        if self.admit(kind, now):
            self.admit(kind, now)

    def __len__(self) -> int:
        return len(self._kinds)

    def due(self, now: float) -> Iterator[tuple[Kind, int]]:
        """Yield each kind whose period is over and had repeats, and how many. A new period of it begins."""
        while self._kinds:
            kind, (end, count) = next(iter(self._kinds.items()))
            if end > now:
                return
            del self._kinds[kind]
            if count:
                self._kinds[kind] = now + self.period_s, 0
                yield kind, count

    def deadline(self) -> float | None:
        """Return when due() has something to yield or to forget; None: never."""
        for end, _ in self._kinds.values():  # a service asks in each turn, and a generator takes longer
            return end
        return None
