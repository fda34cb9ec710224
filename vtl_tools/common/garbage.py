"""Python's cyclic garbage collector, in a program that carries frames."""

import gc
from typing import Final

_THRESHOLD: Final = (100_000, 50, 1000)


def collect_rarely() -> None:
    """Make scans rare: those of many connections would delay frames, and those during imports the start.

    Reference counts free nearly all objects.
    """
    gc.set_threshold(*_THRESHOLD)
