"""Keeping the frames that a service drops, for a look at them, at a cost that has a bound."""

import atexit
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from vtl_tools.common.device.capture import INBOUND, CaptureWriter
from vtl_tools.common.packet.vnet import VNET

log = logging.getLogger(__name__)


class Kept:
    """Writes the frames that are dropped to a file, up to a size that no guest can exceed."""

    OCTETS_MAX: Final = 256 << 20

    def __init__(self, path: Path, link: str) -> None:
        self._writer, self._link = CaptureWriter("--pcap-dropped", str(path)), link
        self._room = self.OCTETS_MAX
        atexit.register(self.close)

    def __call__(self, frame: memoryview, now: float) -> None:
        """Keep a frame."""
        self._room -= len(frame)
        if self._room < 0:
            return
        try:
            self._writer.write(self._link, [frame[VNET:]], INBOUND, time.time())
        except OSError as e:  # a guest that fills the disk does not stop the service by it
            log.warning("--pcap-dropped: %s; no more is kept", e.strerror)
            self._room = 0

    def close(self) -> None:
        """Write what is not written yet, if there is room."""
        with suppress(OSError):
            self._writer.close()
