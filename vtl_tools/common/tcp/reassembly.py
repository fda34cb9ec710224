"""Reassembly of out-of-order data, in few large pieces however small the segments are."""

from bisect import bisect_right
from itertools import islice
from typing import Final

_PIECE_MAX: Final = 65536
"""Maximum octets of joined pieces, so that joining copies no more than a frame's worth."""
_RECENT_MAX: Final = 8
_BLOCKS: Final = 4  # a segment has no room for more


class ReassemblyQueue:
    """Out-of-order octets, by position. most: maximum pieces. Adjacent pieces are joined, so gaps count.

    starts, pieces: position and content of each piece, sorted; no two overlap. octets: of all pieces.
    """

    __slots__ = ("_most", "_recent", "octets", "pieces", "starts")

    def __init__(self, most: int) -> None:
        self._most = most
        self.starts: list[int] = []
        self.pieces: list[bytearray] = []
        self.octets = 0
        self._recent: list[int] = []  # positions in recent pieces, the latest first (RFC 2018 section 4)

    @property
    def end(self) -> int:
        """The end of the last piece; 0 if there is none."""
        return self.starts[-1] + len(self.pieces[-1]) if self.starts else 0

    def add(self, start: int, end: int, data: memoryview) -> tuple[bool, tuple[int, int] | None]:
        """Copy the parts of a range that are missing.

        Returns whether there was room for all of it, and the first contiguous range that was present before,
        if there was one.
        """
        starts, pieces = self.starts, self.pieces
        i, at, again, kept = bisect_right(starts, start), start, None, True
        if i and (before := starts[i - 1] + len(pieces[i - 1])) > at:
            again = (at, min(before, end))
            at = before
        while at < end:
            stop = min(starts[i], end) if i < len(starts) else end
            if at < stop and not self._put(i, at, data[at - start : stop - start]):
                kept = False
                break
            if stop == end:
                break
            # The piece at stop may have been joined to one that begins before it.
            i = bisect_right(starts, stop)
            at = starts[i - 1] + len(pieces[i - 1])
            if again is None:
                again = (stop, min(at, end))
            elif again[1] == stop:
                again = (again[0], min(at, end))
        if kept or at > start:
            self._recent.insert(0, start)
            del self._recent[_RECENT_MAX:]
        return kept, again

    def _put(self, i: int, at: int, data: memoryview) -> bool:
        """Insert data before piece i: join it to a neighbour that it touches, or add a piece of its own."""
        starts, pieces, size = self.starts, self.pieces, len(data)
        right = pieces[i] if i < len(starts) and starts[i] == at + size else None
        left = pieces[i - 1] if i and starts[i - 1] + len(pieces[i - 1]) == at else None
        if left is not None and len(left) + size <= _PIECE_MAX:
            left += data
            if right is not None and len(left) + len(right) <= _PIECE_MAX:
                left += right
                del starts[i], pieces[i]
        elif right is not None and size + len(right) <= _PIECE_MAX:
            starts[i], pieces[i] = at, bytearray(data) + right
        elif len(starts) < self._most:
            starts.insert(i, at)
            pieces.insert(i, bytearray(data))
        else:
            return False
        self.octets += size
        return True

    def first(self, end: int) -> tuple[int, bytearray] | None:
        """Remove and return the first piece, with its position, if it begins at or before end."""
        if not self.starts or self.starts[0] > end:
            return None
        at, piece = self.starts.pop(0), self.pieces.pop(0)
        self.octets -= len(piece)
        if not self.starts:
            self._recent.clear()
        return at, piece

    def clear(self) -> None:
        """Remove all pieces."""
        if self.starts:
            self.starts.clear()
            self.pieces.clear()
            self._recent.clear()
            self.octets = 0

    def runs(self) -> list[tuple[int, int]]:
        """Return the ranges without gaps, the most recent first; as many as fit the SACK option."""
        found: list[tuple[int, int]] = []
        if not self.starts:
            return found
        recent = [at for at in self._recent if at >= self.starts[0]]
        for at in (*recent, *islice(reversed(self.starts), _BLOCKS)):
            if not any(left <= at < right for left, right in found):
                found.append(self._run(at))
                if len(found) == _BLOCKS:
                    break
        return found

    def _run(self, at: int) -> tuple[int, int]:
        """Return the range without gaps that contains a position."""
        starts, pieces = self.starts, self.pieces
        first = bisect_right(starts, at) - 1
        last = first
        while first and starts[first - 1] + len(pieces[first - 1]) == starts[first]:
            first -= 1
        while last + 1 < len(starts) and starts[last] + len(pieces[last]) == starts[last + 1]:
            last += 1
        return starts[first], starts[last] + len(pieces[last])
