"""HyStart++ (RFC 9406): slow start that ends when the round trip grows, before data is lost."""

from typing import Final

from vtl_tools.common.tcp.congestion.base import Sample

_MIN_RTT_THRESH_S: Final = 0.004
_MAX_RTT_THRESH_S: Final = 0.016
_RTT_DIVISOR: Final = 8
_SAMPLES: Final = 8  # N_RTT_SAMPLE
_GROWTH_DIVISOR: Final = 4  # CSS_GROWTH_DIVISOR
_ROUNDS: Final = 5  # CSS_ROUNDS
_NONE: Final = float("inf")


class HyStart:
    """The state of one slow start (section 4.2). is_over: congestion avoidance begins."""

    __slots__ = ("_baseline_s", "_current_s", "_last_s", "_rounds", "_samples", "_window_end", "is_over")

    def __init__(self) -> None:
        self.is_over = False
        self._window_end = 0
        self._last_s = self._current_s = _NONE  # minimum round trip of the last round, and of this
        self._samples = 0
        self._baseline_s = _NONE  # in conservative slow start, if it is a number
        self._rounds = 0

    def divisor(self, sample: Sample) -> int:
        """Process an acknowledgement. Return by how much slow start is to be slowed down."""
        if sample.una >= self._window_end:
            self._window_end = sample.nxt
            self._last_s, self._current_s, self._samples = self._current_s, _NONE, 0
            if self._baseline_s < _NONE:
                self._rounds += 1
                if self._rounds >= _ROUNDS:
                    self.is_over = True
        if sample.rtt_s is not None:
            self._samples += 1
            self._current_s = min(self._current_s, sample.rtt_s)
            if self._samples >= _SAMPLES:
                self._judge()
        return _GROWTH_DIVISOR if self._baseline_s < _NONE else 1

    def _judge(self) -> None:
        if self._baseline_s < _NONE:
            if self._current_s < self._baseline_s:
                self._baseline_s, self._rounds = _NONE, 0  # it was no queue: slow start goes on
        elif self._last_s < _NONE:
            thresh_s = max(_MIN_RTT_THRESH_S, min(self._last_s / _RTT_DIVISOR, _MAX_RTT_THRESH_S))
            if self._current_s >= self._last_s + thresh_s:
                self._baseline_s, self._rounds = self._current_s, 0
