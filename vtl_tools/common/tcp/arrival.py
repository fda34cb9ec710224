"""SEGMENT ARRIVES: processes a received segment, in the steps of RFC 9293 section 3.10.7."""

from typing import Final

from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN, URG
from vtl_tools.common.tcp import ecn, fast_open
from vtl_tools.common.tcp.acceptance import challenge, is_acceptable
from vtl_tools.common.tcp.acks import acknowledged
from vtl_tools.common.tcp.output import agree, reset, stamps, syn_window
from vtl_tools.common.tcp.prediction import predicted
from vtl_tools.common.tcp.state import (
    CLOSED,
    ESTABLISHED,
    FIN_WAIT_2,
    LISTEN,
    ON_FIN,
    ON_FIN_ACKED,
    SYN_RECEIVED,
    SYN_SENT,
    TAKES_DATA,
    TIME_WAIT,
    Ended,
    SegmentDrop,
    State,
)
from vtl_tools.common.tcp.tcb import NEVER, TCB
from vtl_tools.common.tcp.user_timeout import heed
from vtl_tools.common.tcp.wire import NO_STAMPS, Segment

_HALF: Final = 0x8000_0000
_BOTH_CLOSED: Final = frozenset((State.CLOSING, State.LAST_ACK, State.TIME_WAIT))


def arrive(tcb: TCB, segment: Segment, now: float) -> None:
    """Process a segment of this connection. Copies its data."""
    state = tcb.state
    tcb.segments_in += 1
    if state is ESTABLISHED:
        if not predicted(tcb, segment, now):
            _synchronized(tcb, segment, now)
    elif state is TIME_WAIT and _is_new_connection(tcb, segment):
        tcb.drops[SegmentDrop.SUPERSEDED] += 1
        tcb.end(Ended.CLOSED)
    elif state is CLOSED:  # 3.10.7.1
        tcb.drops[SegmentDrop.NOT_OPEN] += 1
        reset(tcb, segment)
    elif state is LISTEN:
        _listen(tcb, segment, now)
    elif state is SYN_SENT:
        _syn_sent(tcb, segment, now)
    else:
        _synchronized(tcb, segment, now)


def _listen(tcb: TCB, segment: Segment, now: float) -> None:
    """3.10.7.2. The SYN-ACK is sent when the user accepts."""
    flags = segment.flags
    if not tcb.path.is_unicast:  # MUST-57, MUST-63: not even a reset
        tcb.drops[SegmentDrop.FOREIGN] += 1
    elif flags & RST:  # first, check for a RST
        tcb.drops[SegmentDrop.NOT_OPEN] += 1
    elif flags & ACK:  # second, check for an ACK
        tcb.drops[SegmentDrop.NOT_OPEN] += 1
        reset(tcb, segment)
    elif flags & SYN:  # third, check for a SYN
        _begin(tcb, segment, now)
        _hold(tcb, segment)
        fast_open.asked(tcb, segment, now)
        tcb.syn_pending = True
        tcb.become(SYN_RECEIVED)
    else:
        tcb.drops[SegmentDrop.NOT_OPEN] += 1


def _syn_sent(tcb: TCB, segment: Segment, now: float) -> None:
    """3.10.7.3."""
    flags, snd = segment.flags, tcb.snd
    ack = 0
    if flags & ACK:  # first, check the ACK bit
        ack = snd.position(segment.ack)
        if not 0 < ack <= snd.max:  # SEG.ACK =< ISS, or SEG.ACK > SND.NXT, with data of our SYN
            tcb.drops[SegmentDrop.BAD_ACK] += 1
            reset(tcb, segment)
            return
    if flags & RST:  # second, check the RST bit
        if ack:
            tcb.end(Ended.REFUSED)
        else:
            tcb.drops[SegmentDrop.UNSURE_RESET] += 1
        return
    if not flags & SYN:  # fourth, check the SYN bit
        tcb.drops[SegmentDrop.NOT_OPEN] += 1
        return
    _begin(tcb, segment, now)
    if ack:
        tcb.rcv.has_offered(syn_window(tcb))
        fast_open.answered(tcb, segment, ack, now)
        _established(tcb, segment, ack, now)
        tcb.ack_now = True
        _content(tcb, segment, 1, now)
    else:  # simultaneous open: our SYN is sent again, with an ACK
        _hold(tcb, segment)
        tcb.become(State.SYN_RECEIVED)
        tcb.syn_due = True


