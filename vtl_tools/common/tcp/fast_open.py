"""TCP fast open (RFC 7413): data in the SYN, against a cookie that the server gave before.

It is for applications that bear to receive the same data twice (section 6), which only the user knows.
"""

from typing import Final

from vtl_tools.common.packet.tcp import FAST_OPEN, NOP, OPTIONS_MAX
from vtl_tools.common.tcp.tcb import TCB
from vtl_tools.common.tcp.wire import Segment, options_of

_SHORTEST: Final = 4
_LONGEST: Final = 16
"""Octets of a cookie (section 4.1.1), an even number."""


def _option(segment: Segment) -> bytes | None:
    """Return the cookie of a SYN or SYN-ACK; empty: one is asked for; None: there is no valid option."""
    frame = segment.frame
    if frame is None:
        return None
    for kind, at, size in options_of(segment, frame):
        if kind == FAST_OPEN:
            octets = size - 2
            if octets and not (_SHORTEST <= octets <= _LONGEST and octets % 2 == 0):
                return None
            return bytes(frame[at + 2 : at + size])
    return None


def add_option(options: bytes, cookie: bytes) -> bytes:
    """Return options with one more, with a cookie or a request for one, as far as there is room."""
    size = 2 + len(cookie)
    if len(options) + size + (-size & 3) > OPTIONS_MAX:
        return options
    return options + bytes((FAST_OPEN, size)) + cookie + bytes((NOP,)) * (-size & 3)


# --- a server


def asked(tcb: TCB, syn: Segment, now: float) -> None:
    """Judge the option of a SYN: data may be taken at once, or the SYN-ACK gives a cookie (section 4.2.2)."""
    jar = tcb.fast_open
    cookie = None if jar is None else _option(syn)
    if jar is None or cookie is None:
        return
    if not jar.knows(tcb.path, cookie):
        tcb.grant = jar.cookie(tcb.path)
        return
    tcb.is_early = tcb.before is None and jar.admit(now)
    if cookie != jar.cookie(tcb.path):
        tcb.grant = jar.cookie(tcb.path)


# --- a client


def offer(tcb: TCB, now: float) -> tuple[bytes | None, int]:
    """Return the cookie for our SYN, empty to ask for one, and how many octets of data it may carry.

    None: no fast open. Only the first SYN has it; if that was lost, so may be all of its kind.
    """
    jar, snd = tcb.fast_open, tcb.snd
    if jar is None:
        return None, 0
    if snd.nxt:
        if not snd.retransmits:
            jar.block(tcb.path, now)
        return None, 0
    known = jar.offer(tcb.path, now)
    if known is None:
        return None, 0
    return known.cookie, max(0, known.mss - OPTIONS_MAX) if known.cookie else 0


def answered(tcb: TCB, syn_ack: Segment, ack: int, now: float) -> None:
    """Remember the cookie of a SYN-ACK, or that our data was not taken for no reason (section 4.1.3.1)."""
    jar = tcb.fast_open
    if jar is None:
        return
    cookie = _option(syn_ack)
    if cookie:
        jar.learn(tcb.path, cookie, syn_ack.mss or 536)
    elif ack == 1 < tcb.snd.max:
        jar.block(tcb.path, now)
