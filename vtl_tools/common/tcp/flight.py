"""The octets in flight: when each was sent, and whether it is SACKed (RFC 2018) or considered lost.

Numbers are positions: they count from the ISS and never wrap.
"""

from bisect import bisect_left, bisect_right
from operator import attrgetter
from typing import Final, NamedTuple

_START: Final = attrgetter("start")
RUNS_MAX: Final = 4096
"""Maximum runs. Without it a peer that reports every other octet could make each ACK arbitrarily slow."""


class Stamp(NamedTuple):
    """The state of the connection when a run was sent (delivery rate estimation, section 3.2).

    delivered: octets delivered so far, the last at delivered_at. first_at: sending time of the octets then
    delivered last. in_flight: octets in flight, this run included. missing: octets lost so far.
    """

    delivered: int
    delivered_at: float
    first_at: float
    in_flight: int
    missing: int
    app_limited: bool


class Run:
    """Octets from start to end that were sent together, or that the peer has received.

    sent_at: when last. again: at least the second time. lost: considered lost, and not sent again since.
    stamp: for a rate sample, if the control wants any. segments: of SACKed octets only.
    """

    __slots__ = ("again", "end", "lost", "sacked", "segments", "sent_at", "stamp", "start")

    def __init__(
        self, start: int, end: int, sent_at: float, stamp: Stamp | None = None, *, again: bool = False,
        lost: bool = False, sacked: bool = False,
    ) -> None:  # fmt: skip
        self.start, self.end, self.sent_at, self.stamp = start, end, sent_at, stamp
        self.again, self.lost, self.sacked = again, lost, sacked
        self.segments = 0

    def part(self, start: int, end: int) -> "Run":
        """Return some of its octets as a run."""
        return Run(start, end, self.sent_at, self.stamp, again=self.again, lost=self.lost, sacked=self.sacked)

    def is_after(self, sent_at: float, end: int) -> bool:
        """Return whether it was sent after another segment (RFC 8985 section 6.2, RACK_sent_after)."""
        return self.sent_at > sent_at or (self.sent_at == sent_at and self.end > end)


