"""CoDel, controlled delay (RFC 8289), for a queue whose order and times of departure are known on arrival."""

from math import sqrt
from typing import Final

TARGET_S: Final = 0.005
INTERVAL_S: Final = 0.1
_COUNT_KEPT: Final = 16
"""Intervals after which a new dropping state does not go on at the rate of the one before (RFC 8289 5.5)."""


class CoDel:
    """Decides whether the packet at the head of a queue is dropped. Its names are those of RFC 8289."""

    def __init__(self, target_s: float = TARGET_S, interval_s: float = INTERVAL_S) -> None:
        self.target_s, self.interval_s = target_s, interval_s
        self._first_above_time = 0.0
        self._drop_next = 0.0
        self._count = self._lastcount = 0
        self._dropping = False

    def drops(self, sojourn_s: float, now: float, *, is_short: bool) -> bool:
        """Return whether to drop (or mark) a packet that leaves the queue at `now`.

        sojourn_s: how long it waited. is_short: no more than one MTU waits in the queue.
        """
        ok_to_drop = self._is_above(sojourn_s, now, is_short=is_short)
        if self._dropping:
            if not ok_to_drop:
                self._dropping = False
                return False
            if now < self._drop_next:
                return False
            self._count += 1
            self._drop_next = self._control_law(self._drop_next)
            return True
        if not ok_to_drop:
            return False
        self._dropping = True
        delta = self._count - self._lastcount
        is_recent = now - self._drop_next < _COUNT_KEPT * self.interval_s
        self._count = delta if delta > 1 and is_recent else 1
        self._drop_next = self._control_law(now)
        self._lastcount = self._count
        return True

    def _is_above(self, sojourn_s: float, now: float, *, is_short: bool) -> bool:
        """Return whether the sojourn time was above the target for a whole interval."""
        if sojourn_s < self.target_s or is_short:
            self._first_above_time = 0.0
            return False
        if not self._first_above_time:
            self._first_above_time = now + self.interval_s
            return False
        return now >= self._first_above_time

    def _control_law(self, t: float) -> float:
        return t + self.interval_s / sqrt(self._count)
