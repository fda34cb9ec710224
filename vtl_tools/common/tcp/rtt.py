"""The retransmission timeout and its round-trip estimate (RFC 6298)."""

from typing import Final

_K: Final = 4
_ALPHA: Final = 1 / 8
_BETA: Final = 1 / 4
_FALLING: Final = 1 / 8
"""A round trip that became much shorter is no reason for a longer timeout: it counts as so much of BETA."""
_SPREAD_MIN_S: Final = 0.2  # as in Linux: a steady path's RTO must not fall below a delayed ACK
INITIAL_RTO_S: Final = 1.0  # (2.1)
RTO_AFTER_SYN_LOST_S: Final = 3.0  # (5.7)


class RTTEstimator:
    """SRTT, RTTVAR and RTO of one connection, in seconds. srtt_s is None before the first sample.

    Each ACK may bring a sample, so many come in a round trip (RFC 6298 section 3 asks for one at least). As
    in Linux, the RTO therefore follows not RTTVAR but its greatest value in a round trip.
    """

    __slots__ = (
        "_max_s", "_min_s", "_most_s", "_round_end", "_spread_min_s", "_spread_s", "backoffs", "rto_s",
        "rttvar_s", "srtt_s", "unanswered",
    )  # fmt: skip

    def __init__(self, min_s: float, max_s: float) -> None:
        self.limit(min_s, max_s)
        self.srtt_s: float | None = None
        self.rttvar_s = 0.0
        self._spread_s = 0.0  # what the RTO is above SRTT
        self._most_s = 0.0  # K times the greatest RTTVAR of this round trip, and the minimum at least
        self._round_end = 0
        self.rto_s = INITIAL_RTO_S
        self.backoffs = 0  # timeouts since the last sample
        self.unanswered = 0  # retransmissions since new data was acknowledged, or a zero window announced

    def limit(self, min_s: float, max_s: float) -> None:
        """Limit the RTO from now on. It exceeds SRTT by the minimum, or by 0.2 s if that is less."""
        self._min_s, self._max_s = min_s, max_s
        self._spread_min_s = min(min_s, _SPREAD_MIN_S)

    def sample(self, rtt_s: float, una: int, nxt: int) -> None:
        """Add a round-trip time, of data sent only once or told apart by a timestamp. It ends the backoff.

        una, nxt: SND.UNA and SND.NXT, as positions: they tell when a round trip is over.
        """
        self.backoffs = 0
        if self.srtt_s is None:  # (2.2)
            self.srtt_s, self.rttvar_s = rtt_s, rtt_s / 2
            self._spread_s = self._most_s = max(_K * self.rttvar_s, self._spread_min_s)
            self._round_end = nxt
        else:  # (2.3): RTTVAR before SRTT
            error_s = rtt_s - self.srtt_s
            change_s = (error_s if error_s > 0 else -error_s) - self.rttvar_s
            if error_s < 0 < change_s:
                change_s *= _FALLING
            self.rttvar_s += _BETA * change_s
            self.srtt_s += _ALPHA * error_s
            self._spread(una, nxt)
        rto_s = self.srtt_s + self._spread_s
        if rto_s < self._min_s:  # (2.4)
            rto_s = self._min_s
        self.rto_s = rto_s if rto_s < self._max_s else self._max_s

    def _spread(self, una: int, nxt: int) -> None:
        """Widen the RTO at once, and narrow it once a round trip, by a quarter of what is too much."""
        spread_s = _K * self.rttvar_s
        if spread_s > self._most_s:
            self._most_s = spread_s
            if spread_s > self._spread_s:
                self._spread_s = spread_s
        if una > self._round_end:
            if self._most_s < self._spread_s:
                self._spread_s -= _BETA * (self._spread_s - self._most_s)
            self._round_end, self._most_s = nxt, self._spread_min_s

    @property
    def timeout_s(self) -> float:
        """RTO, doubled for each timeout in a row (5.5), up to the maximum (2.5)."""
        return self.after(self.backoffs) if self.backoffs else self.rto_s

    def after(self, times: int) -> float:
        """Return RTO, doubled so many times."""
        return min(self.rto_s * (1 << min(times, 16)), self._max_s)

    def back_off(self) -> None:
        """Record a timeout, upon which something is retransmitted."""
        self.backoffs += 1
        self.unanswered += 1

    def answered(self) -> None:
        """Record that new data was acknowledged, or a probe answered: the path is alive.

        The backoff continues until there is a sample (Karn's algorithm, RFC 6298 section 5).
        """
        self.unanswered = 0

    def restart(self) -> None:
        """End the backoff of a SYN, or of probes of a zero window."""
        self.backoffs = self.unanswered = 0

    def handshake_was_slow(self) -> None:
        """Restart with three seconds if the SYN timed out and there is no sample (5.7)."""
        if self.srtt_s is None:
            self.rto_s = RTO_AFTER_SYN_LOST_S
