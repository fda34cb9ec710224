"""Waiting for what another process does, where nothing tells when it is done."""

import time
from collections.abc import Callable
from typing import TypeVar

from lab.errors import LabError

T = TypeVar("T")

POLL_S = 0.01


def until(condition: Callable[[], T], what: str, timeout: float = 30.0) -> T:
    """Return condition()'s value once it is true. LabError, naming `what`, after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s")
        time.sleep(POLL_S)
    return value
