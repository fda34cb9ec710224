"""SYNs within a connection that is known, and what may come back for them.

Who forgot a connection begins it anew. The other end challenges that (RFC 5961 section 4) and is answered
by a reset; or it has forgotten the connection as well, and answers the SYN.
"""

from typing import Final, TypeVar

from vtl_tools.common.packet.tcp import ACK, RST, SYN, TCP
from vtl_tools.services.fw import tcp_flow
from vtl_tools.services.fw.flow import Ends, Flow
from vtl_tools.services.fw.rule import IN, OUT, Direction

RETRIES_MAX: Final = 1024
"""Connections that one side opened and of which such is remembered; then the oldest is forgotten."""

_T = TypeVar("_T")


class PendingReplies:
    """What of connections that are known went on so that it can be answered."""

    def __init__(self) -> None:
        self._anew: dict[Direction, dict[Flow, Ends]] = {OUT: {}, IN: {}}
        self._challenges: dict[Direction, dict[Flow, int]] = {OUT: {}, IN: {}}

    def passed(self, flow: Flow, segment: TCP, direction: Direction) -> None:
        """Remember a segment that its receiver will not take: a SYN, or the challenge of one."""
        flags = segment.flags & (SYN | ACK | RST)
        if flags == SYN:
            ends = tcp_flow.opened(segment, direction, join=False)
            if ends is not None:
                _remember(self._anew[flow.initiator], flow, ends)
        elif flags == ACK:
            _remember(self._challenges[flow.initiator], flow, segment.ack)

    def answered(self, flow: Flow, segment: TCP, direction: Direction) -> Ends | None:
        """Return the ends of the connection that begins, if a segment answers the SYN.

        Where that is a reset, it is over.
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
        """Return what the last challenge acknowledged, which is the number that a reset is to have."""
        return self._challenges[flow.initiator].get(flow)

    def ends(self, flow: Flow) -> Ends | None:
        """Return both ends as the SYN that is not answered has it."""
        return self._anew[flow.initiator].get(flow)

    def forget(self, flow: Flow) -> None:
        """Forget a connection that ended."""
        self._anew[flow.initiator].pop(flow, None)
        self._challenges[flow.initiator].pop(flow, None)


def _remember(known: dict[Flow, _T], flow: Flow, value: _T) -> None:
    if len(known) >= RETRIES_MAX and flow not in known:
        del known[next(iter(known))]
    known[flow] = value
