"""What QEMU tells of its guest, as what is to be done about the guest's connections. No I/O."""

from enum import Enum
from typing import Any, Final


class Do(Enum):
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

    def told(self, event: str, data: dict[str, Any]) -> Do:
        """Take an event of QEMU's, or STATUS with what query-status said; return what to do."""
        if event == "STATUS":
            return self._status(data)
        if event in ("STOP", "SUSPEND"):
            self.runs = False
            # What was switched off is stopped, too, and has no connections left.
            return Do.NOTHING if self._off else Do.START
        if event in ("RESUME", "WAKEUP"):
            came = self._came
            self.runs, self._comes, self._came, self._off = True, False, False, False
            return Do.ARRIVE if came else Do.STOP
        if event == "SHUTDOWN":
            self._off = data.get("guest") is True
        elif event == "RESET":
            self._off = False
        elif event == "MIGRATION" and data.get("status") in _LEFT:
            return self._migrated()
        return Do.NOTHING

    def _migrated(self) -> Do:
        """Both ends tell of the end of a migration in the same words."""
        if self._comes:
            self._comes = False
            return Do.NOTHING
        return Do.LEAVE if self.runs is False else Do.NOTHING

    def _status(self, data: dict[str, Any]) -> Do:
        status = data.get("status")
        self.runs = data.get("running") is True
        self._comes = self._came = status in _COMES
        self._off = status == "shutdown"
        if self.runs:
            return Do.STOP
        if status == "postmigrate":
            return Do.LEAVE
        return Do.START if status in _STANDS else Do.NOTHING