def _begin(tcb: TCB, syn: Segment, now: float) -> None:
    """Record the peer's sequence number and options."""
    tcb.rcv.start(syn.seq)
    agree(tcb, syn)
    tcb.heard_at = now
    tcb.snd.wnd = tcb.snd.max_wnd = syn.window  # never shifted in a SYN
    if tcb.timestamps and syn.tsval != NO_STAMPS:
        tcb.ts_recent, tcb.ts_recent_at = syn.tsval, now


def _hold(tcb: TCB, syn: Segment) -> None:
    """Keep data and a FIN of a SYN without an ACK until ESTABLISHED, as far as our window will reach."""
    if not (syn.length or syn.flags & FIN):
        return
    room = syn_window(tcb)
    tcb.rcv.hold(syn.data[:room])
    if syn.flags & FIN and syn.length < room:
        tcb.rcv.take_fin(1 + syn.length)


def _synchronized_late(tcb: TCB, segment: Segment, now: float) -> None:
    """Judge a handshake in which our SYN was sent again: the time that is echoed tells which one arrived.

    If it was the first, nothing was lost: the round trip is longer than the timer (RFC 3522 section 3).
    """
    first_at = tcb.stalled_since
    has_stamps = tcb.timestamps and segment.tsval != NO_STAMPS
    if has_stamps and first_at is not None and segment.tsecr == tcb.tsval(first_at):
        tcb.rtt.sample(now - first_at, 0, 1)
        return
    tcb.rtt.handshake_was_slow()
    tcb.snd.cc.syn_was_lost()


def _established(tcb: TCB, segment: Segment, ack: int, now: float) -> None:
    """Enter ESTABLISHED: our SYN is acknowledged."""
    snd = tcb.snd
    if tcb.timed is not None:
        tcb.rtt.sample(now - tcb.timed[1], 0, 1)
        snd.rack.measured(now - tcb.timed[1], now)
    elif tcb.rtt.backoffs:
        _synchronized_late(tcb, segment, now)
    tcb.rtt.restart()
    tcb.quicken()
    snd.cc.opened(now, tcb.rtt.srtt_s)
    tcb.synchronized(ack)
    tcb.timed, tcb.retransmit_at, tcb.stalled_since, tcb.syn_due = None, NEVER, None, False
    scaled = segment.window if segment.flags & SYN else segment.window << snd.shift
    snd.wnd, snd.max_wnd = scaled, max(snd.max_wnd, scaled)
    snd.wl1, snd.wl2 = tcb.rcv.position(segment.seq), ack
    tcb.sent_at, tcb.before = now, None
    tcb.user_timeout_due = tcb.config.user_timeout_option
    if tcb.rcv.has_gap:
        tcb.rcv.release()
        tcb.ack_now = True
    tcb.become(ESTABLISHED)
    if snd.fin is not None:  # the user closed before the handshake was complete
        tcb.become(State.FIN_WAIT_1)


def _synchronized(tcb: TCB, segment: Segment, now: float) -> None:
    """3.10.7.4: the other states."""
    rcv, flags, state = tcb.rcv, segment.flags, tcb.state
    seq = rcv.position(segment.seq)

    # first, check the sequence number; RFC 7323 section 5.3 puts PAWS before that
    if not is_acceptable(tcb, segment, seq, now):
        if flags & (SYN | RST) == SYN:
            _unexpected_syn(tcb, segment, seq, now)  # with any number (RFC 5961 section 4.2)
        return
    tcb.heard_at = now
    tcb.keep_alives = 0

    # second, check the RST bit (RFC 5961 section 3.2)
    if flags & RST:
        _was_reset(tcb, seq, now)
        return

    # fourth, check the SYN bit (RFC 5961 section 4.2)
    if flags & SYN:
        _unexpected_syn(tcb, segment, seq, now)
        return

    # fifth, check the ACK field
    if not flags & ACK:
        tcb.drops[SegmentDrop.NO_ACK] += 1
        return
    if not _acknowledged(tcb, segment, seq, now):
        return
    # RFC 7323 section 5.3 (R3); not earlier, or an attacker without valid SEQ and ACK could move TS.Recent
    if tcb.timestamps and segment.tsval != NO_STAMPS and seq <= tcb.last_ack:
        tcb.ts_recent, tcb.ts_recent_at = segment.tsval, now

    if tcb.state is not TIME_WAIT:
        _content(tcb, segment, seq, now)
    elif flags & FIN or (segment.length and state is TIME_WAIT):
        tcb.ack_now = True
        if flags & FIN:
            tcb.wait(now)  # its acknowledgement was lost


