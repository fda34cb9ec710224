"""The sender's scoreboard of selective acknowledgements (RFC 6675).

Numbers are positions: they count from the ISS and never wrap. The RFC's IsLost() holds for everything before
some position, so only that position is kept: `lost_edge`.
"""

from bisect import bisect_left, bisect_right
from typing import Final

DUP_THRESH: Final = 3
RANGES_MAX: Final = 1024
"""Maximum ranges. Without it a peer that reports every other octet could make each ACK arbitrarily slow."""


class Scoreboard:
    """Ranges above SND.UNA that the peer has received.

    sacked: octets in them. lost_edge: octets before it and not sacked are considered lost. high_rxt: HighRxt;
    octets before it and not sacked were retransmitted since they were lost.
    """

    __slots__ = ("_ends", "_starts", "high_rxt", "lost_edge", "sacked")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self.sacked = 0
        self.lost_edge = 0
        self.high_rxt = 0

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def top(self) -> int:
        """The start of the highest range; there must be one."""
        return self._starts[-1]

    @property
    def end(self) -> int:
        """The end of the highest range."""
        return self._ends[-1]

    def add(self, start: int, end: int) -> bool:
        """Record that the peer has a range. Return whether any of it is new."""
        first = bisect_left(self._ends, start)  # the first range that ends at or after start
        last = bisect_right(self._starts, end)  # the first that starts after end
        if first < last:
            if self._starts[first] <= start and end <= self._ends[first]:
                return False
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
            self.sacked -= sum(self._ends[i] - self._starts[i] for i in range(first, last))
        elif len(self._starts) >= RANGES_MAX:
            return False
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]
        self.sacked += end - start
        return True

    def advance(self, una: int) -> None:
        """Remove the octets that are cumulatively acknowledged."""
        starts, ends = self._starts, self._ends
        while starts and starts[0] < una:
            if ends[0] > una:
                self.sacked -= una - starts[0]
                starts[0] = una
                break
            self.sacked -= ends[0] - starts[0]
            del starts[0], ends[0]

    def forget(self) -> None:
        """Remove all ranges: the peer may have discarded data that it reported (RFC 2018 section 8)."""
        self._starts.clear()
        self._ends.clear()
        self.sacked = 0

    def reneged(self, una: int) -> bool:
        """Return whether the peer reported octets at SND.UNA and yet does not acknowledge them."""
        return bool(self._starts) and self._starts[0] <= una

    def update_lost(self, smss: int) -> None:
        """Advance lost_edge: before DupThresh ranges, or before more than (DupThresh - 1) * SMSS octets."""
        octets = 0
        for i in range(len(self._starts) - 1, -1, -1):
            octets += self._ends[i] - self._starts[i]
            if octets > (DUP_THRESH - 1) * smss or len(self._starts) - i >= DUP_THRESH:
                self.lost_edge = max(self.lost_edge, self._starts[i])
                return

    def unsacked(self, start: int, end: int) -> int:
        """Return how many octets between two positions are not sacked."""
        starts, ends = self._starts, self._ends
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        if start >= end or first >= last:
            return max(0, end - start)
        inside = sum(ends[first:last]) - sum(starts[first:last])
        return end - start - inside + max(0, start - starts[first]) + max(0, ends[last - 1] - end)

    def hole(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the first range between two positions that is not sacked."""
        starts, ends = self._starts, self._ends
        i = bisect_right(ends, start)  # the first range that ends after start
        if i < len(starts) and starts[i] <= start:
            start = ends[i]
            i += 1
        if i < len(starts):
            end = min(end, starts[i])
        return (start, end) if start < end else None
