"""Timers of a relay's flows or of active endpoints.

One heap, in which an entry that was superseded stays until it is due.
"""

import heapq
from collections.abc import Iterator, Mapping
from typing import Final, Generic, Protocol, TypeVar

from vtl_tools.common.tcp.tcb import NEVER

STALE_MAX: Final = 1024
"""Superseded entries, beyond one for each flow, after which the heap is rebuilt."""
_WOKEN_MAX: Final = 64
"""Flows that expired() returns at once, so that frames do not wait."""
_EXAMINED_MAX: Final = 1024
"""Entries that expired() looks at; most were superseded or postponed."""


class Timed(Protocol):
    """A flow with a timer. armed_at: the time of the entry that counts. deadline(): its own, now."""

    armed_at: float

    @property
    def key(self) -> bytes:
        """By which its owner finds it."""
        ...

    def deadline(self) -> float:
        """Return when it is to be woken."""
        ...


F = TypeVar("F", bound=Timed)


class FlowTimers(Generic[F]):
    """One timer for each flow. flows: those that exist, by key; entries of others are ignored."""

    def __init__(self, flows: Mapping[bytes, F]) -> None:
        self._flows = flows
        self._heap: list[tuple[float, int, F]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def arm(self, flow: F, due: float) -> None:
        """Set a flow's timer, whatever it was before."""
        flow.armed_at = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, flow))
        self.prune()

    def prune(self) -> None:
        """Remove superseded entries, and the flows that they refer to, once there are many."""
        heap, flows = self._heap, self._flows
        if len(heap) > 2 * len(flows) + STALE_MAX:
            heap[:] = [
                each for each in heap if each[0] == each[2].armed_at and flows.get(each[2].key) is each[2]
            ]
            heapq.heapify(heap)

    def deadline(self) -> float | None:
        """Return when the first entry is due; None: never."""
        return self._heap[0][0] if self._heap else None

    def expired(self, now: float) -> Iterator[F]:
        """Return flows whose time has come, without a timer from now on. The rest stay due.

        A flow whose own deadline has moved is armed again instead.
        """
        heap, woken = self._heap, 0
        for _ in range(_EXAMINED_MAX):
            if not heap or heap[0][0] > now or woken == _WOKEN_MAX:
                return
            at, _, flow = heapq.heappop(heap)
            if at != flow.armed_at or self._flows.get(flow.key) is not flow:
                continue
            due = flow.deadline()
            if due > now:
                self.arm(flow, due)
                continue
            woken += 1
            flow.armed_at = NEVER
            yield flow
