"""Chooses the transport for new flows to a peer, from what its traffic has shown (--transport auto).

A transport is known by the rate that it reached while it was the bottleneck, or by a model of its congestion
control where it was not tried yet. The peak that any of them reached is what the path can carry. So a
transport that stays well below the peak is left for one that is not known to be slower; and if that one turns
out to be slower, the choice returns.
"""

from collections import deque
from collections.abc import Collection, Sequence
from math import inf, sqrt
from statistics import median
from typing import Final

MEMORY_S: Final = 600.0
"""Seconds for which a measured rate counts; then the transport may be tried again."""
MARGIN: Final = 1.1
"""A transport replaces another if it was measured to be so many times as fast."""
TRIAL_MARGIN: Final = 1.5
"""A transport that is not known yet replaces another if the path could carry so many times as much."""
FADING: Final = 0.995
"""Share of a peak that is left after another look: a path may become slower."""
LOOKS: Final = 9
"""Looks at the load of which the median is the rate: single ones are full of bursts."""
LOOKS_LEAST: Final = 6
"""Looks after which a rate is known: the first ones are the start of the congestion control."""
_MSS: Final = 1448.0
_LOSS_FLOOR: Final = 1e-6
_NEAR_MODEL: Final = 2.0
"""A rate below so many times the model's is limited by losses, and says nothing of the path's capacity."""
_SRT_RATE: Final = 2.3e6
_UDT_RATE: Final = 0.5e6
"""Octets a second at a loss of 1, to be divided by its square root, since both slow down at each loss. From
measurements at 50 and 100 ms; the model is right within a factor of three, and replaced by a measurement."""


class _Known:
    """Knowledge of one transport. rate, peak: octets a second, now and at best; at: time of the last look."""

    __slots__ = ("at", "looks", "peak", "rate")

    def __init__(self) -> None:
        self.looks: deque[float] = deque(maxlen=LOOKS)
        self.rate = self.peak = 0.0
        self.at = -inf

    def note(self, rate: float, now: float) -> None:
        if now - self.at > MEMORY_S:
            self.looks.clear()
            self.peak = 0.0
        self.at = now
        self.looks.append(rate)
        self.rate = median(self.looks)
        if len(self.looks) >= LOOKS_LEAST:
            self.peak = max(self.peak * FADING, self.rate)

    def is_measured(self, now: float) -> bool:
        return len(self.looks) >= LOOKS_LEAST and now - self.at <= MEMORY_S


class TransportChoice:
    """One for each peer. names: the transports that may be used, the preferred one first.

    has_bbr: whether TCP's congestion control is BBR at both ends, which does not take a lost segment for
    congestion. rtt_s, loss: of the path; None: not known. loss: a share, 0 to 1.
    """

    def __init__(self, names: Sequence[str], *, has_bbr: bool) -> None:
        self.names, self.has_bbr = tuple(names), has_bbr
        self.current = self.names[0]
        self.rtt_s: float | None = None
        self.loss: float | None = None
        self._known = {name: _Known() for name in self.names}

    def note_load(self, name: str, rate: float, now: float) -> None:
        """Note the octets a second that a transport carried in one direction while it was the bottleneck."""
        self._known[name].note(rate, now)

    def choose(self, up: Collection[str], now: float) -> str:
        """Return the transport for a new flow. up: those by which the peer answers; if none, it stays."""
        able = [name for name in self.names if name in up]
        if not able:
            return self.current
        if self.current not in able:
            self.current = able[0]
        best = max(able, key=lambda name: self.expected(name, now))  # the preferred one of equals
        if not self._known[self.current].is_measured(now):
            self.current = best
            return best
        margin = MARGIN if self._known[best].is_measured(now) else TRIAL_MARGIN
        if self.expected(best, now) > margin * self.expected(self.current, now):
            self.current = best
        return self.current

    def expected(self, name: str, now: float) -> float:
        """Return the octets a second that a flow may expect; inf: no limit is known."""
        known = self._known[name]
        return known.rate if known.is_measured(now) else min(self._modelled(name), self._capacity(now))

    def _capacity(self, now: float) -> float:
        """Return the octets a second that the path has carried; inf: only losses have limited them so far."""
        measured = {name: one for name, one in self._known.items() if one.is_measured(now)}
        if all(self._is_loss_limited(name, one.rate) for name, one in measured.items()):
            return inf
        return max(one.peak for one in measured.values())

    def _is_loss_limited(self, name: str, rate: float) -> bool:
        modelled = self._modelled(name)
        return modelled < inf and rate < _NEAR_MODEL * modelled

    def _modelled(self, name: str) -> float:
        if (
            self.rtt_s is None
            or self.loss is None
            or self.loss < _LOSS_FLOOR
            or (name == "tcp" and self.has_bbr)
        ):
            return inf
        if name == "tcp":
            # the larger of Reno's rate (RFC 3448 section 3.1, no time-outs) and CUBIC's (RFC 9438 5.1)
            rtt_s = max(self.rtt_s, 1e-4)
            return _MSS * max(1.22 / (rtt_s * sqrt(self.loss)), 1.054 / sqrt(sqrt(rtt_s * self.loss**3)))
        return (_SRT_RATE if name == "srt" else _UDT_RATE) / sqrt(self.loss)

    def status(self, now: float) -> dict[str, float]:
        """Return the rates that were measured, as --json prints them, in Mbit/s."""
        return {
            name: round(8e-6 * known.rate, 3) for name, known in self._known.items() if known.is_measured(now)
        }
