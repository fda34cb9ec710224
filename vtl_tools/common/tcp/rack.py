"""Loss detection by time (RFC 8985): a segment is lost if one sent later was delivered long enough ago."""

from typing import Final

from vtl_tools.common.tcp.flight import Flight, Run

DUP_THRESH: Final = 3
_PERSIST: Final = 16  # recoveries for which a wider window is kept
_MULT_MAX: Final = 64
_MIN_RTT_S: Final = 300.0
"""Age at which a minimum is replaced: the path may have become longer."""
_TICKS: Final = 256  # of a round trip: so exact are its samples, and a window is some hundred runs
_NONE: Final = float("inf")
_EPSILON_S: Final = 1e-6
_HALF: Final = 0x8000_0000
_MASK: Final = 0xFFFF_FFFF


class Rack:
    """RACK.* of one connection (section 5.2). xmit_at, end: of the segment delivered that was sent last.

    min_rtt_s: infinite before the first sample. fack: the highest position delivered. reordered: how many
    ACKs told of a segment that arrived after one sent later. extent: octets that it was overtaken by, at
    most. mult, persist: RACK.reo_wnd_mult, RACK.reo_wnd_persist. round_end: SND.NXT when a D-SACK last
    widened the window.
    tick_s: data that is sent within so many seconds counts as sent at one time.
    """

    __slots__ = (
        "_min_at", "end", "extent", "fack", "min_rtt_s", "mult", "persist", "reordered", "round_end", "rtt_s",
        "tick_s", "xmit_at",
    )  # fmt: skip

    def __init__(self) -> None:
        self.xmit_at, self.end, self.fack, self.rtt_s = 0.0, 0, 0, 0.0
        self.min_rtt_s = _NONE
        self.tick_s = 0.0
        self._min_at = 0.0
        self.reordered = 0
        self.extent = 0
        self.mult, self.persist, self.round_end = 1, _PERSIST, 0

    def measured(self, rtt_s: float, now: float) -> None:
        """Step 1: update the minimum round trip, by data sent only once."""
        if 0 < rtt_s <= self.min_rtt_s or now - self._min_at > _MIN_RTT_S:
            self.min_rtt_s, self._min_at = rtt_s, now
            self.tick_s = rtt_s / _TICKS

    def delivered(self, run: Run, now: float, echo_ms: int | None) -> None:
        """Steps 2 and 3. echo_ms: the time that the peer echoes, in milliseconds, mod 2**32."""
        if run.again:  # it may be the original that was delivered
            rtt_s = now - run.sent_at
            if echo_ms is not None and (echo_ms - int(run.sent_at * 1000)) & _MASK >= _HALF:
                return
            if rtt_s + _EPSILON_S < self.min_rtt_s < _NONE:
                return
        elif run.end < self.fack:
            self.reordered += 1
            self.extent = max(self.extent, self.fack - run.start)
        self.rtt_s = now - run.sent_at
        if run.is_after(self.xmit_at, self.end):
            self.xmit_at, self.end = run.sent_at, run.end
        if run.end > self.fack:
            self.fack = run.end

    def duplicated(self, una: int, nxt: int) -> None:
        """Widen the window after a D-SACK, at most once a round trip."""
        if una >= self.round_end:
            self.round_end = nxt
            self.mult = min(self.mult + 1, _MULT_MAX)
            self.persist = _PERSIST

    def recovered(self) -> None:
        """Narrow the window again after enough recoveries without a D-SACK."""
        self.persist -= 1
        if self.persist <= 0:
            self.mult = 1

    def window_s(self, flight: Flight, srtt_s: float, *, recovering: bool) -> float:
        """Step 4: RACK.reo_wnd."""
        if not self.reordered and (recovering or flight.segments >= DUP_THRESH):
            return 0.0
        least_s = min(self.min_rtt_s, srtt_s)
        return min(self.mult * least_s / 4, srtt_s)

    def detect(self, flight: Flight, window_s: float, now: float) -> tuple[int, bool, float]:
        """Step 5: mark lost octets. Return them, whether a retransmission is among them, and a time.

        The time is that until the next would be lost; 0.0 if none waits.
        """
        lost, again, wait_s = 0, False, 0.0
        for run in flight.runs:
            if run.sacked or run.lost:
                continue
            if run.sent_at > self.xmit_at or (
                run.sent_at == self.xmit_at and (run.end >= self.end or (run.again and not self.rtt_s))
            ):
                if not run.again:
                    break  # originals are sent in order
                continue
            left_s = run.sent_at + self.rtt_s + window_s - now
            if left_s <= _EPSILON_S:
                lost += flight.lose(run)
                again |= run.again
            elif left_s > wait_s:
                wait_s = left_s
        return lost, again, wait_s

    def timed_out(self, flight: Flight, window_s: float, now: float) -> int:
        """Mark the first segment as lost, and those whose time is over (section 6.3). Return their octets."""
        lost = 0
        for i, run in enumerate(flight.runs):
            if not run.sacked and not run.lost:
                if i and run.sent_at + self.rtt_s + window_s - now > _EPSILON_S:
                    continue
                lost += flight.lose(run)
        return lost
