"""Acknowledgements: what they deliver, what is lost, and the phases of recovery.

RFC 8985 (RACK-TLP) detects loss, RFC 6582 without SACK. RFC 5682 (F-RTO), RFC 3522 (Eifel) and D-SACK (RFC
3708) detect that nothing was lost. The control in congestion/ decides on the window.
"""

from typing import Final

from vtl_tools.common.packet.tcp import ECE
from vtl_tools.common.tcp.congestion.base import Sample
from vtl_tools.common.tcp.ecn import told
from vtl_tools.common.tcp.flight import Flight, Run
from vtl_tools.common.tcp.limits import NOTHING_TO_SEND, hold
from vtl_tools.common.tcp.rack import DUP_THRESH
from vtl_tools.common.tcp.rate import measure_rate, newest
from vtl_tools.common.tcp.snd import REPAIRS_MAX, Sender
from vtl_tools.common.tcp.tcb import NEVER, TCB
from vtl_tools.common.tcp.wire import NO_STAMPS, Segment

_HALF: Final = 0x8000_0000
_MASK: Final = 0xFFFF_FFFF
_ECHO_MAX_MS: Final = 60_000


_SAMPLE: Final = Sample()
"""The sample of the acknowledgement that is being processed; no control keeps it."""


def advance(tcb: TCB, ack: int, now: float) -> None:
    """Process an ACK of new data while nothing is SACKed, lost, or being recovered.

    It has the effect of acknowledged(), in a part of the time. RACK's variables may lag: the next SACK is of
    data sent later.
    """
    snd, sample = tcb.snd, _SAMPLE
    runs, cc = snd.runs, snd.cc
    nxt = snd.nxt
    snd.more = False  # as in Linux: what waits for more goes with the next ACK, if Nagle permits
    sample.before = nxt - snd.una
    sample.delivered = ack - snd.una
    snd.una = sample.una = ack
    tail = snd.queue.tail
    snd.queue.drop(ack if ack < tail else tail)
    first = runs.runs[0]
    first_at, again = first.sent_at, first.again
    run = runs.advance(ack)
    if not (again or run.again):
        tcb.rtt.sample(now - first_at, ack, nxt)
        snd.rack.measured(now - run.sent_at, now)
    sample.rtt_s = None if run.again else now - run.sent_at
    sample.now, sample.nxt, sample.advanced, sample.lost, sample.in_flight = now, nxt, True, 0, nxt - ack
    sample.limited = snd.limited or snd.is_limited
    if cc.samples:
        measure_rate(snd, sample, run, now)
    cc.acked(sample)
    if ack < tail or ack < snd.end:
        tcb.stalled_since = now
    else:
        tcb.stalled_since = None
        hold(tcb, NOTHING_TO_SEND, now)
    tcb.arm(now)


def acknowledged(tcb: TCB, segment: Segment, ack: int, now: float, *, duplicate: bool) -> None:
    """Process an acceptable ACK, with its SACK blocks. duplicate: as defined in RFC 5681 section 2."""
    snd = tcb.snd
    if tcb.ecn and (tcb.accurate is not None or segment.flags & ECE):
        before = snd.una + snd.runs.sacked
        _acknowledged(tcb, segment, ack, now, duplicate=duplicate)
        if told(tcb, segment, snd.una + snd.runs.sacked - before):
            _answer_echo(tcb)
        return
    if segment.sack is None and snd.recover is None and tcb.probe is None and not snd.runs.sacked:
        if snd.una < ack <= snd.nxt and not (snd.dup_acks or tcb.rtt.backoffs):
            advance(tcb, ack, now)
            return
        if ack == snd.una and not duplicate:
            return
    _acknowledged(tcb, segment, ack, now, duplicate=duplicate)


