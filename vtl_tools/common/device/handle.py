"""The descriptor of a device that event loops wait on, and its alarm.

It is an epoll instance that lives as long as the device, while the sockets in it change. A timer in it
lets a device look for an absent peer by itself.
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
        """Return the descriptor to wait on. It never changes."""
        return self._epoll.fileno()

    def watch(self, fd: int, *, write: bool = False) -> None:
        """Wake for fd's input and, with `write`, for room in its output. A second call changes the events."""
        events = select.EPOLLIN | (select.EPOLLOUT if write else 0)
        try:
            self._epoll.register(fd, events)
        except FileExistsError:
            self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Stop waking for fd; harmless if it is not watched. Call it before closing fd."""
        with suppress(FileNotFoundError):
            self._epoll.unregister(fd)

    def alarm(self, delay_s: float) -> None:
        """Wake once, after delay_s seconds (above 0). Replaces an earlier alarm."""
        seconds = int(delay_s)
        spec = (ctypes.c_long * 4)(0, 0, seconds, int((delay_s - seconds) * 1e9) or 1)
        _libc.timerfd_settime(self._timer, 0, spec, None)

    def cancel_alarm(self) -> None:
        """Cancel the alarm."""
        _libc.timerfd_settime(self._timer, 0, (ctypes.c_long * 4)(), None)

    def wake(self) -> None:
        """Wake at once, for work that no descriptor announces."""
        self.alarm(1e-9)

    def alarm_expired(self) -> bool:
        """Return whether the alarm expired since the last call."""
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        if not self._epoll.closed:
            self._epoll.close()
            os.close(self._timer)
