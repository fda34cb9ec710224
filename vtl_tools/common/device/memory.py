"""A cable in memory between two devices, for tests and simulations."""

from collections import deque

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.plain import ETHERNET, Plain
from vtl_tools.common.packet.vnet import VNET

QUEUE = 1024
"""Maximum frames that wait to be read: a few times the default ring of a network card."""


class MemoryDevice(Device):
    """One end of a cable, made by pair(). close() of one end finishes the other once it is drained."""

    def __init__(self, spec: str, mtu: int, offload: bool) -> None:
        super().__init__(spec)
        self.mtu, self.offload = mtu, offload
        self.peer = self
        self._batch = Batch()
        self._queue: deque[bytes] = deque()
        self._closed = False
        self._plain = Plain(self)

    def connect(self) -> None:
        """Open the end. Frames sent to it before are waiting."""
        self.went_up()
        if self._queue:
            self.handle.wake()

    def read(self) -> Batch:
        """Take up to a batch of frames from the queue."""
        batch, queue = self._batch, self._queue
        batch.clear()
        while queue and batch.count < batch.slots:
            batch.append(queue.popleft())
        if not queue:
            self.handle.alarm_expired()
            self.finished = self.peer._closed
        return self.received(batch)

    def write(self, batch: Batch) -> int:
        """Copy the frames into the other end's queue."""
        if self.peer._closed:
            return self.refused(batch, Drop.LINK_DOWN)
        if self.offload:
            return self._put(batch)
        return sum(self._put(plain) for plain in self._plain(batch))

    def _put(self, batch: Batch) -> int:
        queue = self.peer._queue
        if not queue:
            self.peer.handle.wake()
        lost = lost_octets = 0
        for frame in batch:
            if len(frame) < VNET + ETHERNET:
                self.drops[Drop.RUNT] += 1
            elif len(queue) == QUEUE:
                self.drops[Drop.QUEUE_FULL] += 1
            else:
                queue.append(bytes(frame))
                continue
            lost += 1
            lost_octets += len(frame) - VNET
        return self.sent(batch, lost, lost_octets)

    def close(self) -> None:
        """Close the end. Idempotent."""
        if not self._closed:
            self._closed = True
            if not self.peer._closed:
                self.peer.up = False
                self.peer.handle.wake()
        super().close()


def pair(mtu: int = 1500, offload: bool = False) -> tuple[MemoryDevice, MemoryDevice]:
    """Return two connected devices. Frames are lost only when QUEUE frames are waiting.

    offload: whether super-segments and partial checksums pass as they are.
    """
    left, right = MemoryDevice("memory:left", mtu, offload), MemoryDevice("memory:right", mtu, offload)
    left.peer, right.peer = right, left
    return left, right
