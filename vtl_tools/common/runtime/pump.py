"""The turns of a service: take the waiting frames of all links to its stage, and have that settle."""

import os
import time
from collections.abc import Sequence
from typing import Final, final

from vtl_tools.common.device.base import Device
from vtl_tools.common.stage import Stage

_CROWDED_S: Final = 0.0002
"""A yield that takes longer has let processes run that do not wait for frames, as our peers do."""
_SLEEPS_S: Final = 0.05
"""How long the pump sleeps instead, since a process that wakes up runs sooner than one that has yielded."""


@final
class Pump:
    """Moves frames from links to a stage; the order of links is that of its ports.

    idle: whether the last turn ended since nothing had come for spin_s seconds. now: when it ended.
    """

    __slots__ = ("_links", "_spin_s", "_spins_at", "_stage", "idle", "now")

    def __init__(self, stage: Stage, links: Sequence[Device], spin_s: float) -> None:
        self._stage, self._links = stage, list(links)
        self._spin_s = spin_s if stage.inline else 0.0
        self._spins_at = 0.0
        self.idle, self.now = True, 0.0

    def turn(self, most_s: float) -> None:
        """Process the waiting frames of all links, for so many seconds at most."""
        clock, stage, links, spin_s = time.monotonic, self._stage, self._links, self._spin_s
        sources = stage.sources
        now: float = clock()
        end, last = now + most_s, now
        if now < self._spins_at:
            spin_s = 0.0
        idle = False
        while not idle and now < end:
            moved = False
            for port, link in enumerate(links):
                batch = link.read()
                if batch.count:
                    moved = True
                    now = clock()  # no frame came later, however long this process did not run
                    stage.on_batch(port, batch, now)
            for source in sources:
                if source.poll(now):
                    moved = True
            stage.settle(now)
            now = clock()
            if moved:
                last = now
            elif now - last >= spin_s:
                idle = True
            if not idle:
                if stage.pause_s:
                    time.sleep(stage.pause_s)
                elif not moved:
                    os.sched_yield()
                    back = clock()
                    if back - now > _CROWDED_S:
                        self._spins_at, spin_s = back + _SLEEPS_S, 0.0
        self.idle, self.now = idle, now
