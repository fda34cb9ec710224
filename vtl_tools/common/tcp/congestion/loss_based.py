"""The common part of controls whose signal is loss: slow start, PRR (RFC 6937), timeouts, undo."""

from abc import abstractmethod
from typing import Final

from vtl_tools.common.tcp.congestion.base import Congestion, Sample

_BURST: Final = 10  # segments
_QUANTUM_S: Final = 0.001
"""At a pacing rate, so much of it leaves at once."""


class LossBased(Congestion):
    """Slow start up to ssthresh, growth of the algorithm's own above it, and a reduction for a loss.

    Slow start counts the octets delivered, without the limit L of RFC 3465 (as in Linux): an ACK for a
    super-segment covers 45 segments, and L would slow down the start of such a connection.
    """

    __slots__ = ("_before", "_delivered", "_flight", "_marked_to", "_out", "_recovering")

    def __init__(self, smss: int, initial_window: int) -> None:
        super().__init__(smss, initial_window)
        self._recovering = False
        self._marked_to = 0  # end of the data in flight when a mark began a reduction; 0: none goes on
        self._flight = 0  # RecoverFS
        self._delivered = self._out = 0  # prr_delivered, prr_out
        self._before: tuple[int, int] | None = None
        """cwnd and ssthresh before the last reduction; None if that is final, as one for a mark is."""

    @abstractmethod
    def grow(self, octets: int, now: float, rtt_s: float | None) -> None:
        """Grow in congestion avoidance for octets delivered."""

    @abstractmethod
    def reduced(self, flight: int, now: float) -> int:
        """Return the window, in octets, after congestion that met this flight."""

    def acked(self, sample: Sample) -> None:
        """Grow, or follow PRR in recovery.

        A window that was not used up does not grow, as it says nothing about the path (RFC 7661 in spirit).
        Nor does a window while data only arrives out of order (RFC 5681 section 3.2).
        """
        if self._marked_to:
            self._reduce_for_mark(sample)
        if self._recovering:
            self._reduce_proportionally(sample)
        elif sample.limited and sample.advanced and not self._marked_to:
            octets = sample.delivered
            if self.cwnd < self.ssthresh:
                octets = self.slow_start(octets, sample)
            if octets > 0:
                self.grow(octets, sample.now, sample.rtt_s)

    def slow_start(self, octets: int, sample: Sample) -> int:
        """Grow by the octets delivered. Return those left for congestion avoidance."""
        cwnd = min(self.cwnd + octets, max(self.ssthresh, self.cwnd + self.smss))
        octets -= cwnd - self.cwnd
        self.cwnd = cwnd
        return octets

    def pace(self, srtt_s: float | None, sent: int) -> None:
        """As in Linux: two windows a round trip, and 1.2 after slow start; the first ten segments burst."""
        smss = self.smss
        if srtt_s and sent > _BURST * smss:
            gain = 2.0 if self.cwnd < self.ssthresh // 2 else 1.2
            self.pacing_rate = rate = gain * self.cwnd / srtt_s
            self.quantum = max(2, int(rate * _QUANTUM_S) // smss) * smss

    def _reduce_proportionally(self, sample: Sample) -> None:
        """RFC 6937 section 3, with the reduction bound chosen by SafeACK of its successor."""
        delivered, pipe = sample.delivered, sample.in_flight
        if not delivered:
            if self._out:
                return  # the window stays (RFC 9937 section 6.2)
            delivered = self.smss  # the reordering timer begins recovery, as in Linux
        self._delivered += delivered
        if pipe > self.ssthresh:
            smss = self.smss  # in segments, as in Linux: by octets, each would leave an ACK later
            allowed = self._delivered * (self.ssthresh // smss)
            room = -(-allowed // max(self._flight, 1)) * smss - self._out
        else:
            room = max(self._delivered - self._out, delivered)
            if sample.advanced and not sample.lost:
                room += self.smss
            room = min(self.ssthresh - pipe, room)
        if sample.partial or not self._out:
            room = max(room, self.smss)  # the fast retransmit; each one without SACK (RFC 6582 section 3.2)
        self.cwnd = max(pipe + max(room, 0), self.smss)

    def sent(self, now: float, octets: int, in_flight: int, *, app_limited: bool) -> None:
        """Count what leaves in recovery."""
        if self._recovering:
            self._out += octets

    def _reduce(self, flight: int, now: float) -> None:
        self._before = self.cwnd, self.ssthresh
        self.ssthresh = max(self.reduced(flight, now), 2 * self.smss)

    def lost(self, now: float, in_flight: int, flight: int) -> None:
        """Reduce ssthresh at once, and the window in the course of a round trip.

        Data of limited transmit is beyond cwnd, and does not count (RFC 5681 section 3.2).
        """
        flight = min(flight, self.cwnd)
        if not self._marked_to:  # else it is the congestion that the mark told
            self._reduce(flight, now)
        self._marked_to = 0
        self._recovering = True
        self._flight = flight
        self._delivered = self._out = 0

    def recovered(self, now: float, in_flight: int) -> None:
        """Set the window to what the reduction allows."""
        if self._recovering:
            self._recovering = False
            self.cwnd = self.ssthresh

    def timed_out(self, now: float, in_flight: int, flight: int, *, again: bool) -> None:
        """Reduce the window to one segment, and ssthresh once for the same data (RFC 5681 section 3.1).

        In fast recovery it is the same congestion, as in Linux: half of the flight is ssthresh already.
        """
        if not (again or self._recovering or self._marked_to):
            self._reduce(min(flight, self.cwnd), now)
        self._recovering, self._marked_to = False, 0
        self.cwnd = in_flight + self.smss

    def marked(self, sample: Sample) -> None:
        """Reduce the window as for a loss, in the course of a round trip, as Linux does."""
        flight = min(sample.flight, self.cwnd)
        self._reduce(flight, sample.now)
        self._before = None  # to revert this is not up to a loss
        self._flight, self._marked_to = flight, sample.nxt
        self._delivered = self._out = 0
        self._reduce_for_mark(sample)

    def _reduce_for_mark(self, sample: Sample) -> None:
        """Follow PRR until an ACK of data that was sent after the mark was told."""
        if sample.una > self._marked_to:
            self._marked_to = 0
            self.cwnd = self.ssthresh
        elif sample.delivered:
            self._out = sample.nxt - self._marked_to
            self._reduce_proportionally(sample)

    def idle(self, times: int) -> None:
        """Halve the window for each RTO without sending. All that was in flight at a mark is acknowledged."""
        if self._marked_to:
            self._marked_to = 0
            self.cwnd = self.ssthresh
        super().idle(times)

    def repaired(self, now: float, flight: int) -> None:
        """Reduce the window as for a loss, at once."""
        self._reduce(min(flight, self.cwnd), now)
        self._marked_to = 0
        self.cwnd = self.ssthresh

    def undo(self) -> bool:
        """Restore window and threshold, and go on from there."""
        self._recovering = False
        if self._before is None:
            return False
        cwnd, ssthresh = self._before
        self.cwnd, self.ssthresh = max(self.cwnd, cwnd), max(self.ssthresh, ssthresh)
        self._before = None
        return True
