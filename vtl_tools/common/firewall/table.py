"""The flows that are known: by key, by when they end, and by whose they are. Bounded, whatever comes."""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from vtl_tools.common.firewall.flow import ASSURED, Ends, Flow, pack, unpack
from vtl_tools.common.firewall.shares import Shares

LOOK_S: Final = 60.0
"""A flow is looked at so often at least, so that a packet need not move it to where it ends."""
UNPACKED_MAX: Final = 1024
"""TCP connections whose ends are kept ready; packed, they take an eighth of the room."""
_EXPIRE_MAX: Final = 2000
_OLDEST: Final = 8


class Flows:
    """At most flows_max flows. Beyond, one makes room, and it is not one that both sides are known to use,
    if there is another: flows that were only begun go first, and of these the oldest of the source that
    has most. So a flood takes room from itself, and not from who talks.
    """

    def __init__(self, flows_max: int) -> None:
        self.flows_max = flows_max
        self.evicted = 0
        self._flows: dict[bytes, Flow] = {}
        self._begun, self._assured = Shares(), Shares()
        self._buckets: dict[int, set[Flow]] = {}
        self._due: list[int] = []
        self._second = 0
        self._unpacked: deque[Flow] = deque()
        self.get = self._flows.get

    def __len__(self) -> int:
        return len(self._flows)

    def __iter__(self) -> Iterator[Flow]:
        return iter(list(self._flows.values()))

    def add(self, flow: Flow, until: float, now: float) -> Flow | None:
        """Take a flow whose key is not known. Returns the one that had to make room, if one had."""
        victim = self._victim() if len(self._flows) >= self.flows_max else None
        if victim is not None:
            self.remove(victim)
            self.evicted += 1
        self._flows[flow.key] = flow
        self._begun.add(flow)
        flow.until = until
        self._put(flow, now)
        if flow.ends is not None:
            self._ready(flow)
        return victim

    def remove(self, flow: Flow) -> None:
        """Let a flow go that is known."""
        del self._flows[flow.key]
        (self._assured if flow.use == ASSURED else self._begun).remove(flow)
        self._take_out(flow)
        flow.ends = None

    def keep(self, flow: Flow, until: float, now: float) -> None:
        """Let a flow end at another time."""
        flow.until = until
        if until < flow.bucket - 1:
            self._take_out(flow)
            self._put(flow, now)

    def assure(self, flow: Flow) -> None:
        """Learn that both sides of a flow use it."""
        if flow.use != ASSURED:
            self._begun.remove(flow)
            flow.use = ASSURED
            self._assured.add(flow)

    def ends(self, flow: Flow) -> Ends:
        """Return the ends of a TCP connection, to be read and changed until another flow's are asked for."""
        ends = flow.ends
        if isinstance(ends, bytes):
            flow.ends = ends = unpack(ends)
            self._ready(flow)
        assert ends is not None
        return ends

    def deadline(self) -> float | None:
        """Return when expire() is due."""
        while self._due and self._due[0] not in self._buckets:
            heappop(self._due)
        return float(self._due[0]) if self._due else None

    def expire(self, now: float) -> list[Flow]:
        """Remove flows that have ended, and return them: so many at once that nothing else has to wait."""
        ended: list[Flow] = []
        for _ in range(_EXPIRE_MAX):
            due = self.deadline()
            if due is None or due > now:
                break
            bucket = self._buckets[self._due[0]]
            flow = bucket.pop()
            if not bucket:
                del self._buckets[heappop(self._due)]
            flow.bucket = 0
            if flow.until <= now:
                self.remove(flow)
                ended.append(flow)
            else:
                self._put(flow, now)
        return ended

    def _put(self, flow: Flow, now: float) -> None:
        second = int(min(flow.until, now + LOOK_S)) + 1
        if second != self._second:
            self._second = second
        flow.bucket = self._second  # one object for many flows
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = set()
            heappush(self._due, second)
        bucket.add(flow)

    def _take_out(self, flow: Flow) -> None:
        bucket = self._buckets.get(flow.bucket)
        if bucket is not None:
            bucket.discard(flow)
            if not bucket:
                del self._buckets[flow.bucket]
        flow.bucket = 0

    def _ready(self, flow: Flow) -> None:
        self._unpacked.append(flow)
        if len(self._unpacked) > UNPACKED_MAX:
            quiet = self._unpacked.popleft()
            if isinstance(quiet.ends, tuple):
                quiet.ends = pack(quiet.ends)

    def _victim(self) -> Flow | None:
        """Return who is to make room: of the oldest of one source, the one that would end first."""
        flow = self._begun.victim() or self._assured.victim()
        best = flow
        for _ in range(_OLDEST):
            if flow is None or best is None:
                break
            if flow.until < best.until:
                best = flow
            flow = flow.behind
        return best
