"""MuxFlow: one flow, as a stream. It holds what arrived; its sessions hold what is sent."""

import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from vtl_tools.common.errors import Malformed
from vtl_tools.common.relay.connector import FAILED, HUNG_UP, READABLE, WRITABLE
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.transport.base import FlowOpening, FlowStream
from vtl_tools.services.udt.transport.reassembly import RUN, FlowBuffer
from vtl_tools.services.udt.transport.tokens import NO_TOKEN
from vtl_tools.services.udt.transport.window import ReceiveWindow

_GONE: Final = READABLE | FAILED | HUNG_UP


class FlowSession(Protocol):
    """The part of a session that its flows call."""

    peer: str
    now: float

    def room(self, lane: "Lane") -> int:
        """Return how many octets send_data() takes now."""
        ...

    def send_data(self, lane: "Lane", offset: int, octets: memoryview) -> None:
        """Take octets, for which there is room."""
        ...

    def wait_for_room(self, lane: "Lane") -> None:
        """Tell the flow when there is room."""
        ...

    def end_flow(self, flow: "MuxFlow") -> None:
        """Send END."""
        ...

    def reset(self, flow: "MuxFlow") -> None:
        """Send RESET, and forget the flow."""
        ...

    def answer(self, flow: "MuxFlow", reason: Reason | None) -> None:
        """Send ANSWER."""
        ...

    def read(self, flow: "MuxFlow", octets: int) -> None:
        """Note that octets were read from a flow."""
        ...

    def widen(self, flow: "MuxFlow") -> None:
        """Let the other end send more, as several sessions bring octets."""
        ...

    def forget(self, flow: "MuxFlow") -> None:
        """Let go of a flow."""
        ...

    def remove(self, lane: "Lane") -> None:
        """Let go of a lane."""
        ...


class Lane:
    """The way of a flow on one session. id: its number there.

    is_queued: it waits for room; grant: octets that the session takes of it next, before others have a turn.
    """

    __slots__ = ("flow", "grant", "id", "is_queued", "session")

    def __init__(self, flow: "MuxFlow", session: FlowSession, number: int) -> None:
        self.flow, self.session, self.id = flow, session, number
        self.grant = 0
        self.is_queued = False
        flow.lanes.append(self)


