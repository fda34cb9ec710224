"""The transmission control block: the variables and timers of one connection (RFC 9293 section 3.3.1)."""

import logging
from collections import defaultdict
from typing import Final

from vtl_tools.common.tcp.accurate import AccurateECN
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.cookies import FastOpen
from vtl_tools.common.tcp.rcv import Receiver
from vtl_tools.common.tcp.rtt import RTTEstimator
from vtl_tools.common.tcp.snd import Sender
from vtl_tools.common.tcp.state import CLOSED, TIME_WAIT, Ended, SegmentDrop, State
from vtl_tools.common.tcp.wire import Framer, Path, Pieces

log = logging.getLogger(__name__)

NEVER: Final = float("inf")
_ROOT: Final = logging.getLogger()
_DEBUG: Final = 10  # logging.DEBUG
_MASK: Final = 0xFFFF_FFFF
_CHALLENGES: Final = 10
_CHALLENGES_S: Final = 5.0
"""Maximum challenge ACKs in a time (RFC 5961 section 7)."""
_PTO_S: Final = 1.0  # before there is a sample
_PTO_MARGIN_S: Final = 0.002  # as in Linux: a delay of an acknowledgement's way, where several are due
_RENEGED_S: Final = 0.01
_WORST_DELAYED_ACK_S: Final = 0.2  # RFC 8985 section 7.2: WCDelAckT


