"""A device that records the frames of another in a capture file: `--pcap FILE`."""

import time
from collections.abc import Callable, Iterable

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.pcapng import INBOUND, OUTBOUND
from vtl_tools.common.device.recording import Recording
from vtl_tools.common.device.wrapper import Wrapper
from vtl_tools.common.packet.vnet import VNET


class Record(Wrapper):
    """Records a device, both directions. Super-segments are recorded whole, and sent frames even if dropped.

    recording: shared with others, and closed by its owner. number: of this link in the recording.
    """

    def __init__(
        self, device: Device, recording: Recording, number: int, *, clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(device)
        self._recording, self._number, self._clock = recording, number, clock

    def read(self) -> Batch:
        """Read, and record the frames."""
        batch = self.device.read()
        if batch:
            self._record(batch, INBOUND)
        return batch

    def write(self, batch: Batch) -> int:
        """Record the frames, and send them."""
        self._record(batch, OUTBOUND)
        return self.device.write(batch)

    def _record(self, batch: Batch, direction: int) -> None:
        self._recording.write(self._number, _ethernet(batch), direction, self._clock())


def record_as(recording: Recording, name: str, frames: Iterable[memoryview], direction: int) -> None:
    """Record frames of a link by its name: one that the runner does not have."""
    recording.write_as(name, _ethernet(frames), direction, time.time())


def _ethernet(frames: Iterable[memoryview]) -> list[memoryview]:
    return [frame[VNET:] for frame in frames]
