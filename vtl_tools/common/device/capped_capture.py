"""Frames that a service dropped, kept in a file."""

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
"""What is kept of what a guest sends, at most."""


class CappedCapture:
    """A capture file of bounded size. Raises DeviceError if it cannot be written at all."""

    def __init__(self, option: str, path: Path, link: str) -> None:
        self._option, self._link = option, link
        self._writer = CaptureWriter(option, str(path))
        self._room = OCTETS_MAX
        atexit.register(self.close)

    def __call__(self, frame: memoryview, now: float) -> None:
        """Keep a frame."""
        self._room -= len(frame)
        if self._room < 0:
            return
        try:
            self._writer.write(self._link, [frame[VNET:]], INBOUND, time.time())
        except OSError as e:  # a guest that fills the disk does not stop the service by it
            log.warning("%s: %s; no more is kept", self._option, e.strerror)
            self._room = 0

    def close(self) -> None:
        """Write what is not written yet, if there is room."""
        with suppress(OSError):
            self._writer.close()
