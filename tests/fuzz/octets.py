"""Choices out of octets: how a target turns an input into a conversation, with atheris and without."""

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Octets:
    """Reads from the front. When nothing is left, numbers are 0 and octets are none."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Octets that are not read yet."""
        return len(self._data) - self._at

    def take(self, size: int) -> bytes:
        """Return the next octets, at most so many."""
        taken = self._data[self._at : self._at + size]
        self._at += len(taken)
        return taken

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(self.left)

    def number(self, octets: int = 1) -> int:
        """Return a number of so many octets."""
        return int.from_bytes(self.take(octets), "big")

    def flag(self) -> bool:
        """Return one bit, of an octet of its own."""
        return self.number() & 1 == 1

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of several, of at most 256."""
        return choices[self.number() % len(choices)]

    def blob(self) -> bytes:
        """Return octets behind their number, which has two octets."""
        return self.take(self.number(2))


def blob(data: bytes) -> bytes:
    """Return what Octets.blob() reads as these octets."""
    return len(data).to_bytes(2, "big") + data


def pieces(data: bytes, cuts: Octets) -> list[bytes]:
    """Return octets in pieces, as a stream may bring them; the last is the longest where cuts run out."""
    out, at = [], 0
    while cuts.left and at < len(data):
        size = cuts.number()
        out.append(data[at : at + size])
        at += size
    out.append(data[at:])
    return out
