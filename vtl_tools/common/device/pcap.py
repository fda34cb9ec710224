"""A link that replays a capture file, and records sent frames in another."""

import time
from collections.abc import Callable
from pathlib import Path

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import FRAME_MAX, Batch
from vtl_tools.common.device.capture import CaptureReader
from vtl_tools.common.device.pcapng import OUTBOUND
from vtl_tools.common.device.plain import ETHERNET, Plain
from vtl_tools.common.device.recording import CaptureLimits, Recording
from vtl_tools.common.packet.vnet import VNET


class PcapDevice(Device):
    """Replays a pcap or pcapng file, and is finished at its end.

    write: a pcapng file for sent frames; "" for none. speed: factor to the captured speed; 0: as fast as it
    is read.
    """

    def __init__(
        self,
        spec: str,
        path: str,
        *,
        write: str = "",
        speed: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(spec)
        self._path, self._write, self._speed, self._clock = path, write, speed, clock
        self._batch = Batch()
        self._plain = Plain(self)
        self._reader: CaptureReader | None = None
        self._next: tuple[float, bytes] | None = None
        self._origin = 0.0  # our clock at the capture's time 0
        self._writer: Recording | None = None

    def connect(self) -> None:
        """Open both files."""
        reader = self._reader = CaptureReader(self.spec, self._path)
        if self._write:
            self._writer = Recording(self.spec, Path(self._write), [self.spec], CaptureLimits())
        self._next = next(reader, None)
        if self._next and self._speed:
            self._origin = self._clock() - self._next[0] / self._speed
        self.went_up()
        self.handle.wake()

    def read(self) -> Batch:
        """Return the frames that are due."""
        batch = self._batch
        batch.clear()
        self.handle.alarm_expired()
        now = self._clock()
        while self._next and self._reader and batch.count < batch.slots:
            stamp, frame = self._next
            if self._speed and (due := self._origin + stamp / self._speed) > now:
                self.handle.alarm(max(due - now, 1e-6))
                return self.received(batch)
            if len(frame) < ETHERNET:
                self.drops[Drop.RUNT] += 1
            elif len(frame) > FRAME_MAX - VNET:
                self.drops[Drop.TOO_BIG] += 1
            else:
                batch.append_plain(frame)
            self._next = next(self._reader, None)
        self.finished = self._next is None
        self.handle.wake()
        return self.received(batch)

    def write(self, batch: Batch) -> int:
        """Record a batch as plain frames, or discard it if there is no file to write."""
        return sum(self._record(plain) for plain in self._plain(batch))

    def _record(self, batch: Batch) -> int:
        if self._writer:
            self._writer.write(0, (frame[VNET:] for frame in batch), OUTBOUND, time.time())
        return self.sent(batch)

    def close(self) -> None:
        """Close both files. Idempotent."""
        self._next = None
        if self._reader:
            self._reader.close()
        if self._writer:
            self._writer.close()
        super().close()
