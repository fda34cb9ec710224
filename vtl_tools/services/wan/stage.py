"""The stage of vtl-wan: a path in each direction, and a timer that tells when a frame is due."""

import time
from collections.abc import Iterable
from random import Random
from typing import Any, Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.handle import Handle
from vtl_tools.common.errors import SpecError
from vtl_tools.common.stage import Stage
from vtl_tools.services.wan.path import WanPath
from vtl_tools.services.wan.settings import Both, changed, preset
from vtl_tools.services.wan.timeline import Timeline, TimelineStep

EARLY_S: Final = 100e-6
"""The timer wakes the process so much before a frame is due; it polls for the rest."""
REALTIME_EARLY_S: Final = 50e-6
"""The same at a real-time priority: nothing delays the wake-up, and polling would use up what is allowed."""
DENSE_PER_S: Final = 20_000
"""Frames a second from which on a process with such a priority sleeps between polls: a frame would always be
near, and no time be left to others on its processor."""
PAUSE_S: Final = 50e-6
_MEASURED_S: Final = 0.01
MEMORY: Final = 256 << 20
"""Octets that may wait in each direction, by default."""
_POPS: Final = 16
"""Batches that are sent in one poll, so that arriving frames have their turn."""


class WideArea(Stage):
    """Two ports. Frames of port 0 take the first path, those of port 1 the second.

    steps: of a timeline. realtime: whether the process has a real-time priority.
    """

    def __init__(
        self,
        settings: Both,
        rng: Random,
        memory: int = MEMORY,
        steps: Iterable[TimelineStep] = (),
        now: float | None = None,
        *,
        realtime: bool = False,
    ) -> None:
        super().__init__()
        self.inline, self._is_realtime = not realtime, realtime
        self.early_s = REALTIME_EARLY_S if realtime else EARLY_S
        began = time.monotonic() if now is None else now
        self.settings = settings
        self.paths = [WanPath(one, Random(rng.random()), memory, began, self.drops) for one in settings]
        self.timeline = Timeline(steps, began)
        self.is_near = False
        """Whether frames were sent just now, or will be within early_s: the runner is to poll meanwhile."""
        self._sent, self._counted_at = 0, began
        self.timer = Timer(self)
        self.sources = [self.timer]

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Put frames on their path."""
        self.paths[port].push(batch, batch.count, batch.octets, now)

    def settle(self, now: float) -> None:
        """Send frames that are due, and set the timer for the others."""
        moved = False
        for port, path in enumerate(self.paths):
            for _ in range(_POPS):
                frames = path.pop(now)
                if not frames:
                    break
                moved = True
                self._sent += len(frames)
                Stage.send(self, 1 - port, [(frame,) for frame in frames], now)
        if self._is_realtime and now - self._counted_at > _MEASURED_S:
            is_dense = self._sent > DENSE_PER_S * (now - self._counted_at)
            self.pause_s = PAUSE_S if is_dense else 0.0
            self._sent, self._counted_at = 0, now
        due = self.due()
        self.is_near = moved or (due is not None and due - now < self.early_s)
        if not self.is_near:
            self.timer.set(due, now)

    def due(self) -> float | None:
        """Return when the next frame of either path is due."""
        times = [due for path in self.paths if (due := path.due()) is not None]
        return min(times) if times else None

    def deadline(self) -> float | None:
        """Return when the next step of the timeline is due."""
        return self.timeline.deadline()

    def wake(self, now: float) -> None:
        """Take the steps of the timeline that are due."""
        for step in self.timeline.due(now):
            if step.outage_s:
                for path in self.paths:
                    path.fail(now + step.outage_s)
                self.event("outage", seconds=step.outage_s)
            else:
                self.apply(
                    preset(step.preset) if step.preset else changed(self.settings, dict(step.changes)), now
                )

    def apply(self, settings: Both, now: float) -> None:
        """Use other settings for frames that come from now on."""
        self.settings = settings
        for path, own in zip(self.paths, settings, strict=True):
            path.apply(own, now)
        self.event("settings", there=settings[0].told(), back=settings[1].told())

    def set(self, request: dict[str, Any]) -> dict[str, object]:
        """Change settings while frames pass: the verb `set`. Raises SpecError."""
        changes, name = request.get("changes", {}), request.get("preset")
        if not isinstance(changes, dict) or not all(
            isinstance(w, str) for item in changes.items() for w in item
        ):
            raise SpecError("set: settings are words and texts")
        base = self.settings if name is None else preset(str(name))
        self.apply(changed(base, changes), time.monotonic())
        return {"there": self.settings[0].told(), "back": self.settings[1].told()}

    def status(self, now: float) -> dict[str, object]:
        """Return settings and counters of both directions."""
        return {"wan": {"there": self.paths[0].status(now), "back": self.paths[1].status(now)}}


class Timer:
    """A source of the stage that wakes the process shortly before a frame is due, to the microsecond."""

    def __init__(self, stage: WideArea) -> None:
        self._stage = stage
        self._handle = Handle()
        self.fileno = self._handle.fileno
        self._at: float | None = None

    def set(self, due: float | None, now: float) -> None:
        """Wake for a frame that is due then; None: for none. An alarm that comes earlier stays."""
        if due is None or (self._at is not None and now < self._at <= due):
            return
        self._at = due
        self._handle.alarm(max(due - now - self._stage.early_s, 1e-9))

    def poll(self, now: float) -> bool:
        """Return whether to go on polling, since a frame is due soon."""
        if self._at is None or now < self._at - self._stage.early_s:
            return self._stage.is_near
        self._handle.alarm_expired()
        self._at = None
        return True

    def close(self) -> None:
        """Close the timer."""
        self._handle.close()
