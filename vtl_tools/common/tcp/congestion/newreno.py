"""Congestion control NewReno (RFC 5681, RFC 6582) with Proportional Rate Reduction (RFC 6937)."""

from typing import ClassVar

from vtl_tools.common.tcp.congestion.base import UNLIMITED
from vtl_tools.common.tcp.congestion.loss_based import LossBased


class NewReno(LossBased):
    """Half a window less for a loss; one segment more for a window acknowledged (RFC 3465)."""

    __slots__ = ("_credit",)

    name: ClassVar[str] = "newreno"

    def __init__(self, smss: int, initial_window: int) -> None:
        super().__init__(smss, initial_window)
        self._credit = 0  # octets acknowledged since the last growth in congestion avoidance

    def grow(self, octets: int, now: float, rtt_s: float | None) -> None:
        """RFC 5681 (3) by octets: one segment a window."""
        self._credit += octets
        if self._credit >= self.cwnd:
            self._credit -= self.cwnd
            self.cwnd = min(self.cwnd + self.smss, UNLIMITED)

    def reduced(self, flight: int, now: float) -> int:
        """RFC 5681 equation (4), in whole segments as in Linux."""
        self._credit = 0
        return flight // (2 * self.smss) * self.smss
