"""The bounded table of flows: by key, by end time, and by source."""

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from vtl_tools.common.model.source_shares import SourceShares
from vtl_tools.common.rules.rule import IN, OUT
from vtl_tools.services.fw.flow import ASSURED, Ends, Flow, pack, unpack

LOOK_S: Final = 60.0
"""Seconds between two looks at a flow's end time, so that a packet need not move the flow."""
UNPACKED_MAX: Final = 1024
"""Number of TCP connections whose ends are unpacked; packed ones take an eighth of the memory."""
_EXPIRE_MAX: Final = 2000
_OLDEST: Final = 8


class _Side:
    """The flows that one side opened. room: maximum number.

    begun: not known to be used by both sides. talks: not TCP; both sides have sent in turn, but the source
    may still be spoofed. open: TCP after its handshake, which proves the source.
    """

    __slots__ = ("begun", "open", "room", "talks")

    def __init__(self, room: int) -> None:
        self.begun, self.talks, self.open = SourceShares[Flow](), SourceShares[Flow](), SourceShares[Flow]()
        self.room = room

    @property
    def is_full(self) -> bool:
        return self.begun.count + self.talks.count + self.open.count >= self.room

    def of(self, flow: Flow) -> SourceShares[Flow]:
        """Return the shares to which a flow belongs by its use."""
        return self.begun if flow.use != ASSURED else self.talks if flow.ends is None else self.open


class FlowTable:
    """At most flows_max flows. Strangers may open at most half of them, and the VM seven eighths.

    So neither side takes the other's room: half of the table is reserved for the VM, an eighth for strangers.
    When a side or the table is full, a new flow evicts a flow of its own side that is only begun: the oldest
    of the busiest source, which is an IPv4 address, or the first 64 bits of an IPv6 address. Sources are not
    wider, since a spoofed flood has any number of prefixes, and a wider source would only harm honest
    neighbours.

    Flows known to be used by both sides have at most seven eighths of a side's room. So they are evicted only
    by others of that kind, and there is always room to begin one.
    """

    def __init__(self, flows_max: int) -> None:
        self.flows_max = flows_max
        self.evicted = 0
        self._flows: dict[bytes, Flow] = {}
        self._sides = {OUT: _Side(flows_max - flows_max // 8), IN: _Side(max(1, flows_max // 2))}
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
        """Add a flow whose key is unknown. Returns the evicted flow, if there is one."""
        side = self._sides[flow.opening.initiator]
        victim = None
        if len(self._flows) >= self.flows_max or side.is_full:
            victim = self._evict(side.begun, self._sides[flow.initiator.other].begun, side.talks, side.open)
        self._flows[flow.key] = flow
        side.begun.add(flow)
        flow.until = until
        self._put(flow, now)
        if flow.ends is not None:
            self._ready(flow)
        return victim

    def remove(self, flow: Flow) -> None:
        """Remove a known flow."""
        del self._flows[flow.key]
        self._sides[flow.opening.initiator].of(flow).remove(flow)
        self._take_out(flow)
        flow.ends = None  # by which the tracker knows one that it remembers for one that ended

    def keep(self, flow: Flow, until: float, now: float) -> None:
        """Set another end time of a flow."""
        flow.until = until
        if until < flow.bucket - 1:
            self._take_out(flow)
            self._put(flow, now)

    def assure(self, flow: Flow) -> Flow | None:
        """Note that both sides use a flow. Returns the evicted flow, if there is one."""
        if flow.use == ASSURED:
            return None
        side, victim = self._sides[flow.opening.initiator], None
        if side.talks.count + side.open.count >= side.room - side.room // 8:
            if flow.ends is None and not side.talks.count:
                return None  # it may not evict TCP
            victim = self._evict(side.talks, side.open)
        side.begun.remove(flow)
        flow.use = ASSURED
        side.of(flow).add(flow)
        return victim

    def ends(self, flow: Flow) -> Ends:
        """Return the ends of a TCP connection, readable and writable until the next call."""
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
        """Remove and return flows that have ended, a bounded number at once."""
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

    def _evict(self, *shares: SourceShares[Flow]) -> Flow | None:
        """Remove and return a flow: among the oldest of one source, the one that would end first."""
        best = flow = next((found for found in map(SourceShares.victim, shares) if found is not None), None)
        for _ in range(_OLDEST):
            if flow is None or best is None:
                break
            if flow.until < best.until:
                best = flow
            flow = flow.behind
        if best is not None:
            self.remove(best)
            self.evicted += 1
        return best
