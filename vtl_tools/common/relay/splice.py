"""Joins two streams within the process: what one brings goes to the other, in both directions."""

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from vtl_tools.common.relay.budget import RelayBudget
from vtl_tools.common.relay.connector import HUNG_UP, READABLE, WRITABLE, InternalStream, Stream

PIECE: Final = 1 << 18
"""Octets that are read at once; so many at most are held for a stream that takes no more."""
_PIECES_MAX: Final = 4
"""Reads of one turn, so that other flows have theirs."""
_EVICTED_MAX: Final = 64


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
    """Two joined streams; made by Splices.join(). buffered: octets of memory, as the budget counts them."""

    __slots__ = (
        "_far", "_near", "_splices", "broken", "buffered", "down", "has_left", "is_scheduled", "on_over",
        "up",
    )  # fmt: skip

    def __init__(self, splices: "Splices", near: Stream, far: Stream, on_over: Callable[[], object]) -> None:
        self._splices, self.on_over = splices, on_over
        self._near = near if isinstance(near, InternalStream) else None
        self._far = far if isinstance(far, InternalStream) else None
        self.up, self.down = _Way(near, far), _Way(far, near)
        self.broken = self.has_left = self.is_scheduled = False
        self.buffered = 0

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
        self._splices.schedule(self)

    def carry(self, room: memoryview, *, up: bool) -> None:
        """Move what can be moved. up: also from the near stream to the far one."""
        try:
            if up:
                self.up.carry(room)
            self.down.carry(room)
        except OSError:
            self.broken = True

    @property
    def waiting(self) -> int:
        """Octets of memory that wait between the near stream and the end of the far one, now."""
        held = len(self.up.held) + len(self.down.held)
        return held if self._far is None else held + self._far.buffered

    @property
    def near_buffered(self) -> int:
        """Octets of memory that wait in the near stream, now."""
        return 0 if self._near is None else self._near.buffered

    @property
    def is_over(self) -> bool:
        """Whether both directions have ended, or a stream is broken."""
        return self.broken or (self.up.sent_eof and self.down.sent_eof)

    @property
    def is_whole(self) -> bool:
        """Whether both directions have ended by themselves, so that nobody needs a reset."""
        return self.is_over and not self.broken


class Splices:
    """All splices of a service: carries those with something to do, within the budget.

    far_is_guest: what goes up a splice comes to the guest, which the budget counts as down, as everywhere.
    """

    def __init__(self, budget: RelayBudget, *, far_is_guest: bool) -> None:
        self._budget, self._far_is_guest = budget, far_is_guest
        self._all: dict[int, Splice] = {}
        self._scheduled: list[Splice] = []
        self._room = memoryview(bytearray(PIECE))

    def join(self, near: Stream, far: Stream, on_over: Callable[[], object]) -> Splice:
        """Return the splice of two streams.

        on_over: called once the splice is over or evicted; it calls leave() and closes the streams.
        """
        splice = Splice(self, near, far, on_over)
        self._all[id(splice)] = splice
        self.schedule(splice)
        return splice

    def leave(self, splice: Splice) -> None:
        """Let go of a splice."""
        del self._all[id(splice)]
        splice.has_left = True
        self._budget.buffered -= splice.buffered

    def schedule(self, splice: Splice) -> None:
        """Have settle() carry it."""
        if not splice.is_scheduled and not splice.has_left:
            splice.is_scheduled = True
            self._scheduled.append(splice)

    @property
    def has_more(self) -> bool:
        """Whether settle() has something to do."""
        return bool(self._scheduled)

    def settle(self) -> None:
        """Carry what can be carried; of more memory than the budget allows, reset the largest."""
        scheduled, self._scheduled = self._scheduled, []
        for splice in scheduled:
            splice.is_scheduled = False
            if not splice.has_left:
                self._carry(splice)
        if self._budget.is_exceeded:
            self._evict()

    def _carry(self, splice: Splice) -> None:
        budget = self._budget
        up, down = splice.up.moved, splice.down.moved
        # the near stream's octets are no more memory once they are moved on
        may_buffer = budget.allows(splice.waiting)
        splice.carry(self._room, up=may_buffer)
        up, down = splice.up.moved - up, splice.down.moved - down
        budget.octets_up += down if self._far_is_guest else up
        budget.octets_down += up if self._far_is_guest else down
        buffered = splice.waiting + splice.near_buffered
        budget.buffered += buffered - splice.buffered
        splice.buffered = buffered
        if splice.is_over:
            splice.on_over()
        elif splice.down.has_more or (may_buffer and splice.up.has_more):
            self.schedule(splice)

    def _evict(self) -> None:
        """Reset the splices with the most buffered octets."""
        bound = self._budget.limits.most * 7 // 8
        for splice in sorted(self._all.values(), key=lambda each: -each.buffered)[:_EVICTED_MAX]:
            if self._budget.buffered <= bound:
                return
            self._budget.evicted += 1
            splice.on_over()
