"""A stage: a box on the wire with ports. Frames are pushed in at a port and pushed out at another.

In every service port 0 faces the VM, port 1 the network. A stage reads no clock and does no I/O; the
runtime, a test, or another stage joined to it drives it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Protocol

from vtl_tools.common.device.batch import SLOTS, Batch, Pieces

Output = Callable[[Batch, float], object]


class Source(Protocol):
    """Where something comes from beside the ports: a service's own sockets."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        ...

    def poll(self, now: float) -> bool:
        """Do a bounded part of what there is to do; tell whether there was anything. Never blocks."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...


class Stage:
    """Base of the services. `now` is in seconds, on a clock that only goes forward.

    A batch is borrowed: it is valid during the call in which it is handed over.
    """

    inline = True
    """Whether frames wait for it to go on, so that looking for the next one pays."""

    def __init__(self, ports: int = 2) -> None:
        self.out: list[Output] = [_nowhere] * ports
        self.out_pieces: list[Callable[[Sequence[Pieces]], object] | None] = [None] * ports
        """Where a port's link takes frames in pieces, as it would rather have them; see send()."""
        self.sources: list[Source] = []
        self.capabilities: frozenset[int] = frozenset()
        """What the sources need of root's rights while they run, beside what the links do."""
        self.drops: Counter[str] = Counter()
        self.event: Callable[..., object] = lambda name, **fields: None
        """Prints an event, where events are printed."""
        self.broadcast: Callable[[bytes], object] = lambda message: None
        """Tells the other workers of the same service something, in at most 64 octets; may be lost."""

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take frames that came in at a port."""
        raise NotImplementedError

    def on_mtu(self, port: int, octets: int) -> None:
        """Learn the largest IP packet that a port's link carries, before anything else."""

    def on_link(self, port: int, up: bool, now: float) -> None:
        """Learn that a port's link lost its other end, or has it back."""

    def settle(self, now: float) -> None:
        """Send what the batches since the last call made possible."""

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        return None

    def wake(self, now: float) -> None:
        """Do what is due. Early is harmless."""

    def on_message(self, message: bytes, now: float) -> None:
        """Learn what another worker shared."""

    def on_stop(self, now: float) -> None:
        """Say a last word: the service ends, and its links are still open."""

    def status(self, now: float) -> dict[str, object]:
        """Return what `status` prints of this service beyond links and drops."""
        return {}

    def send(self, port: int, frames: Sequence[Pieces], now: float) -> None:
        """Push frames that are in pieces out at a port."""
        if (write := self.out_pieces[port]) is not None:
            write(frames)
            return
        batch = Batch(min(len(frames), SLOTS))
        for i in range(0, len(frames), SLOTS):
            self.out[port](batch.join(frames[i : i + SLOTS]), now)

    def drop(self, batch: Batch, indices: Iterable[int], reason: str) -> None:
        """Take frames out of a batch, and count them."""
        gone = set(indices)
        self.drops[reason] += len(gone)
        batch.pick(batch, [i for i in range(batch.count) if i not in gone])


def join(left: Stage, right: Stage) -> None:
    """Plug left's port 1 into right's port 0; frames flow both ways, each stays a two-port box."""
    left.out[1] = partial(right.on_batch, 0)
    right.out[0] = partial(left.on_batch, 1)


def _nowhere(batch: Batch, now: float) -> None:
    """Where a port leads that nothing is plugged into."""