class MuxFlow(FlowStream):
    """A flow, at either end: a FlowStream, and for the far module an IncomingFlow.

    token: see tokens.py. lanes: the first is on the session that it was opened on, which carries all but data
    alone. window: None before it is open. is_open: the other end accepted it, or we did. reason: why not.
    credit: octets that the other end lets us send; sent: octets that were sent. sent_end: our direction has
    ended. is_gone: it was reset. is_starved: to be told when there is credit.
    """

    def __init__(self, opening: FlowOpening, token: bytes = NO_TOKEN) -> None:
        self.opening, self.token = opening, token
        self.on_event: Callable[[int, float], object] | None = None
        self.lanes: list[Lane] = []
        self.window: ReceiveWindow | None = None
        self.credit = self.sent = 0
        self.is_open = self.sent_end = self.is_gone = self.is_closed = self.is_starved = False
        self.reason: Reason | None = None
        self._arrived = FlowBuffer()
        self._final: int | None = None
        self._turn = self._run = 0

    # --- what the session calls

    def tell(self, events: int, now: float) -> None:
        """Report events to the owner."""
        if self.on_event is not None and not self.is_closed:
            self.on_event(events, now)

    def opened(self, credit: int, now: float) -> None:
        """Take the other end's yes."""
        self.is_open, self.credit = True, credit
        self.tell(WRITABLE, now)

    def fail(self, reason: Reason, now: float) -> None:
        """Take the other end's no, its reset, or the session's end."""
        self.reason, self.is_gone = reason, True
        self._arrived.clear()
        self.tell(_GONE, now)

    def spread(self, now: float) -> None:
        """Begin to use a further lane."""
        self.lanes[0].session.widen(self)
        self.tell(WRITABLE, now)

    def arrived(self, offset: int, data: bytes | memoryview, now: float) -> None:
        """Hold octets until they are read. data: is not changed later. Raises Malformed.

        The window bounds how far they may be from the first one that is missing.
        """
        end = offset + len(data)
        if self.window is None or not self.is_open or end > self._promised:
            raise Malformed("data")
        if self._final is not None and end > self._final:
            raise Malformed("data.end")
        if data and self._arrived.add(offset, data):
            self.tell(READABLE, now)
        self.window.arrive(len(data))

    @property
    def _promised(self) -> int:
        """The offset up to which the other end may send."""
        return self._arrived.total + (0 if self.window is None else self.window.credit)

    def ended(self, final: int, now: float) -> None:
        """Take the other end's END: so many octets there are in all. Raises Malformed."""
        if self._final is not None or not self.is_open:
            raise Malformed("end")
        if not self._arrived.total <= final <= self._promised:
            raise Malformed("end.offset")
        self._final = final
        self.tell(READABLE, now)

    # --- what a stream has

    @property
    def got_end(self) -> bool:
        """Whether the other end has finished, and all that it sent has arrived."""
        return self._final == self._arrived.next

    @property
    def expects_more(self) -> bool:
        """Whether the other end has not finished."""
        return self._final is None

    def is_bulk(self, octets: int) -> bool:
        """Tell whether more octets than these were sent or have arrived, and more are to be expected."""
        moved = self.sent + self._arrived.total
        return self.is_open and moved > octets and (self.expects_more or not self.sent_end)

    @property
    def buffered(self) -> int:
        """Octets that arrived and were not read."""
        return self._arrived.unread + self._arrived.held

    @property
    def session(self) -> FlowSession | None:
        """The session that it was opened on; None: it has none yet."""
        return self.lanes[0].session if self.lanes else None

    def _check(self) -> FlowSession:
        session = self.session
        if self.is_gone or self.is_closed or session is None:
            raise ConnectionResetError
        return session

    def send(self, octets: bytes | bytearray | memoryview, /) -> int:
        """Take some of the octets."""
        return self.sendmsg((octets,))

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview], /) -> int:
        """Take some octets of several pieces."""
        self._check()
        if self.sent_end:
            raise BrokenPipeError
        if not self.is_open:
            raise BlockingIOError
        began = self.sent
        for piece in pieces:
            with memoryview(piece) as view:
                if not self._send(view):
                    break
        if self.sent == began:
            raise BlockingIOError
        return self.sent - began

    def _send(self, view: memoryview) -> bool:
        """Send octets as far as there are room and credit; return whether all were taken."""
        at = 0
        while at < len(view):
            if not self.credit:
                self.is_starved = True
                return False
            lane, room = self._next_lane()
            if lane is None:
                return False
            size = min(len(view) - at, self.credit, room)
            lane.session.send_data(lane, self.sent, view[at : at + size])
            at += size
            self.sent += size
            self.credit -= size
            self._run += size
        return True

    def _next_lane(self) -> tuple[Lane | None, int]:
        """Return the lane for the next octets, and its room; None: wait for room, of which it will be told.

        A lane is left when it has no more room, but not before it has a run of octets: the other end has to
        keep a record of each.
        """
        lanes = self.lanes
        lane = lanes[self._turn]
        if room := lane.session.room(lane):
            return lane, room
        if self._run < RUN or len(lanes) == 1:
            lane.session.wait_for_room(lane)
            return None, 0
        for step in range(1, len(lanes)):
            turn = (self._turn + step) % len(lanes)
            room = lanes[turn].session.room(lanes[turn])
            if room >= RUN:
                self._turn, self._run = turn, 0
                return lanes[turn], room
        for lane in lanes:
            lane.session.wait_for_room(lane)
        return None, 0

    def recv_into(self, room: memoryview, octets: int, /) -> int:
        """Write octets that arrived into the room; 0: all were read, and the other end has finished."""
        session = self._check()
        if not self._arrived.unread:
            if self.got_end:
                return 0
            raise BlockingIOError
        size = self._arrived.read_into(room, octets)
        session.read(self, size)
        return size

    def shutdown(self, how: int, /) -> None:
        """End our direction."""
        if how == socket.SHUT_RD or self.sent_end:
            return
        session = self._check()
        self.sent_end = True
        session.end_flow(self)

    def close(self) -> None:
        """Release it; reset the flow unless both directions have ended."""
        if self.is_closed:
            return
        session, self.on_event = self.session, None
        if session is not None and not self.is_gone:
            if self.sent_end and self.got_end and not self._arrived.unread:
                session.forget(self)
            else:
                session.reset(self)
        self.is_closed = True
        self._arrived.clear()

    # --- what an IncomingFlow has

    @property
    def stream(self) -> FlowStream:
        """The flow is its own stream."""
        return self

    @property
    def peer(self) -> str:
        """The module that the session is with."""
        session = self.session
        return "" if session is None else session.peer

    def accept(self, now: float) -> None:
        """Tell that the destination is connected."""
        session = self.session
        if session is not None and not (self.is_gone or self.is_open):
            self.is_open = True
            session.answer(self, None)

    def refuse(self, reason: Reason, now: float) -> None:
        """Tell why it is not."""
        session = self.session
        if session is not None and not (self.is_gone or self.is_open):
            self.reason, self.is_gone = reason, True
            session.answer(self, reason)
