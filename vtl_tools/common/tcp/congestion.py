"""Congestion control NewReno (RFC 5681, RFC 6582): how much data may be in flight."""

from typing import Final

_UNLIMITED: Final = 1 << 30


class NewReno:
    """cwnd and ssthresh, in octets.

    cwnd grows by the octets that an ACK covers, without the limit L of RFC 3465 (as in Linux): an ACK for a
    super-segment covers 45 segments, and L would slow down the start of such a connection.
    """

    __slots__ = ("_credit", "cwnd", "smss", "ssthresh")

    def __init__(self, smss: int, initial_window: int) -> None:
        self.smss = smss
        self.cwnd = initial_window * smss
        self.ssthresh = _UNLIMITED
        self._credit = 0  # octets acknowledged since the last growth in congestion avoidance

    def acked(self, octets: int, flight: int) -> None:
        """Grow for octets acknowledged outside of fast recovery. flight: octets in flight before the ACK.

        A window that was not used up does not grow, as it says nothing about the path (similar to RFC 7661).
        """
        if self.cwnd < self.ssthresh:
            if self.cwnd < 2 * flight:
                self.cwnd = min(self.cwnd + octets, max(self.ssthresh, self.cwnd + self.smss))
        elif flight + 2 * self.smss >= self.cwnd:
            self._credit += octets
            if self._credit >= self.cwnd:  # (3): one segment per window
                self._credit -= self.cwnd
                self.cwnd = min(self.cwnd + self.smss, _UNLIMITED)

    def lost(self, flight: int) -> None:
        """Halve the window after a loss during which ACKs continue: fast retransmit, or a repaired tail."""
        self._halve(flight)
        self.cwnd = self.ssthresh

    def timed_out(self, flight: int, *, again: bool) -> None:
        """Reduce the window to one segment.

        again: a timeout of the same data; ssthresh then stays (RFC 5681 3.1).
        """
        if not again:
            self._halve(flight)
        self.cwnd = self.smss

    def idle(self, initial_window: int) -> None:
        """Restart from the initial window after an RTO without sending (RFC 5681 section 4.1)."""
        self.cwnd = min(self.cwnd, initial_window * self.smss)

    def _halve(self, flight: int) -> None:
        self.ssthresh = max(flight // 2, 2 * self.smss)  # equation (4)
        self._credit = 0
