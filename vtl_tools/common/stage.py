"""Stage: base of the services. It has ports; frames are pushed in at one port and pushed out at another.

In every service port 0 faces the VM, port 1 the network. A stage reads no clock and does no I/O. The
runner, a test, or another stage joined to it drives it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from vtl_tools.common.device.batch import SLOTS, Batch, Pieces

Output = Callable[[Batch, float], object]


class Source(Protocol):
    """An input of a stage besides its ports: the service's own sockets, a child process."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        ...

    def poll(self, now: float) -> bool:
        """Do a bounded part of the waiting work. Return whether there was any. Never blocks."""
        ...

    def close(self) -> None:
        """Release all resources."""
        ...


class Stage:
    """Base of the services. `now` is in seconds, on a monotonic clock.

    A batch is borrowed: it is valid during the call that passes it.
    """

    inline = True
    """Whether frames wait for this stage, so that the runner polls instead of sleeping."""
    pause_s = 0.0
    """How long the runner sleeps between polls; 0: it lets other processes run only if they wait."""

    def __init__(self, ports: int = 2) -> None:
        self.out: list[Output] = [_nowhere] * ports
        self.out_pieces: list[Callable[[Sequence[Pieces]], object] | None] = [None] * ports
        """By port: the link's function for frames in pieces; see send()."""
        self.sources: list[Source] = []
        self.capabilities: frozenset[int] = frozenset()
        """Capabilities that the sources need while they run, besides those of the links."""
        self.drops: Counter[str] = Counter()
        self.event: Callable[..., object] = lambda name, **fields: None
        """Tells an event: name, fields, and for one that traffic can cause `cause`, which repeats share."""
        self.drain: Callable[[int], object] = lambda port: None
        """Takes in the frames that wait at a port now; not to be called by on_batch()."""
        self.occupant: Callable[[int], str] = lambda port: ""
        """Returns who is behind a port's link now (Device.occupant)."""
        self.broadcast: Callable[[bytes], object] = lambda message: None
        """Sends a message to the other workers of the service, at most 64 octets; it may be lost."""
        self.record: Callable[[str, Iterable[memoryview], int], object] | None = None
        """With --pcap: records frames of a link that is no port, by its name; pcapng.INBOUND or OUTBOUND."""

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Process frames that came in at a port."""
        raise NotImplementedError

    def on_mtu(self, port: int, octets: int) -> None:
        """Note the size of the largest IP packet of a port's link; called before any other method."""

    def on_link(self, port: int, up: bool, now: float) -> None:
        """Note that a port's link lost its peer, or has it back."""

    def on_occupant(self, port: int, occupant: str, now: float) -> None:
        """Note who is behind a port's link (Device.occupant), at the start and after each change."""

    def settle(self, now: float) -> None:
        """Send the frames that the batches since the last call made possible."""

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        return None

    def wake(self, now: float) -> None:
        """Do the work that is due. An early call is harmless."""

    def on_message(self, message: bytes, now: float) -> None:
        """Process a message of another worker."""

    def on_hang_up(self, now: float) -> None:
        """Read what an operator may have changed: SIGHUP."""

    def on_stop(self, now: float) -> None:
        """Send last frames: the service ends, and its links are still open."""

    def status(self, now: float) -> dict[str, object]:
        """Return this service's part of `status`, besides links and drops."""
        return {}

    def send(self, port: int, frames: Sequence[Pieces], now: float) -> None:
        """Push frames in pieces out at a port."""
        if (write := self.out_pieces[port]) is not None:
            write(frames)
            return
        batch = Batch(min(len(frames), SLOTS))
        for i in range(0, len(frames), SLOTS):
            self.out[port](batch.join(frames[i : i + SLOTS]), now)

    def drop(self, batch: Batch, indices: Iterable[int], reason: str) -> None:
        """Remove frames from a batch, and count them."""
        gone = set(indices)
        self.drops[reason] += len(gone)
        batch.pick(batch, [i for i in range(batch.count) if i not in gone])


def join(left: Stage, right: Stage) -> None:
    """Connect left's port 1 with right's port 0, in both directions. Each stays a stage with two ports."""
    left.out[1] = partial(right.on_batch, 0)
    right.out[0] = partial(left.on_batch, 1)


def _nowhere(batch: Batch, now: float) -> None:
    """Discard a batch: the output of a port without a link."""
