"""Tables of which the oldest entries are forgotten: foreign octets cannot make them grow."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class BoundedTable(dict[Key, Value]):
    """A dict of at most `most` entries, in the order in which they were put. The oldest gives way."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def put(self, key: Key, value: Value) -> None:
        """Set an entry, which is the newest then."""
        self.pop(key, None)
        if len(self) >= self._most:
            del self[next(iter(self))]
        self[key] = value


class Seen(Protocol):
    """A thing that a table knows. seen_at: when it was seen last, in seconds."""

    seen_at: float


def silent(table: Mapping[Key, Seen], since: float) -> Iterator[Key]:
    """Yield the keys of entries that were not seen after a time, the oldest first.

    The table is in the order of seen_at. The caller removes each entry before it asks for the next.
    """
    while table:
        key = next(iter(table))
        if table[key].seen_at > since:
            return
        yield key
