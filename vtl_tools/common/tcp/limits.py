"""Times in which data was to be sent, and what held it back, as in TCP_INFO of Linux."""

from typing import Final

from vtl_tools.common.tcp.tcb import TCB

NOTHING_TO_SEND: Final = 0
BUSY: Final = 1
BY_WINDOW: Final = 2
BY_BUFFER: Final = 3


def hold(tcb: TCB, by: int, now: float) -> None:
    """Count the time since the last call, and begin to count what holds sending from now on."""
    elapsed_s = now - tcb.held_since
    if tcb.held_by == BY_WINDOW:
        tcb.window_limited_s += elapsed_s
    elif tcb.held_by == BY_BUFFER:
        tcb.buffer_limited_s += elapsed_s
    if tcb.held_by != NOTHING_TO_SEND:
        tcb.busy_s += elapsed_s
    tcb.held_by, tcb.held_since = by, now


def judge(tcb: TCB, now: float) -> None:
    """Tell what holds sending, after all was sent that may be sent."""
    snd = tcb.snd
    by, left = BUSY, snd.end - snd.nxt
    if left > 0:
        least = min(left, snd.mss)
        if snd.una + snd.wnd - snd.nxt < least <= snd.cc.cwnd - snd.pipe():
            by = BY_WINDOW
    elif not snd.limited and snd.queue.tail - snd.queue.head >= snd.config.send_buffer:
        by = BY_BUFFER
    if by != tcb.held_by:
        hold(tcb, by, now)
