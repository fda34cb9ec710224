"""Congestion control BBR, version 3 (draft-ietf-ccwg-bbr): a model of the path, and probes of it.

The sender paces at the estimated bottleneck bandwidth, and keeps about twice the bandwidth-delay product in
flight at most. The names are the draft's, in model.py and here.

Two departures. The first is loss without a queue. The draft takes more than 2 % of loss in a round as a full
buffer. Here that holds only while the round trip shows a queue; otherwise the limit is 10 %, and less loss
than the limit does not lower the short-term bounds, and is made up for by the pacing rate. A radio link that
loses 5 % is thus used, as by version 1, and a shallow buffer, which loses a fifth of what probes beyond it,
is still respected. The second is loss while little is in flight, which no probe can have caused: where the
window of the peer has stopped the sender, all that is in flight are holes, and those of them that are lost
again are a large share. It bounds nothing.
"""

from enum import Enum, auto
from typing import ClassVar, Final

from vtl_tools.common.tcp.congestion.base import UNLIMITED, Congestion, Sample
from vtl_tools.common.tcp.congestion.model import PathModel

_STARTUP_GAIN: Final = 2.77  # 4 ln 2
_DRAIN_GAIN: Final = 0.5
_CWND_GAIN: Final = 2.0
_UP_CWND_GAIN: Final = 2.25
_UP_GAIN: Final = 1.25
_DOWN_GAIN: Final = 0.9
_MARGIN: Final = 0.01  # BBRPacingMarginPercent
_BETA: Final = 0.7
_HEADROOM: Final = 0.15
_STARTUP_LOSSES: Final = 6  # BBRStartupFullLossCnt
_PROBE_RTT_S: Final = 0.2
_PROBE_RTT_GAIN: Final = 0.5
_PIPE_MIN: Final = 4  # BBRMinPipeCwnd, in segments
_RENO_ROUNDS_MAX: Final = 63
_QUANTUM_MAX: Final = 65_000
_QUANTUM_S: Final = 0.001


class Phase(Enum):
    """BBR.state."""

    STARTUP = auto()
    DRAIN = auto()
    DOWN = auto()
    CRUISE = auto()
    REFILL = auto()
    UP = auto()
    PROBE_RTT = auto()


class Acks(Enum):
    """BBR.ack_phase: how acknowledgements relate to the last probe."""

    INIT = auto()
    REFILLING = auto()
    STARTING = auto()
    FEEDBACK = auto()
    STOPPING = auto()


_GAINS: Final = {
    Phase.STARTUP: (_STARTUP_GAIN, _CWND_GAIN),
    Phase.DRAIN: (_DRAIN_GAIN, _CWND_GAIN),
    Phase.DOWN: (_DOWN_GAIN, _CWND_GAIN),
    Phase.CRUISE: (1.0, _CWND_GAIN),
    Phase.REFILL: (1.0, _CWND_GAIN),
    Phase.UP: (_UP_GAIN, _UP_CWND_GAIN),
    Phase.PROBE_RTT: (1.0, _PROBE_RTT_GAIN),
}
_PROBE_BW: Final = frozenset((Phase.DOWN, Phase.CRUISE, Phase.REFILL, Phase.UP))
_PROBING: Final = frozenset((Phase.STARTUP, Phase.REFILL, Phase.UP))