def _acknowledged(tcb: TCB, segment: Segment, ack: int, now: float, *, duplicate: bool) -> None:
    snd = tcb.snd
    sample, runs = _SAMPLE, snd.runs
    una = snd.una
    sample.before, sample.flight, sample.now, sample.lost = snd.pipe(), snd.nxt - una, now, 0
    sample.advanced = advanced = ack > una
    fresh = []
    if advanced:
        snd.una = ack
        snd.more = False
        if ack > snd.nxt:
            snd.nxt = ack
        snd.queue.drop(ack if ack < snd.queue.tail else snd.queue.tail)
        fresh = runs.acked(ack)
    echo_ms = None
    if tcb.timestamps and segment.tsval != NO_STAMPS and segment.tsecr:
        echo_ms = (segment.tsecr - tcb.ts_offset) & _MASK
    below = len(fresh)
    dsack = None
    if segment.sack is not None and snd.sack:
        dsack = _read_blocks(snd, segment.sack, fresh)
    news = len(fresh) > below
    original = _deliver(snd, fresh, below, now, echo_ms)
    if fresh:
        _measure(tcb, fresh, below, echo_ms, now)
    if not snd.sack:
        _count_duplicates(snd, duplicate=duplicate)
    _judge_probe(tcb, ack, dsack, now, pure=duplicate and not news)
    reneged = advanced and runs.has_reneged(ack)
    repairs = snd.recover is not None and not snd.loss
    if not reneged:
        _judge_loss(tcb, echo_ms, now, original=original, news=news or duplicate)
    if fresh or sample.delivered or sample.lost or snd.recover is not None:
        _tell(snd, fresh, now, is_full=repairs and snd.recover is None)
    if advanced:
        if snd.una < snd.end:
            tcb.stalled_since = now
        else:
            tcb.stalled_since = None
            hold(tcb, NOTHING_TO_SEND, now)
        tcb.rtt.answered()
        tcb.arm(now)
        if reneged:
            tcb.hasten(now)
    elif news and (tcb.probe_is_next or _is_older_than_head(runs, fresh)):
        tcb.arm(now)  # no probe while data is SACKed (RFC 8985 section 7.2)


def _is_older_than_head(runs: Flight, fresh: list[Run]) -> bool:
    """Return whether data was sent before the head last was, whose RTO then restarts with it, as in Linux."""
    head_at = runs.runs[0].sent_at
    return any(run.sent_at < head_at and not run.again for run in fresh)


def _judge_loss(tcb: TCB, echo_ms: int | None, now: float, *, original: bool, news: bool) -> None:
    """Begin, continue, end or undo recovery. news: something arrived out of order."""
    snd = tcb.snd
    undone = _undo_if_spurious(snd, echo_ms, now, original=original)
    again = _detect(tcb, now, always=undone)
    if snd.recover is not None:
        _recover(snd, now, news=news, again=again)
    elif _is_loss(snd):
        _begin_recovery(snd, now)


def _answer_echo(tcb: TCB) -> None:
    """Reduce the window for a mark that the peer echoes, once a round trip (RFC 3168 section 6.1.2)."""
    snd = tcb.snd
    if snd.recover is None and snd.una > snd.reduced_to:
        _SAMPLE.una, _SAMPLE.nxt, _SAMPLE.in_flight = snd.una, snd.nxt, snd.pipe()
        _reduce_for_good(snd)
        tcb.probe = None
        snd.cc.marked(_SAMPLE)


def _reduce_for_good(snd: Sender) -> None:
    """Remember a reduction that is not undone. A peer without ECN is not told of it."""
    snd.cwr_due, snd.reduced_to, snd.undo_from = True, snd.nxt, None


def _measure(tcb: TCB, fresh: list[Run], below: int, echo_ms: int | None, now: float) -> None:
    """Take a round-trip sample for the RTO (RFC 6298 section 3), by data sent once or by the timestamp.

    below: how many runs are acknowledged, and not SACKed. As in Linux, a sample of these goes first.
    """
    snd = tcb.snd
    first = None
    if below and not any(run.again for run in fresh[:below]):
        first = fresh[0]
    else:
        first = next((run for run in fresh[below:] if not run.again), None)
    if first is not None:
        tcb.rtt.sample(now - first.sent_at, snd.una, snd.nxt)
    elif below and echo_ms is not None and (rtt_ms := (int(now * 1000) - echo_ms) & _MASK) < _ECHO_MAX_MS:
        tcb.rtt.sample(rtt_ms / 1000, snd.una, snd.nxt)
        snd.rack.measured(max(rtt_ms, 1) / 1000, now)


