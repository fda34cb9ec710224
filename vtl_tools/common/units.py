"""Reads quantities as users write them: 100ms, 1gbit, 0.1%, 64kb."""

import re
from typing import Final

from vtl_tools.common.errors import SpecError

DURATION_MAX_S: Final = 3600.0
RATE_MAX: Final = 1e12
SIZE_MAX: Final = 1 << 40

_TIMES: Final = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "min": 60.0, "h": 3600.0}
_RATES: Final = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
_SIZES: Final = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_NUMBER: Final = re.compile(r"([0-9]{1,15}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}) *([a-z%/]*)\Z")


def _read(text: str) -> tuple[float, str]:
    found = _NUMBER.match(text.strip().lower())
    if found is None:
        raise ValueError
    return float(found[1]), found[2]


def duration(text: str) -> float:
    """Return seconds. Raises SpecError."""
    try:
        number, unit = _read(text)
        seconds = number * _TIMES[unit]
    except (ValueError, KeyError):
        raise SpecError(f"{text!r}: not a duration; write 100ms, 2s or 50us") from None
    if seconds > DURATION_MAX_S:
        raise SpecError(f"{text}: longer than an hour; write a shorter duration")
    return seconds


def rate(text: str) -> float:
    """Return bits a second; 0: no limit. Raises SpecError."""
    if text.strip().lower() in ("none", "0"):
        return 0.0
    try:
        number, unit = _read(text)
        bits = number * _RATES[unit.removesuffix("/s").removesuffix("ps") or "none"]
    except (ValueError, KeyError):
        raise SpecError(f"{text!r}: not a rate; write 10mbit, 1gbit or none") from None
    if not 1000 <= bits <= RATE_MAX:
        raise SpecError(f"{text}: write a rate from 1kbit to 1tbit, or none")
    return bits


def share(text: str) -> float:
    """Return a probability. Raises SpecError."""
    try:
        number, unit = _read(text)
        value = number * {"": 1.0, "%": 0.01}[unit]
    except (ValueError, KeyError):
        raise SpecError(f"{text!r}: not a share; write 0.1% or 0.001") from None
    if value > 1:
        raise SpecError(f"{text}: more than all; write a share such as 0.1%")
    return value


def size(text: str) -> int:
    """Return octets. Raises SpecError."""
    try:
        number, unit = _read(text)
        octets = int(number * _SIZES[unit])
    except (ValueError, KeyError):
        raise SpecError(f"{text!r}: not a size; write 64kb or 1mib") from None
    if octets > SIZE_MAX:
        raise SpecError(f"{text}: too large; write a smaller size")
    return octets
