"""The send queue: written octets that are not acknowledged yet, held by reference, found by position."""

from bisect import bisect_right
from typing import Final

Octets = bytes | bytearray | memoryview

PIECE: Final = 256
"""Octets of memory per piece besides its content: objects and list entries."""

_SMALL: Final = 4096
"""Smaller pieces are copied, and together, so that many small writes do not become many small pieces."""
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
        if size >= _SMALL:
            if type(data) is bytes or type(data) is bytearray:
                data = memoryview(data)  # a part of a view costs less than a view of a part
        elif self._pieces and self._extend(data):
            self.tail += size
            self.kept += size
            return
        elif type(data) is not bytes:
            data = bytes(data)
        self._starts.append(self.tail)
        self._pieces.append(data)
        self.tail += size
        self.kept += size + PIECE

    def _extend(self, data: Octets) -> bool:
        """Add to the last piece, if it is a small one, or gathers them. Return whether it did."""
        last = self._pieces[-1]
        if type(last) is bytes:
            last = self._pieces[-1] = bytearray(last)  # of our own, and frames keep the octets they have
        if type(last) is not bytearray or len(last) + len(data) > _TAIL_MAX:
            return False
        try:
            last += data
        except BufferError:  # a frame that is not sent yet has a view of it
            return False
        return True

    def views(self, start: int, end: int) -> list[bytes | memoryview]:
        """Return the octets between two positions. Release the views before the next append()."""
        starts = self._starts
        i = bisect_right(starts, start) - 1 if len(starts) > 1 else 0
        at = start - starts[i]
        piece = self._pieces[i]
        if type(piece) is bytes and at == 0 and len(piece) == end - start:  # as most answers are
            return [piece]
        view = (piece if type(piece) is memoryview else memoryview(piece))[at : at + end - start]
        if len(view) == end - start:
            return [view]
        found: list[bytes | memoryview] = [view]
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
        if not starts:
            return
        done = 0
        while done < len(starts) and starts[done] + (size := len(pieces[done])) <= position:
            done += 1
            self.kept -= size + PIECE
        if done == len(starts):
            starts.clear()
            pieces.clear()
        elif done:
            del starts[:done], pieces[:done]

    def clear(self) -> None:
        """Remove all octets."""
        if self._starts:
            self._starts.clear()
            self._pieces.clear()
        self.head, self.kept = self.tail, 0
