"""Base of the links between daemons, and of the doors at which daemons arrive that are not known before."""

import logging
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Final

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.session.items import FRAME_MIN, HOPS_MAX, Conversation

log = logging.getLogger(__name__)

TICK_S: Final = 0.25


class PeerLink(Device):
    """A link to another daemon.

    hops: of each frame of the last batch that was read: the VNET links that it may still pass. remote: the
    other daemon's name; "" until it is known.
    """

    offload = True

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self._batch = Batch()
        self._why = "is not connected yet"
        self.hops: list[int] = []
        self.remote = ""

    def take_frames(self, session: Conversation) -> None:
        """Move frames that came into the batch."""
        batch = self._batch
        while session.frames and batch.count < SLOTS:
            hops, frame = session.frames.popleft()
            batch.append(frame)
            self.hops.append(hops)
        if session.malformed:
            self.drops[Drop.MALFORMED] += session.malformed
            session.malformed = 0
        if session.frames:
            self.handle.wake()

    def write(self, batch: Batch) -> int:
        """Send a batch of frames of this host."""
        return self.write_hops(batch, HOPS_MAX)

    def write_hops(self, batch: Batch, hops: int) -> int:
        """Send a batch of frames that may pass so many VNET links. Frames without room are dropped."""
        if not self.up:
            return self.refused(batch, Drop.LINK_DOWN)
        frames = [frame for frame in batch if len(frame) >= FRAME_MIN]
        self.drops[Drop.RUNT] += batch.count - len(frames)
        lost = frames[self.send(frames, hops) :]
        if lost:
            self.drops[Drop.QUEUE_FULL] += len(lost)
        runts = batch.count - len(frames)
        octets = sum(map(len, lost)) - VNET * len(lost)
        return self.sent(batch, runts + len(lost), octets)

    @abstractmethod
    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Send frames while the link is up; return how many it took."""


class Door(Device):
    """Listens for any daemon that has the key. on_peer: is given each link, connected, with its name.

    It returns False if there can be no such link.
    """

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self.on_peer: Callable[[str, PeerLink], bool] = lambda name, link: False
        self._nothing = Batch(1)

    @abstractmethod
    def forget(self, link: Device) -> None:
        """Note that the link of a daemon is closed."""

    def write(self, batch: Batch) -> int:
        """Take no frame: a door leads nowhere."""
        return self.refused(batch, Drop.LINK_DOWN)
