"""Three network namespaces: the guest's, the host's, the world's. They vanish with their last descriptor."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from vtl_tools.common.errors import PermissionNeededError, VTLError
from vtl_tools.common.selftest import namespaces


class Networks:
    """Context manager: the calling thread is in the host's network until the end, and then back in its own.

    Raises PermissionNeededError without root, VTLError if the kernel or ip(8) refuses.
    """

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._home = self._keep()
        self._is_away = False
        try:
            self.guest, self.world, self.host = self._new(), self._new(), self._new()
        except PermissionError:
            self._leave()
            raise PermissionNeededError(
                "selftest: not permitted to make networks for it; run as root"
            ) from None
        except OSError as e:
            self._leave()
            raise VTLError(
                f"selftest: no network namespaces: {e.strerror}; the kernel must have them"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    def _keep(self) -> int:
        self._fds.append(os.open(namespaces.OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC))
        return self._fds[-1]

    def _new(self) -> int:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        self._is_away = True
        return self._keep()

    def _leave(self) -> None:
        if self._is_away:
            namespaces.setns(self._home, namespaces.CLONE_NEWNET)
        for fd in self._fds:
            os.close(fd)

    @contextlib.contextmanager
    def within(self, network: int) -> Iterator[None]:
        """Enter another of the networks; sockets opened within stay there."""
        with namespaces.inside_network(network):
            yield

    def cable(self, name: str, mac: str, far: str, network: int) -> None:
        """Connect the host to another network by a veth pair, not yet up. mac: of the host's end."""
        peer = ["peer", "name", far, "netns", f"/proc/{os.getpid()}/fd/{network}"]
        ip("link", "add", "name", name, "address", mac, "type", "veth", *peer)


def ip(*words: str, needed: bool = True) -> bool:
    """Run ip(8) in the calling thread's network; return whether it did. Raises VTLError if needed."""
    try:
        ran = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise VTLError("selftest: ip is missing; install the package iproute2") from None
    if needed and ran.returncode:
        raise VTLError(f"selftest: ip {' '.join(words)}: {ran.stderr.strip()}")
    return ran.returncode == 0


def sysctl(name: str, value: int) -> None:
    """Set a variable of the calling thread's network, if this kernel has it."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/net", name).write_text(str(value))
