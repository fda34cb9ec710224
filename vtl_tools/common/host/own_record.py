"""The file of a service's record: the broker sets its time, and removes it when the service asks for that."""

import contextlib
import os
from typing import Final

from vtl_tools.common.host import broker


class OwnRecord(broker.OwnSocket):
    """The record of the service, which the service itself cannot write. A killed service leaves it."""

    _REMOVE: Final = 1
    _owed = 0

    def touch(self) -> None:
        """Set the file's time of change to now, soon and without waiting."""
        with contextlib.suppress(OSError):
            if self._channel is None:
                self._stamp()
            else:
                self._settle(0.0)
                self._request(0)

    def remove(self) -> None:
        """Remove the file. Idempotent."""
        if self._channel is None:
            super().remove()
            return
        with contextlib.suppress(OSError):
            self._request(self._REMOVE)
            self._settle(broker.PATIENCE_S)

    def at_end(self) -> None:
        """Leave the file: it tells that the service was killed."""

    def _request(self, word: int) -> None:
        assert self._channel is not None
        broker._send(self._channel, word, -1)
        self._owed += 1

    def _settle(self, patience_s: float) -> None:
        """Receive the answers to all requests so far. Raises OSError."""
        assert self._channel is not None
        self._channel.settimeout(patience_s)
        while self._owed:
            broker._receive(self._channel)
            self._owed -= 1

    def _serve(self, fd: int) -> tuple[int, int]:
        if self.word == self._REMOVE:
            super().remove()
        else:
            self._stamp()
        return 0, -1

    def _stamp(self) -> None:
        """Set the time of change, but not of a file to which another user has linked the name since."""
        os.utime(self.path, follow_symlinks=False)
