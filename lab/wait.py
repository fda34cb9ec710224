"""Waiting for what another process does, where nothing tells when it is done."""

import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import LabError

T = TypeVar("T")

POLL_S = 0.01
_WORK_S = 0.2
PATIENCE_S = 120.0
"""For an event that must come. It ends a test that hangs, and costs nothing where the event comes: what takes
a second at rest may take a minute beside eight busy processes on two cores."""


def slowness() -> float:
    """Return how many times longer a piece of work takes now than on an idle processor: 1 or more."""
    began, used = time.monotonic(), time.process_time()
    while time.process_time() - used < _WORK_S:
        pass
    return max(1.0, (time.monotonic() - began) / _WORK_S)


def until(condition: Callable[[], T], what: str, timeout: float = PATIENCE_S) -> T:
    """Return condition()'s value once it is true. LabError, naming `what`, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(POLL_S)
    return value
