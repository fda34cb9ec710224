"""What was written and is not yet acknowledged: pieces held by reference, found by position."""

from bisect import bisect_right
from typing import Final

Octets = bytes | bytearray | memoryview

PIECE: Final = 256
"""Octets of memory that a piece takes beside what is in it: its objects, and its places in lists."""

_SMALL: Final = 4096
"""Pieces below are copied together, so that many small writes do not become many small pieces."""
_TAIL_MAX: Final = 65536


class SendQueue:
    """Octets by position, which counts from the ISS and never wraps; the first octet of data is 1.

    head: position of the first octet kept. tail: behind the last. kept: octets of memory that it takes; a
    piece goes as a whole, when its last octet does.
    """

    __slots__ = ("_pieces", "_starts", "head", "kept", "tail")

    def __init__(self) -> None:
        self.head = self.tail = 1
        self.kept = 0
        self._starts: list[int] = []
        self._pieces: list[Octets] = []

    def append(self, data: Octets) -> None:
        """Take data over: the caller must not change it until it is acknowledged."""
        size = len(data)
        if size < _SMALL:
            last = self._pieces[-1] if self._pieces else None
            if type(last) is bytearray and len(last) + size <= _TAIL_MAX:
                try:
                    last += data
                except BufferError:  # a frame that is not sent yet shows it
                    last = None
                else:
                    self.tail += size
                    self.kept += size
                    return
            data = bytearray(data)  # only these are ours to extend: what a caller gives is kept as a view
        elif type(data) is bytearray:
            data = memoryview(data)
        self._starts.append(self.tail)
        self._pieces.append(data)
        self.tail += size
        self.kept += size + PIECE

    def views(self, start: int, end: int) -> list[memoryview]:
        """Return the octets between two positions. Let go of the views before the next append()."""
        i = bisect_right(self._starts, start) - 1
        at = start - self._starts[i]
        view = memoryview(self._pieces[i])[at : at + end - start]
        if len(view) == end - start:
            return [view]
        found = [view]
        start += len(view)
        while start < end:
            i += 1
            view = memoryview(self._pieces[i])[: end - start]
            found.append(view)
            start += len(view)
        return found

    def drop(self, position: int) -> None:
        """Forget what is before a position."""
        self.head = position
        starts, pieces = self._starts, self._pieces
        done = 0
        while done < len(starts) and starts[done] + (size := len(pieces[done])) <= position:
            done += 1
            self.kept -= size + PIECE
        if done:
            del starts[:done], pieces[:done]

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._pieces.clear()
        self.head, self.kept = self.tail, 0
