"""What every link is (paper section 2.3): connect, disconnect, read, write, and a handle to wait on."""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from enum import StrEnum
from typing import Self

from vtl_tools.common.device.batch import SLOTS, Batch, Pieces
from vtl_tools.common.device.handle import Handle

log = logging.getLogger(__name__)

RETRY_S = 0.25
"""How long a link that went away is left alone before it is tried again."""


class Drop(StrEnum):
    """Why a link did not pass a frame on; the values are what --json prints."""

    QUEUE_FULL = "queue-full"  # the outgoing link had no room
    LINK_DOWN = "link-down"  # nobody at the other end
    TOO_BIG = "too-big"  # larger than the link's MTU, or than any frame may be
    RUNT = "runt"  # shorter than an Ethernet header
    REFUSED = "refused"  # the kernel would not send it: its virtio_net_hdr and content disagree
    MALFORMED = "malformed"  # it could not be segmented for a link without offload
    OVERRUN = "overrun"  # it came while the link's receive buffer was full: the service was too slow
    FOREIGN = "foreign"  # it came in the framing of another network, or from another peer
    FAULT = "fault"  # an emulated fault: lost on purpose


class Device(ABC):
    """A link. Frames have a virtio_net_hdr in front; on one without offload it is all zeros.

    A full link drops and counts; it never blocks and never raises. A link whose peer goes away is down
    until the peer is back, which it finds out by itself whenever it is read.
    """

    mtu: int = 65535
    """Largest IP packet in octets, no Ethernet header."""
    offload: bool = False
    """Whether super-segments and partial checksums pass; where not, write() segments and sums."""
    finished: bool = False
    """Whether nothing will ever come again: a file was read to its end."""

    interface: str = ""
    """The interface of this host that it is, by any of its names; "" where it is none."""
    mark: int = 0
    """SO_MARK of what it sends on an interface, by which the guard tells it from the host's; 0 for none."""
    silent: bool = False
    """Whether it was opened for writing only."""
    unwritten: bool = False
    """Whether it is for reading only."""
    capabilities: frozenset[int] = frozenset()
    """What of the process's capabilities it needs to open again what went away."""

    _joined: Batch | None = None
    """Where write_pieces() joins, once it was needed."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.up = False
        self.losses = 0
        self.rx_frames = self.rx_octets = self.tx_frames = self.tx_octets = 0
        self.drops: Counter[Drop] = Counter()
        self.handle = Handle()

    @abstractmethod
    def connect(self) -> None:
        """Open the link. Raises DeviceError or PermissionNeededError, in one line each."""

    @abstractmethod
    def read(self) -> Batch:
        """Return what waits now, maybe nothing; borrowed until the next read(). Never blocks."""

    @abstractmethod
    def write(self, batch: Batch) -> int:
        """Send; return how many frames were taken. The rest is dropped and counted, never waited for.

        A link without offload counts the plain frames that a super-segment became.
        """

    def write_pieces(self, frames: Sequence[Pieces]) -> int:
        """Send frames that are in pieces, as write() does; a link that can spares their joining."""
        if self._joined is None:
            self._joined = Batch()
        return sum(self.write(self._joined.join(frames[i : i + SLOTS])) for i in range(0, len(frames), SLOTS))

    def fileno(self) -> int:
        """Return a descriptor that is readable when read() has something to do; it never changes."""
        return self.handle.fileno()

    def signal(self, wanted: bool) -> None:  # noqa: B027 - most links have nothing to spare
        """Say whether fileno() is waited on. Who reads without waiting spares the link the telling."""

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self.up = False
        self.handle.close()

    def status(self) -> dict[str, object]:
        """Return what --json prints of the link."""
        return {
            "link": self.spec,
            "up": self.up,
            "losses": self.losses,
            "rx_frames": self.rx_frames,
            "rx_octets": self.rx_octets,
            "tx_frames": self.tx_frames,
            "tx_octets": self.tx_octets,
            "drops": {str(reason): n for reason, n in self.drops.items()},
        }

    def went_up(self) -> None:
        """Note that the peer is there."""
        if not self.up:
            self.up = True
            self.handle.hush()  # it was set to look for the peer, and would go on waking who reads
            log.info("%s: up", self.spec)

    def went_down(self, why: object) -> None:
        """Note that the peer is gone, and wake again to look for it."""
        if self.up:
            self.up = False
            self.losses += 1
            log.warning("%s: down: %s; waiting for it to come back", self.spec, why)
        self.handle.alarm(RETRY_S)

    def received(self, batch: Batch) -> Batch:
        """Count a batch that read() is about to return."""
        self.rx_frames += batch.count
        self.rx_octets += batch.octets
        return batch

    def sent(self, batch: Batch, lost: int = 0, lost_octets: int = 0) -> int:
        """Count a batch of which all but `lost` frames were taken, and return how many were."""
        taken = batch.count - lost
        self.tx_frames += taken
        self.tx_octets += batch.octets - lost_octets
        return taken

    def refused(self, batch: Batch, reason: Drop) -> int:
        """Count a batch of which nothing was taken, and return 0."""
        self.drops[reason] += batch.count
        return 0

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    async def __aiter__(self) -> AsyncIterator[Batch]:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        fd = self.fileno()
        loop.add_reader(fd, ready.set)
        try:
            while not self.finished:
                if batch := self.read():
                    yield batch
                elif not self.finished:  # reading may have shown it to be
                    ready.clear()
                    await ready.wait()
        finally:
            loop.remove_reader(fd)
