"""What can go wrong, in families that a user's script can tell apart by exit status."""


class VTLError(Exception):
    """Base of what a user may see. str(e) is one line: subject: problem; remedy."""

    exit_code = 1


class SpecError(VTLError):
    """What the user wrote cannot be meant: 'qemu:': a link needs an address; see vtl-tools(7)."""

    exit_code = 2  # as click's own usage errors


class DeviceError(VTLError):
    """A link cannot be opened: eth9: no such network interface; list them with 'ip link'."""

    exit_code = 3


class LinkLostError(VTLError):
    """A link went away and was not to be waited for."""

    exit_code = 4


class PermissionNeededError(VTLError):
    """The kernel refused for want of privilege: vmnet1: not permitted; run as root."""

    exit_code = 5


class NotRunningError(VTLError):
    """No service answers on the control socket that was asked."""

    exit_code = 6


class Malformed(ValueError):  # noqa: N818 - it names a packet's state, and never reaches a user
    """Foreign octets are not what they claim to be. Outside the family above: such a frame is counted
    and dropped, never shown.

    what: the field at fault, as "tcp.offset". off: where in the buffer it is, in octets.
    """

    def __init__(self, what: str, off: int = 0) -> None:
        super().__init__(f"malformed {what} at octet {off}")
        self.what = what
        self.off = off
