"""TCP by state and window: decides which segments belong to a connection (RFC 9293, RFC 5961, RFC 7323).

The state model's functions judge (model.tcp_arrival); this module adds the firewall's policy.
"""

from typing import Final

from vtl_tools.common.model.segment_kind import SegmentKind
from vtl_tools.common.model.tcp_arrival import arrive, arrive_syn
from vtl_tools.common.model.tcp_end import TcpEnd
from vtl_tools.common.packet.seq import seq_between, seq_sub
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN, TCP
from vtl_tools.common.packet.tcp_state import State
from vtl_tools.common.rules.rule import OUT, Direction
from vtl_tools.services.fw.flow import Ends

_THROUGH: Final = (State.CLOSED, State.TIME_WAIT)
_ONE_OF: Final = SYN | FIN | RST
_OPENING: Final = (State.SYN_SENT, State.SYN_RECEIVED, State.LISTEN)


def opened(segment: TCP, direction: Direction, *, join: bool) -> Ends | None:
    """Return both ends after the first segment of a connection; None if it cannot be one.

    join: whether the connection may be older than the service, so that an acknowledgement suffices.
    """
    tx, rx = TcpEnd(segment.sport), TcpEnd(segment.dport)
    flags = segment.flags
    if flags & SYN:
        if flags & ACK or not arrive_syn(tx, rx, segment).taken:
            return None
    elif join and flags & ACK and not flags & RST:
        for one, mine, theirs in (tx, segment.seq, segment.ack), (rx, segment.ack, segment.seq):
            one.state = State.ESTABLISHED
            one.snd_una = one.snd_nxt = mine
            one.rcv_nxt = one.snd_wl1 = theirs
            one.timestamps, one.sack_permitted = segment.timestamps is not None, None
        if not follow((tx, rx), OUT, segment).taken:
            return None
    else:
        return None
    return (tx, rx) if direction is OUT else (rx, tx)


def is_guess(ends: Ends) -> bool:
    """Return whether a connection was joined by a segment to the VM, which has not confirmed its numbers."""
    return ends[0].iss is None and not ends[0].heard


def follow(ends: Ends, direction: Direction, segment: TCP) -> SegmentKind:
    """Follow a segment of a connection, and return its kind."""
    tx, rx = ends if direction is OUT else (ends[1], ends[0])
    _, _, seq, ack, _, flags, window, _, _ = TCP.HEADER.unpack_from(segment.buf, segment.off)
    if flags & SYN:
        return arrive_syn(tx, rx, segment)
    stamps = segment.timestamps if tx.timestamps else None
    length = segment.end - segment.payload_off
    return arrive(tx, rx, seq, ack, flags, window, length, stamps[0] if stamps else None)


def refuse(ends: Ends, direction: Direction, initiator: Direction, segment: TCP) -> str:
    """Return why a segment of a known connection is dropped regardless of its numbers; or "".

    No end sends two of SYN, FIN and RST in one segment. In a simultaneous open the other end sends a SYN,
    too, and the initiator a SYN-ACK. In all other cases neither does.
    """
    flags = segment.flags
    if flags & _ONE_OF not in (0, SYN, FIN, RST):
        return "tcp-flags"
    if not flags & SYN or (flags & ACK != 0) is not (direction is initiator):
        return ""
    opener, other = ends if initiator is OUT else (ends[1], ends[0])
    if opener.state not in _OPENING and (direction is not initiator or other.state not in _OPENING):
        return "tcp-unexpected-syn"
    return ""


def starts_anew(ends: Ends, flags: int) -> bool:
    """Return whether a segment opens a new connection after the end of the one with these ends."""
    through = ends[0].state in _THROUGH and ends[1].state in _THROUGH
    return flags & (SYN | ACK | RST | FIN) == SYN and through


def may_pass(
    ends: Ends,
    direction: Direction,
    initiator: Direction,
    segment: TCP,
    seen: SegmentKind,
    challenged: int | None,
) -> bool:
    """Return whether to pass a segment that its receiver will not accept, so that the receiver can answer it.

    A receiver challenges a reset within the window but not at its edge, and a SYN of the initiator (RFC 5961
    sections 3 and 4). Without that, an end that lost its state could never end the connection. Before a
    connection is open, such a challenge is a bare ACK, and a reset answers it. challenged: the
    acknowledgement of that ACK, None if there was none.
    """
    if seen is SegmentKind.UNSURE_RESET:
        return True
    if seen is SegmentKind.UNEXPECTED_SYN:
        return direction is initiator and segment.flags & ACK == 0
    if seen not in (SegmentKind.NOT_OPEN, SegmentKind.ACK_OF_UNSENT):
        return False
    opener = ends[0] if initiator is OUT else ends[1]
    if opener.state is not State.SYN_SENT:
        return False
    if direction is initiator:
        return segment.flags & RST != 0 and segment.seq == challenged
    return segment.flags & (SYN | ACK | RST | FIN) == ACK and segment.end == segment.payload_off


def quotes_what_was_sent(ends: Ends, quoted: Direction, seq: int) -> bool:
    """Return whether an ICMP error is about a segment in flight (RFC 5927 section 4.1)."""
    tx = ends[0] if quoted is OUT else ends[1]
    if seq == tx.iss and tx.state in _OPENING:
        return True
    return seq_between(tx.snd_una, seq, tx.snd_nxt) or seq_sub(seq, tx.snd_una) == 0


def stage(ends: Ends) -> str:
    """Return the name of the timeout in force: opening, established, closing or closed."""
    one, two = ends[0].state, ends[1].state
    if one is State.ESTABLISHED and two is State.ESTABLISHED:
        return "established"
    if one in _OPENING or two in _OPENING:
        return "opening"
    return "closed" if one in _THROUGH and two in _THROUGH else "closing"
