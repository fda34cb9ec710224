"""The budget that all flows of a relay share: limits, buffered octets, read buffers, and counters."""

from dataclasses import dataclass
from typing import Final

SUPER_SEGMENTS: Final = 4
"""Frames that one read of a stream may fill: one system call for four of them saves a fifth."""
BUFFER: Final = SUPER_SEGMENTS << 16
"""Octets of a read buffer."""

_POOL_MAX: Final = 64
"""Free read buffers that are kept."""
_BATCH: Final = 4 << 20
"""Octets that one batch of frames may bring."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RelayLimits:
    """Limits for one guest. Seconds and octets.

    connections: flows at once. half_open: flows whose handshake is not complete. open_s: time to open a
    stream. idle_s: silence after which a flow is reset (RFC 5382 wants two hours and four minutes).
    memory: buffered octets of all flows together. Above it a flow that has something buffered gets no more.
    Above `most` the flows with the most buffered octets are reset.
    """

    connections: int = 65536
    half_open: int = 8192
    open_s: float = 120.0
    idle_s: float = 7440.0
    memory: int = 128 << 20

    @property
    def most(self) -> int:
        """Octets that are buffered after a turn at most."""
        return 2 * self.memory + _BATCH


DEFAULT_LIMITS: Final = RelayLimits()


class RelayBudget:
    """One for each relay; flows and relay both write to it.

    buffered: octets of memory that wait for the slower side, of all flows together. half_open: flows whose
    handshake is not complete. The counters only grow: octets_up (to the streams), octets_down (to the
    guest); flows opened, established, failed (the stream did not open) and evicted (over the memory limit).
    """

    __slots__ = (
        "_buffers", "_most", "_spare", "buffered", "established", "evicted", "failed", "half_open",
        "limits", "octets_down", "octets_up", "opened",
    )  # fmt: skip

    def __init__(self, limits: RelayLimits) -> None:
        self.limits = limits
        self._most = limits.most
        self._buffers: list[memoryview] = []
        self._spare: memoryview | None = None  # returned last; a list that empties is allocated again
        self.buffered = self.half_open = 0
        self.octets_up = self.octets_down = 0
        self.opened = self.established = self.failed = self.evicted = 0

    @property
    def is_full(self) -> bool:
        """Whether as much is buffered as the memory limit allows."""
        return self.buffered > self.limits.memory

    @property
    def is_exceeded(self) -> bool:
        """Whether flows must be evicted."""
        return self.buffered > self._most

    def allows(self, buffered: int) -> bool:
        """Tell whether a flow with so many buffered octets may read from its stream."""
        return self.buffered <= self.limits.memory or (not buffered and self.buffered <= self._most)

    # --- read buffers

    def take_buffer(self) -> memoryview:
        """Return a buffer of BUFFER octets; give it back by return_buffer()."""
        if (spare := self._spare) is not None:
            self._spare = None
            return spare
        return self._buffers.pop() if self._buffers else memoryview(bytearray(BUFFER))

    def return_buffer(self, buffer: memoryview) -> None:
        """Take a buffer that nothing refers to any more; free it if the pool has enough."""
        if self._spare is None:
            self._spare = buffer
        elif len(self._buffers) < _POOL_MAX:
            self._buffers.append(buffer)

    @property
    def free_buffers(self) -> list[memoryview]:
        """The buffers in the pool."""
        return self._buffers if self._spare is None else [self._spare, *self._buffers]

    def status(self) -> dict[str, object]:
        """Return the counters, as --json prints them."""
        return {
            "opened": self.opened,
            "established": self.established,
            "failed": self.failed,
            "evicted": self.evicted,
            "octets_up": self.octets_up,
            "octets_down": self.octets_down,
            "held": self.buffered,
        }
