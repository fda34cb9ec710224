"""SYNs within a known connection, and the replies that they may get.

An end that lost its state opens the connection again. The other end challenges the SYN (RFC 5961 section 4)
and gets a reset; or it has lost its state as well, and answers the SYN.
"""

from typing import Final, TypeVar

from vtl_tools.common.packet.tcp import ACK, RST, SYN, TCP
from vtl_tools.common.rules.rule import IN, OUT, Direction
from vtl_tools.services.fw import tcp_flow
from vtl_tools.services.fw.flow import Ends, Flow

RETRIES_MAX: Final = 1024
"""Maximum connections per opening side with such a SYN; beyond, the oldest is evicted."""

_T = TypeVar("_T")


class PendingReplies:
    """Segments of known connections that passed so that the receiver can answer them."""

    def __init__(self) -> None:
        self._anew: dict[Direction, dict[Flow, Ends]] = {OUT: {}, IN: {}}
        self._challenges: dict[Direction, dict[Flow, int]] = {OUT: {}, IN: {}}

    def passed(self, flow: Flow, segment: TCP, direction: Direction) -> None:
        """Record a segment that its receiver will not accept: a SYN, or the challenge of one."""
        flags = segment.flags & (SYN | ACK | RST)
        if flags == SYN:
            ends = tcp_flow.opened(segment, direction, join=False)
            if ends is not None:
                _remember(self._anew[flow.initiator], flow, ends)
        elif flags == ACK:
            _remember(self._challenges[flow.initiator], flow, segment.ack)

    def answered(self, flow: Flow, segment: TCP, direction: Direction) -> Ends | None:
        """Return the ends of the new connection, if a segment answers the SYN.

        If the answer is a reset, the connection is over.
        """
        anew = self._anew[flow.initiator]
        ends = anew.get(flow)
        if ends is None or direction is flow.initiator or not segment.flags & (SYN | RST):
            return None
        if not tcp_flow.follow(ends, direction, segment).taken:
            return None
        del anew[flow]
        return ends

    def challenged(self, flow: Flow) -> int | None:
        """Return the acknowledgement of the last challenge, which a reset must have as its number."""
        return self._challenges[flow.initiator].get(flow)

    def ends(self, flow: Flow) -> Ends | None:
        """Return both ends of the connection of the unanswered SYN."""
        return self._anew[flow.initiator].get(flow)

    def forget(self, flow: Flow) -> None:
        """Remove a connection that ended."""
        self._anew[flow.initiator].pop(flow, None)
        self._challenges[flow.initiator].pop(flow, None)


def _remember(known: dict[Flow, _T], flow: Flow, value: _T) -> None:
    if len(known) >= RETRIES_MAX and flow not in known:
        del known[next(iter(known))]
    known[flow] = value