class TCB:
    """The variables of a connection and its timers, each a time or NEVER.

    syn_pending: a SYN has come, and waits for accept() or refuse(). syn_due: a SYN is to be sent, for the
    first time or again. ack_now: an acknowledgement is due. reset_due: a reset is due. before: the connection
    in TIME-WAIT from which a SYN took over, until the handshake is complete. once: a passive opening that
    fails ends the endpoint. out: frames to send at once. ecn: both ends notify of congestion; accurate: in
    the mode of RFC 9768, else that of RFC 3168. ect: new data is ECN-capable. echo_due: a mark is echoed
    until the peer answers it by CWR. fast_open: the cookies of RFC 7413, if it is used; grant: one for our
    SYN-ACK; is_early: data of the SYN was taken, and the handshake is not complete. ts_recent: TS.Recent.
    last_ack: Last.ACK.sent, a position. stalled_since: time since which nothing was acknowledged although
    data is outstanding; None if none is. timed: the position after the SYN and its sending time, for an RTT
    sample.
    retransmit_at: of the RTO, or of a tail loss probe before it (probe_is_next); rto_at: of the RTO.
    quick: acknowledgements that are not delayed. is_interactive: the user answers what it receives, so they
    are delayed.
    reorder_at: time at which data missing below SACKed ranges is considered lost. pace_at: time from which
    the pacing rate lets the next segment leave; paced_at: the same while one waits for it; is_paced: one did
    when segments last left. probe: end of the data in flight when the tail was probed, and whether the probe
    was a retransmission.
    tune_at: when tune() is due; tuned: octets that the user had read at its last call, and its time.
    user_timeout_s: R2 in force; is_timeout_fixed: the user has set it, so the peer does not change it any
    more; user_timeout_due: the peer is to be told ours by the next segment with room (RFC 5482).
    keep_alives: how many were sent since a segment came, the last at kept_alive_at.
    is_deaf: the user reads no more, so data that arrives is answered by a reset.
    held_by: what holds sending, as in limits.py, since held_since; busy_s, window_limited_s and
    buffer_limited_s: sums of such times before that.
    is_logged: changes of state are logged, as was decided at the start.
    """

    __slots__ = (
        "_challenged",
        "_challenges",
        "_drops",
        "accurate",
        "ack_due_octets",
        "ack_now",
        "before",
        "buffer_limited_s",
        "busy_s",
        "config",
        "delayed_at",
        "echo_due",
        "ecn",
        "ect",
        "ended",
        "fast_open",
        "framer",
        "grant",
        "heard_at",
        "held_by",
        "held_since",
        "is_deaf",
        "is_early",
        "is_interactive",
        "is_logged",
        "is_paced",
        "is_timeout_fixed",
        "keep_alives",
        "kept_alive_at",
        "last_ack",
        "once",
        "out",
        "pace_at",
        "paced_at",
        "passive",
        "path",
        "peer_scales",
        "persist_at",
        "persists",
        "probe",
        "probe_is_next",
        "quick",
        "rcv",
        "reorder_at",
        "reset_due",
        "retransmit_at",
        "rto_at",
        "rtt",
        "segments_in",
        "segments_out",
        "sent_at",
        "snd",
        "stalled_since",
        "state",
        "syn_due",
        "syn_pending",
        "time_wait_at",
        "timed",
        "timestamps",
        "ts_offset",
        "ts_recent",
        "ts_recent_at",
        "tune_at",
        "tuned",
        "user_timeout_due",
        "user_timeout_s",
        "window_limited_s",
    )  # fmt: skip

    def __init__(self, path: Path, config: Config) -> None:
        self.path, self.config = path, config
        self.is_logged = _ROOT.level <= _DEBUG and log.isEnabledFor(_DEBUG)
        self.framer = Framer(path, config.ttl, config.dscp)
        self._begin(0)
        self.state: State = CLOSED
        self.ended: Ended | None = None
        self.passive = self.once = self.peer_scales = self.syn_pending = self.syn_due = self.ack_now = (
            self.timestamps
        ) = False
        self.is_deaf = self.reset_due = self.ecn = self.ect = self.echo_due = False
        self.accurate: AccurateECN | None = None
        self.fast_open: FastOpen | None = None
        self.is_early, self.grant = False, b""
        self.before: TCB | None = None
        self.out: list[Pieces] = []
        self._drops: defaultdict[SegmentDrop, int] | None = None
        self.ts_offset = self.ts_recent = 0
        self.ts_recent_at = 0.0
        self.last_ack = 0
        self.retransmit_at = self.persist_at = self.delayed_at = self.time_wait_at = NEVER
        self.reorder_at = self.rto_at = NEVER
        self.pace_at, self.paced_at, self.is_paced = 0.0, NEVER, False
        self.probe_is_next = False
        self.persists = self.keep_alives = 0
        self.probe: tuple[int, bool] | None = None
        self.heard_at = self.sent_at = self.kept_alive_at = 0.0
        self.stalled_since: float | None = None
        self.held_by, self.held_since = 0, 0.0
        self.busy_s = self.window_limited_s = self.buffer_limited_s = 0.0
        self.user_timeout_s = config.user_timeout_s
        self.is_timeout_fixed = self.user_timeout_due = False
        self.timed: tuple[int, float] | None = None
        self.ack_due_octets = self.quick = 0
        self.is_interactive = False
        self.tune_at = NEVER if config.buffer_max is None else 0.0
        self.tuned = 0, 0.0
        self.segments_in = self.segments_out = 0
        self._challenged, self._challenges = 0.0, 0

    @property
    def drops(self) -> defaultdict[SegmentDrop, int]:
        """How many segments were dropped, by reason; of most connections none."""
        if self._drops is None:
            self._drops = defaultdict(int)
        return self._drops

    def _begin(self, iss: int) -> None:
        config = self.config
        self.snd = Sender(config, iss)
        self.rcv = Receiver(config)
        self.rtt = RTTEstimator(config.rto_min_s, config.rto_max_s)

    def listen_again(self) -> None:
        """Return from SYN-RECEIVED to LISTEN: the peer's SYN was not meant (3.10.7.4).

        Our numbers begin at the same ISS: nothing but the SYN-ACK had one.
        """
        self._begin(self.snd.iss)
        self.syn_pending = self.syn_due = self.ack_now = self.timestamps = self.peer_scales = False
        self.ecn = self.ect = self.echo_due = False
        self.accurate, self.grant = None, b""
        if not self.is_timeout_fixed:
            self.user_timeout_s = self.config.user_timeout_s
        self.retransmit_at = self.rto_at = NEVER
        self.stalled_since = self.timed = None
        self.ts_recent = self.last_ack = 0
        self.become(State.LISTEN)

    def become(self, state: State) -> None:
        """Change the state. No other code changes it."""
        if self.is_logged:
            ends = self.path.remote.hex(), self.path.remote_port
            log.debug("%s:%d: %s -> %s", *ends, self.state.value, state.value)
        self.state = state

    def end(self, why: Ended) -> None:
        """Enter CLOSED, finally. Data received in order can still be read."""
        if self.ended is None:
            self.ended = why
        self._end_early(was_reset=why is Ended.RESET)
        self.become(CLOSED)
        self.retransmit_at = self.persist_at = self.delayed_at = self.time_wait_at = NEVER
        self.reorder_at = self.paced_at = NEVER
        self.stalled_since = None
        self.held_by = 0
        self.syn_pending = self.syn_due = self.ack_now = False
        self.snd.queue.clear()

    @property
    def may_listen_again(self) -> bool:
        """Whether a passive opening that fails returns to LISTEN: its user has read and closed nothing."""
        return self.passive and not (self.once or self.is_early or self.snd.fin is not None)

    def synchronized(self, ack: int) -> None:
        """Record that our SYN is acknowledged, and data of it up to a position."""
        snd = self.snd
        snd.una = ack
        if ack > snd.nxt:
            snd.nxt = ack
            snd.queue.drop(ack)
        self._end_early(was_reset=False)

    def _end_early(self, *, was_reset: bool) -> None:
        if self.is_early and self.fast_open is not None:
            self.is_early = False
            self.fast_open.pending -= 1
            if was_reset:
                self.fast_open.was_reset(self.heard_at)

    def wait(self, now: float) -> None:
        """Enter TIME-WAIT, or restart its timer."""
        if self.state is not TIME_WAIT:
            self.become(TIME_WAIT)
            self.retransmit_at = self.persist_at = self.reorder_at = self.paced_at = NEVER
            self.stalled_since = None
        self.time_wait_at = now + self.config.time_wait_s

    def wait_again(self, now: float) -> None:
        """Return to TIME-WAIT of the connection before: the SYN that ended it was an old duplicate."""
        old, self.before = self.before, None
        assert old is not None
        old.rcv.forget()
        self.snd, self.rcv, self.timestamps, self.last_ack = old.snd, old.rcv, old.timestamps, old.last_ack
        self.ts_recent, self.ts_recent_at, self.ts_offset = old.ts_recent, old.ts_recent_at, old.ts_offset
        self.ecn, self.accurate = old.ecn, old.accurate
        self.syn_pending = self.syn_due = self.ack_now = False
        self.timed = None
        self.wait(now)

    def quicken(self) -> None:
        """Delay no acknowledgement for some time: the peer's window is small, and grows with each (Linux)."""
        rcv = self.rcv
        self.quick = min(self.config.quick_acks, max(2, rcv.wnd // (2 * rcv.full)))
        self.is_interactive = False

    @property
    def is_quick(self) -> bool:
        """Whether the next acknowledgement is not delayed."""
        return (self.quick > 0 and not self.is_interactive) or not self.config.delayed_ack_s

    @property
    def acceptable(self) -> int:
        """The position of a segment without data: SND.NXT, or the edge of the peer's window before it.

        The peer accepts nothing from behind its window (3.10.7.4). An octet that probes a window of zero is
        there, or data in a window that shrank since, as in Linux. A window that moved back by less than its
        unit was truncated in the header, and is still accepted (RFC 7323 section 2.4).
        """
        snd = self.snd
        nxt, edge = snd.nxt, (snd.una or 1) + snd.wnd
        return edge if edge < nxt and (self.persists or nxt - edge >= 1 << snd.shift) else nxt

    def tsval(self, now: float) -> int:
        """Return the timestamp clock: milliseconds (RFC 7323 section 5.4)."""
        return (int(now * 1000) + self.ts_offset) & _MASK

    def may_challenge(self, now: float) -> bool:
        """Return whether to answer another unacceptable segment: limited, or two endpoints could loop."""
        if now - self._challenged >= _CHALLENGES_S:
            self._challenged, self._challenges = now, 0
        self._challenges += 1
        return self._challenges <= _CHALLENGES

    def arm(self, now: float) -> None:
        """Restart the retransmission timer (RFC 6298 section 5), or the tail loss probe that precedes it."""
        snd = self.snd
        if snd.una == snd.nxt:
            self.retransmit_at = self.rto_at = NEVER
            self.probe_is_next = False
            return
        self.retransmit_at = self.rto_at = now + self.rtt.timeout_s
        self._arm_probe(now, self.rto_at)

    def hasten(self, now: float) -> None:
        """Let the timeout come after half a round trip: the peer has discarded data that it had SACKed.

        As in Linux: until then the rest of such data may be acknowledged, and nothing was discarded.
        """
        wait_s = (self.rtt.srtt_s or 0.0) / 2
        self.retransmit_at = self.rto_at = now + (wait_s if wait_s > _RENEGED_S else _RENEGED_S)
        self.probe_is_next = False

    def arm_probe(self, now: float) -> None:
        """Schedule a tail loss probe again, as new data leaves behind older data.

        As in Linux, it comes an RTO after the oldest data at the latest.
        """
        limit = self.snd.runs.runs[0].sent_at + self.rtt.timeout_s
        self._arm_probe(now, limit if now < limit < self.rto_at else self.rto_at)

    def _arm_probe(self, now: float, limit: float) -> None:
        """Schedule a tail loss probe (RFC 8985 section 7.2), at a time at the latest."""
        snd, rtt = self.snd, self.rtt
        srtt_s = rtt.srtt_s
        self.probe_is_next = False
        if (
            not snd.sack
            or rtt.unanswered
            or self.probe is not None
            or snd.recover is not None
            or snd.runs.sacked
            or not snd.wnd
            or not self.config.tail_loss_probe
        ):
            return
        alone = snd.nxt - snd.una <= snd.mss and len(snd.runs.runs) == 1
        margin_s = _WORST_DELAYED_ACK_S if alone else _PTO_MARGIN_S
        probe_s = _PTO_S if srtt_s is None else 2 * srtt_s + margin_s
        self.probe_is_next = True
        due = now + probe_s
        self.retransmit_at = due if due < limit else limit
