"""NewReno (RFC 5681, RFC 6582): how much may be in flight."""

from typing import Final

_UNLIMITED: Final = 1 << 30


class NewReno:
    """cwnd and ssthresh, in octets.

    cwnd grows by what an ACK covers, without the limit L of RFC 3465 (as in Linux): an ACK for a
    super-segment covers 45 segments, and L would take a connection of such ACKs ages to start.
    """

    __slots__ = ("_credit", "cwnd", "smss", "ssthresh")

    def __init__(self, smss: int, initial_window: int) -> None:
        self.smss = smss
        self.cwnd = initial_window * smss
        self.ssthresh = _UNLIMITED
        self._credit = 0  # octets acknowledged towards the next segment in congestion avoidance

    def acked(self, octets: int, flight: int) -> None:
        """Grow by what was acknowledged outside of fast recovery. flight: octets in flight before the ACK.

        A window that was not used says nothing of the path and does not grow (RFC 7661, in spirit).
        """
        if self.cwnd < self.ssthresh:
            if self.cwnd < 2 * flight:
                self.cwnd = min(self.cwnd + octets, max(self.ssthresh, self.cwnd + self.smss))
        elif flight + 2 * self.smss >= self.cwnd:
            self._credit += octets
            if self._credit >= self.cwnd:  # (3): a segment for each window
                self._credit -= self.cwnd
                self.cwnd = min(self.cwnd + self.smss, _UNLIMITED)

    def lost(self, flight: int) -> None:
        """Halve, as something was lost but the ACKs still come: fast retransmit, or a tail repaired."""
        self._halve(flight)
        self.cwnd = self.ssthresh

    def timed_out(self, flight: int, *, again: bool) -> None:
        """Fall to one segment. again: of the same data; ssthresh then stays (RFC 5681 section 3.1)."""
        if not again:
            self._halve(flight)
        self.cwnd = self.smss

    def idle(self, initial_window: int) -> None:
        """Restart from the initial window after an RTO without sending (RFC 5681 section 4.1)."""
        self.cwnd = min(self.cwnd, initial_window * self.smss)

    def _halve(self, flight: int) -> None:
        self.ssthresh = max(flight // 2, 2 * self.smss)  # equation (4)
        self._credit = 0
