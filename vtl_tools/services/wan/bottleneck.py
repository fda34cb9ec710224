"""The bottleneck of a path: a rate, or a trace of opportunities, and the queue before it."""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from typing import Final, NamedTuple

from vtl_tools.services.wan.codel import CoDel
from vtl_tools.services.wan.settings import PathSettings

OPPORTUNITY: Final = 1504
"""Octets that may leave at each moment of a Mahimahi trace."""
_MTU: Final = 1514
_SLACK_S: Final = 1e-7
"""Sums of floats are not exact."""


class Departure(NamedTuple):
    """When a frame leaves the bottleneck; None: it is dropped, for a reason. marked: with CE (RFC 3168)."""

    at: float | None
    reason: str = ""
    marked: bool = False


class Bottleneck:
    """A first-in first-out queue before a link of a rate. All is decided on arrival.

    A frame of n octets takes 8 n / rate seconds. `free_at` is when the frames so far have left: what waits at
    `now` is what the link needs until then.
    """

    def __init__(self, settings: PathSettings, now: float) -> None:
        self._codel = CoDel()
        self._free_at = self._began = now
        self._trace: tuple[int, ...] = ()
        self._number = -1  # of the last opportunity that was used, from the start of the trace
        self._used = 0  # octets of it
        self.apply(settings, now)

    def apply(self, settings: PathSettings, now: float) -> None:
        """Use other settings for frames that come from now on."""
        if settings.opportunities != self._trace:
            self._began, self._number = now, -1
        self._trace = settings.opportunities
        self._seconds_of_octet = 8 / settings.rate_bps if settings.rate_bps else 0.0
        self._queue_s, self._queue_octets = settings.queue_s, settings.queue_octets
        self._aqm, self._ecn = settings.aqm, settings.ecn

    @property
    def is_open(self) -> bool:
        """Whether there is neither rate nor trace: each frame leaves at once."""
        return not self._seconds_of_octet and not self._trace

    def waits_s(self, now: float) -> float:
        """Return how long a frame that comes now waits."""
        return max(0.0, self._free_at - now)

    def depart(self, octets: int, now: float, *, is_capable: bool = False) -> Departure:
        """Let a frame arrive. is_capable: it may be marked instead of dropped."""
        if self.is_open:
            return Departure(now)
        waits_s = self.waits_s(now)
        if self._queue_s and waits_s > self._queue_s + _SLACK_S:
            return Departure(None, "queue-full")
        if self._queue_octets and self._backlog(waits_s) + octets > self._queue_octets + 1:
            return Departure(None, "queue-full")
        marked = False
        if self._aqm == "codel":
            head, is_short = now + waits_s, self._backlog(waits_s) <= _MTU
            if self._codel.drops(waits_s, head, is_short=is_short):
                if not (self._ecn and is_capable):
                    return Departure(None, "aqm")
                marked = True
        leaves = (
            self._by_trace(octets, now) if self._trace else now + waits_s + octets * self._seconds_of_octet
        )
        self._free_at = leaves
        return Departure(leaves, "", marked)

    def _backlog(self, waits_s: float) -> float:
        """Return the octets that wait: exactly for a rate, by its mean for a trace."""
        if self._trace:
            return waits_s * len(self._trace) * OPPORTUNITY / (self._trace[-1] / 1000)
        return waits_s / self._seconds_of_octet

    def _by_trace(self, octets: int, now: float) -> float:
        """Return the time of the opportunity at which the last octet leaves. The trace repeats."""
        if self._number < 0 or self._time_of(self._number) < now:
            self._skip_to(now)
        while octets > (room := OPPORTUNITY - self._used):
            octets -= room
            self._number += 1
            self._used = 0
        self._used += octets
        return self._time_of(self._number)

    def _time_of(self, number: int) -> float:
        rounds, index = divmod(number, len(self._trace))
        return self._began + (rounds * self._trace[-1] + self._trace[index]) / 1000

    def _skip_to(self, now: float) -> None:
        """Take the first opportunity at or after now: those before it found an empty queue."""
        period = self._trace[-1] / 1000
        rounds = int((now - self._began) / period)
        rest_ms = (now - self._began - rounds * period) * 1000
        self._number = rounds * len(self._trace) + bisect_left(self._trace, rest_ms)
        self._used = 0


def read_trace(lines: Iterable[str]) -> tuple[int, ...]:
    """Return a Mahimahi trace: a millisecond a line, none smaller than the one before. Raises ValueError."""
    times = tuple(int(line) for line in lines if line.strip())
    if not times or times[-1] <= 0 or times[0] < 0 or any(b < a for a, b in pairwise(times)):
        raise ValueError
    return times
