"""Rate limits as token buckets: one, or one for each of many keys in bounded memory. Times are in seconds."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_SLACK: Final = 1e-3
"""Part of a token that may be missing, as sums of floats are not exact."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """`per_s` tokens a second on average, and `burst` at once.

    A bucket's whole state is the time at which it is full again; 0: it is full (GCRA, ITU-T I.371).
    """

    per_s: float
    burst: float

    def take(self, full_at: float, now: float) -> float | None:
        """Return a bucket's state after one token was taken, or None if there is none."""
        if (full_at - now) * self.per_s > self.burst - 1 + _SLACK:
            return None
        return max(full_at, now) + 1 / self.per_s

    def left(self, full_at: float, now: float) -> int:
        """Return the tokens that are in a bucket."""
        return int(self.burst - max(0.0, full_at - now) * self.per_s + _SLACK)


class TokenBucket:
    """One bucket. burst: `per_s` if not given."""

    def __init__(self, per_s: float, burst: float | None = None) -> None:
        self._limit = RateLimit(per_s, per_s if burst is None else burst)
        self._full_at = 0.0
        self.refused = 0
        """Refused requests since waived() was called."""

    def take(self, now: float) -> bool:
        """Take a token, and return whether there was one."""
        full_at = self._limit.take(self._full_at, now)
        if full_at is None:
            self.refused += 1
            return False
        self._full_at = full_at
        return True

    def waived(self) -> int:
        """Return `refused`, and set it to 0."""
        refused, self.refused = self.refused, 0
        return refused


class KeyedBuckets(Generic[Key]):
    """A bucket for each key. When there is no room, the key that was quiet for longest is evicted.

    Keys that were refused have a table of their own until their bucket is full again. So a flood of spoofed
    keys, each within its rate, does not evict a key that is beyond its own. most: keys of each table.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._within: OrderedDict[Key, float] = OrderedDict()
        self._refused: OrderedDict[Key, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._within) + len(self._refused)

    def get(self, key: Key) -> float:
        """Return the state of a bucket, for RateLimit.left()."""
        return self._within.get(key) or self._refused.get(key, 0.0)

    def take(self, key: Key, limit: RateLimit, now: float) -> bool:
        """Take a token from a key's bucket, and return whether there was one."""
        was_refused = key in self._refused
        before = (self._refused if was_refused else self._within).pop(key, 0.0)
        after = limit.take(before, now)
        is_refused = after is None or (was_refused and before > now)
        table = self._refused if is_refused else self._within
        if len(table) >= self._most:
            table.popitem(last=False)
        table[key] = before if after is None else after
        return after is not None
