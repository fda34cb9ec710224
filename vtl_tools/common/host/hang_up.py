"""SIGHUP in a service: never its end. One that arrives before the service runs is kept until it does."""

import signal
from contextlib import suppress
from types import FrameType
from typing import Any

_was_asked = False
_before: Any = signal.SIG_DFL


def hold() -> None:
    """Keep SIGHUP for take() from now on."""
    global _before
    with suppress(ValueError):  # a program that has us in another thread handles its signals itself
        _before = signal.signal(signal.SIGHUP, _note)


def release() -> None:
    """Let SIGHUP do what it did before hold(): this process is no service."""
    with suppress(ValueError):
        signal.signal(signal.SIGHUP, _before)


def take() -> bool:
    """Return whether a SIGHUP arrived since hold(), once."""
    global _was_asked
    asked, _was_asked = _was_asked, False
    return asked


def _note(number: int, frame: FrameType | None) -> None:
    global _was_asked
    _was_asked = True
