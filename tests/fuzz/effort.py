"""A bound on what an input may cost that no other process changes: calls, not seconds."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_FOREIGN = ("atheris", "libfuzzer")


@contextmanager
def at_most(calls: int) -> Iterator[None]:
    """Fail where the body calls functions, Python's or C's, more often than that."""
    made = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal made
        if event == "call" or (event == "c_call" and getattr(arg, "__module__", "") not in _FOREIGN):
            made += 1

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)
    assert made <= calls, f"{made} calls, where {calls} are to do"
