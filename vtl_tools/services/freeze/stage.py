"""The stage of vtl-freeze: answers for a VM that is away, beside its interface or on another link."""

from typing import TYPE_CHECKING, Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.stage import Stage
from vtl_tools.services.freeze import answers, state
from vtl_tools.services.freeze.freezer import LATE_S, Freezer
from vtl_tools.services.freeze.guest_state import GuestFollower
from vtl_tools.services.freeze.holdings import HoldingsCount

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vtl_tools.common.device.ring import Ring
    from vtl_tools.common.runtime.snapshot import Snapshot
    from vtl_tools.services.freeze.qmp import Monitor

LOOK_S: Final = 0.25
"""Seconds between checks of the segment rate, and of unsaved state."""
HEARD_PER_S: Final = 8000.0
"""Maximum segments processed per second; of more, a sample."""
ONE_IN_MAX: Final = 256
SAVED_AT_ONCE_S: Final = 0.05
"""Seconds that peers are answered before the state is written."""
SAVE_S: Final = 5.0
SAVE_SHARES: Final = 50.0, 20.0
"""Maximum share of time spent on writing, as one part in so many: with the VM present, and away."""


class Freeze(Stage):
    """Beside an interface, port 0 is the VM's side and port 1 the network's. On another link, port 0 is both.

    mac: the VM's, in addition to those that it is seen to use. listen: enables and disables reception on the
    ports. overlay: whether there is only one link. passes: whether the ports are two links, between which
    frames pass unless they are for a VM that is away.
    """

    def __init__(
        self,
        freezer: Freezer,
        vm: str = "",
        *,
        mac: bytes | None = None,
        listen: "Callable[[bool], object]" = lambda wanted: None,
        snapshot: "Snapshot | None" = None,
        overlay: bool = False,
        passes: bool = False,
    ) -> None:
        super().__init__(1 if overlay else 2)
        self.passes = passes
        self._passing = Batch()
        self.freezer, self.vm, self.overlay = freezer, vm, overlay
        self.listen, self.snapshot = listen, snapshot
        self.network = 0 if overlay else 1
        self.mac = mac
        self._know_mac()
        self.drops = freezer.unanswered
        self.ring: Ring | None = None
        self._looked_at, self._heard, self._one_in = 0.0, 0, 1
        self._save_at, self._saving_since, self._save_cost_s = 0.0, 0.0, 0.0
        self._soon: float | None = None
        self._told_of_vm = False
        self._count: HoldingsCount | None = None
        self._count_at: float | None = None
        self.qemu = GuestFollower(self)
        self.monitor: Monitor | None = None
        self._gaps = False
        self._saved: tuple[object, ...] = ()
        self.heard = 0
        """Number of frames from the one link."""
        if snapshot is not None:
            self.sources.append(snapshot)

    def listen_on(self, ring: "Ring") -> None:
        """Capture the segments on an interface."""
        self.ring = ring
        self.sources.append(ring)

    @property
    def inline(self) -> bool:  # type: ignore[override]
        """Whether frames wait for this stage: if they do not pass it, only peers of a VM that is away do."""
        return self.passes or self.freezer.frozen

    def follow(self, monitor: "Monitor") -> None:
        """Apply the events of QEMU's monitor, which calls qemu.on_event()."""
        self.monitor = monitor
        self.sources.append(monitor)

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Process frames from the VM's side or the network's, or from the one link."""
        freezer = self.freezer
        if self.overlay:
            self._on_overlay(batch, now)
        elif self.passes:
            self._pass(port, batch, now)
        elif port == 0:
            for frame in batch:
                freezer.from_vm(frame, now)
        else:
            for frame in batch:
                freezer.from_peer(frame, now)

    def _on_overlay(self, batch: Batch, now: float) -> None:
        self.heard += batch.count
        for frame in batch:
            if bytes(frame[VNET + 6 : VNET + 12]) not in self.freezer.table.macs:
                self.freezer.from_peer(frame, now)
            else:
                self._on_vm(frame, now)

    def _on_vm(self, frame: memoryview, now: float) -> None:
        if self.freezer.frozen and not self.freezer.left:
            self.freezer.from_vm(frame, now)
        else:
            self.freezer.overhear(frame, True, now)

    def _pass(self, port: int, batch: Batch, now: float) -> None:
        """Process frames on their way between two links."""
        self.heard += batch.count
        freezer = self.freezer
        if port == 0:
            for frame in batch:
                self._on_vm(frame, now)
        else:
            for frame in batch:
                freezer.from_peer(frame, now)
            if not freezer.is_quiet(now):  # the VM may be on its way, without what would answer
                macs = freezer.table.macs
                others = [i for i, f in enumerate(batch) if bytes(f[VNET : VNET + 6]) not in macs]
                batch = self._passing.pick(batch, others if macs else [])
        if batch:
            self.out[1 - port](batch, now)

    def settle(self, now: float) -> None:
        """Send the answers, and report a VM that sends although it is supposed to be away."""
        freezer = self.freezer
        if freezer.to_network or freezer.to_vm:
            to_network, to_vm = freezer.take()
            self._say(self.network, to_network, now)
            self._say(0, to_vm, now)
        if freezer.heard_vm and not self._told_of_vm:
            self._told_of_vm = True
            self.event("speaks", vm=self.vm)

    def _say(self, port: int, frames: "Sequence[bytes | bytearray]", now: float) -> None:
        if frames:
            self.send(port, [(bytes(frame),) for frame in frames], now)

    # --- time

    def deadline(self) -> float | None:
        """Return when wake() is due."""
        look_at = self._looked_at if self.freezer.thawing else self._looked_at + LOOK_S
        return min(due for due in (look_at, self._soon, self._count_at) if due is not None)

    def wake(self, now: float) -> None:
        """Continue thawing, adapt the sample rate, and write the state if it is due."""
        if self.freezer.thawing:
            self.freezer.thaw()
        if self._soon is not None and now >= self._soon:
            self._soon = None
            self.save(now)
        if self._count_at is not None and now >= self._count_at:
            self._count_holdings(now)
        if now - self._looked_at < LOOK_S:
            return
        self._sample(now)
        self._looked_at = now
        if self.snapshot is None:
            return
        if self._saving_since and not self.snapshot.is_writing:
            self._save_cost_s, self._saving_since = now - self._saving_since, 0.0
        if now >= self._save_at and not self._saving_since and self._saved != self._seen_so_far():
            self.save(now)

    def _count_holdings(self, now: float) -> None:
        """Report how many connections are held, once the ring has handed over what it had."""
        self._count = self._count or HoldingsCount(self.freezer.table)
        if self._count.step():
            self._count_at = now
            return
        self.event("holds", vm=self.vm, **self._count.result())
        self._count = self._count_at = None

    def save(self, now: float) -> None:
        """Start to write the state."""
        if self.snapshot is None:
            return
        self._save_at, self._saved = now, ()  # once more if an older write is in progress
        if self.snapshot.begin(now):
            self._saving_since = now
            self._saved = self._seen_so_far()
            self._save_at = now + max(SAVE_S, SAVE_SHARES[self.freezer.frozen] * self._save_cost_s)

    def _seen_so_far(self) -> tuple[object, ...]:
        """Return a value that changes when there is unsaved state."""
        freezer = self.freezer
        told = freezer.frozen, freezer.left, freezer.answered, len(freezer.touched), len(freezer.resets)
        return (*told, freezer.table.held, 0 if self.ring is None else self.ring.frames, self.heard)

    def _sample(self, now: float) -> None:
        """Adapt the ring's sampling to the number of segments that can be processed at low cost."""
        ring = self.ring
        if ring is None:
            return
        per_s = (ring.frames - self._heard) * self._one_in / max(now - self._looked_at, LOOK_S)
        self._heard = ring.frames
        one_in = 1
        while one_in < ONE_IN_MAX and per_s > HEARD_PER_S * one_in * (1 if one_in >= self._one_in else 0.5):
            one_in *= 2
        missed = ring.missed
        ring.status()
        gaps = one_in > 1 or self._one_in > 1 or ring.missed > missed
        self.freezer.table.set_sampled(gaps or self._gaps)  # the ring may still hold older segments
        self._gaps = gaps
        if one_in != self._one_in:
            self._one_in = one_in
            ring.sample(one_in)

    # --- requests of the operator, or of QEMU

    def hand_over(self, now: float) -> None:
        """Stop answering, since the VM is on another host, and be ready to export the state to it."""
        self.freezer.hand_over(now)
        self.listen(False)
        self._count = self._count_at = None
        self._soon = now + SAVED_AT_ONCE_S
        self.event("left", vm=self.vm, connections=len(self.freezer.table))

    def start(self, now: float) -> dict[str, object]:
        """Answer for the VM from now on."""
        began = self.freezer.start(now)
        if began:
            self.listen(True)
            self._told_of_vm, self._soon = False, now + SAVED_AT_ONCE_S
            self._count, self._count_at = None, now + 2 * LATE_S
            self.event("frozen", vm=self.vm, connections=len(self.freezer.table))
        return {"vm": self.vm, "began": began, "connections": len(self.freezer.table)}

    def stop(self, now: float) -> dict[str, object]:
        """Stop answering, and open the windows of the first peers; wake() continues."""
        freezer = self.freezer
        for_s, ended = now - freezer.frozen_at, freezer.stop(now)
        if ended:
            self.listen(False)
            self._count = self._count_at = None
            freezer.thaw()
            self.settle(now)
            self._soon = now + SAVED_AT_ONCE_S
            self.event("thawed", vm=self.vm, frozen_s=round(for_s, 3))
        return {"vm": self.vm, "ended": ended, "frozen_s": round(for_s, 3) if ended else 0.0}

    def announce(self, now: float) -> dict[str, object]:
        """Announce to the network where the VM is now."""
        frames = answers.announcements(self.freezer.table.hosts)
        self._say(self.network, frames, now)
        return {"vm": self.vm, "announced": len(frames)}

    def import_state(self, text: bytes, name: str, now: float) -> None:
        """Replace the state by an imported one. Raises VTLError, without effect then."""
        vm = state.load(text, name, self.freezer, now)
        self._know_mac()
        self.vm = self.vm or vm
        self.listen(self.freezer.frozen and not self.freezer.left)
        self._told_of_vm = False

    def _know_mac(self) -> None:
        if self.mac is not None:
            self.freezer.table.macs.add(self.mac)

    def status(self, now: float) -> dict[str, object]:
        """Return whether the VM is away, and its connections."""
        freezer = self.freezer
        table = freezer.table
        return {
            "freeze": {
                "vm": self.vm,
                "frozen": freezer.frozen,
                "left": freezer.left,
                "frozen_s": round(now - freezer.frozen_at, 3) if freezer.frozen else 0.0,
                "speaks": freezer.frozen and freezer.heard_vm,
                "connections": len(table),
                "unknown": table.strangers,
                "held": len(freezer.touched),
                "kept_octets": table.held,
                "answered": freezer.answered,
                "opened": freezer.opened,
                "evicted": table.evicted,
                "one_in": self._one_in,
                "missed": 0 if self.ring is None else self.ring.missed,
                "unsaved": 0 if self.snapshot is None else self.snapshot.failed,
                "state": "" if self.snapshot is None else str(self.snapshot.path),
                "qmp": None if self.monitor is None else self.monitor.status(),
            }
        }
