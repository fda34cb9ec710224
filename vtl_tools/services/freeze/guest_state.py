"""Translates QEMU's events about its guest into actions on the guest's connections. No I/O."""

from enum import Enum
from typing import Any, Final, Protocol

from vtl_tools.services.freeze.freezer import Freezer


class FreezeAction(Enum):
    """The action that an event calls for."""

    NOTHING = "nothing"
    START = "start"
    """The VM is stopped: answer for it."""
    STOP = "stop"
    """The VM continues here."""
    ARRIVE = "arrive"
    """The VM continues here, after it came from another host or a file."""
    LEAVE = "leave"
    """The VM is on another host now: answer nothing for it, and keep the state."""


_STANDS: Final = (
    "debug", "finish-migrate", "guest-panicked", "internal-error", "io-error", "paused", "save-vm",
    "suspended", "watchdog",
)  # fmt: skip
"""QEMU's run states (RunState) of a VM that may continue here."""
_COMES: Final = ("inmigrate", "prelaunch")
_LEFT: Final = ("completed", "postcopy-active")


class GuestState:
    """The run state of one VM, from the events of its QEMU. runs: whether its CPUs run; None: unknown."""

    def __init__(self) -> None:
        self.runs: bool | None = None
        self._comes = self._came = self._off = False

    def on_event(self, event: str, data: dict[str, Any]) -> FreezeAction:
        """Process an event of QEMU, or STATUS with the result of query-status. Return the action."""
        if event == "STATUS":
            return self._status(data)
        if event in ("STOP", "SUSPEND"):
            self.runs = False
            # A VM that was shut down is stopped, too, and has no connections left.
            return FreezeAction.NOTHING if self._off else FreezeAction.START
        if event in ("RESUME", "WAKEUP"):
            came = self._came
            self.runs, self._comes, self._came, self._off = True, False, False, False
            return FreezeAction.ARRIVE if came else FreezeAction.STOP
        if event == "SHUTDOWN":
            self._off = data.get("guest") is True
        elif event == "RESET":
            self._off = False
        elif event == "MIGRATION" and data.get("status") in _LEFT:
            return self._migrated()
        return FreezeAction.NOTHING

    def _migrated(self) -> FreezeAction:
        """Process the end of a migration, which source and destination report by the same event."""
        if self._comes:
            self._comes = False
            return FreezeAction.NOTHING
        return FreezeAction.LEAVE if self.runs is False else FreezeAction.NOTHING

    def _status(self, data: dict[str, Any]) -> FreezeAction:
        status = data.get("status")
        self.runs = data.get("running") is True
        self._comes = self._came = status in _COMES
        self._off = status == "shutdown"
        if self.runs:
            return FreezeAction.STOP
        if status == "postmigrate":
            return FreezeAction.LEAVE
        return FreezeAction.START if status in _STANDS else FreezeAction.NOTHING


class Service(Protocol):
    """The interface that a GuestFollower controls. now: seconds."""

    freezer: Freezer
    vm: str

    def start(self, now: float) -> object:
        """Answer for the VM from now on."""

    def stop(self, now: float) -> object:
        """Stop answering, since the VM is here."""

    def hand_over(self, now: float) -> object:
        """Stop answering, since the VM is elsewhere."""

    def announce(self, now: float) -> dict[str, object]:
        """Announce to the network where the VM is."""

    def import_state(self, text: bytes, name: str, now: float) -> object:
        """Replace the state by another host's. Raises VTLError."""


class GuestFollower:
    """Applies the events of the VM's QEMU, if there is one, to a service; imports another host's state."""

    def __init__(self, service: Service) -> None:
        self.service, self.guest = service, GuestState()
        self._imported = False

    def on_event(self, event: str, data: dict[str, Any], now: float) -> None:
        """Process an event of the VM's QEMU."""
        do = self.guest.on_event(event, data)
        if do is FreezeAction.START:
            self.service.start(now)
        elif do is FreezeAction.LEAVE:
            self.service.hand_over(now)
        elif do is not FreezeAction.NOTHING:
            self._go_on(now, arrived=do is FreezeAction.ARRIVE)

    def _go_on(self, now: float, *, arrived: bool) -> None:
        """Process that the VM runs here.

        The state of a VM that had left is valid only if the migration failed.
        """
        if not arrived:
            self.service.freezer.left = False
        if arrived or self._imported:
            self._imported = False
            self.service.announce(now)
        self.service.stop(now)

    def import_state(self, text: bytes, name: str, now: float) -> dict[str, object]:
        """Import another host's state, and announce the VM. Raises VTLError, without effect."""
        service, freezer, runs = self.service, self.service.freezer, self.guest.runs
        heard = [one for one in freezer.table if one.vm_nxt is not None] if runs else []
        service.import_state(text, name, now)
        told: dict[str, object] = {"vm": service.vm, "announced": 0}
        if freezer.frozen:
            service.start(now)
            told = service.announce(now)
            self._imported = not runs
        if runs:  # the VM was here before its state
            freezer.catch_up(heard, now)
            service.stop(now)
        return {**told, "frozen": freezer.frozen, "connections": len(freezer.table)}
