"""Chooses the transport for new flows to a peer, from what its traffic has shown (--transport auto).

A transport is known by the rate that it reached while it was the bottleneck, or by a model of its congestion
control where it was not tried yet. The peak that any of them reached is what the path can carry. So a
transport that stays well below the peak is left for one that is not known to be slower; and if that one turns
out to be slower, the choice returns.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Final

MEMORY_S: Final = 600.0
"""Seconds for which a measured rate counts; then the transport may be tried again."""
MARGIN: Final = 1.1
"""A transport replaces another if it was measured to be so many times as fast."""
TRIAL_MARGIN: Final = 1.5
"""A transport that is not known yet replaces another if the path could carry so many times as much."""
FADING: Final = 0.99
"""Share of a peak that is left after a second of load: a path may become slower."""
SMOOTHING: Final = 0.3
"""Weight of the latest second in a transport's rate."""
SECONDS_LEAST: Final = 3
"""Seconds of load after which a rate is known: the first ones are the start of the congestion control."""
_MSS: Final = 1448.0
_LOSS_FLOOR: Final = 1e-6
_SRT_RATE: Final = 2.3e6
_UDT_RATE: Final = 0.5e6
"""Octets a second at a loss of 1, to be divided by its square root, since both slow down at each loss. From
measurements at 50 and 100 ms; the model is right within a factor of three, and replaced by a measurement."""


@dataclass(slots=True)
class _Known:
    """Knowledge of one transport. rate: octets a second; seconds: of load that it was measured in."""

    rate: float = 0.0
    peak: float = 0.0
    seconds: int = 0
    at: float = -inf


class TransportChoice:
    """One for each peer. names: the transports that may be used, the preferred one first.

    bbr: whether TCP's congestion control is BBR, which does not take a lost segment for congestion.
    """

    def __init__(self, names: Sequence[str], *, bbr: bool) -> None:
        self.names, self._bbr = tuple(names), bbr
        self.current = self.names[0]
        self.rtt_s: float | None = None
        self.loss: float | None = None
        self._known = {name: _Known() for name in self.names}

    def note_path(self, rtt_s: float | None, loss: float | None) -> None:
        """Note what a transport's counters say of the path. loss: a share, 0 to 1."""
        self.rtt_s = self.rtt_s if rtt_s is None else rtt_s
        self.loss = self.loss if loss is None else loss

    def note_load(self, name: str, rate: float, now: float) -> None:
        """Note the octets a second that a transport carried in one direction while it was the bottleneck."""
        known = self._known[name]
        if now - known.at > MEMORY_S:
            known.rate, known.peak, known.seconds = rate, 0.0, 0
        known.at = now
        known.seconds += 1
        known.rate += SMOOTHING * (rate - known.rate)
        known.peak = max(known.peak * FADING, rate)

    def choose(self, up: Collection[str], now: float) -> str:
        """Return the transport for a new flow. up: those by which the peer answers; if none, it stays."""
        able = [name for name in self.names if name in up]
        if not able:
            return self.current
        if self.current not in able:
            self.current = able[0]
        best = max(able, key=lambda name: self.expected(name, now))  # the preferred one of equals
        if not self._is_measured(self._known[self.current], now):
            self.current = best
            return best
        margin = MARGIN if self._is_measured(self._known[best], now) else TRIAL_MARGIN
        if self.expected(best, now) > margin * self.expected(self.current, now):
            self.current = best
        return self.current

    def expected(self, name: str, now: float) -> float:
        """Return the octets a second that a flow may expect; inf: no limit is known."""
        known = self._known[name]
        if self._is_measured(known, now):
            return known.rate
        peaks = [one.peak for one in self._known.values() if self._is_measured(one, now)]
        return min(self._modelled(name), max(peaks, default=inf))

    def _is_measured(self, known: _Known, now: float) -> bool:
        return known.seconds >= SECONDS_LEAST and now - known.at <= MEMORY_S

    def _modelled(self, name: str) -> float:
        if (
            self.rtt_s is None
            or self.loss is None
            or self.loss < _LOSS_FLOOR
            or (name == "tcp" and self._bbr)
        ):
            return inf
        if name == "tcp":
            # the larger of Reno's rate (RFC 3448 section 3.1, no time-outs) and CUBIC's (RFC 9438 5.1)
            rtt_s = max(self.rtt_s, 1e-4)
            return _MSS * max(1.22 / (rtt_s * sqrt(self.loss)), 1.054 / sqrt(sqrt(rtt_s * self.loss**3)))
        return (_SRT_RATE if name == "srt" else _UDT_RATE) / sqrt(self.loss)

    def status(self, now: float) -> dict[str, object]:
        """Return the rates that were measured, as --json prints them, in Mbit/s."""
        return {
            name: round(8e-6 * known.rate, 3)
            for name, known in self._known.items()
            if self._is_measured(known, now)
        }