class Bbr(Congestion):
    """The state machine of section 5.3, and the control parameters of section 5.6."""

    __slots__ = (
        "_acks", "_conserve_to", "_cycle_at", "_done_at", "_full_bw", "_full_bw_count", "_full_bw_now",
        "_idle", "_prior_cwnd", "_probe_wait_s", "_recovering", "_round_done", "_rounds_since_probe",
        "_samples_probe", "_up_acks", "_up_count", "_up_rounds", "filled", "model", "phase",
    )  # fmt: skip

    name: ClassVar[str] = "bbr"

    def __init__(self, smss: int, initial_window: int) -> None:
        super().__init__(smss, initial_window)
        self.samples = True
        self.model = PathModel()
        self.phase = Phase.STARTUP
        self.filled = False  # BBR.full_bw_reached
        self._full_bw = 0.0
        self._full_bw_count = 0
        self._full_bw_now = False
        self._acks = Acks.INIT
        self._cycle_at = self._done_at = self._probe_wait_s = 0.0
        self._round_done = self._idle = self._recovering = self._samples_probe = False
        self._rounds_since_probe = 0
        self._prior_cwnd = self._conserve_to = 0
        self._up_rounds = self._up_acks = 0
        self._up_count = UNLIMITED

    # --- the interface

    def opened(self, now: float, rtt_s: float | None) -> None:
        """Pace the initial window (BBRInitPacingRate)."""
        self.pacing_rate = _STARTUP_GAIN * self.cwnd / (rtt_s or 0.001)
        self._set_quantum()
        self.model.begin(now, rtt_s)

    def acked(self, sample: Sample) -> None:
        """BBRUpdateOnACK."""
        model = self.model
        probing = self.phase in _PROBING
        model.update(sample, self.cwnd, self.smss, startup=not self.filled, probing=probing)
        if model.round_start:
            self._rounds_since_probe += 1
        if not self.filled:
            self._check_full_bw(sample)
            self._check_startup_loss(sample)
            if self.filled and self.phase is Phase.STARTUP:
                self.phase = Phase.DRAIN
        elif self.phase is Phase.UP:
            self._check_full_bw(sample)
        if self.phase is Phase.DRAIN and sample.in_flight <= self._inflight(1.0):
            self._go_down(sample.now)
        if self.filled:
            self._adapt_upper_bound(sample)
            self._cycle(sample)
        model.update_min_rtt(sample)
        self._check_probe_rtt(sample)
        model.advance(sample)
        self._set_pacing_rate()
        self._set_cwnd(sample)

    def lost(self, now: float, in_flight: int, flight: int) -> None:
        """BBROnEnterFastRecovery: conserve packets for a round trip, if there is a queue."""
        self._save_cwnd()
        self._recovering = True
        if self.model.has_queue:
            self.cwnd = in_flight + self.smss
            self._conserve_to = self.model.delivered

    def timed_out(self, now: float, in_flight: int, flight: int, *, again: bool) -> None:
        """BBROnEnterRTO."""
        self._save_cwnd()
        self._recovering = True
        self._conserve_to = 0
        self.cwnd = in_flight + self.smss

    def recovered(self, now: float, in_flight: int) -> None:
        """BBROnExitLossRecovery."""
        self._recovering = False
        self.cwnd = max(self.cwnd, self._prior_cwnd)

    def undo(self) -> bool:
        """Forget what spurious loss has taught (BBR.undo_state of section 5.5.11)."""
        self._recovering = False
        self.cwnd = max(self.cwnd, self._prior_cwnd)
        self.model.reset_lower_bounds()
        return True

    def marked(self, sample: Sample) -> None:
        """Take a mark as loss in this round."""
        self.model.note_loss()

    def repaired(self, now: float, flight: int) -> None:
        """Take a repaired tail as loss in this round."""
        self.model.note_loss()

    def sent(self, now: float, octets: int, in_flight: int, *, app_limited: bool) -> None:
        """BBRHandleRestartFromIdle."""
        if not in_flight and app_limited:
            self._idle = True
            self.model.restart(now)
            if self.phase in _PROBE_BW:
                self.pacing_rate = max(self.model.bw, 2 * self.smss)
            elif self.phase is Phase.PROBE_RTT:
                self._end_probe_rtt(now)

    def idle(self, times: int) -> None:
        """Keep the window: what leaves after an idle time is paced."""

    # --- startup

    def _check_full_bw(self, sample: Sample) -> None:
        """5.3.1.2: three rounds without a quarter more bandwidth."""
        if self._full_bw_now or not self.model.round_start or sample.app_limited or not sample.rate:
            return
        if sample.rate >= self._full_bw * 1.25:
            self._reset_full_bw(sample.rate)
            return
        self._full_bw_count += 1
        self._full_bw_now = self._full_bw_count >= 3
        if self._full_bw_now:
            self.filled = True

    def _reset_full_bw(self, rate: float) -> None:
        self._full_bw, self._full_bw_count, self._full_bw_now = rate, 0, False

    def _check_startup_loss(self, sample: Sample) -> None:
        """5.3.1.3: a round of too much loss, in enough places."""
        model = self.model
        if (
            model.loss_round_start
            and not sample.app_limited
            and model.loss_events >= _STARTUP_LOSSES
            and model.is_loss_excessive
        ):
            self.filled = True
            model.inflight_hi = max(self._bdp(1.0), model.inflight_latest)

    # --- probing for bandwidth

    def _go_down(self, now: float) -> None:
        model = self.model
        model.reset_congestion()
        self._up_count = UNLIMITED
        chance = model.delivered * 2654435761 & 0xFFFF  # no source of randomness here: spread is enough
        self._rounds_since_probe = chance & 1
        self._probe_wait_s = 2.0 + (chance >> 1) / 0x8000
        self._cycle_at = now
        self._acks = Acks.STOPPING
        model.start_round()
        self.phase = Phase.DOWN

    def _refill(self) -> None:
        self.model.reset_lower_bounds()
        self._up_rounds = self._up_acks = 0
        self._acks = Acks.REFILLING
        self.model.start_round()
        self.phase = Phase.REFILL

    def _go_up(self, sample: Sample) -> None:
        self._acks = Acks.STARTING
        self.model.start_round()
        self._reset_full_bw(sample.rate)
        self._cycle_at = sample.now
        self.phase = Phase.UP
        self._raise_slope()

    def _cycle(self, sample: Sample) -> None:
        """BBRUpdateProbeBWCyclePhase."""
        phase = self.phase
        if phase is Phase.DOWN:
            if not self._time_to_probe(sample) and self._time_to_cruise(sample):
                self.phase = Phase.CRUISE
        elif phase is Phase.CRUISE:
            self._time_to_probe(sample)
        elif phase is Phase.REFILL:
            if self.model.round_start:
                self._samples_probe = True
                self._go_up(sample)
        elif phase is Phase.UP and self._time_to_go_down(sample):
            self._go_down(sample.now)

    def _time_to_probe(self, sample: Sample) -> bool:
        target = min(self._bdp(1.0), self.cwnd)
        reno = min(target // self.smss, _RENO_ROUNDS_MAX)
        if sample.now > self._cycle_at + self._probe_wait_s or self._rounds_since_probe >= reno:
            self._refill()
            return True
        return False

    def _time_to_cruise(self, sample: Sample) -> bool:
        return sample.in_flight <= min(self._with_headroom(), self._inflight(1.0))

    def _time_to_go_down(self, sample: Sample) -> bool:
        if self._is_cwnd_limited(sample) and self.cwnd >= self.model.inflight_hi:
            self._reset_full_bw(sample.rate)
            return False
        return self._full_bw_now

    def _is_cwnd_limited(self, sample: Sample) -> bool:
        return sample.before + self.smss + min(self.quantum, _QUANTUM_MAX) > self.cwnd

    def _adapt_upper_bound(self, sample: Sample) -> None:
        """BBRAdaptLongTermModel."""
        model = self.model
        if model.round_start:
            if self._acks is Acks.STARTING:
                self._acks = Acks.FEEDBACK
            elif self._acks is Acks.STOPPING:
                self._samples_probe = False
                self._acks = Acks.INIT
                if self.phase in _PROBE_BW and not sample.app_limited:
                    model.advance_max_bw()
        if sample.prior < 0:
            return
        least = int(min(self._bdp(1.0), self.cwnd) * _BETA)
        if sample.tx_in_flight >= least and model.is_too_high(sample, self.smss):
            if self._samples_probe:
                self._samples_probe = False
                if not sample.app_limited:
                    model.inflight_hi = sample.tx_in_flight
                if self.phase is Phase.UP:
                    self._go_down(sample.now)
        elif model.inflight_hi < UNLIMITED:
            model.inflight_hi = max(model.inflight_hi, sample.tx_in_flight)
            if self.phase is Phase.UP:
                self._probe_upward(sample)

    def _probe_upward(self, sample: Sample) -> None:
        """BBRProbeInflightLongTermUpward."""
        if not self._is_cwnd_limited(sample) or self.cwnd < self.model.inflight_hi:
            return
        self._up_acks += sample.delivered
        if self._up_acks >= self._up_count:
            delta, self._up_acks = divmod(self._up_acks, self._up_count)
            self.model.inflight_hi += delta * self.smss
        if self.model.round_start:
            self._raise_slope()

    def _raise_slope(self) -> None:
        growth = 1 << self._up_rounds
        self._up_rounds = min(self._up_rounds + 1, 30)
        self._up_count = max(self.cwnd // growth, self.smss)

    # --- probing for the round trip

    def _check_probe_rtt(self, sample: Sample) -> None:
        model, now = self.model, sample.now
        if self.phase is not Phase.PROBE_RTT and model.is_probe_rtt_due and not self._idle:
            self._save_cwnd()
            self.phase = Phase.PROBE_RTT
            self._done_at = 0.0
            self._acks = Acks.STOPPING
            model.start_round()
        if self.phase is Phase.PROBE_RTT:
            if not self._done_at:
                if sample.in_flight <= self._probe_rtt_cwnd():
                    self._done_at = now + _PROBE_RTT_S
                    self._round_done = False
                    model.start_round()
            else:
                self._round_done |= model.round_start
                if self._round_done and now > self._done_at:
                    self._end_probe_rtt(now)
        if sample.delivered:
            self._idle = False

    def _end_probe_rtt(self, now: float) -> None:
        if not self._done_at or now <= self._done_at:
            return
        self.model.probed_rtt(now)
        self.cwnd = max(self.cwnd, self._prior_cwnd)
        self.model.reset_lower_bounds()
        if self.filled:
            self._go_down(now)
            self.phase = Phase.CRUISE
        else:
            self.phase = Phase.STARTUP

    def _probe_rtt_cwnd(self) -> int:
        return max(self._bdp(_PROBE_RTT_GAIN), _PIPE_MIN * self.smss)

    # --- the control parameters

    def _bdp(self, gain: float) -> int:
        rtt_s = self.model.min_rtt_s
        return self.initial_octets(self.smss) if rtt_s is None else int(gain * self.model.bw * rtt_s)

    def _inflight(self, gain: float) -> int:
        """BBRInflight: a multiple of the product, with room for the quanta of both ends."""
        least = max(3 * min(self.quantum, _QUANTUM_MAX), _PIPE_MIN * self.smss)
        inflight = max(self._bdp(gain), least)
        return inflight + 2 * self.smss if self.phase is Phase.UP else inflight

    def _with_headroom(self) -> int:
        high = self.model.inflight_hi
        if high >= UNLIMITED:
            return UNLIMITED
        return max(high - max(self.smss, int(_HEADROOM * high)), _PIPE_MIN * self.smss)

    def _set_pacing_rate(self) -> None:
        rate = _GAINS[self.phase][0] * self.model.bw * (1 - _MARGIN) / (1 - self.model.loss_share)
        if rate and (self.filled or self.pacing_rate is None or rate > self.pacing_rate):
            self.pacing_rate = rate
            self._set_quantum()

    def _set_quantum(self) -> None:
        rate = self.pacing_rate or 0.0
        self.quantum = int(max(min(rate * _QUANTUM_S, _QUANTUM_MAX), 2 * self.smss))

    def _set_cwnd(self, sample: Sample) -> None:
        model, smss = self.model, self.smss
        most = self._inflight(_GAINS[self.phase][1]) + model.extra_acked
        if self._conserve_to and sample.prior >= self._conserve_to:
            self._conserve_to = 0
        if self._conserve_to and self._recovering:
            self.cwnd = max(self.cwnd, sample.in_flight + max(sample.delivered, smss))
        elif self.filled:
            if sample.lost and self._recovering and model.has_queue:
                self.cwnd = max(self.cwnd - sample.lost, smss)
            self.cwnd = min(self.cwnd + sample.delivered, most)
        elif self.cwnd < most or model.delivered < self.initial_octets(smss):
            self.cwnd += sample.delivered
        self.cwnd = max(self.cwnd, _PIPE_MIN * smss)
        if self.phase is Phase.PROBE_RTT:
            self.cwnd = min(self.cwnd, self._probe_rtt_cwnd())
        cap = UNLIMITED
        if self.phase in (Phase.CRUISE, Phase.PROBE_RTT):
            cap = self._with_headroom()
        elif self.phase in _PROBE_BW:
            cap = model.inflight_hi
        cap = max(min(cap, model.inflight_lo), _PIPE_MIN * smss)
        self.cwnd = min(self.cwnd, cap)

    def _save_cwnd(self) -> None:
        """BBRSaveCwnd."""
        if self._recovering or self.phase is Phase.PROBE_RTT:
            self._prior_cwnd = max(self._prior_cwnd, self.cwnd)
        else:
            self._prior_cwnd = self.cwnd
