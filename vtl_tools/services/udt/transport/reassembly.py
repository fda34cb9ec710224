"""The octets of a flow that arrived, until they are read. Each of several sessions brings some in order."""

from bisect import bisect_right
from collections import deque
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.services.udt.transport.window import WINDOW_MAX

RUN: Final = 1 << 15
"""Octets at least that go by one session before the next ones go by another."""
GAPS_MAX: Final = WINDOW_MAX // RUN
"""Runs that may wait for earlier octets: more of them do not fit into a window."""

_COPIED_MAX: Final = 1 << 15
"""Octets of a piece that is joined with its neighbours: small ones keep no record of 64 KiB."""
_JOINED_MAX: Final = 1 << 16

Pieces = deque[bytes | bytearray | memoryview]


class FlowBuffer:
    """The octets of one flow. next: the offset of the first one that is missing. held: octets behind it.

    unread: octets before it that were not read.
    """

    __slots__ = ("_pieces", "_runs", "_starts", "held", "next", "unread")

    def __init__(self) -> None:
        self.next = self.held = self.unread = 0
        self._pieces: Pieces = deque()
        self._starts: list[int] = []
        self._runs: list[tuple[int, Pieces]] = []
        """The end of each run that waits, and its octets, in the order of their starts."""

    @property
    def total(self) -> int:
        """Octets that have arrived so far."""
        return self.next + self.held

    def add(self, offset: int, data: bytes | memoryview) -> bool:
        """Hold octets, at least one; return whether some can be read now. data: is not changed later.

        Raises Malformed if one of them came before, or if there are too many gaps.
        """
        end = offset + len(data)
        if offset == self.next and not (self._starts and end > self._starts[0]):
            _append(self._pieces, data)
            self.unread += len(data)
            self.next = end
            self._join()
            return True
        at = bisect_right(self._starts, offset)
        before = self._runs[at - 1][0] if at else self.next
        if offset < before or (at < len(self._starts) and end > self._starts[at]):
            raise Malformed("data.offset")
        if at and offset == before:
            pieces = self._runs[at - 1][1]
            self._runs[at - 1] = end, pieces
        elif len(self._starts) < GAPS_MAX:
            pieces = deque()
            self._starts.insert(at, offset)
            self._runs.insert(at, (end, pieces))
        else:
            raise Malformed("data.gaps")
        _append(pieces, data)
        self.held += len(data)
        return False

    def _join(self) -> None:
        """Make the runs readable that nothing is missing before any more."""
        count = 0
        while count < len(self._starts) and self._starts[count] == self.next:
            end, pieces = self._runs[count]
            self._pieces.extend(pieces)
            self.unread += end - self.next
            self.held -= end - self.next
            self.next = end
            count += 1
        if count:
            del self._starts[:count], self._runs[:count]

    def read_into(self, room: memoryview, octets: int) -> int:
        """Write at most so many octets into the room; return how many."""
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
        self.unread -= at
        return at

    def clear(self) -> None:
        """Let go of all octets."""
        self._pieces.clear()
        self._starts.clear()
        self._runs.clear()
        self.held = self.unread = 0


def _append(pieces: Pieces, data: bytes | memoryview) -> None:
    """Add octets to others that they follow."""
    if len(data) > _COPIED_MAX:
        pieces.append(data)
        return
    last = pieces[-1] if pieces else None
    if isinstance(last, bytearray) and len(last) + len(data) <= _JOINED_MAX:
        last += data
    else:
        pieces.append(bytearray(data))