def _was_reset(tcb: TCB, seq: int, now: float) -> None:
    """Process an acceptable RST (second step)."""
    if seq != tcb.rcv.nxt:
        challenge(tcb, SegmentDrop.UNSURE_RESET, now)
    elif tcb.state in _BOTH_CLOSED and tcb.snd.una >= tcb.snd.queue.tail:
        tcb.end(Ended.CLOSED)
    elif tcb.before is not None:
        tcb.wait_again(now)
    elif tcb.state is State.SYN_RECEIVED and tcb.may_listen_again:
        tcb.listen_again()
    else:
        refused = tcb.state is State.SYN_RECEIVED and not tcb.passive
        tcb.end(Ended.REFUSED if refused else Ended.RESET)


def _content(tcb: TCB, segment: Segment, seq: int, now: float) -> None:
    """Process what the segment carries. seq: position of the first octet of data."""
    rcv, flags = tcb.rcv, segment.flags
    if segment.user_timeout:
        heed(tcb, segment.user_timeout)

    # sixth, check the URG bit
    _urgent(tcb, segment, seq - (flags >> 1 & 1))

    # seventh, process the segment text
    length = segment.length
    if (length or flags & FIN) and tcb.state in TAKES_DATA:
        if tcb.is_deaf and seq + length > rcv.nxt:  # SHLD-3; a FIN behind a gap tells of data, too
            reset(tcb, segment, stamps(tcb, now, tcb.ts_recent))
            tcb.end(Ended.ABORTED)
            return
        if length:
            _text(tcb, segment, seq, now)

    # eighth, check the FIN bit
    if flags & FIN and tcb.state in TAKES_DATA:
        is_within = seq + length < rcv.edge
        if is_within:
            rcv.take_fin(seq + length)
        tcb.ack_now |= rcv.has_gap or not is_within
    if rcv.fin is not None and tcb.state in ON_FIN and rcv.finish():
        _finished(tcb, now)


def _finished(tcb: TCB, now: float) -> None:
    """Process the peer's FIN, which is in order: RCV.NXT is after it."""
    if tcb.config.delayed_fin_ack and tcb.state is ESTABLISHED:
        tcb.delayed_at = min(tcb.delayed_at, now + tcb.config.delayed_ack_s)
    else:
        tcb.ack_now = True
    if tcb.state is FIN_WAIT_2:
        tcb.wait(now)
    else:
        tcb.become(ON_FIN[tcb.state])


def _is_new_connection(tcb: TCB, segment: Segment) -> bool:
    """Return whether a SYN may replace TIME-WAIT (MAY-2): newer by timestamp or number (RFC 6191)."""
    if segment.flags & (SYN | ACK | RST | FIN) != SYN:
        return False
    if segment.tsval != NO_STAMPS and tcb.config.timestamps:
        if not tcb.timestamps:
            return True
        if segment.tsval != tcb.ts_recent:
            return not (segment.tsval - tcb.ts_recent) & _HALF
    return tcb.rcv.position(segment.seq) >= tcb.rcv.nxt


def _unexpected_syn(tcb: TCB, segment: Segment, seq: int, now: float) -> None:
    """Process a SYN in a state other than LISTEN and SYN-SENT (fourth step)."""
    if tcb.state is State.SYN_RECEIVED:
        has_ack = segment.flags & ACK
        if not tcb.passive:
            if seq == 0 and has_ack and 0 < (ack := tcb.snd.position(segment.ack)) <= tcb.snd.max:
                _established(tcb, segment, ack, now)  # simultaneous open: this answers our SYN
                tcb.ack_now = True
                _content(tcb, segment, 1, now)
                return
        elif seq == 0 and not has_ack:  # the peer's SYN again
            if ecn.syn_again(tcb, segment):
                reset(tcb, segment)
                tcb.end(Ended.RESET)
            elif tcb.syn_pending:
                tcb.drops[SegmentDrop.HELD] += 1
            else:
                tcb.drops[SegmentDrop.UNEXPECTED_SYN] += 1
                if tcb.may_challenge(now):
                    tcb.syn_due = True  # our answer was lost
            return
        elif tcb.rcv.nxt <= seq < tcb.rcv.edge and tcb.may_listen_again:
            tcb.drops[SegmentDrop.UNEXPECTED_SYN] += 1
            tcb.listen_again()
            return
    challenge(tcb, SegmentDrop.UNEXPECTED_SYN, now)
    if tcb.ecn and tcb.ack_now and seq == 0 and segment.flags & ACK:
        ecn.syn_ack_again(tcb, segment)


