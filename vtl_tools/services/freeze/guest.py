"""What QEMU tells of its guest, as what is to be done about the guest's connections. No I/O."""

from enum import Enum
from typing import Any, Final, Protocol

from vtl_tools.services.freeze.freezer import Freezer


class Order(Enum):
    """What an event asks for."""

    NOTHING = "nothing"
    START = "start"
    """The VM stands still: speak for it."""
    STOP = "stop"
    """It goes on here."""
    ARRIVE = "arrive"
    """It goes on here, having come from another host or a file."""
    LEAVE = "leave"
    """It is another host's now: say nothing for it, and keep what is known."""


_STANDS: Final = (
    "debug", "finish-migrate", "guest-panicked", "internal-error", "io-error", "paused", "save-vm",
    "suspended", "watchdog",
)  # fmt: skip
"""QEMU's words (RunState) for a VM that may go on here."""
_COMES: Final = ("inmigrate", "prelaunch")
_LEFT: Final = ("completed", "postcopy-active")


class Guest:
    """One VM, as far as its QEMU has told. runs: whether its processors run; None: not told."""

    def __init__(self) -> None:
        self.runs: bool | None = None
        self._comes = self._came = self._off = False

    def told(self, event: str, data: dict[str, Any]) -> Order:
        """Take an event of QEMU's, or STATUS with what query-status said; return what to do."""
        if event == "STATUS":
            return self._status(data)
        if event in ("STOP", "SUSPEND"):
            self.runs = False
            # What was switched off is stopped, too, and has no connections left.
            return Order.NOTHING if self._off else Order.START
        if event in ("RESUME", "WAKEUP"):
            came = self._came
            self.runs, self._comes, self._came, self._off = True, False, False, False
            return Order.ARRIVE if came else Order.STOP
        if event == "SHUTDOWN":
            self._off = data.get("guest") is True
        elif event == "RESET":
            self._off = False
        elif event == "MIGRATION" and data.get("status") in _LEFT:
            return self._migrated()
        return Order.NOTHING

    def _migrated(self) -> Order:
        """Both ends tell of the end of a migration in the same words."""
        if self._comes:
            self._comes = False
            return Order.NOTHING
        return Order.LEAVE if self.runs is False else Order.NOTHING

    def _status(self, data: dict[str, Any]) -> Order:
        status = data.get("status")
        self.runs = data.get("running") is True
        self._comes = self._came = status in _COMES
        self._off = status == "shutdown"
        if self.runs:
            return Order.STOP
        if status == "postmigrate":
            return Order.LEAVE
        return Order.START if status in _STANDS else Order.NOTHING


class Service(Protocol):
    """What a Follower gives orders to. now: seconds."""

    freezer: Freezer
    vm: str

    def start(self, now: float) -> object:
        """Speak for the VM from now on."""

    def stop(self, now: float) -> object:
        """Fall silent, since it is here."""

    def hand_over(self, now: float) -> object:
        """Fall silent, since it is elsewhere."""

    def announce(self, now: float) -> dict[str, object]:
        """Tell the network where it is."""

    def take_up(self, text: bytes, name: str, now: float) -> object:
        """Put a state in the place of what is known. Raises VTLError."""


class Follower:
    """Has a service do what QEMU tells, if there is one that tells, and what another host told with it."""

    def __init__(self, service: Service) -> None:
        self.service, self.guest = service, Guest()
        self._imported = False

    def told(self, event: str, data: dict[str, Any], now: float) -> None:
        """Take an event of the VM's QEMU."""
        do = self.guest.told(event, data)
        if do is Order.START:
            self.service.start(now)
        elif do is Order.LEAVE:
            self.service.hand_over(now)
        elif do is not Order.NOTHING:
            self._go_on(now, arrived=do is Order.ARRIVE)

    def _go_on(self, now: float, *, arrived: bool) -> None:
        """The VM runs here. What was kept of one that had left is of use only if it never arrived there."""
        if not arrived:
            self.service.freezer.left = False
        if arrived or self._imported:
            self._imported = False
            self.service.announce(now)
        self.service.stop(now)

    def take_up(self, text: bytes, name: str, now: float) -> dict[str, object]:
        """Take up another host's state, and announce the VM. Raises VTLError: nothing has changed."""
        service, freezer, runs = self.service, self.service.freezer, self.guest.runs
        heard = [one for one in freezer.table if one.vm_nxt is not None] if runs else []
        service.take_up(text, name, now)
        told: dict[str, object] = {"vm": service.vm, "announced": 0}
        if freezer.frozen:
            service.start(now)
            told = service.announce(now)
            self._imported = not runs
        if runs:  # it was faster than what is known of it
            freezer.catch_up(heard, now)
            service.stop(now)
        return {**told, "frozen": freezer.frozen, "connections": len(freezer.table)}