def _read_blocks(snd: Sender, blocks: list[tuple[int, int]], fresh: list[Run]) -> tuple[int, int] | None:
    """Mark and add to fresh what SACK blocks report. Return the range of a D-SACK (RFC 2883 section 4)."""
    spans = [(snd.position(left), snd.position(right)) for left, right in blocks]
    start, end = spans[0]
    dsack = None
    if start < end and (end <= snd.una or (len(spans) > 1 and spans[1][0] <= start and end <= spans[1][1])):
        del spans[0]
        if start >= snd.una - snd.max_wnd and start > 0 and end <= snd.max:
            dsack = start, end
            snd.rack.duplicated(snd.una, snd.nxt)
            if snd.undo_from is not None and snd.repaired > 0:
                snd.repaired = max(0, snd.repaired - _sent_again(snd, start, end))
    for start, end in sorted(spans):  # else the ranges of one ACK would look reordered
        if snd.una <= start < end <= snd.nxt:
            fresh += snd.runs.sack(start, end, snd.mss)
    return dsack


def _sent_again(snd: Sender, start: int, end: int) -> int:
    """Return how much of a range was sent again (RFC 3708 section 3): the network makes duplicates, too."""
    repairs = snd.repairs.items()
    return sum(min(end, stop) - max(start, at) for at, stop in repairs if at < end and start < stop)


def _deliver(snd: Sender, fresh: list[Run], below: int, now: float, echo_ms: int | None) -> bool:
    """Account for octets that arrived. Return whether any was sent only once, before the last timeout.

    below: how many runs are acknowledged. The time that is echoed says nothing of others: it is of data in
    order (RFC 7323 section 4.3).

    Without SACK, such octets may have arrived earlier, and have waited for a retransmission in the same ACK.
    """
    sample, rack = _SAMPLE, snd.rack
    sample.delivered, sample.rtt_s = 0, None
    original, again, latest, reordered = False, False, -1.0, rack.reordered
    for i, run in enumerate(fresh):
        sample.delivered += run.end - run.start
        rack.delivered(run, now, echo_ms if i < below else None)
        again |= run.again
        if not run.again:
            original |= run.end <= snd.recovered
            if run.sent_at > latest:
                latest = run.sent_at
    if rack.reordered > reordered:
        rack.reordered = reordered + 1
    if latest >= 0:
        sample.rtt_s = now - latest
        rack.measured(now - latest, now)
    return original and (snd.sack or not again)


