"""Sends many frames in pieces by one system call; the kernel gathers each from where its pieces are.

A frame that a guest waits for wakes it, and between two system calls it takes the processor over if it shares
it. So 16 frames by 16 calls cost it, and us, 16 turns. sendmmsg(2) is no better, as it lets others run after
each message, but io_submit(2) is: on a socket it sends all before it returns.
"""

import ctypes
import os
from collections.abc import Sequence
from typing import Final

from vtl_tools.common.device import mmsg
from vtl_tools.common.device.batch import SLOTS, Pieces

_GENERIC: Final = (0, 1, 2, 4)
_NUMBERS: Final = {"x86_64": (206, 207, 209, 208), "aarch64": _GENERIC, "riscv64": _GENERIC}
"""Of io_setup, io_destroy, io_submit and io_getevents, by machine."""
_VIEWS_MAX: Final = 2 * SLOTS
"""Views of data in all frames together; data that spans two buffers is two."""
_PWRITEV: Final = 8  # IOCB_CMD_PWRITEV, which on a socket is sendmsg(2)

# Words of struct iocb and of struct io_event. Each frame is done, with its event, before the next one begins.
_IOCB: Final = 8
_OPERATION: Final = 2  # and the descriptor, in the upper half
_IOV: Final = 3
_IOVLEN: Final = 4
_EVENT: Final = 4
_RESULT: Final = 2

_syscall = ctypes.CDLL(None, use_errno=True).syscall


class GatheredSender:
    """Sends up to SLOTS frames at once; none where the kernel has no io_submit(2), or refuses it."""

    __slots__ = (
        "_context", "_events_pointer", "_first", "_heads", "_iocbs", "_iov", "_iov_address", "_is_refused",
        "_list", "_list_pointer", "_numbers", "_results",
    )  # fmt: skip

    def __init__(self) -> None:
        self._iov_address, self._iov = mmsg.words(2 * (SLOTS + _VIEWS_MAX))
        address, self._iocbs = mmsg.words(_IOCB * SLOTS)
        events, words = mmsg.words(_EVENT * SLOTS)
        self._results = words.cast("B").cast("q")[_RESULT::_EVENT]
        pointers, self._list = mmsg.words(SLOTS)
        self._list[:] = mmsg.column(range(address, address + 8 * _IOCB * SLOTS, 8 * _IOCB))
        self._events_pointer, self._list_pointer = mmsg.pointer(events), mmsg.pointer(pointers)
        self._heads = (ctypes.c_char_p * 1)()
        self._first = memoryview(self._heads).cast("B").cast("Q")
        self._numbers: tuple[int, ...] = _NUMBERS.get(os.uname().machine, ())
        self._context, self._is_refused = ctypes.c_ulong(0), not self._numbers

    def send(self, fd: int, frames: Sequence[Pieces]) -> list[int]:
        """Send frames to a socket that does not block; return for each its octets, or minus its errno.

        Headers are copied, data is not: the views keep its memory in its place. An empty list: they are to be
        sent in another way, as only writable memory tells its address.
        """
        if self._is_refused or not self._hold(fd, frames):
            return []
        _, _, submit, reap = self._numbers
        taken: int = _syscall(submit, self._context, len(frames), self._list_pointer)
        if taken < 1:
            self._is_refused = True
            return []
        if _syscall(reap, self._context, taken, taken, self._events_pointer, None) != taken:
            self._is_refused = True
            return [sum(map(len, pieces)) for pieces in frames[:taken]]  # they were sent, as far as is known
        results: list[int] = self._results[:taken].tolist()
        return results

    def _hold(self, fd: int, frames: Sequence[Pieces]) -> bool:
        """Point to the pieces of frames. Return whether that can be done."""
        if not self._context.value and _syscall(self._numbers[0], SLOTS, ctypes.byref(self._context)):
            self._is_refused = True
            return False
        self._heads[0] = b"".join([pieces[0] for pieces in frames])
        at: int = self._first[0]
        iov: list[int] = []
        iocbs, entry, operation = self._iocbs, 0, _PWRITEV | fd << 32
        for pieces in frames:
            iocbs[entry + _OPERATION] = operation
            iocbs[entry + _IOV] = self._iov_address + 8 * len(iov)
            iocbs[entry + _IOVLEN] = len(pieces)
            entry += _IOCB
            size = len(pieces[0])
            iov.append(at)
            iov.append(size)
            at += size
            for view in pieces[1:]:
                if type(view) is not memoryview or view.readonly:
                    return False
                iov.append(ctypes.addressof(ctypes.c_char.from_buffer(view)))
                iov.append(len(view))
        if len(iov) > len(self._iov):
            return False
        self._iov[: len(iov)] = mmsg.column(iov)
        return True

    def close(self) -> None:
        """Let go of the kernel's context. Idempotent."""
        if self._context.value:
            _syscall(self._numbers[1], self._context)
            self._context = ctypes.c_ulong(0)