def _acknowledged(tcb: TCB, segment: Segment, seq: int, now: float) -> bool:
    """Fifth step. Return whether to continue with the segment."""
    snd = tcb.snd
    ack = snd.position(segment.ack)
    if snd.una == 0 or tcb.is_early:  # SYN-RECEIVED, or FIN-WAIT-1 if our FIN followed our SYN
        if tcb.syn_pending or not 0 < ack <= snd.max:
            tcb.drops[SegmentDrop.BAD_ACK] += 1
            reset(tcb, segment, stamps(tcb, now, 0))
            return False
        _established(tcb, segment, 1, now)
        if snd.nxt > 1:
            tcb.stalled_since = now
            tcb.arm(now)
        of_syn = ack == 1 and (segment.sack is None or snd.nxt == 1)
        if tcb.ecn:
            ecn.established(tcb, segment, ack, of_syn=of_syn)
        if of_syn:
            return True
    if ack > snd.max or ack < max(0, snd.una - snd.max_wnd):  # RFC 5961 section 5.2; 0: our ISS
        challenge(tcb, SegmentDrop.BAD_ACK, now)
        return False

    if tcb.ecn:
        ecn.heed(tcb, segment)
    una = snd.una
    window = segment.window << snd.shift
    duplicate = (
        ack == una
        and not segment.length
        and not segment.flags & FIN
        and window == snd.wnd
        and window > 0  # else it answers a probe, and is no sign of loss
    )
    acknowledged(tcb, segment, ack, now, duplicate=duplicate)
    if ack > una:
        _advanced(tcb, ack, now)
    if ack >= snd.una:
        was = snd.wnd
        snd.offered(window, seq, ack)
        if was == 0 and snd.wnd:
            tcb.persist_at, tcb.persists, snd.more = NEVER, 0, False
            tcb.rtt.restart()
            tcb.arm(now)
            if tcb.stalled_since is not None:
                tcb.stalled_since = now
        if snd.wnd == 0 and tcb.stalled_since is not None:
            # MUST-37: a peer that answers may keep its window at zero indefinitely, so R2 begins with a probe
            tcb.stalled_since = now if tcb.retransmit_at == NEVER else max(now, tcb.retransmit_at)
            tcb.rtt.answered()
    return True


def _advanced(tcb: TCB, ack: int, now: float) -> None:
    """Change the state if our FIN is acknowledged."""
    snd = tcb.snd
    if snd.fin is not None and ack > snd.fin:
        following = ON_FIN_ACKED.get(tcb.state)
        if following is None:
            return
        if following is TIME_WAIT:
            tcb.wait(now)
        elif following is CLOSED:
            tcb.end(Ended.CLOSED)
        else:
            tcb.become(following)


def _urgent(tcb: TCB, segment: Segment, seq: int) -> None:
    """Sixth step. The user sees it in `urgent`, and reads urgent data in its place (RFC 6093)."""
    if segment.flags & URG and tcb.state in TAKES_DATA:
        tcb.rcv.up = max(tcb.rcv.up, seq + segment.urgent)  # RCV.UP <- max(RCV.UP,SEG.UP)


def _text(tcb: TCB, segment: Segment, seq: int, now: float) -> None:
    """Seventh step: accept the data, and decide when to acknowledge it (RFC 5681 section 4.2)."""
    rcv = tcb.rcv
    before = rcv.nxt
    gap = rcv.has_gap
    rcv.dsack = None
    if not rcv.take(seq, segment.data):
        tcb.drops[SegmentDrop.FULL] += 1
    if not tcb.snd.sack:
        rcv.dsack = None
    tcb.ack_due_octets += rcv.nxt - before
    if segment.length > rcv.full:
        rcv.full = min(segment.length, rcv.mss)
    if gap or rcv.has_gap or rcv.nxt - before < segment.length:
        tcb.quicken()
        tcb.ack_now = True
    elif tcb.ack_due_octets > rcv.full or tcb.is_quick:
        tcb.ack_now = True
    elif tcb.delayed_at == NEVER:
        tcb.delayed_at = now + tcb.config.delayed_ack_s
