"""A device that records the frames of another in a capture file: `--pcap FILE`."""

import time
from collections.abc import Callable

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.capture import INBOUND, OUTBOUND, CaptureWriter
from vtl_tools.common.device.wrapper import Wrapper
from vtl_tools.common.packet.vnet import VNET


class Record(Wrapper):
    """Records a device, both directions. Super-segments are recorded whole, and sent frames even if dropped.

    target: a path, or a writer that is shared with others and closed by its owner.
    """

    def __init__(
        self, device: Device, target: str | CaptureWriter, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(device)
        self._clock = clock
        self._owned = isinstance(target, str)
        self.writer = CaptureWriter(device.spec, target) if isinstance(target, str) else target

    def read(self) -> Batch:
        """Read, and record the frames."""
        batch = self.device.read()
        if batch:
            self._write(batch, INBOUND)
        return batch

    def write(self, batch: Batch) -> int:
        """Record the frames, and send them."""
        self._write(batch, OUTBOUND)
        return self.device.write(batch)

    def _write(self, batch: Batch, direction: int) -> None:
        frames = (frame[VNET:] for frame in batch)
        self.writer.write(self.device.spec, frames, direction, self._clock())

    def close(self) -> None:
        """Close the device, and the file if this device opened it. Idempotent."""
        super().close()
        if self._owned:
            self.writer.close()
        else:
            self.writer.flush()
