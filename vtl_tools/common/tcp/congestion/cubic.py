"""Congestion control CUBIC (RFC 9438) with HyStart++ (RFC 9406)."""

from typing import ClassVar, Final

from vtl_tools.common.tcp.congestion.base import UNLIMITED, Sample
from vtl_tools.common.tcp.congestion.hystart import HyStart
from vtl_tools.common.tcp.congestion.loss_based import LossBased

_C: Final = 0.4  # segments per cubic second
_BETA: Final = 0.7
_ALPHA: Final = 3 * (1 - _BETA) / (1 + _BETA)


class Cubic(LossBased):
    """A window that grows with the cube of the time since the last loss, so that it depends little on RTT.

    The names are the RFC's. Windows are in segments, except cwnd.
    """

    __slots__ = ("_fraction", "_hystart", "_k", "_last_at", "_origin", "_prior", "_since", "_w_est", "_w_max")

    name: ClassVar[str] = "cubic"

    def __init__(self, smss: int, initial_window: int) -> None:
        super().__init__(smss, initial_window)
        self._hystart = HyStart()
        self._since: float | None = None  # t_epoch: start of this congestion avoidance
        self._last_at = 0.0
        self._k = self._w_max = self._w_est = self._origin = 0.0
        self._prior = 0.0  # cwnd_prior
        self._fraction = 0.0  # of an octet of growth

    def slow_start(self, octets: int, sample: Sample) -> int:
        """Slow start, in the first one with HyStart++."""
        if self.ssthresh < UNLIMITED:
            return super().slow_start(octets, sample)
        self.cwnd += octets // self._hystart.divisor(sample)
        if self._hystart.is_over:
            self.ssthresh = self.cwnd
        return 0

    def grow(self, octets: int, now: float, rtt_s: float | None) -> None:
        """Section 4.2 to 4.5."""
        cwnd = self.cwnd / self.smss
        since = self._since
        if since is None:
            since = self._begin(cwnd, now)
        elif now - self._last_at > 1.0:
            since = self._since = since + now - self._last_at  # 5.8: time without growth does not count
        self._last_at = now
        segments = octets / self.smss
        self._w_est += (_ALPHA if self._w_est < self._prior else 1.0) * segments / cwnd
        at = now - since - self._k
        if self._w_est > _C * at**3 + self._origin:
            target = self._w_est  # 4.3: the Reno-friendly region
            growth = max(target - cwnd, 0.0)
        else:
            at += rtt_s if rtt_s is not None else 0.0
            target = min(max(_C * at**3 + self._origin, cwnd), 1.5 * cwnd)
            growth = (target - cwnd) / cwnd * segments
        self._fraction += growth * self.smss
        whole = int(self._fraction)
        self._fraction -= whole
        self.cwnd = min(self.cwnd + whole, UNLIMITED)

    def _begin(self, cwnd: float, now: float) -> float:
        self._since = now
        self._w_est = cwnd
        if cwnd < self._w_max:
            self._k = ((self._w_max - cwnd) / _C) ** (1 / 3)
            self._origin = self._w_max
        else:
            self._k, self._origin = 0.0, cwnd
        return now

    def reduced(self, flight: int, now: float) -> int:
        """Section 4.6, of cwnd as in Linux: it grows only where it is used. Fast convergence (4.7)."""
        self._since = None
        self._prior = cwnd = self.cwnd / self.smss
        self._w_max = cwnd * (1 + _BETA) / 2 if cwnd < self._w_max else cwnd
        return int(self.cwnd * _BETA)

    def timed_out(self, now: float, in_flight: int, flight: int, *, again: bool) -> None:
        """Section 4.8."""
        super().timed_out(now, in_flight, flight, again=again)
        self._since = None

    def undo(self) -> bool:
        """Section 4.9.1."""
        if not super().undo():
            return False
        self._since = None
        self._w_max = max(self._w_max, self._prior)
        return True
