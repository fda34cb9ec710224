"""The send queue: written octets that are not acknowledged yet, held by reference, found by position."""

from bisect import bisect_right
from typing import Final

Octets = bytes | bytearray | memoryview

PIECE: Final = 256
"""Octets of memory per piece besides its content: objects and list entries."""

_SMALL: Final = 4096
"""Smaller pieces are copied together, so that many small writes do not become many small pieces."""
_TAIL_MAX: Final = 65536


class SendQueue:
    """Octets by position, which counts from the ISS and never wraps; the first octet of data is 1.

    head: position of the first octet. tail: position after the last. kept: octets of memory used; a piece is
    freed as a whole, with its last octet.
    """

    __slots__ = ("_pieces", "_starts", "head", "kept", "tail")

    def __init__(self) -> None:
        self.head = self.tail = 1
        self.kept = 0
        self._starts: list[int] = []
        self._pieces: list[Octets] = []

    def append(self, data: Octets) -> None:
        """Append data by reference: the caller must not change it until it is acknowledged."""
        size = len(data)
        if size < _SMALL:
            last = self._pieces[-1] if self._pieces else None
            if type(last) is bytearray and len(last) + size <= _TAIL_MAX:
                try:
                    last += data
                except BufferError:  # a frame that is not sent yet has a view of it
                    last = None
                else:
                    self.tail += size
                    self.kept += size
                    return
            data = bytearray(data)  # we may extend only our own: the caller's data is kept as a view
        else:
            data = memoryview(data)  # a part of a view costs less than a view of a part
        self._starts.append(self.tail)
        self._pieces.append(data)
        self.tail += size
        self.kept += size + PIECE

    def views(self, start: int, end: int) -> list[memoryview]:
        """Return the octets between two positions. Release the views before the next append()."""
        i = bisect_right(self._starts, start) - 1
        at = start - self._starts[i]
        piece = self._pieces[i]
        view = (piece if type(piece) is memoryview else memoryview(piece))[at : at + end - start]
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
        """Remove the octets before a position."""
        self.head = position
        starts, pieces = self._starts, self._pieces
        done = 0
        while done < len(starts) and starts[done] + (size := len(pieces[done])) <= position:
            done += 1
            self.kept -= size + PIECE
        if done:
            del starts[:done], pieces[:done]

    def clear(self) -> None:
        """Remove all octets."""
        self._starts.clear()
        self._pieces.clear()
        self.head, self.kept = self.tail, 0
