"""A capture file of bounded size, for the frames that a service dropped."""

import atexit
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from vtl_tools.common.device.capture import INBOUND, CaptureWriter
from vtl_tools.common.packet.vnet import VNET

log = logging.getLogger(__name__)

OCTETS_MAX: Final = 256 << 20
"""Maximum octets of a capture file, since a guest decides what is written."""


class CappedCapture:
    """A capture file of bounded size. Raises DeviceError if it cannot be opened."""

    def __init__(self, option: str, path: Path, link: str) -> None:
        self._option, self._link = option, link
        self._writer = CaptureWriter(option, str(path))
        self._room = OCTETS_MAX
        atexit.register(self.close)

    def __call__(self, frame: memoryview, now: float) -> None:
        """Write a frame, unless the file is full."""
        self._room -= len(frame)
        if self._room < 0:
            return
        try:
            self._writer.write(self._link, [frame[VNET:]], INBOUND, time.time())
        except OSError as e:  # a full disk must not stop the service
            log.warning("%s: %s; no more is kept", self._option, e.strerror)
            self._room = 0

    def close(self) -> None:
        """Flush and close the file, if there is room on the disk."""
        with suppress(OSError):
            self._writer.close()
