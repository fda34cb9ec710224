"""The process that runs services (keeping.py), as vtl-vnet sees it."""

import fcntl
import json
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host.privilege import Account
from vtl_tools.common.host.process import close_all_but
from vtl_tools.services.vnet.keeping import MESSAGE_MAX, Keeping, places_of
from vtl_tools.services.vnet.service_spec import ServiceSpec

_PREFIX: Final = "vtl-vnet-"
_MODE: Final = 0o711
"""Only its owner can place a file there. A directory gets it with its lock: nobody removes it before."""
_LEFT: Final = (".vm", ".net", ".sock", ".run", ".flows")
"""Names of what services leave there."""


class ServiceKeeper:
    """The process, as vtl-vnet sees it; a Source. on_change: is called with a link's name, its PID (0: it has
    ended) and its exit status. on_answer: with a link's name and the answer to ask(), {} if there was none.

    program: returns the command line of an executable of VTL. become: the user that vtl-vnet changes to.
    evpn: the evpn: links from the start.
    """

    def __init__(
        self, program: Callable[[str], list[str]], become: Account | None, evpn: Iterable[str] = ()
    ) -> None:
        self.on_change: Callable[[str, int, int], object] = lambda name, pid, status: None
        self.on_answer: Callable[[str, dict[str, Any]], object] = lambda name, answer: None
        self.directory, lock = _directory()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            try:
                close_all_but(2, theirs.fileno(), lock)
                Keeping(theirs, self.directory, program, become, evpn).run()
            finally:
                os._exit(1)
        theirs.close()
        os.close(lock)
        self._channel.setblocking(False)

    def places(self, link: str) -> tuple[str, str, str]:
        """Return the paths of the channels at both sides of a service, and of its control socket."""
        return places_of(self.directory, link)

    def start(self, link: str, spec: ServiceSpec, secret: bytes = b"") -> None:
        """Start a service. secret: what its --key-file is to have, if anything. Raises VTLError."""
        self._tell({"start": link, "service": spec.text, "secret": secret.hex()})

    def ask(self, link: str, *, take: bool | None = None) -> None:
        """Ask a service with --on-demand what it carries. take: whether it takes connections from now on.

        Raises VTLError.
        """
        self._tell({"ask": link, "take": take})

    def stop(self, link: str) -> None:
        """End a service. Raises VTLError."""
        self._tell({"stop": link})

    def watch_routes(self, spec: str, *, wanted: bool) -> None:
        """Let the routes of an evpn: link be withdrawn when vtl-vnet has ended in any way, or not any more.

        Raises VTLError.
        """
        self._tell({"evpn": spec, "wanted": wanted})

    def _tell(self, message: dict[str, object]) -> None:
        try:
            self._channel.send(json.dumps(message).encode())
        except OSError as e:
            raise VTLError(f"services: {e.strerror}; start vtl-vnet again") from None

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._channel.fileno()

    def poll(self, now: float) -> bool:
        """Take what the process tells. Raises VTLError if it has ended: with it, all services have."""
        try:
            octets = self._channel.recv(MESSAGE_MAX)
        except OSError:
            return False
        if not octets:
            raise VTLError("services: the process that runs them has ended; start vtl-vnet again")
        told = json.loads(octets)
        if "answer" in told:
            self.on_answer(told["link"], told["answer"])
            return True
        self.on_change(told["link"], told["pid"], told["status"])
        return True

    def close(self) -> None:
        """End the process, and all services. Idempotent."""
        self._channel.close()
        if self._pid:
            with suppress(ChildProcessError):
                os.waitpid(self._pid, 0)
            self._pid = 0


def _directory() -> tuple[Path, int]:
    """Make the directory of a keeper; return it, and a descriptor that holds a lock on it.

    The directories of keepers that were killed are removed: those of this user that nobody holds a lock on.
    """
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            _remove_dead(path)
    made = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = os.open(made, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    made.chmod(_MODE)
    return made, lock


def _remove_dead(path: Path) -> None:
    """Remove the directory of a keeper that is dead. Raises OSError: it lives, or it is none."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        state = os.fstat(fd)
        with os.scandir(fd) as found:
            names = [entry.name for entry in found]
        if (state.st_uid, stat.S_IMODE(state.st_mode)) != (os.geteuid(), _MODE) or not all(
            name.endswith(_LEFT) for name in names
        ):
            return
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for name in names:
            os.unlink(name, dir_fd=fd)
        path.rmdir()
    finally:
        os.close(fd)
