"""Windows of flows: how many octets the other module may send before they were read here.

A window is a promise of memory. The promises of all flows together have a bound, and a window grows only
while its reader keeps up, so that a fast flow fills a long path and a slow one holds little.
"""

from typing import Final

WINDOW_MIN: Final = 1 << 16
"""Octets that every flow gets, whatever is promised already."""
WINDOW_MAX: Final = 1 << 27
_FIRST: Final = 1 << 24
"""Octets of a first window on a short path, if there are four times as many."""
_FIRST_RATE: Final = 187.5e6
"""Octets a second that a first window lets pass on a long path, up to _FIRST_MAX. It is more than most paths
carry, since their queues lengthen the round trip, and since a window that is short spoils the measurements of
congestion control."""
_FIRST_MAX: Final = 1 << 26
_UPDATE_MAX: Final = 1 << 20
"""Octets read after which the other module is told, at the latest."""


class WindowBudget:
    """The memory that all flows share. memory: octets that may be promised, besides WINDOW_MIN a flow."""

    __slots__ = ("left", "memory")

    def __init__(self, memory: int) -> None:
        self.memory = self.left = memory

    def take(self, octets: int) -> int:
        """Reserve so many octets, or as many as there are; return how many."""
        taken = max(0, min(octets, self.left))
        self.left -= taken
        return taken

    def give_back(self, octets: int) -> None:
        """Return what was taken."""
        self.left += octets


class ReceiveWindow:
    """The window of one flow. size: octets promised; credit: octets that may still arrive.

    rtt_s: of the path, the least that was measured; 0: not known.
    """

    __slots__ = ("_budget", "_epoch_at", "_epoch_read", "_read", "credit", "size")

    def __init__(self, budget: WindowBudget, now: float, rtt_s: float) -> None:
        self._budget = budget
        first = max(_FIRST, min(round(_FIRST_RATE * rtt_s), _FIRST_MAX))
        self.size = WINDOW_MIN + budget.take(min(first, budget.left // 4))
        self.credit = self.size
        self._read = self._epoch_read = 0
        self._epoch_at = now

    def arrive(self, octets: int) -> bool:
        """Count octets that arrived. False: there were more than was promised."""
        self.credit -= octets
        return self.credit >= 0

    def read(self, octets: int, now: float, rtt_s: float) -> int:
        """Count octets that were read; return the octets by which the other module's credit is to rise.

        The window doubles if it was read through within two round trips: it may be what limits the flow.
        """
        self._read += octets
        self._epoch_read += octets
        if self._read < min(self.size // 4, _UPDATE_MAX):
            return 0
        more = 0
        if self._epoch_read >= self.size:
            if now - self._epoch_at < 2 * rtt_s:
                more = self._budget.take(min(self.size, WINDOW_MAX - self.size, self._budget.left // 2))
                self.size += more
            self._epoch_read, self._epoch_at = 0, now
        credit = self._read + more
        self._read = 0
        self.credit += credit
        return credit

    def close(self) -> None:
        """Give the promise back. Idempotent."""
        self._budget.give_back(self.size - WINDOW_MIN if self.size else 0)
        self.size = self.credit = 0
