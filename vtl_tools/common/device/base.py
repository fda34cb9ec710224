"""Base of all links (paper section 2.3): connect, read, write, close, and a descriptor to wait on."""

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
"""Seconds between attempts to reopen a link that is down."""


class Drop(StrEnum):
    """Reason why a link dropped a frame. The values appear in --json."""

    QUEUE_FULL = "queue-full"  # the outgoing link had no room
    LINK_DOWN = "link-down"  # the peer or the interface is absent
    TOO_BIG = "too-big"  # larger than the link's MTU, or than FRAME_MAX
    RUNT = "runt"  # shorter than an Ethernet header
    REFUSED = "refused"  # rejected by the kernel: virtio_net_hdr and content disagree
    MALFORMED = "malformed"  # not segmentable for a link without offload
    OVERRUN = "overrun"  # the receive buffer was full: the service was too slow
    FOREIGN = "foreign"  # from another network (VNI) or another peer


class Device(ABC):
    """A link. Each frame starts with a virtio_net_hdr, which is all zeros on a link without offload.

    A full link drops and counts frames; it never blocks and never raises. A link whose peer goes away is down
    until the peer is back. read() detects both.
    """

    mtu: int = 65535
    """Size of the largest IP packet in octets, without Ethernet header."""
    offload: bool = False
    """Whether super-segments and partial checksums pass unchanged. If not, write() resolves them."""
    finished: bool = False
    """Whether no frame can come any more: a file was read to its end."""

    interface: str = ""
    """The name of the host's interface behind the link, any of its names; "" if there is none."""
    mark: int = 0
    """SO_MARK of frames sent on an interface, by which the guard knows them; 0 for none."""
    silent: bool = False
    """Whether the link was opened for writing only."""
    unwritten: bool = False
    """Whether the link is for reading only."""
    shared: bool = False
    """Whether the host uses the interface, too: frames for its own Ethernet address are not received."""
    vm_mac: bytes = b""
    """Ethernet address that a VM is known to have, also on a shared interface; b"" for none."""
    capabilities: frozenset[int] = frozenset()
    """Capabilities that the process needs to reopen the link."""

    _joined: Batch | None = None
    """Buffer in which write_pieces() joins frames, created on first use."""

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.up = False
        self.losses = 0
        self.rx_frames = self.rx_octets = self.tx_frames = self.tx_octets = 0
        self.drops: Counter[Drop] = Counter()
        self.handle = Handle()

    @abstractmethod
    def connect(self) -> None:
        """Open the link. Raises DeviceError or PermissionNeededError, with a message of one line."""

    @abstractmethod
    def read(self) -> Batch:
        """Return the waiting frames, perhaps none; borrowed until the next read(). Never blocks."""

    @abstractmethod
    def write(self, batch: Batch) -> int:
        """Send a batch and return how many frames the link took. The rest is dropped and counted.

        A link without offload counts the plain frames that it made of each super-segment.
        """

    def write_pieces(self, frames: Sequence[Pieces]) -> int:
        """Send frames in pieces, as write() does. A link that supports it avoids joining them."""
        if self._joined is None:
            self._joined = Batch()
        return sum(self.write(self._joined.join(frames[i : i + SLOTS])) for i in range(0, len(frames), SLOTS))

    def fileno(self) -> int:
        """Return a descriptor that is readable when read() has something to do. It never changes."""
        return self.handle.fileno()

    def occupant(self) -> str:
        """Return a text that changes once the host has put another VM behind the link; "": nothing tells.

        A guest must not be able to change it.
        """
        return ""

    def signal(self, wanted: bool) -> None:  # noqa: B027 - most links have nothing to spare
        """Enable or disable wake-ups by fileno(); a reader that does not wait saves the link this work."""

    def close(self) -> None:
        """Close the link. Idempotent."""
        self.up = False
        self.handle.close()

    def status(self) -> dict[str, object]:
        """Return the link's part of --json."""
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
        """Note that the peer is present."""
        if not self.up:
            self.up = True
            self.handle.cancel_alarm()  # set to look for the peer, it would keep waking the reader
            log.info("%s: up", self.spec)

    def went_down(self, why: object) -> None:
        """Note that the peer is gone, and set the alarm to look for it."""
        if self.up:
            self.up = False
            self.losses += 1
            log.warning("%s: down: %s; waiting for it to come back", self.spec, why)
        self.handle.alarm(RETRY_S)

    def received(self, batch: Batch) -> Batch:
        """Count and return a batch that read() returns."""
        self.rx_frames += batch.count
        self.rx_octets += batch.octets
        return batch

    def sent(self, batch: Batch, lost: int = 0, lost_octets: int = 0) -> int:
        """Count a batch of which all but `lost` frames were taken, and return the number taken."""
        taken = batch.count - lost
        self.tx_frames += taken
        self.tx_octets += batch.octets - lost_octets
        return taken

    def refused(self, batch: Batch, reason: Drop) -> int:
        """Count a batch of which no frame was taken, and return 0."""
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
                elif not self.finished:  # read() may have reached the end
                    ready.clear()
                    await ready.wait()
        finally:
            loop.remove_reader(fd)
