"""A device that writes what its inner device received and sent to a capture file: `--pcap FILE`."""

import time
from collections.abc import Callable

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.capture import INBOUND, OUTBOUND, CaptureWriter
from vtl_tools.common.device.wrapper import Wrapper
from vtl_tools.common.packet.vnet import VNET


class Record(Wrapper):
    """Records a device. Super-segments are recorded whole, and what was offered, also if it was dropped.

    target: a path, or a writer that others write to as well and whose owner closes it.
    """

    def __init__(
        self, device: Device, target: str | CaptureWriter, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(device)
        self._clock = clock
        self._owned = isinstance(target, str)
        self.writer = CaptureWriter(device.spec, target) if isinstance(target, str) else target

    def read(self) -> Batch:
        """Read, and record what came."""
        batch = self.device.read()
        if batch:
            self._write(batch, INBOUND)
        return batch

    def write(self, batch: Batch) -> int:
        """Record what is to be sent, and send it."""
        self._write(batch, OUTBOUND)
        return self.device.write(batch)

    def _write(self, batch: Batch, direction: int) -> None:
        frames = (frame[VNET:] for frame in batch)
        self.writer.write(self.device.spec, frames, direction, self._clock())

    def close(self) -> None:
        """Close the device, and the file if it is this device's own. Idempotent."""
        super().close()
        if self._owned:
            self.writer.close()
        else:
            self.writer.flush()
