"""Timeouts: processes the timers of a connection (RFC 9293 section 3.10.8)."""

from typing import Final

from vtl_tools.common.packet.tcp import ACK
from vtl_tools.common.tcp import acks, output
from vtl_tools.common.tcp.snd import Piece
from vtl_tools.common.tcp.state import FIN_WAIT_2, Ended, State
from vtl_tools.common.tcp.tcb import NEVER, TCB

_OPENING: Final = frozenset((State.SYN_SENT, State.SYN_RECEIVED))
_KEPT_ALIVE: Final = frozenset((State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT_2))


def deadline(tcb: TCB) -> float:
    """Return when process() is due; NEVER: only another call can bring something."""
    due = tcb.retransmit_at
    if tcb.delayed_at < due:
        due = tcb.delayed_at
    if tcb.reorder_at < due:
        due = tcb.reorder_at
    if tcb.paced_at < due:
        due = tcb.paced_at
    if tcb.persist_at < due:
        due = tcb.persist_at
    if tcb.time_wait_at < due:
        due = tcb.time_wait_at
    if tcb.stalled_since is not None:
        due = min(due, _give_up_at(tcb))
    elif tcb.config.keep_alive_s is not None:
        due = min(due, _keep_alive_at(tcb))
    if tcb.state is FIN_WAIT_2:
        due = min(due, _silent_at(tcb))
    return due


def process(tcb: TCB, now: float) -> None:
    """Process the timers that are due. An early call is harmless."""
    if now >= tcb.time_wait_at or now >= _silent_at(tcb):
        tcb.end(Ended.CLOSED if tcb.time_wait_at <= now else Ended.TIMED_OUT)
        return
    if now >= _give_up_at(tcb):
        tcb.end(Ended.TIMED_OUT)
        return
    if now >= _keep_alive_at(tcb):
        _keep_alive(tcb, now)
    if now >= tcb.delayed_at:
        tcb.delayed_at, tcb.ack_now = NEVER, True
        tcb.is_interactive = False  # the user did not answer in time
    if now >= tcb.persist_at:
        _persist(tcb, now)
    if now >= tcb.paced_at:
        tcb.paced_at = NEVER
    if now >= tcb.reorder_at:
        acks.reordering_is_over(tcb, now)
    if now >= tcb.retransmit_at:
        _retransmit(tcb, now)


def _retransmit(tcb: TCB, now: float) -> None:
    snd = tcb.snd
    if snd.una == 0 or tcb.is_early:  # our SYN, whether or not a FIN followed it
        tcb.rtt.back_off()
        if tcb.state not in _OPENING:
            tcb.out.append(output.synchronize(tcb, now))
            return
        tcb.syn_due, tcb.retransmit_at = True, NEVER
        return
    if tcb.probe_is_next:
        tcb.probe_is_next = False
        piece = snd.tail()
        if piece is None:
            tcb.retransmit_at = tcb.rto_at
            return
        tcb.out.append(output.send_piece(tcb, piece, now))
        tcb.probe = (snd.nxt, piece.again)
        tcb.arm(now)
        return
    tcb.rtt.back_off()  # RFC 6298 (5.5)
    tcb.probe = tcb.timed = None
    if snd.wnd == 0:  # 3.8.6.1: not congestion, so an octet probes the window
        tcb.persists += 1
        end = snd.una + 1
        fin = snd.fin == snd.una
        piece = Piece(snd.una, snd.una if fin else end, fin, True)
        tcb.out.append(output.send_piece(tcb, piece, now))
    else:
        acks.timed_out(tcb, now)
    tcb.arm(now)


def _persist(tcb: TCB, now: float) -> None:
    tcb.persist_at = NEVER
    if (piece := tcb.snd.override()) is not None:
        if not tcb.snd.wnd:
            tcb.persists += 1
            tcb.rtt.backoffs = tcb.persists  # SHLD-30, also for a probe that is sent again
        tcb.out.append(output.send_piece(tcb, piece, now))


def _keep_alive(tcb: TCB, now: float) -> None:
    if tcb.keep_alives >= tcb.config.keep_alive_probes:
        tcb.reset_due = True
        tcb.end(Ended.TIMED_OUT)
        return
    tcb.keep_alives += 1
    tcb.kept_alive_at = now
    tcb.out.append(output.frame(tcb, tcb.snd.nxt - 1, ACK, now))  # 3.8.4: SEG.SEQ = SND.NXT-1


def _give_up_at(tcb: TCB) -> float:
    since = tcb.stalled_since
    if since is None:
        return NEVER
    limit_s = NEVER if tcb.user_timeout_s is None else tcb.user_timeout_s
    return since + (min(limit_s, tcb.config.syn_timeout_s) if tcb.state in _OPENING else limit_s)


def _keep_alive_at(tcb: TCB) -> float:
    config = tcb.config
    if config.keep_alive_s is None or tcb.stalled_since is not None:
        return NEVER
    if tcb.state not in _KEPT_ALIVE:
        return NEVER
    if tcb.keep_alives:  # each has its time to be answered, however late it was sent (MUST-29)
        return tcb.kept_alive_at + config.keep_alive_interval_s
    return tcb.heard_at + config.keep_alive_s


def _silent_at(tcb: TCB) -> float:
    config = tcb.config
    if tcb.state is not FIN_WAIT_2 or config.fin_wait_2_s is None:
        return NEVER
    return tcb.heard_at + config.fin_wait_2_s
