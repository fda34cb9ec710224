"""Counts the entries of each source in a table, so that a full one evicts from the busiest source."""

from typing import Any, Generic, Protocol, TypeVar


class SharedEntry(Protocol):
    """An entry of a table. share, before, behind belong to SourceShares, and are None outside of it."""

    share: Any
    before: Any
    behind: Any

    @property
    def source(self) -> bytes:
        """Return the source of the entry."""


T = TypeVar("T", bound=SharedEntry)


class SourceShare(Generic[T]):
    """The entries of one source, a linked list, oldest first. before, behind: neighbours in its level."""

    __slots__ = ("before", "behind", "count", "first", "last", "source")

    def __init__(self, source: bytes) -> None:
        self.source = source
        self.count = 0
        self.first: T | None = None
        self.last: T | None = None
        self.before = self.behind = self


class SourceShares(Generic[T]):
    """Entries by source. Every method takes constant time.

    Sources with equally many entries form a level: a ring around a SourceShare without entries, in the order
    in which they reached it.
    """

    def __init__(self) -> None:
        self._sources: dict[bytes, SourceShare[T]] = {}
        self._levels: dict[int, SourceShare[T]] = {}
        self._most = 0
        self.count = 0

    def of(self, source: bytes) -> int:
        """Return the number of entries of a source."""
        share = self._sources.get(source)
        return 0 if share is None else share.count

    def add(self, entry: T) -> None:
        """Add an entry that is in no share."""
        source = entry.source
        share = self._sources.get(source)
        if share is None:
            share = self._sources[source] = SourceShare(source)
        entry.share, entry.before, entry.behind = share, share.last, None
        if share.last is None:
            share.first = entry
        else:
            share.last.behind = entry
        share.last = entry
        self._move(share, share.count + 1)
        self.count += 1

    def remove(self, entry: T) -> None:
        """Remove an entry that was added."""
        share: SourceShare[T] = entry.share
        before, behind = entry.before, entry.behind
        if before is None:
            share.first = behind
        else:
            before.behind = behind
        if behind is None:
            share.last = before
        else:
            behind.before = before
        entry.share = entry.before = entry.behind = None
        self._move(share, share.count - 1)
        if not share.count:
            del self._sources[share.source]
        self.count -= 1

    def victim(self) -> T | None:
        """Return the oldest entry of the busiest source; None if there is no entry."""
        return self._levels[self._most].behind.first if self._most else None

    def _move(self, share: SourceShare[T], count: int) -> None:
        if share.count:
            share.before.behind, share.behind.before = share.behind, share.before
            ring = self._levels[share.count]
            if ring.behind is ring:
                del self._levels[share.count]
        share.count = count
        if count:
            ring = self._levels.get(count) or self._levels.setdefault(count, SourceShare(b""))
            share.before, share.behind = ring.before, ring
            ring.before.behind = ring.before = share
            self._most = max(self._most, count)
        while self._most and self._most not in self._levels:
            self._most -= 1
