"""A device that emulates faults of another: loss, duplicates, reordering, corruption and delay, from a seed.

With a clock of its own it runs in virtual time: advance the clock to deadline(), then read().
"""

import heapq
import time
from collections.abc import Callable, Iterable
from random import Random
from typing import Final

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.handle import Handle
from vtl_tools.common.device.wrapper import Wrapper
from vtl_tools.common.packet.vnet import VNET

REORDER_S: Final = 0.005
"""Extra seconds of delay for a frame that later ones are to overtake."""

LIMIT: Final = 4096
"""Maximum number of delayed frames in one direction; further ones are dropped."""


class Fault(Wrapper):
    """Faults of a link. Probabilities are per frame and independent of each other.

    corrupt: probability that one bit of the Ethernet frame flips, never of its virtio_net_hdr. delay_s: delay
    of every frame in seconds. The inner device counts losses as Drop.FAULT.
    """

    def __init__(
        self,
        device: Device,
        *,
        loss: float = 0.0,
        duplicate: float = 0.0,
        reorder: float = 0.0,
        corrupt: float = 0.0,
        delay_s: float = 0.0,
        rng: Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(device)
        self._loss, self._duplicate, self._reorder, self._corrupt = loss, duplicate, reorder, corrupt
        self._delay_s = delay_s
        self._rng = rng or Random()
        self._clock = clock
        self._alarm = Handle()
        self._inward: list[tuple[float, int, bytes]] = []  # heaps by time, then by arrival
        self._outward: list[tuple[float, int, bytes]] = []
        self._arrivals = 0
        self._in, self._out = Batch(), Batch()

    def connect(self) -> None:
        """Open the inner link."""
        super().connect()
        self._alarm.watch(self.device.fileno())

    def fileno(self) -> int:
        """Return a descriptor that is readable for input of the inner link, and for frames that are due."""
        return self._alarm.fileno()

    @property
    def finished(self) -> bool:  # type: ignore[override]
        """Whether the inner link is finished, and no frame is delayed."""
        return self.device.finished and not self._inward

    def deadline(self) -> float | None:
        """Return the time at which the next frame is due; None if none is delayed."""
        return min((line[0][0] for line in (self._inward, self._outward) if line), default=None)

    def read(self) -> Batch:
        """Return the frames that are due, and send those that are due in the other direction."""
        now = self._clock()
        self._alarm.alarm_expired()
        self._send(now)
        if arrived := self.device.read():
            self._put(self._inward, arrived, now)
        batch = self._take(self._inward, self._in, now)
        self._rearm(now)
        return batch

    def write(self, batch: Batch) -> int:
        """Take a batch, and send it at once or, after its delay, in a later read()."""
        now = self._clock()
        taken = self._put(self._outward, batch, now)
        self._send(now)
        self._rearm(now)
        return taken

    def _put(self, line: list[tuple[float, int, bytes]], frames: Iterable[memoryview], now: float) -> int:
        """Apply the faults to frames. Return how many there is room for."""
        chance, taken = self._rng.random, 0
        for frame in frames:
            if chance() < self._loss:
                self.drops[Drop.FAULT] += 1
                taken += 1
                continue
            for _ in range(2 if chance() < self._duplicate else 1):
                if len(line) >= LIMIT:
                    self.drops[Drop.QUEUE_FULL] += 1
                    continue
                late = REORDER_S if chance() < self._reorder else 0.0
                self._arrivals += 1
                heapq.heappush(line, (now + self._delay_s + late, self._arrivals, self._damage(frame)))
            taken += 1
        return taken

    def _damage(self, frame: memoryview) -> bytes:
        if self._rng.random() >= self._corrupt or len(frame) <= VNET:
            return bytes(frame)
        damaged = bytearray(frame)
        damaged[self._rng.randrange(VNET, len(frame))] ^= 1 << self._rng.randrange(8)
        return bytes(damaged)

    def _take(self, line: list[tuple[float, int, bytes]], batch: Batch, now: float) -> Batch:
        batch.clear()
        while line and line[0][0] <= now and batch.count < batch.slots:
            batch.append(heapq.heappop(line)[2])
        return batch

    def _send(self, now: float) -> None:
        while batch := self._take(self._outward, self._out, now):
            self.device.write(batch)

    def _rearm(self, now: float) -> None:
        due = self.deadline()
        if due is not None:
            self._alarm.alarm(max(due - now, 1e-9))

    def close(self) -> None:
        """Close the inner link; delayed frames are lost. Idempotent."""
        self._inward.clear()
        self._outward.clear()
        super().close()
        self._alarm.close()
