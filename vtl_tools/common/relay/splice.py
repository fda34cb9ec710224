"""Joins two streams within the process: what one brings goes to the other, in both directions."""

import socket
from contextlib import suppress
from typing import Final

from vtl_tools.common.relay.connector import HUNG_UP, READABLE, WRITABLE, Stream

PIECE: Final = 1 << 18
"""Octets that are read at once; so many at most are held for a stream that takes no more."""
_PIECES_MAX: Final = 4
"""Reads of one turn, so that other flows have theirs."""


class _Way:
    """One direction. held: octets that the sink has not taken yet; moved: those that it has taken, in all."""

    __slots__ = ("held", "may_read", "may_write", "moved", "read_eof", "sent_eof", "sink", "source")

    def __init__(self, source: Stream, sink: Stream) -> None:
        self.source, self.sink = source, sink
        self.held: bytes | memoryview = b""
        self.may_read = self.may_write = True
        self.read_eof = self.sent_eof = False
        self.moved = 0

    def carry(self, room: memoryview) -> None:
        """Move octets until a stream has no more or takes no more. Raises OSError if one is broken."""
        for _ in range(_PIECES_MAX):
            if self.held and not self._send():
                return
            if self.read_eof or not self.may_read:
                break
            try:
                size = self.source.recv_into(room, len(room))
            except BlockingIOError:
                self.may_read = False
                break
            if size:
                self.held = room[:size]
            else:
                self.read_eof, self.may_read = True, False
        if self.held and not self._send():
            return
        if self.read_eof and not self.sent_eof:
            self.sent_eof = True
            self.sink.shutdown(socket.SHUT_WR)

    def _send(self) -> bool:
        """Send what is held; return whether all of it was taken. The rest is copied out of the room."""
        if not self.may_write:
            return False  # such octets were copied when the sink took no more
        with suppress(BlockingIOError):
            sent = self.sink.send(self.held)
            self.moved += sent
            if sent == len(self.held):
                self.held = b""
                return True
            self.held = self.held[sent:]
        self.held = bytes(self.held)
        self.may_write = False
        return False

    @property
    def has_more(self) -> bool:
        """Whether carry() can go on at once."""
        return self.may_write if self.held else self.may_read


class Splice:
    """Two joined streams. room: a buffer of PIECE octets, which all splices of a thread may share.

    The owner closes the streams when it is over.
    """

    __slots__ = ("_room", "broken", "down", "up")

    def __init__(self, near: Stream, far: Stream, room: memoryview) -> None:
        self._room = room
        self.up, self.down = _Way(near, far), _Way(far, near)
        self.broken = False

    def on_near(self, events: int) -> None:
        """Take events of the near stream."""
        self._on_events(self.up, self.down, events)

    def on_far(self, events: int) -> None:
        """Take events of the far stream."""
        self._on_events(self.down, self.up, events)

    def _on_events(self, source: _Way, sink: _Way, events: int) -> None:
        if events & (READABLE | HUNG_UP) and not source.read_eof:
            source.may_read = True
        if events & (WRITABLE | HUNG_UP):
            sink.may_write = True

    def carry(self, *, up: bool = True) -> None:
        """Move what can be moved. up: also from the near stream to the far one."""
        try:
            if up:
                self.up.carry(self._room)
            self.down.carry(self._room)
        except OSError:
            self.broken = True

    @property
    def is_over(self) -> bool:
        """Whether both directions have ended, or a stream is broken."""
        return self.broken or (self.up.sent_eof and self.down.sent_eof)

    @property
    def buffered(self) -> int:
        """Octets that are held."""
        return len(self.up.held) + len(self.down.held)
