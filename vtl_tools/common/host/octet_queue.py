"""A bounded queue of octets from one process to another, in memory that both share.

The producer never waits: it asks for room first. Two eventfds count the octets in the queue and the free
ones, so that the kernel orders the accesses of both sides.
"""

import contextlib
import mmap
import os
import sys

_FLAGS = os.EFD_CLOEXEC | os.EFD_NONBLOCK


class OctetQueue:
    """One producer and one consumer, each in its own process, which fork() gave a copy of this object.

    size: octets, a multiple of 4. octets: the memory. at: where the producer writes next; for free octets
    only.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.octets = memoryview(mmap.mmap(-1, size))
        self.at = 0
        self._room = size
        self._start = 0
        self.waiting = 0
        """Octets that the consumer has not taken, as of its last collect()."""
        self._written, self._freed = os.eventfd(0, _FLAGS), os.eventfd(0, _FLAGS)

    def fileno(self) -> int:
        """Return a descriptor that is readable when the consumer has something to collect."""
        return self._written

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors that the consumer needs."""
        return self._written, self._freed

    def close(self) -> None:
        """Close the descriptors of this process."""
        for fd in self.descriptors():
            os.close(fd)

    # --- the producer

    def has_room(self, octets: int) -> bool:
        """Return whether so many octets can be put."""
        if self._room < octets:
            try:
                self._room += os.eventfd_read(self._freed)
            except BlockingIOError:
                return False
        return self._room >= octets

    def put(self, piece: bytes | memoryview) -> None:
        """Copy a piece into the queue, for which there is room. The consumer sees it after publish()."""
        octets, end = len(piece), self.at + len(piece)
        if end <= self.size:
            self.octets[self.at : end] = piece
            self.at = end
        else:
            first = self.size - self.at
            self.octets[self.at :] = piece[:first]
            self.at = octets - first
            self.octets[: self.at] = piece[first:]

    def publish(self, octets: int) -> None:
        """Hand over the octets that were put since the last call."""
        self._room -= octets
        os.eventfd_write(self._written, octets)

    # --- the consumer

    def collect(self) -> None:
        """Take note of the published octets."""
        with contextlib.suppress(BlockingIOError):
            self.waiting = min(self.size, self.waiting + os.eventfd_read(self._written))

    def views(self, octets: int) -> list[memoryview]:
        """Return the first octets of those that wait, in one piece or two."""
        end = self._start + octets
        if end <= self.size:
            return [self.octets[self._start : end]]
        return [self.octets[self._start :], self.octets[: end - self.size]]

    def word(self, offset: int) -> int:
        """Return the 32-bit number so many octets behind the first that waits. Both are multiples of 4."""
        at = (self._start + offset) % self.size
        return int.from_bytes(self.octets[at : at + 4], byteorder=sys.byteorder)

    def take(self, octets: int) -> None:
        """Free the first octets of those that wait."""
        self._start = (self._start + octets) % self.size
        self.waiting -= octets
        if octets:
            os.eventfd_write(self._freed, octets)
