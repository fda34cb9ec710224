"""The model of the path that BBR keeps (draft-ietf-ccwg-bbr section 5.5): bandwidth, round trip, bounds."""

from typing import Final

from vtl_tools.common.tcp.congestion.base import UNLIMITED, Sample

_BETA: Final = 0.7
_MIN_RTT_S: Final = 10.0  # BBR.MinRTTFilterLen
_PROBE_RTT_INTERVAL_S: Final = 5.0
_PROBE_RTT_TRIPS: Final = 20
"""Round trips from one probe of the round trip to the next at least: a probe takes two of them."""
_EXTRA_ROUNDS: Final = 5  # of each of two buckets: BBR.ExtraAckedFilterLen is 10
_LOSS: Final = 0.02  # BBR.LossThresh, while there is a queue
_LOSS_WITHOUT_QUEUE: Final = 0.1
_FEW: Final = 2  # segments lost in a round trip that tell nothing
_QUEUE: Final = 1.5  # a round trip of so much more than the minimum shows one
_QUEUE_S: Final = 0.004
_SMOOTH: Final = 0.125
_NONE: Final = float("inf")


class PathModel:
    """Octets, seconds, and octets a second. The names are the draft's.

    bw: bandwidth to use. max_bw, min_rtt_s: the long-term estimates. bw_lo, inflight_lo: short-term bounds;
    inflight_hi: the long-term one. round_start, loss_round_start: this acknowledgement begins a round trip.
    loss_events: acknowledgements of this round that told of loss. loss_share: share of the octets sent that
    is lost without a queue, smoothed.
    """

    __slots__ = (
        "_delivered_in_round", "_excessive", "_extra", "_extra_at", "_extra_delivered", "_extra_round",
        "_last_rtt_s", "_loss_in_round", "_loss_round_end", "_lost_in_round", "_max_bw", "_min_rtt_at",
        "_probe_rtt_at", "_probe_rtt_min_s", "_round_end", "_round_rtt_s", "bw", "bw_latest", "bw_lo",
        "delivered", "inflight_hi", "inflight_latest", "inflight_lo", "is_probe_rtt_due", "loss_events",
        "loss_round_start", "loss_share", "min_rtt_s", "round_start", "rounds",
    )  # fmt: skip

    def __init__(self) -> None:
        self.bw = 0.0
        self._max_bw = [0.0, 0.0]  # of the last cycle, and of this
        self.min_rtt_s: float | None = None
        self._min_rtt_at = self._probe_rtt_at = 0.0
        self._probe_rtt_min_s = _NONE
        self.is_probe_rtt_due = False
        self.bw_lo = _NONE
        self.inflight_lo = self.inflight_hi = UNLIMITED
        self.bw_latest = 0.0
        self.inflight_latest = 0
        self.delivered = self.rounds = self._round_end = self._loss_round_end = 0
        self.round_start = self.loss_round_start = False
        self._loss_in_round = self._excessive = False
        self._lost_in_round = self._delivered_in_round = self.loss_events = 0
        self.loss_share = 0.0
        self._round_rtt_s = _NONE
        self._last_rtt_s = _NONE
        self._extra = [0, 0]
        self._extra_at, self._extra_delivered, self._extra_round = 0.0, 0, 0

    def begin(self, now: float, rtt_s: float | None) -> None:
        """Start with the round trip of the handshake."""
        self.min_rtt_s = rtt_s
        self._min_rtt_at = self._probe_rtt_at = self._extra_at = now
        if rtt_s is not None:
            self._probe_rtt_min_s = rtt_s

    @property
    def max_bw(self) -> float:
        """BBR.max_bw: the maximum of the last two probing cycles."""
        return max(self._max_bw)

    @property
    def extra_acked(self) -> int:
        """BBR.extra_acked: octets that acknowledgements come too early by, when they come together."""
        return max(self._extra)

    @property
    def is_loss_excessive(self) -> bool:
        """Whether the loss of the round that has ended is congestion."""
        return self._excessive

    @property
    def has_queue(self) -> bool:
        """Whether all of this round and the last took longer: a single delay may be a busy machine's."""
        least_s, seen_s = self.min_rtt_s, min(self._round_rtt_s, self._last_rtt_s)
        return least_s is None or seen_s > _QUEUE * least_s + _QUEUE_S

    @property
    def _limit(self) -> float:
        """The share of loss that is a sign of congestion."""
        return _LOSS if self.has_queue else _LOSS_WITHOUT_QUEUE

    def is_too_high(self, sample: Sample, smss: int) -> bool:
        """BBRIsInflightTooHigh."""
        return sample.lost_since > sample.tx_in_flight * self._limit + _FEW * smss

    # --- an acknowledgement

    def update(self, sample: Sample, cwnd: int, smss: int, *, startup: bool, probing: bool) -> None:
        """Update the estimates, apart from the minimum round trip. cwnd: the window before it."""
        self.delivered = sample.total
        self.round_start = self.loss_round_start = False
        rate = sample.rate
        if sample.prior >= 0:
            if sample.prior >= self._round_end:
                self.start_round()
                self.rounds += 1
                self.round_start = True
            if rate > self.bw_latest:
                self.bw_latest = rate
            self.inflight_latest = max(self.inflight_latest, sample.total - sample.prior)
            if sample.prior >= self._loss_round_end:
                self._loss_round_end = sample.total
                self.loss_round_start = True
            if rate and (rate >= self.max_bw or not sample.app_limited) and rate > self._max_bw[1]:
                self._max_bw[1] = rate
        self._delivered_in_round += sample.delivered
        if sample.rtt_s is not None and sample.rtt_s < self._round_rtt_s:
            self._round_rtt_s = sample.rtt_s
        if sample.lost:
            self.loss_events += 1
            self._lost_in_round += sample.lost
            self._loss_in_round = True
        if self.loss_round_start:
            total = self._lost_in_round + self._delivered_in_round
            self._excessive = self._loss_in_round and (
                self._lost_in_round > total * self._limit + _FEW * smss or self._round_rtt_s == _NONE
            )
            if self._excessive:
                self.loss_share = 0.0
                if not probing:
                    self._lower_bounds(cwnd)
            elif total:
                share = self._lost_in_round / total if not self.has_queue else 0.0
                self.loss_share += _SMOOTH * (share - self.loss_share)
        self._aggregate(sample, cwnd, startup=startup)
        self._bound()

    def _lower_bounds(self, cwnd: int) -> None:
        """BBRInitLowerBounds, BBRLossLowerBounds."""
        self.bw_lo = max(self.bw_latest, _BETA * min(self.bw_lo, self.max_bw))
        low = cwnd if self.inflight_lo >= UNLIMITED else self.inflight_lo
        self.inflight_lo = max(self.inflight_latest, int(_BETA * low))

    def advance(self, sample: Sample) -> None:
        """BBRAdvanceLatestDeliverySignals, after all else has looked at the round."""
        if self.loss_round_start:
            self.bw_latest = sample.rate
            self.inflight_latest = sample.total - sample.prior
            self._end_loss_round()
        self._bound()

    def _end_loss_round(self) -> None:
        self._loss_in_round = False
        self._lost_in_round = self._delivered_in_round = self.loss_events = 0
        self._last_rtt_s, self._round_rtt_s = self._round_rtt_s, _NONE

    def _bound(self) -> None:
        """BBRBoundBWForModel."""
        self.bw = min(self.max_bw, self.bw_lo)

    def _aggregate(self, sample: Sample, cwnd: int, *, startup: bool) -> None:
        """BBRUpdateACKAggregation."""
        if self.round_start and self.rounds >= self._extra_round + (1 if startup else _EXTRA_ROUNDS):
            self._extra = [self._extra[1], 0]
            self._extra_round = self.rounds
        expected = self.bw * (sample.now - self._extra_at)
        if self._extra_delivered <= expected:
            self._extra_delivered, self._extra_at, expected = 0, sample.now, 0.0
        self._extra_delivered += sample.delivered
        self._extra[1] = max(self._extra[1], min(int(self._extra_delivered - expected), cwnd))

    def update_min_rtt(self, sample: Sample) -> None:
        """BBRUpdateMinRTT."""
        now = sample.now
        interval_s = max(_PROBE_RTT_INTERVAL_S, _PROBE_RTT_TRIPS * (self.min_rtt_s or 0.0))
        self.is_probe_rtt_due = now > self._probe_rtt_at + interval_s
        rtt_s = sample.rtt_s
        if rtt_s is not None and rtt_s > 0 and (rtt_s < self._probe_rtt_min_s or self.is_probe_rtt_due):
            self._probe_rtt_min_s, self._probe_rtt_at = rtt_s, now
        old = now > self._min_rtt_at + _MIN_RTT_S
        if self._probe_rtt_min_s < _NONE and (
            self.min_rtt_s is None or self._probe_rtt_min_s < self.min_rtt_s or old
        ):
            self.min_rtt_s, self._min_rtt_at = self._probe_rtt_min_s, self._probe_rtt_at

    # --- the state machine

    def start_round(self) -> None:
        """BBRStartRound: the round ends when data sent from now on is delivered."""
        self._round_end = self.delivered

    def advance_max_bw(self) -> None:
        """BBRAdvanceMaxBwFilter."""
        if self._max_bw[1]:
            self._max_bw = [self._max_bw[1], 0.0]
        self._bound()

    def reset_congestion(self) -> None:
        """BBRResetCongestionSignals."""
        self.bw_latest, self.inflight_latest = 0.0, 0
        self._end_loss_round()

    def reset_lower_bounds(self) -> None:
        """BBRResetShortTermModel."""
        self.bw_lo, self.inflight_lo = _NONE, UNLIMITED
        self._bound()

    def note_loss(self) -> None:
        """BBRNoteLoss."""
        self._loss_in_round = True

    def restart(self, now: float) -> None:
        """Begin to count aggregation after an idle time."""
        self._extra_at, self._extra_delivered = now, 0

    def probed_rtt(self, now: float) -> None:
        """Schedule the next probe of the round trip."""
        self._probe_rtt_at = now
