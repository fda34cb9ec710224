"""Header prediction: a fast path for the usual segments of an open connection.

After Van Jacobson. Unusual segments take the slow path (arrival.py, snd.py), which implements the rules. For
usual segments the result is the same, in a third of the time.
"""

from typing import Final

from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN, URG
from vtl_tools.common.tcp.acks import advance
from vtl_tools.common.tcp.ecn import is_unusual
from vtl_tools.common.tcp.tcb import NEVER, TCB
from vtl_tools.common.tcp.wire import NO_STAMPS, Segment

_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000
_TELLING: Final = FIN | SYN | RST | ACK | URG


def predicted(tcb: TCB, segment: Segment, now: float) -> bool:
    """Process a segment that is next in order, without loss, reordering or close. Return False for others.

    The state is ESTABLISHED. The data is borrowed.
    """
    snd, rcv = tcb.snd, tcb.rcv
    octets = (segment.ack - snd.iss - snd.una) & _MASK  # an old ACK gives a huge number
    length = segment.length
    window = segment.window << snd.shift
    if (
        segment.flags & _TELLING != ACK
        or segment.seq != (rcv.irs + rcv.nxt) & _MASK
        or octets > snd.nxt - snd.una
        or not (octets or length)
        or not window
        or not snd.wnd
        or rcv.nxt + length > rcv.edge
        or segment.sack is not None
        or segment.user_timeout
        or snd.recover is not None
        or snd.fin is not None
        or snd.dup_acks
        or snd.runs.sacked
        or tcb.rtt.backoffs
        or tcb.probe is not None
        or rcv.fin is not None
        or rcv.early.starts
        or rcv.dsack is not None
        or (tcb.ecn and is_unusual(tcb, segment))
    ):
        return False
    if tcb.timestamps:
        tsval = segment.tsval
        if tsval == NO_STAMPS or (tsval - tcb.ts_recent) & _HALF:
            return False
        if rcv.nxt <= tcb.last_ack:
            tcb.ts_recent, tcb.ts_recent_at = tsval, now
    if length and now - tcb.heard_at > tcb.rtt.rto_s and not tcb.is_interactive:
        tcb.quicken()
    tcb.heard_at = now
    tcb.keep_alives = 0
    if octets:
        advance(tcb, snd.una + octets, now)
    snd.wnd = window
    if window > snd.max_wnd:
        snd.max_wnd = window
    snd.wl1, snd.wl2 = rcv.nxt, snd.una
    if length:
        rcv.take_next(segment.data, length)
        tcb.ack_due_octets += length
        if length > rcv.full:
            rcv.full = length if length < rcv.mss else rcv.mss
        if tcb.ack_due_octets > rcv.full or tcb.is_quick:
            tcb.ack_now = True
        elif tcb.delayed_at == NEVER:
            tcb.delayed_at = now + tcb.config.delayed_ack_s
    return True
