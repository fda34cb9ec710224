"""The STATUS call (RFC 9293 section 3.10.6): what the user may know of a connection."""

from typing import Final, NamedTuple

from vtl_tools.common.tcp.limits import hold
from vtl_tools.common.tcp.rack import DUP_THRESH
from vtl_tools.common.tcp.snd import Sender
from vtl_tools.common.tcp.state import SegmentDrop, State
from vtl_tools.common.tcp.tcb import TCB

_REORDERING_MAX: Final = 300  # as in Linux


class ConnectionInfo(NamedTuple):
    """The state of a connection, like TCP_INFO. Octets and seconds.

    rto_s: doubled for each timeout since the last round-trip sample, which backoffs counts. phase: open,
    disorder, recovery or loss. lost: considered lost, retransmitted or not, and not acknowledged.
    retransmitted: in flight and sent again. retransmits: segments or super-segments, in all. reordering:
    segments that overtook one, at most; 3 at least. reordering_seen: acknowledgements that told so.
    delivered: acknowledged or SACKed. delivery_rate: octets a second, of a control that samples it (bbr); 0.0
    before the first. app_limited: the user had too little to send for more. window_limited: the congestion
    window has limited us in the last round trip. ecn_mode: none, classic or accurate. marks,
    told_marks: packets that arrived marked, and ours of which the peer told it did, in the accurate mode;
    pure acknowledgements included. sent_at, heard_at: times of the last data sent and the last
    segment received. busy_s: time in which not all written data was acknowledged; window_limited_s,
    buffer_limited_s: the parts of it in which the peer's window, and our send buffer, held sending.
    user_timeout_s: R2 in force. due_s: time of wake(); None: never.
    """

    state: State
    mss: int
    rtt_s: float | None
    rttvar_s: float
    rto_s: float
    cwnd: int
    ssthresh: int
    unacked: int
    unsent: int
    sacked: int
    lost: int
    retransmitted: int
    reordering: int
    reordering_seen: int
    phase: str
    backoffs: int
    retransmits: int
    sent: int
    delivered: int
    delivery_rate: float
    app_limited: bool
    window_limited: bool
    received: int
    readable: int
    snd_wnd: int
    rcv_wnd: int
    snd_wscale: int
    rcv_wscale: int
    rcv_mss: int
    sack: bool
    timestamps: bool
    ecn_mode: str
    marks: int
    told_marks: int
    segments_in: int
    segments_out: int
    out_of_order: int
    drops: dict[SegmentDrop, int]
    sent_at: float
    heard_at: float
    busy_s: float
    window_limited_s: float
    buffer_limited_s: float
    user_timeout_s: float | None
    due_s: float | None

    @property
    def cwnd_segments(self) -> int:
        """The congestion window in whole segments."""
        return self.cwnd // self.mss


def _reordering(snd: Sender) -> int:
    return min(max(DUP_THRESH, -(-snd.rack.extent // snd.mss)), _REORDERING_MAX)


def describe(tcb: TCB, due_s: float | None, now: float | None) -> ConnectionInfo:
    """Return the state of a connection. due_s: its deadline. now: None if its times may lag behind."""
    snd, rcv, accurate = tcb.snd, tcb.rcv, tcb.accurate
    if now is not None and tcb.held_by:
        hold(tcb, tcb.held_by, now)
    return ConnectionInfo(
        state=tcb.state, mss=snd.mss, rtt_s=tcb.rtt.srtt_s, rttvar_s=tcb.rtt.rttvar_s,
        rto_s=tcb.rtt.timeout_s, backoffs=tcb.rtt.backoffs,
        cwnd=snd.cc.cwnd, ssthresh=snd.cc.ssthresh, unacked=snd.flight, unsent=max(0, snd.unsent),
        sacked=snd.runs.sacked, lost=snd.lost, reordering=_reordering(snd),
        reordering_seen=snd.rack.reordered, phase=snd.phase,
        retransmitted=snd.runs.repaired, retransmits=snd.retransmits, sent=snd.max,
        delivered=max(0, snd.una - 1) + snd.runs.sacked, delivery_rate=snd.rate,
        app_limited=snd.starved_to > 0, window_limited=snd.limited, received=rcv.received,
        readable=rcv.readable, snd_wnd=snd.wnd, rcv_wnd=rcv.wnd, snd_wscale=snd.shift,
        rcv_wscale=rcv.shift, rcv_mss=rcv.mss,
        sack=snd.sack, timestamps=tcb.timestamps,
        ecn_mode="accurate" if accurate is not None else "classic" if tcb.ecn else "none",
        marks=0 if accurate is None else accurate.cep - 5,
        told_marks=0 if accurate is None else accurate.told_cep - 5, segments_in=tcb.segments_in,
        segments_out=tcb.segments_out, out_of_order=len(rcv.early.starts), drops=dict(tcb.drops),
        sent_at=tcb.sent_at, heard_at=tcb.heard_at, busy_s=tcb.busy_s, window_limited_s=tcb.window_limited_s,
        buffer_limited_s=tcb.buffer_limited_s, user_timeout_s=tcb.user_timeout_s, due_s=due_s,
    )  # fmt: skip
