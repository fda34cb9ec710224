"""Arithmetic on TCP sequence numbers (RFC 9293 section 3.4): plain ints on a circle of 2**32.

a is before b if going up from a reaches b in less than half the circle. For numbers exactly half a circle
apart each is before the other, as in Linux; no live connection has such a pair.
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
    """Return the number `octets` after a; before it, if negative."""
    return (a + octets) & _MASK


def seq_sub(a: int, b: int) -> int:
    """Return how far a is ahead of b, in octets: negative if it is behind."""
    return ((a - b + _HALF) & _MASK) - _HALF


def seq_max(a: int, b: int) -> int:
    """Return the later of two numbers."""
    return a if (a - b) & _HALF == 0 else b


def seq_between(low: int, x: int, high: int) -> bool:
    """low =< x < high, the form of a window: low is in, high is not. Holds for any size of window."""
    return (x - low) & _MASK < (high - low) & _MASK
