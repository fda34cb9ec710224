"""Timers of a relay's flows or of active endpoints.

A flow that has just had something to do is looked at within SOON_S. A short one has ended by then; of the
others the deadline goes on a heap, in which an entry that was superseded stays until it is due.
"""

import heapq
from typing import Final, Generic, Protocol, TypeVar

from vtl_tools.common.tcp.tcb import NEVER

SOON_S: Final = 0.01
"""Resolution of a flow's timer: its deadline is read when this has passed, not at every frame."""
STALE_MAX: Final = 1024
"""Superseded entries, beyond one for each flow, after which the heap is rebuilt."""
_WOKEN_MAX: Final = 64
"""Flows that expired() returns at once, so that frames do not wait."""
_EXAMINED_MAX: Final = 1024
"""Entries that expired() looks at; most were superseded or postponed."""


class Timed(Protocol):
    """A flow with a timer. key: by which its owner finds it. armed_at: the time of the entry that counts.

    A compiled class inherits from it, so that its attributes are found without their names.
    """

    __slots__ = ()

    key: bytes
    armed_at: float

    def deadline(self) -> float:
        """Return when it is to be woken."""
        ...


F = TypeVar("F", bound=Timed)


class FlowTimers(Generic[F]):
    """One timer for each flow. flows: those that exist, by key; entries of others are ignored."""

    def __init__(self, flows: dict[bytes, F]) -> None:
        self._flows = flows
        self._heap: list[tuple[float, bytes]] = []
        self._soon: list[bytes] = []
        self._soon_at = NEVER

    def __len__(self) -> int:
        return len(self._heap) + len(self._soon)

    def arm(self, flow: F, due: float) -> None:
        """Set a flow's timer, whatever it was before."""
        flow.armed_at = due
        heapq.heappush(self._heap, (due, flow.key))
        self.prune()

    def arm_soon(self, flow: F, now: float) -> None:
        """Read a flow's deadline within SOON_S, unless its timer is due before that."""
        if flow.armed_at > now + SOON_S:
            if not self._soon:
                self._soon_at = now + SOON_S
            flow.armed_at = self._soon_at
            self._soon.append(flow.key)

    def prune(self) -> None:
        """Remove superseded entries once there are many."""
        heap, soon, flows = self._heap, self._soon, self._flows
        most = 2 * len(flows) + STALE_MAX
        if len(heap) > most:
            heap[:] = {(due, key) for due, key in heap if key in flows and due == flows[key].armed_at}
            heapq.heapify(heap)
        if len(soon) > most:
            soon[:] = [key for key in dict.fromkeys(soon) if key in flows]

    def deadline(self) -> float | None:
        """Return when the first entry is due; None: never."""
        due = self._soon_at if self._soon else NEVER
        if self._heap and self._heap[0][0] < due:
            return self._heap[0][0]
        return None if due == NEVER else due

    def expired(self, now: float) -> list[F]:
        """Return flows whose time has come, without a timer from now on. The rest stay due.

        A flow whose own deadline has moved is armed again instead.
        """
        heap, soon = self._heap, self._soon
        woken: list[F] = []
        for _ in range(_EXAMINED_MAX):
            if len(woken) == _WOKEN_MAX:
                break
            if soon and self._soon_at <= now:
                at, key = self._soon_at, soon.pop()
            elif heap and heap[0][0] <= now:
                at, key = heapq.heappop(heap)
            else:
                break
            flow = self._flows.get(key)
            if flow is None or at != flow.armed_at:
                continue
            due = flow.deadline()
            if due > now:
                self.arm(flow, due)
                continue
            flow.armed_at = NEVER
            woken.append(flow)
        return woken