class Flight:
    """The runs between SND.UNA and SND.NXT, by position and without gaps.

    sacked: octets that the peer reported, in so many segments. lost: octets considered lost and not sent
    again. top: end of the highest octet that the peer reported.
    """

    __slots__ = ("_lost_from", "lost", "runs", "sacked", "segments", "top")

    def __init__(self) -> None:
        self.runs: list[Run] = []
        self.sacked = self.segments = self.lost = self.top = 0
        self._lost_from = 0  # no run before it is lost

    # --- sending

    def sent(
        self, start: int, end: int, now: float, stamp: Stamp | None = None, tick_s: float = 0.0, smss: int = 1
    ) -> None:
        """Add new octets. Those that leave in one tick are one run, with the time of the last: none is older.

        A run for each segment of a window of ten thousand would be more than there may be. A run is whole
        segments of smss octets, with at most one smaller one at its end, unless there are too many.
        """
        runs = self.runs
        if runs:
            last = runs[-1]
            is_near = now == last.sent_at or (tick_s > 0 and now // tick_s == last.sent_at // tick_s)
            joins = (is_near and (last.end - last.start) % smss == 0) or len(runs) >= RUNS_MAX
            if joins and not (last.sacked or last.lost or last.again):
                last.end, last.sent_at, last.stamp = end, now, stamp
                return
        runs.append(Run(start, end, now, stamp))

    def sent_again(self, start: int, end: int, now: float, stamp: Stamp | None = None) -> None:
        """Make a run of octets that are sent once more. SACKed ones are a probe of a zero window only.

        If there are many, it joins the run before it: a peer with a tiny MSS has every segment sent again.
        """
        runs = self.runs
        is_full = len(runs) >= RUNS_MAX
        first, last = self._cut(start), self._cut(end)
        for run in runs[first:last]:
            if run.lost:
                self.lost -= run.end - run.start
            elif run.sacked:
                self.sacked -= run.end - run.start
                self.segments -= run.segments
        if is_full and first and (before := runs[first - 1]).again and not (before.lost or before.sacked):
            first, start = first - 1, before.start
        runs[first:last] = [Run(start, end, now, stamp, again=True)]

    def truncate(self, end: int) -> None:
        """Remove all octets from a position on, as if they were never sent."""
        at = self._cut(end)
        for run in self.runs[at:]:
            size = run.end - run.start
            if run.sacked:
                self.sacked -= size
                self.segments -= run.segments
            elif run.lost:
                self.lost -= size
        del self.runs[at:]

    def _cut(self, position: int) -> int:
        """Make a run begin at a position, unless all are before it. Return the index of that run."""
        at = bisect_left(self.runs, position, key=_START)
        if at and (run := self.runs[at - 1]).end > position:
            rest = run.part(position, run.end)
            run.end = position
            self.runs.insert(at, rest)
        return at

    # --- acknowledgements

    def advance(self, una: int) -> Run:
        """Remove octets that are acknowledged, while none are SACKed or lost. Return the last run of them."""
        runs = self.runs
        run = runs[0]
        done = 0
        while run.end < una:
            done += 1
            run = runs[done]
        if run.end == una:
            done += 1
        else:
            run.start = una
        if done == len(runs):
            runs.clear()
        elif done:
            del runs[:done]
        return run

    def acked(self, una: int) -> list[Run]:
        """Remove octets that are cumulatively acknowledged. Return the runs of them not SACKed before.

        A run that is acknowledged in part is returned as the part of it.
        """
        runs, done, found = self.runs, 0, []
        for run in runs:
            if run.end > una:
                break
            done += 1
            if run.sacked:
                self.sacked -= run.end - run.start
                self.segments -= run.segments
            else:
                if run.lost:
                    self.lost -= run.end - run.start
                found.append(run)
        if done < len(runs) and (run := runs[done]).start < una:
            part = una - run.start
            if run.sacked:
                self.sacked -= part
            else:
                if run.lost:
                    self.lost -= part
                found.append(run.part(run.start, una))
            run.start = una
        if done:
            del runs[:done]
        return found

    def sack(self, start: int, end: int, smss: int) -> list[Run]:
        """Record that the peer has a range. Return the runs of it that are news.

        A part of a segment does not count, as in Linux: it tells nothing about the rest, which is sent again
        with it.
        """
        start, end = self._whole(start, end, smss)
        if start >= end:
            return []
        runs = self.runs
        at = bisect_right(runs, start, key=_START) - 1
        if at < 0:
            return []
        run = runs[at]
        if run.sacked and run.end >= end:
            return []
        if len(runs) >= RUNS_MAX and not self._is_bounded(start, end):
            return []
        first, last = self._cut(start), self._cut(end)
        found, segments = [], 0
        for run in runs[first:last]:
            if run.sacked:
                continue
            size = run.end - run.start
            if run.lost:
                self.lost -= size
            self.sacked += size
            segments += -(-size // smss)
            found.append(run)
        if not found:
            return found
        self.segments += segments
        if first and runs[first - 1].sacked:
            first -= 1
        if last < len(runs) and runs[last].sacked:
            last += 1
        whole = Run(runs[first].start, runs[last - 1].end, runs[last - 1].sent_at, sacked=True)
        whole.segments = segments + sum(run.segments for run in runs[first:last])
        runs[first:last] = [whole]
        self.top = max(self.top, whole.end)
        return found

    def _whole(self, start: int, end: int, smss: int) -> tuple[int, int]:
        """Trim a range to whole segments; not if it is longer than one and has none of this size."""
        runs, left, right = self.runs, start, end
        at = bisect_right(runs, start, key=_START) - 1
        if at >= 0 and not (first := runs[at]).sacked and (over := (start - first.start) % smss):
            left = min(start + smss - over, first.end)
        at = bisect_left(runs, end, key=_START) - 1
        if at >= 0 and not (last := runs[at]).sacked and end < last.end:
            right = end - (end - last.start) % smss
        return (start, end) if left >= right and end - start >= smss else (left, right)

    def _is_bounded(self, start: int, end: int) -> bool:
        """Return whether a SACK of this range adds no runs: it is made of whole ones."""
        runs = self.runs
        at, stop = (bisect_left(runs, edge, key=_START) for edge in (start, end))
        return (
            at < len(runs)
            and runs[at].start == start
            and (runs[stop].start if stop < len(runs) else runs[-1].end) == end
        )

    def forget(self) -> None:
        """Take all octets as not received: the peer may have discarded them (RFC 2018 section 8)."""
        for run in self.runs:
            if run.sacked:
                run.sacked, run.lost, run.again = False, True, True
                self.lost += run.end - run.start
        self.sacked = self.segments = self.top = 0
        self._lost_from = 0

    def has_reneged(self, una: int) -> bool:
        """Return whether the peer reported octets at SND.UNA and yet does not acknowledge them."""
        return bool(self.runs) and self.runs[0].sacked and self.runs[0].start <= una

    # --- loss

    def lose(self, run: Run) -> int:
        """Mark a run as lost. Return its octets."""
        run.lost = True
        size = run.end - run.start
        self.lost += size
        self._lost_from = min(self._lost_from, run.start)
        return size

    def lose_head(self, end: int) -> int:
        """Mark the octets before a position as lost, up to the first run that is. Return how many."""
        lost = 0
        for run in self.runs[: self._cut(end)]:
            if run.sacked or run.lost:
                break
            lost += self.lose(run)
        return lost

    def first_lost(self, most: int, smss: int) -> tuple[int, int] | None:
        """Return the first octets considered lost, at most so many.

        Small segments become one if they fit whole in smss octets. Others stay as they were sent, as in
        Linux: so what arrives of them, perhaps late, is told in the same pieces.
        """
        if not self.lost:
            return None
        runs = self.runs
        at = max(0, bisect_right(runs, self._lost_from, key=_START) - 1)
        while not runs[at].lost:
            at += 1
        start, end = runs[at].start, runs[at].end
        self._lost_from = start
        while end - start < most and at + 1 < len(runs) and runs[at + 1].lost:
            at += 1
            if (end - start) % smss and runs[at].end - start > smss:
                break
            end = runs[at].end
        return start, min(end, start + most)

    @property
    def repaired(self) -> int:
        """Octets in flight that were sent again."""
        return sum(run.end - run.start for run in self.runs if run.again and not run.lost)

    def lose_all(self) -> int:
        """Mark all that is not SACKed as lost. Return the octets that were not."""
        return sum(self.lose(run) for run in self.runs if not (run.sacked or run.lost))

    def lose_larger(self, size: int, smss: int, fin: int | None) -> int:
        """Mark segments of more octets as lost, of runs with segments of smss octets. Return their octets.

        fin: position of our FIN, which may be on the last of them.
        """
        runs: list[Run] = []
        room = RUNS_MAX - len(self.runs)
        for run in self.runs:
            runs.append(run)
            rest = (run.end - run.start) % smss
            is_whole = rest == 0 or run.start + rest == run.end or (rest == 1 and run.end - 1 == fin)
            if room > 0 and rest <= size and not (is_whole or run.sacked or run.lost):
                runs.append(run.part(run.end - rest, run.end))
                run.end -= rest
                room -= 1
        self.runs = runs
        large = [run for run in self.runs if run.end - run.start > size and not (run.sacked or run.lost)]
        return sum(self.lose(run) for run in large)

    def keep_all(self) -> None:
        """Take nothing as lost."""
        for run in self.runs:
            run.lost = False
        self.lost = 0
