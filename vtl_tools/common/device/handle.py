"""The one descriptor by which a device says that read() has something to do.

It is an epoll instance that lives as long as the device, while sockets behind it come and go; a timer in
it lets a device try again by itself to reach a peer that went away.
"""

import ctypes
import os
import select
from contextlib import suppress

_libc = ctypes.CDLL(None, use_errno=True)
_NONBLOCK = os.O_NONBLOCK | os.O_CLOEXEC
_CLOCK_MONOTONIC = 1


class Handle:
    """An epoll instance with a timer; fileno() is readable when one of its descriptors or the timer is."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._timer = _libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK)
        self._epoll.register(self._timer, select.EPOLLIN)

    def fileno(self) -> int:
        """Return the descriptor to wait on, the same from first to last."""
        return self._epoll.fileno()

    def watch(self, fd: int, *, write: bool = False) -> None:
        """Wake for fd's input, and with `write` for room in its output too; again changes what is asked."""
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop waking for fd, which need not be watched; call before closing it."""
        with suppress(FileNotFoundError):
            self._epoll.unregister(fd)

    def alarm(self, delay_s: float) -> None:
        """Wake once, after delay_s seconds (above 0); replaces the alarm before."""
        seconds = int(delay_s)
        spec = (ctypes.c_long * 4)(0, 0, seconds, int((delay_s - seconds) * 1e9) or 1)
        _libc.timerfd_settime(self._timer, 0, spec, None)

    def hush(self) -> None:
        """Call the alarm off."""
        _libc.timerfd_settime(self._timer, 0, (ctypes.c_long * 4)(), None)

    def ring(self) -> None:
        """Wake at once: there is something to do that no descriptor tells of."""
        self.alarm(1e-9)

    def rang(self) -> bool:
        """Whether the alarm went off since last asked."""
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Give the descriptors back. Idempotent."""
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._timer)
