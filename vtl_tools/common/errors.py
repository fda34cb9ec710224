"""Exceptions of VTL tools. Each class that a user may see has an exit status of its own."""


class VTLError(Exception):
    """Base of the errors shown to users. str(e) is one line: subject: problem; remedy."""

    exit_code = 1

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines that a user sees: one, or one for each of several errors."""
        return (str(self),)

    @property
    def details(self) -> dict[str, object]:
        """Members of the error as a JSON object, beside its message."""
        return {}


class SpecError(VTLError):
    """Invalid user input: 'qemu:': a link needs an address; see vtl-tools(7)."""

    exit_code = 2  # as click's own usage errors


class DeviceError(VTLError):
    """A link cannot be opened: eth9: no such network interface; list them with 'ip link'."""

    exit_code = 3


class LinkLostError(VTLError):
    """A link went down, and the user asked not to wait for it."""

    exit_code = 4


class PermissionNeededError(VTLError):
    """A permission is missing: vmnet1: not permitted; run as root."""

    exit_code = 5


class NotRunningError(VTLError):
    """No service answers on the control socket."""

    exit_code = 6


class DiedError(NotRunningError):
    """The service was killed, or died without a word: its record tells."""

    exit_code = 7


class Malformed(ValueError):  # noqa: N818 - it names a packet's state, and never reaches a user
    """Untrusted octets are not what they claim to be. Not a VTLError: the frame is counted and dropped.

    what: the broken field, such as "tcp.offset". off: its offset in the buffer, in octets.
    """

    def __init__(self, what: str, off: int = 0) -> None:
        super().__init__(f"malformed {what} at octet {off}")
        self.what = what
        self.off = off
