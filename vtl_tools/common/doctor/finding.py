"""A finding: whether one thing that executables need is there."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "unknown"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing, by the name that it has in needs.py.

    state: unknown if it could not be tried. detail: what was found. remedy: how to get it; "" if it is there.
    """

    name: str
    state: State
    detail: str
    remedy: str = ""