def _count_duplicates(snd: Sender, *, duplicate: bool) -> None:
    """Without SACK, take each duplicate ACK for a segment that arrived, and not twice (RFC 5681)."""
    sample, mss = _SAMPLE, snd.mss
    if sample.advanced:
        octets = sample.delivered
        sample.delivered = max(octets - snd.dup_acks * mss, min(octets, mss))
        if snd.recover is None or snd.loss:
            snd.dup_acks = 0
        else:
            snd.dup_acks = max(0, snd.dup_acks - max(0, octets // mss - 1))
    elif duplicate and snd.una < snd.nxt and not (snd.loss and snd.nxt == snd.recover):
        # After a timeout, duplicate ACKs are of what was sent before it, unless new data is in flight.
        snd.dup_acks += 1
        if snd.dup_acks * mss < snd.nxt - snd.una:  # the head itself has not arrived
            sample.delivered = mss


def _judge_probe(tcb: TCB, ack: int, dsack: tuple[int, int] | None, now: float, *, pure: bool) -> None:
    """Tell whether a tail loss probe has repaired a loss (RFC 8985 section 7.4)."""
    if tcb.probe is None:
        return
    end, again = tcb.probe
    snd = tcb.snd
    if snd.recover is not None:  # the loss of this flight was congestion once
        tcb.probe = None
    if ack < end or tcb.probe is None:
        return
    if not again or (dsack is not None and dsack[1] == end) or (ack == end and pure):
        tcb.probe = None
    elif ack > end:
        tcb.probe = None
        _reduce_for_good(snd)
        snd.cc.repaired(now, snd.nxt - snd.una)


def _detect(tcb: TCB, now: float, *, always: bool = False) -> bool:
    """Detect loss by time, and start the timer for the rest. Return whether a retransmission is lost.

    always: also while nothing is SACKed or being recovered, when as a rule nothing can be lost.
    """
    snd = tcb.snd
    tcb.reorder_at = NEVER
    if not snd.sack or not (snd.runs.sacked or snd.recover is not None or always):
        return False
    rack = snd.rack
    srtt_s = tcb.rtt.srtt_s if tcb.rtt.srtt_s is not None else rack.rtt_s
    recovering = snd.recover is not None and snd.una < snd.recover  # else this ACK ends it
    window_s = rack.window_s(snd.runs, srtt_s, recovering=recovering)
    lost, again, wait_s = rack.detect(snd.runs, window_s, now)
    _SAMPLE.lost += lost
    snd.missing += lost
    if wait_s:
        tcb.reorder_at = now + max(wait_s, 0.001)
    return again


def _is_loss(snd: Sender) -> bool:
    if snd.sack:
        return snd.runs.lost > 0
    return snd.dup_acks >= DUP_THRESH and snd.una > snd.recovered and snd.una < snd.nxt


def _begin_recovery(snd: Sender, now: float) -> None:
    """Enter fast recovery. For data sent before a mark's reduction, CWR was told (RFC 3168 6.1.2)."""
    if not snd.sack:
        _lose_head(snd)
    is_new = snd.recover is not None or snd.una >= snd.reduced_to
    _reduce(snd)
    snd.loss = False
    if is_new:
        snd.cwr_due, snd.reduced_to = True, snd.nxt
    snd.cc.lost(now, snd.pipe(), _SAMPLE.flight)


def _reduce(snd: Sender) -> None:
    """Remember from where a reduction may be undone."""
    snd.recover = snd.recovered = snd.nxt
    # Earlier retransmissions and probes may still arrive, also if they are considered lost.
    again = [run for run in snd.runs.runs if run.again]
    snd.repairs = {run.start: run.end for run in again[:REPAIRS_MAX]}
    snd.undo_from, snd.repaired = snd.una, sum(run.end - run.start for run in again)
    if not again:
        snd.repaired, snd.repaired_ms = -1, None
    snd.frto = snd.new_first = False


def _lose_head(snd: Sender) -> None:
    lost = snd.runs.lose_head(snd.record_end(snd.una, min(snd.una + snd.mss, snd.nxt)))
    _SAMPLE.lost += lost
    snd.missing += lost


def _undo_if_spurious(snd: Sender, echo_ms: int | None, now: float, *, original: bool) -> bool:
    """Revert the last reduction if nothing was lost then. Other loss is to be detected after this."""
    if snd.undo_from is None:
        return False
    is_spurious = snd.repaired == 0
    if snd.recover is not None:
        is_spurious |= _SAMPLE.advanced and _is_older(echo_ms, snd.repaired_ms)
        is_spurious |= snd.frto and original  # RFC 5682 section 3.1, step 3.b
    if not is_spurious:
        return False
    snd.runs.keep_all()
    if snd.cc.undo() and snd.reduced_to >= snd.recovered:  # else it was a mark's reduction, and stays
        snd.cwr_due, snd.reduced_to = False, snd.undo_from  # marks count again
    snd.undo_from = None
    if snd.recover is not None:
        _end_recovery(snd, now)
    return True


def _recover(snd: Sender, now: float, *, news: bool, again: bool) -> None:
    """Continue recovery. news: something arrived out of order. again: a retransmission was lost."""
    assert snd.recover is not None
    advanced, done = _SAMPLE.advanced, snd.una >= snd.recover
    if snd.frto:
        if snd.nxt > snd.recover:
            snd.new_first = False
            if news:
                snd.frto = False  # step 3.a
        elif advanced and not done:
            snd.recover = snd.nxt
            if snd.unsent > 0 and snd.una + snd.wnd > snd.nxt:
                snd.new_first = True  # step 2.b
                return
            snd.frto = False
    if done:
        _end_recovery(snd, now)
        if _is_loss(snd) or (snd.sack and snd.runs.repaired):  # data sent in recovery was lost, too
            _begin_recovery(snd, now)
    elif snd.loss:
        if again:
            _begin_recovery(snd, now)
    elif advanced and not snd.sack:
        _lose_head(snd)  # a partial acknowledgement: the next segment was lost, too
        _SAMPLE.partial = True


def _is_older(echo_ms: int | None, than_ms: int | None) -> bool:
    """Return whether an ACK echoes a time before the first retransmission (RFC 3522): the original's."""
    return echo_ms is not None and than_ms is not None and (echo_ms - than_ms) & _MASK >= _HALF


def _end_recovery(snd: Sender, now: float) -> None:
    snd.recover, snd.loss, snd.frto, snd.new_first, snd.dup_acks = None, False, False, False, 0
    snd.cc.recovered(now, snd.pipe())
    snd.rack.recovered()


def _tell(snd: Sender, fresh: list[Run], now: float, *, is_full: bool = False) -> None:
    """Pass the sample to the control. is_full: a full acknowledgement has ended fast recovery.

    Without SACK, it is of data that duplicate ACKs told of, so the window stays at ssthresh (RFC 6582 3.2).
    """
    sample = _SAMPLE
    sample.una, sample.nxt = snd.una, snd.nxt
    sample.in_flight = snd.pipe()
    sample.limited = (snd.loss or snd.limited or snd.is_limited) and (snd.sack or not is_full)
    if snd.cc.samples:
        measure_rate(snd, sample, newest(fresh), now)
    snd.cc.acked(sample)
    sample.partial = False  # advance(), of any connection, leaves it as it is


def reordering_is_over(tcb: TCB, now: float) -> None:
    """Process the reordering timer (RFC 8985 section 6.2, step 5)."""
    snd = tcb.snd
    sample = _SAMPLE
    sample.before, sample.flight, sample.now = snd.pipe(), snd.nxt - snd.una, now
    sample.lost = sample.delivered = 0
    sample.advanced, sample.rtt_s = False, None
    again = _detect(tcb, now, always=True)
    if sample.lost:
        if snd.recover is None or (snd.loss and again):
            _begin_recovery(snd, now)
        _tell(snd, [], now)


def too_big(snd: Sender, before: int) -> None:
    """Have data sent again whose segments were larger than the path takes: it is lost, without congestion.

    before: SMSS until now.
    """
    lost = snd.runs.lose_larger(snd.mss, before, snd.fin)
    if not lost:
        return
    if snd.recover is None:
        snd.recovered = snd.nxt
        snd.loss, snd.frto, snd.undo_from = True, False, None
    snd.recover = snd.nxt  # a recovery that is going on does not end before these
    snd.missing += lost


def timed_out(tcb: TCB, now: float) -> None:
    """Process a retransmission timeout (RFC 6298 (5.4), RFC 8985 section 6.3)."""
    snd, runs, rack = tcb.snd, tcb.snd.runs, tcb.snd.rack
    flight, again = snd.nxt - snd.una, snd.loss
    if runs.has_reneged(snd.una):
        runs.forget()
        snd.missing += runs.lose_all()
    snd.dup_acks = 0
    srtt_s = tcb.rtt.srtt_s if tcb.rtt.srtt_s is not None else rack.rtt_s
    window_s = rack.window_s(runs, srtt_s, recovering=True)
    snd.missing += rack.timed_out(runs, window_s, now) if snd.sack else runs.lose_all()
    fresh_recovery = snd.recover is None
    retransmitted_before = tcb.rtt.unanswered > 1
    if not again:
        _reduce(snd)
    else:
        snd.recover = snd.recovered = snd.nxt
        snd.new_first = False
    snd.frto = fresh_recovery or retransmitted_before
    snd.loss = True
    snd.cwr_due, snd.reduced_to = True, snd.nxt
    snd.cc.timed_out(now, snd.pipe(), flight, again=again)
