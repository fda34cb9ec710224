"""Sends a batch in a thread, so that another processor does the kernel's part of it.

All that the receiver's stack does with a frame happens within the system call that sends it. For a relay of
short connections this is a sixth of all its time, and the call runs without the GIL.
"""

import os
import threading
import time
from typing import Final

from vtl_tools.common.device import mmsg
from vtl_tools.common.device.batch import Batch

_WORTH_IT: Final = 8
"""Frames from which on it pays: to wake the thread takes as long as to send a few."""
_LATE_S: Final = 0.002
"""A wait after which no processor was free for the thread, as a batch takes less time."""
_SPARED: Final = 250
"""Batches that are sent in the foreground then."""


class BackgroundSender:
    """Sends one batch at a time, which must not be changed before finish()."""

    def __init__(self) -> None:
        self.batch: Batch | None = None
        """The batch that is sent, until finish()."""
        self._fd, self._result, self._spared = -1, (0, 0), 0
        self._go, self._done = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._done.acquire()
        self._thread: threading.Thread | None = None

    def pays(self, frames: int) -> bool:
        """Tell whether to send so many frames in the background."""
        if frames < _WORTH_IT:
            return False
        if self._spared:
            self._spared -= 1
            return False
        return len(os.sched_getaffinity(0)) > 1 and (self._thread is not None or self._begin())

    def _begin(self) -> bool:
        """Start the thread, which is not done before the process has given up its rights."""
        thread = threading.Thread(target=self._run, name="sender", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the limit of processes
            self._spared = _SPARED
            return False
        self._thread = thread
        return True

    def start(self, fd: int, batch: Batch) -> None:
        """Send a batch to a socket, after pays() has said so. The one before is finished."""
        self._fd, self.batch = fd, batch
        self._go.release()

    def finish(self) -> tuple[int, int]:
        """Wait until the batch is sent; return the result of sendmmsg(2), and errno."""
        if not self._done.acquire(blocking=False):
            since = time.monotonic()
            self._done.acquire()
            if time.monotonic() - since > _LATE_S:
                self._spared = _SPARED
        self.batch = None
        return self._result

    def _run(self) -> None:
        while True:
            self._go.acquire()
            batch = self.batch
            assert batch is not None
            sent = mmsg.sendmmsg(self._fd, batch.msgs_pointer, batch.count, mmsg.MSG_DONTWAIT)
            self._result = sent, mmsg.errno()
            self._done.release()
