"""Whether a segment is acceptable (RFC 9293 section 3.10.7.4, first step; RFC 7323, PAWS; RFC 5961)."""

from typing import Final

from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.common.tcp.state import TIME_WAIT, SegmentDrop
from vtl_tools.common.tcp.tcb import TCB
from vtl_tools.common.tcp.wire import NO_STAMPS, Segment

_HALF: Final = 0x8000_0000
_STAMP_OUTDATED_S: Final = 24 * 86_400.0  # RFC 7323 section 5.5
_MAX_STALE: Final = 1 << 30


def is_acceptable(tcb: TCB, segment: Segment, seq: int, now: float) -> bool:
    """First step. An unacceptable segment is answered by an ACK, unless it is a RST.

    A SYN is not answered here, since its answer does not depend on its number.
    """
    rcv, flags = tcb.rcv, segment.flags
    if (
        tcb.timestamps
        and segment.tsval != NO_STAMPS  # a segment without them is accepted, as in Linux
        and (segment.tsval - tcb.ts_recent) & _HALF
        and not flags & (RST | SYN)
        and now - tcb.ts_recent_at < _STAMP_OUTDATED_S
    ):
        _repeats(tcb, segment, seq)
        _stale(tcb, segment, SegmentDrop.OLD_TIMESTAMP, now)
        return False

    if flags & RST:  # RFC 5961 section 3.2: only its number counts, and RCV.NXT with any window
        if rcv.nxt <= seq < rcv.edge or seq == rcv.nxt:
            return True
        tcb.drops[SegmentDrop.OUT_OF_WINDOW] += 1
        return False
    length = segment.length + (flags & FIN) + (flags >> 1 & 1)
    # With a window of zero, data at RCV.NXT is not accepted, but its ACK is (3.10.7.4).
    within = seq < rcv.edge or (seq == rcv.edge == rcv.nxt and (flags & ACK > 0 or not length))
    if within and (seq + length > rcv.nxt or (seq == rcv.nxt and not length)):
        return True
    if not flags & SYN:
        _repeats(tcb, segment, seq)
        _stale(tcb, segment, SegmentDrop.OUT_OF_WINDOW, now)
        if tcb.state is TIME_WAIT and flags & FIN and seq + length == rcv.nxt:
            tcb.wait(now)
    return False


def _repeats(tcb: TCB, segment: Segment, seq: int) -> None:
    """Have the acknowledgement of a dropped segment tell which received data it repeats (RFC 2883)."""
    nxt, end = tcb.rcv.nxt, seq + segment.length + (segment.flags & FIN)
    if seq < min(nxt, end) and end > nxt - _MAX_STALE:
        tcb.quicken()  # as in Linux: the peer recovers from a loss
        if tcb.snd.sack and tcb.state is not TIME_WAIT:
            tcb.rcv.dsack = (seq, min(end, nxt))


def _stale(tcb: TCB, segment: Segment, reason: SegmentDrop, now: float) -> None:
    """Acknowledge an unacceptable segment: with data or FIN always, as the earlier ACK may have been lost."""
    if segment.length or segment.flags & FIN:
        tcb.drops[reason] += 1
        if not tcb.syn_pending:
            tcb.ack_now = True
    else:
        challenge(tcb, reason, now)


def challenge(tcb: TCB, reason: SegmentDrop, now: float) -> None:
    """Send a challenge ACK: a genuine peer replies with the correct number (RFC 5961)."""
    tcb.drops[reason] += 1
    if not tcb.syn_pending and tcb.may_challenge(now):
        tcb.ack_now = True
