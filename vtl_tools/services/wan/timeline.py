"""A timeline: changes of the wide area at times, from a file.

# a comment
at 30s outage 5s
at 60s delay 200ms loss 1%
at 90s preset 4g
every 60s outage 2s
"""

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from vtl_tools.common.errors import SpecError
from vtl_tools.common.units import duration
from vtl_tools.services.wan.settings import READ, UNCHANGED, changed, preset

LINES_MAX: Final = 10_000
_PERIOD_MIN_S: Final = 0.01


@dataclass(frozen=True, slots=True)
class TimelineStep:
    """A line. at_s: since the start; every_s: then again, 0: once. outage_s: length of an outage.

    preset: its name, or ""; changes: settings by word.
    """

    at_s: float
    every_s: float = 0.0
    outage_s: float = 0.0
    preset: str = ""
    changes: tuple[tuple[str, str], ...] = ()


def read_timeline(lines: Iterable[str], name: str) -> list[TimelineStep]:
    """Return the steps of a timeline. name: of the file, for messages. Raises SpecError."""
    steps: list[TimelineStep] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(steps) == LINES_MAX:
            raise SpecError(f"{name}: more than {LINES_MAX} lines; write fewer")
        try:
            steps.append(_step(words))
        except SpecError as e:
            raise SpecError(f"{name}:{number}: {e}") from None
    return steps


def _step(words: list[str]) -> TimelineStep:
    if len(words) < 4 or words[0] not in ("at", "every") or len(words) % 2:
        raise SpecError(f"{' '.join(words)}: write 'at 30s outage 5s', or 'every 60s delay 20ms loss 1%'")
    when = duration(words[1])
    every = when if words[0] == "every" else 0.0
    if words[0] == "every" and when < _PERIOD_MIN_S:
        raise SpecError(f"every {words[1]}: write 10ms or more")
    if words[2] == "outage" and len(words) == 4:
        return TimelineStep(when, every, outage_s=duration(words[3]))
    if words[2] == "preset" and len(words) == 4:
        preset(words[3])
        return TimelineStep(when, every, preset=words[3])
    changes = tuple(zip(words[2::2], words[3::2], strict=True))
    if unknown := [word for word, _ in changes if word not in READ]:
        raise SpecError(f"{unknown[0]!r}: write outage, preset, or one of {', '.join(READ)}")
    changed((UNCHANGED, UNCHANGED), dict(changes))
    return TimelineStep(when, every, changes=changes)


class Timeline:
    """The steps of a timeline that are still to come."""

    def __init__(self, steps: Iterable[TimelineStep], began: float) -> None:
        self._began = began
        self._to_come = [(step.at_s, number, step) for number, step in enumerate(steps)]
        heapq.heapify(self._to_come)

    def deadline(self) -> float | None:
        """Return when the next step is due; None: there is none."""
        return self._began + self._to_come[0][0] if self._to_come else None

    def due(self, now: float) -> Iterator[TimelineStep]:
        """Yield the steps that are due, in order. One that repeats and was missed is due once."""
        while self._to_come and self._began + self._to_come[0][0] <= now:
            at_s, number, step = heapq.heappop(self._to_come)
            if step.every_s:
                missed = (now - self._began - at_s) // step.every_s
                heapq.heappush(self._to_come, (at_s + step.every_s * (missed + 1), number, step))
            yield step
