"""Batch: up to 64 frames in one arena, the unit of I/O.

Each slot of the arena has headroom, then a frame: the virtio_net_hdr and the Ethernet frame (packet.vnet).
A frame is *borrowed*: valid until its device is read again; bytes(frame) or bytearray(frame) copies it.
"""

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, Self

from vtl_tools.common.device import mmsg
from vtl_tools.common.packet import vnet

Pieces = tuple[bytes | memoryview, ...]
"""A frame in pieces: virtio_net_hdr and headers, then views of the payload."""

SLOTS: Final = 64
HEADROOM: Final = 64
"""Octets of headroom before a frame, in which a link can insert a VLAN tag or a tunnel's header."""

FRAME_MAX: Final = vnet.VNET + 14 + 8 + 40 + 65535
"""Size of the largest frame in octets: Ethernet, two tags, an IPv6 packet without jumbogram option."""

# An odd number of cache lines, so that the first lines of all slots do not share one cache set.
STRIDE: Final = (HEADROOM + FRAME_MAX + 127) // 128 * 128 + 64

_SMALL: Final = 256
"""The views of frames of fewer octets are kept: their sizes are few, as those of segments without data."""
_VIEWS_MAX: Final = 16
"""Kept views of a slot."""


class Batch:
    """Frames to read, edit, drop and send. Iteration yields a writable memoryview of each frame."""

    __slots__ = (
        "_arena",
        "_base",
        "_heads",
        "_iov",
        "_moved",
        "_octets",
        "_start",
        "_tails",
        "_views",
        "count",
        "msgs",
        "msgs_address",
        "msgs_pointer",
    )

    def __init__(self, slots: int = SLOTS) -> None:
        arena = mmsg.room(slots * STRIDE)
        self._arena = memoryview(arena)
        self._base = ctypes.addressof(ctypes.c_char.from_buffer(arena))
        # The place of each virtio_net_hdr unless its frame was moved: the first 8 octets, and the next 2.
        self._heads = self._arena.cast("Q")[HEADROOM // 8 :: STRIDE // 8]
        self._tails = self._arena.cast("H")[HEADROOM // 2 + 4 :: STRIDE // 2]
        self._arrays(slots)
        _, self._start = mmsg.words(2 * slots)
        self._start[0::2] = mmsg.column(self._base + i * STRIDE + HEADROOM for i in range(slots))
        self._start[1::2] = mmsg.column([FRAME_MAX] * slots)
        self._iov[:] = self._start

    def _arrays(self, slots: int) -> None:
        iov_address, self._iov = mmsg.words(2 * slots)
        self.msgs_address, self.msgs = mmsg.words(mmsg.WORDS * slots)
        self.msgs_pointer = mmsg.pointer(self.msgs_address)
        for i in range(slots):
            self.msgs[i * mmsg.WORDS + mmsg.IOV] = iov_address + i * 16
            self.msgs[i * mmsg.WORDS + mmsg.IOVLEN] = 1
        self.count, self._octets = 0, -1
        self._moved = False  # whether frames may be elsewhere than where their slots are
        self._views: list[dict[int, memoryview]] = [{} for _ in range(slots)]  # of small frames, by length

    @classmethod
    def of(cls, frames: Iterable[bytes | bytearray | memoryview]) -> Self:
        """Return a batch that holds copies of frames; at least one, at most SLOTS."""
        kept = list(frames)
        batch = cls(len(kept))
        for frame in kept:
            batch.append(frame)
        return batch

    @property
    def slots(self) -> int:
        """The maximum number of frames."""
        return len(self._iov) // 2

    @property
    def octets(self) -> int:
        """Octets of all frames, without their virtio_net_hdr."""
        if self._octets < 0:
            n = self.count
            total: int = self._iov[1] if n == 1 else sum(self._iov[1 : 2 * n : 2].tolist())
            self._octets = total - n * vnet.VNET
        return self._octets

    @property
    def lengths(self) -> memoryview:
        """Length of each frame in octets, virtio_net_hdr included: 64-bit words, shape (count,)."""
        self._octets = -1  # the caller may write to it
        return self._iov[1 : 2 * self.count : 2]

    @property
    def addresses(self) -> memoryview:
        """The memory address of each frame, for system calls: 64-bit words, shape (count,)."""
        return self._iov[0 : 2 * self.count : 2]

    @property
    def is_plain(self) -> bool:
        """Whether every virtio_net_hdr is zeros. For frames just received into their slots."""
        n = self.count
        return not (self._heads[:n].tobytes() + self._tails[:n].tobytes()).strip(b"\0")

    def make_plain(self) -> None:
        """Fill every virtio_net_hdr with zeros. For frames just received into their slots."""
        zeros = memoryview(bytes(8 * self.count))
        self._heads[: self.count] = zeros.cast("Q")
        self._tails[: self.count] = zeros[: 2 * self.count].cast("H")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> memoryview:
        if not 0 <= i < self.count:
            raise IndexError(i)
        start = self._iov[2 * i] - self._base
        return self._arena[start : start + self._iov[2 * i + 1]]

    def __iter__(self) -> Iterator[memoryview]:
        return iter(self.frames())

    def frames(self) -> list[memoryview]:
        """Return a writable view of each frame."""
        arena, iov, n = self._arena, self._iov, self.count
        if self._moved:
            base = self._base
            words: list[int] = iov[: 2 * n].tolist()
            return [arena[words[i] - base : words[i] - base + words[i + 1]] for i in range(0, 2 * n, 2)]
        lengths: list[int] = [iov[1]] if n == 1 else iov[1 : 2 * n : 2].tolist()
        views: list[memoryview] = []
        start = HEADROOM
        for i in range(n):
            length = lengths[i]
            if length >= _SMALL:
                view = arena[start : start + length]
            else:
                known = self._views[i]
                found = known.get(length)
                if found is None:
                    if len(known) >= _VIEWS_MAX:
                        known.clear()
                    found = known[length] = arena[start : start + length]
                view = found
            views.append(view)
            start += STRIDE
        return views

    def clear(self) -> None:
        """Remove all frames and reset the room of each slot."""
        if self._moved:
            self._iov[:] = self._start
            self._moved = False
        elif self.count == 1:
            self._iov[0], self._iov[1] = self._start[0], FRAME_MAX
        elif n := 2 * self.count:
            self._iov[:n] = self._start[:n]
        self.count, self._octets = 0, -1

    def hold(self, messages: memoryview, n: int) -> None:
        """Set the batch to n frames that recvmmsg(2) put into the first slots. messages: its array."""
        total: int
        if n == 1:  # common, and columns would take 2 us
            total = self._iov[1] = messages[mmsg.LEN]
        else:
            lengths = messages[mmsg.LEN : mmsg.WORDS * n : mmsg.WORDS]
            self._iov[1 : 2 * n : 2] = lengths
            total = sum(lengths.tolist())
        self.count, self._octets = n, total - n * vnet.VNET

    def append(self, frame: bytes | bytearray | memoryview) -> None:
        """Copy a frame in. Raises IndexError if the batch is full, ValueError above FRAME_MAX octets."""
        i, length = self.count, len(frame)
        if length > FRAME_MAX:
            raise ValueError(f"a frame of {length} octets")
        start = self._start[2 * i] - self._base
        self._arena[start : start + length] = frame
        self._iov[2 * i] = self._start[2 * i]
        self._iov[2 * i + 1] = length
        self.count, self._octets = i + 1, -1

    def join(self, frames: Sequence[Pieces]) -> Self:
        """Fill the batch with copies of frames in pieces; at most `slots`. Return the batch."""
        self.clear()
        for pieces in frames:
            self.append(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        return self

    def append_plain(self, ether: bytes | bytearray | memoryview) -> None:
        """Copy in an Ethernet frame without virtio_net_hdr. Raises as append() does."""
        i, length = self.count, vnet.VNET + len(ether)
        if length > FRAME_MAX:
            raise ValueError(f"a frame of {length} octets")
        start = self._start[2 * i] - self._base
        body = start + vnet.VNET
        self._arena[start:body] = vnet.NONE
        self._arena[body : start + length] = ether
        self._iov[2 * i] = self._start[2 * i]
        self._iov[2 * i + 1] = length
        self.count, self._octets = i + 1, -1

    def room(self, i: int) -> memoryview:
        """Return the whole room of slot i, to be filled in place; call resize() afterwards."""
        start = self._start[2 * i] - self._base
        return self._arena[start : start + FRAME_MAX]

    def resize(self, i: int, length: int, front: int = 0) -> memoryview:
        """Set the length of frame i in octets, and move its start by `front` (negative: into the headroom).

        Raises ValueError if the slot does not have the room.
        """
        start, slot = self._iov[2 * i] + front, self._start[2 * i]
        if start < slot - HEADROOM or length < 0 or start + length > slot + FRAME_MAX:
            raise ValueError(f"frame {i} cannot be {length} octets long")
        self._iov[2 * i] = start
        self._iov[2 * i + 1] = length
        self._octets = -1
        self._moved = self._moved or front != 0
        start -= self._base
        return self._arena[start : start + length]

    def pick(self, source: "Batch", indices: Iterable[int]) -> Self:
        """Fill the batch with the frames of source at indices, borrowed from it, to send part of a batch."""
        if self._base != source._base:
            self._arena, self._base = source._arena, source._base
        n = 0
        for n, i in enumerate(indices, 1):
            self._iov[2 * n - 2] = source._iov[2 * i]
            self._iov[2 * n - 1] = source._iov[2 * i + 1]
        self.count, self._moved, self._octets = n, True, -1
        return self


class PackedBatch(Batch):
    """A batch of small frames, one right behind the other instead of in the arena, for sending only."""

    def __init__(self) -> None:
        super().__init__(1)
        self._arrays(SLOTS)
        self._kept = (ctypes.c_char_p * 1)()
        self._start_word = memoryview(self._kept).cast("B").cast("Q")

    def pack(self, frames: Sequence[Pieces]) -> Self:
        """Fill the batch with copies of frames of one piece each, at most SLOTS."""
        whole = [pieces[0] for pieces in frames]
        kept = b"".join(whole)
        self._kept[0] = kept
        start: int = self._start_word[0]
        self._arena, self._base, self._moved = memoryview(kept), start, True
        at = start
        words: list[int] = []
        for frame in whole:
            words.append(at)
            words.append(len(frame))
            at += len(frame)
        n = len(whole)
        self._iov[: 2 * n] = mmsg.column(words)
        self.count, self._octets = n, at - start - n * vnet.VNET
        return self
