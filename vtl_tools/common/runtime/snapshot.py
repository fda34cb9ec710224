"""A state file that a forked copy of the process writes: frames do not wait while it makes the text."""

import logging
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from vtl_tools.common.device.handle import Handle
from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import broker

log = logging.getLogger(__name__)

_NICE: Final = 10


class Snapshot:
    """A service's source (stage.Source) that keeps one file. make: yields the file's text as it is now.

    most: octets that it may have. A write that fails leaves the file as it was.
    """

    def __init__(self, path: Path, make: Callable[[float], Iterable[str]], most: int) -> None:
        self.path, self.make = path, make
        self._file = broker.StateFile(path, most)
        self.written = self.failed = 0
        self._handle = Handle()
        self.fileno = self._handle.fileno
        self._closed = False
        self._child: tuple[int, int] | None = None

    @property
    def is_writing(self) -> bool:
        """Whether a copy is writing."""
        return self._child is not None

    def read(self) -> bytes | None:
        """Return the octets of the file; None: there is no file. Raises VTLError."""
        try:
            return self._file.read()
        except OSError as e:
            raise VTLError(f"{self.path}: {e.strerror}; choose another with --state") from None

    def begin(self, now: float) -> bool:
        """Begin to write the present state; False: a write is under way. See `written`, `failed`."""
        if self._child is not None or self._closed:
            return False
        try:
            pid = os.fork()
        except OSError as e:  # the next write may succeed
            self._fail(e.strerror)
            return True
        if not pid:
            status = 1
            try:
                signal.set_wakeup_fd(-1)  # signals to the copy must not reach the service's loop
                for number in signal.SIGTERM, signal.SIGINT:
                    signal.signal(number, signal.SIG_IGN)  # a half-written file would be lost
                os.nice(_NICE)
                self._file.replace(self.make(now))
                status = 0
            finally:
                os._exit(status)
        self._child = pid, os.pidfd_open(pid)
        self._handle.watch(self._child[1])
        return True

    def save(self, now: float) -> None:
        """Write the state, and wait until it is complete. Raises VTLError."""
        self._reap(wait=True)
        try:
            self._file.replace(self.make(now))
        except OSError as e:
            raise VTLError(f"{self.path}: {e.strerror}; choose another with --state") from None
        self.written += 1

    def poll(self, now: float) -> bool:
        """Return whether a copy has ended since the last call."""
        return self._reap()

    def _reap(self, *, wait: bool = False) -> bool:
        if self._child is None:
            return False
        pid, fd = self._child
        found, status = os.waitpid(pid, 0 if wait else os.WNOHANG)
        if not found:
            return False
        self._handle.forget(fd)
        os.close(fd)
        self._child = None
        if status:
            self._fail("not written; free space on its file system")
        else:
            self.written += 1
        return True

    def _fail(self, why: str | None) -> None:
        if not self.failed:
            log.warning("%s: %s", self.path, why)
        self.failed += 1

    def close(self) -> None:
        """Write the state a last time, and close the descriptors. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._reap(wait=True)
        try:
            self.save(time.monotonic())
        except VTLError as e:
            log.warning("%s", e)
        self._handle.close()
