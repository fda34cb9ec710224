"""Arithmetic on TCP sequence numbers (RFC 9293 section 3.4): ints modulo 2**32.

a is before b if b - a, modulo 2**32, is less than 2**31. Numbers exactly 2**31 apart are each before the
other, as in Linux; no live connection has such a pair.
"""

from typing import Final

_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000


def seq_lt(a: int, b: int) -> bool:
    """a < b."""
    return (a - b) & _HALF != 0


def seq_le(a: int, b: int) -> bool:
    """a =< b."""
    return (b - a) & _HALF == 0


def seq_gt(a: int, b: int) -> bool:
    """a > b."""
    return (b - a) & _HALF != 0


def seq_ge(a: int, b: int) -> bool:
    """a >= b."""
    return (a - b) & _HALF == 0


def seq_add(a: int, octets: int) -> int:
    """Return the number `octets` after a, or before a if `octets` is negative."""
    return (a + octets) & _MASK


def seq_sub(a: int, b: int) -> int:
    """Return how far a is ahead of b, in octets. Negative: a is behind b."""
    return ((a - b + _HALF) & _MASK) - _HALF


def seq_max(a: int, b: int) -> int:
    """Return the later of two numbers."""
    return a if (a - b) & _HALF == 0 else b


def seq_between(low: int, x: int, high: int) -> bool:
    """low =< x < high: a window, whose lower edge is included. Holds for any size of window."""
    return (x - low) & _MASK < (high - low) & _MASK
