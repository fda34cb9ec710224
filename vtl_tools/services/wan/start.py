"""Makes the stage of vtl-wan from its options: reads traces and timelines."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

from vtl_tools.common.errors import SpecError
from vtl_tools.services.wan.bottleneck import read_trace
from vtl_tools.services.wan.settings import UNCHANGED, Both, changed, preset
from vtl_tools.services.wan.stage import WideArea
from vtl_tools.services.wan.timeline import TimelineStep, read_timeline

_OCTETS_MAX: Final = 64 << 20


def settings_of(name: str | None, changes: Mapping[str, str], traces: Iterable[Path | None] = ()) -> Both:
    """Return the settings of a preset with changes, and with traces in place of rates. Raises SpecError."""
    both = list(changed((UNCHANGED, UNCHANGED) if name is None else preset(name), changes))
    for way, path in enumerate(traces):
        if path is not None:
            both[way] = replace(both[way], opportunities=_trace(path), rate_bps=0.0)
    return both[0], both[1]


def make_stage(
    name: str | None,
    changes: Mapping[str, str],
    *,
    traces: Iterable[Path | None],
    timeline: Path | None,
    seed: int | None,
    memory: int,
    realtime: bool,
) -> WideArea:
    """Return the stage. Raises SpecError."""
    steps: list[TimelineStep] = [] if timeline is None else read_timeline(_lines(timeline), str(timeline))
    return WideArea(settings_of(name, changes, traces), Random(seed), memory, steps, realtime=realtime)


def _trace(path: Path) -> tuple[int, ...]:
    try:
        return read_trace(_lines(path))
    except ValueError:
        raise SpecError(f"{path}: not a Mahimahi trace; write a millisecond a line, in order") from None


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="ascii") as file:
            text = file.read(_OCTETS_MAX)
    except OSError as e:
        raise SpecError(f"{path}: {e.strerror}; name a file that can be read") from None
    except UnicodeDecodeError:
        raise SpecError(f"{path}: not a text file; name another") from None
    return text.splitlines()
