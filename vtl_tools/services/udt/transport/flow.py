"""MuxFlow: one flow of a session, as a stream. It holds what arrived; its session holds what is sent."""

import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from vtl_tools.common.relay.connector import FAILED, HUNG_UP, READABLE, WRITABLE
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.transport.base import FlowOpening, FlowStream
from vtl_tools.services.udt.transport.window import ReceiveWindow

_COPIED_MAX: Final = 1 << 15
"""Octets of a piece that is joined with its neighbours: small ones keep no record of 64 KiB."""
_JOINED_MAX: Final = 1 << 16
_GONE: Final = READABLE | FAILED | HUNG_UP


class FlowSession(Protocol):
    """The part of a session that its flows call."""

    peer: str
    now: float

    def send_data(self, flow: "MuxFlow", pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Take octets. Raises BlockingIOError."""
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

    def forget(self, flow: "MuxFlow") -> None:
        """Note that nothing more is to be read or sent."""
        ...


class MuxFlow(FlowStream):
    """A flow, at either end: a FlowStream, and for the far module an IncomingFlow.

    session: None until it has one. is_open: the other end accepted it, or we did. reason: why not. credit:
    octets that the other end lets us send. sent_end, got_end: each direction's end. is_gone: it was reset.
    is_starved: to be told when there is credit; is_queued: when the session has room; grant: octets that the
    session takes of it next, before others have their turn.
    """

    def __init__(self, opening: FlowOpening) -> None:
        self.opening = opening
        self.on_event: Callable[[int, float], object] | None = None
        self.session: FlowSession | None = None
        self.window: ReceiveWindow | None = None
        self.id = self.credit = self.grant = self._unread = 0
        self.is_open = self.sent_end = self.got_end = self.is_gone = self.is_closed = False
        self.is_starved = self.is_queued = False
        self.reason: Reason | None = None
        self._pieces: deque[bytes | bytearray | memoryview] = deque()

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
        self._pieces.clear()
        self._unread = 0
        self.tell(_GONE, now)

    def arrived(self, data: bytes | memoryview, now: float) -> None:
        """Hold octets until they are read. data: is not changed later."""
        size = len(data)
        self._unread += size
        if size > _COPIED_MAX:
            self._pieces.append(data)
        else:
            last = self._pieces[-1] if self._pieces else None
            if isinstance(last, bytearray) and len(last) + size <= _JOINED_MAX:
                last += data
            else:
                self._pieces.append(bytearray(data))
        self.tell(READABLE, now)

    def ended(self, now: float) -> None:
        """Take the other end's END."""
        self.got_end = True
        self.tell(READABLE, now)

    # --- what a stream has

    @property
    def buffered(self) -> int:
        """Octets that arrived and were not read."""
        return self._unread

    def _check(self) -> FlowSession:
        if self.is_gone or self.is_closed or self.session is None:
            raise ConnectionResetError
        return self.session

    def send(self, octets: bytes | bytearray | memoryview, /) -> int:
        """Take some of the octets."""
        return self.sendmsg((octets,))

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview], /) -> int:
        """Take some octets of several pieces."""
        session = self._check()
        if self.sent_end:
            raise BrokenPipeError
        if not self.is_open:
            raise BlockingIOError
        return session.send_data(self, pieces)

    def recv_into(self, room: memoryview, octets: int, /) -> int:
        """Write octets that arrived into the room; 0: all were read, and the other end has finished."""
        if not self._unread:
            session = self._check()
            if self.got_end:
                return 0
            raise BlockingIOError
        session = self._check()
        at, pieces = 0, self._pieces
        while pieces and at < octets:
            piece = pieces[0]
            size = len(piece)
            if size <= octets - at:
                room[at : at + size] = piece
                pieces.popleft()
                at += size
            else:
                size = octets - at
                with memoryview(piece) as view:
                    room[at:octets] = view[:size]
                pieces[0] = memoryview(piece)[size:]
                at = octets
        self._unread -= at
        session.read(self, at)
        return at

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
            if self.sent_end and self.got_end and not self._unread:
                session.forget(self)
            else:
                session.reset(self)
        self.is_closed = True
        self._pieces.clear()
        self._unread = 0

    # --- what an IncomingFlow has

    @property
    def stream(self) -> FlowStream:
        """The flow is its own stream."""
        return self

    @property
    def peer(self) -> str:
        """The module that the session is with."""
        return "" if self.session is None else self.session.peer

    def accept(self, now: float) -> None:
        """Tell that the destination is connected."""
        if self.session is not None and not (self.is_gone or self.is_open):
            self.is_open = True
            self.session.answer(self, None)

    def refuse(self, reason: Reason, now: float) -> None:
        """Tell why it is not."""
        if self.session is not None and not (self.is_gone or self.is_open):
            self.reason, self.is_gone = reason, True
            self.session.answer(self, reason)
