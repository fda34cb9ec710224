"""The record of a service that runs, in a file beside its control socket, which also SIGKILL leaves.

The file is locked as long as the process lives: the kernel releases the lock however it ends, and knows it in
every PID namespace. Its time of change is that of the last sign of life. A service that ends in good order
removes it.
"""

import fcntl
import json
import logging
import os
import re
import shlex
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from vtl_tools.common.host import broker
from vtl_tools.common.host.own_record import OwnRecord
from vtl_tools.common.text import stamp

log = logging.getLogger(__name__)

BEAT_S: Final = 10.0
"""Seconds between two signs of life."""
_OCTETS_MAX: Final = 1 << 16
_FLOCK: Final = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


class RunRecord(NamedTuple):
    """A service as it began. guards: the form of the guard of each interface; links: first the VM's."""

    service: str
    pid: int
    started: float
    """Seconds since the epoch, as alive."""
    links: Sequence[str]
    guards: Mapping[str, str]
    command: Sequence[str]
    alive: float
    """When the service gave its last sign of life."""
    is_locked: bool
    """Whether its process still exists."""
    namespace: int
    """The inode of its network namespace, where its guards are."""
    directory: str
    """The working directory of the command."""
    unit: str
    """The unit of systemd that started it, or ""."""

    def cut_off(self) -> list[str]:
        """Return the interfaces whose guards stay when the service has ended."""
        return [name for name, form in self.guards.items() if form == "kept"]

    def remedies(self) -> list[str]:
        """Return the commands that start the service again, and that give its interfaces back."""
        elsewhere = self.directory not in ("", "/", _directory())
        words = shlex.join(self.command)
        again = f"cd {shlex.quote(self.directory)} && {words}" if elsewhere else words
        back = [f"vtl-guard clear {shlex.quote(name)}" for name in self.cut_off()]
        return [f"systemctl restart {self.unit}" if self.unit else again, *back]

    def fate(self) -> str:
        """Return what the death of the service means for its interfaces."""
        if cut_off := self.cut_off():
            return f"{', '.join(cut_off)} stays cut off"
        freed = f"the host receives the frames of {', '.join(self.guards)} again"
        return freed if self.guards else "nothing is cut off"

    def obituary(self) -> str:
        """Return one line on a service that was killed: since when, what it means, what to do."""
        again, *back = self.remedies()
        when = stamp(self.alive, exact=False)
        giving_back = "".join(f", or run '{command}'" for command in back)
        return (
            f"{self.subject()}: {self.service} (process {self.pid}) died after {when}; "
            f"{self.fate()}; start it again with '{again}'{giving_back}"
        )

    def subject(self) -> str:
        """Return what people know the service by: its first link."""
        return self.links[0] if self.links else self.service


class RunRecordFile:
    """The record of this process. Without it the service runs as well, so that no failure ends it."""

    def __init__(self, path: Path, service: str, links: Sequence[str], guards: Mapping[str, str]) -> None:
        self.path = path
        self._told: dict[str, object] = {
            "service": service,
            "pid": os.getpid(),
            "started": time.time(),
            "links": list(links),
            "guards": dict(guards),
            "command": [service, *sys.argv[1:]],
            "directory": _directory(),
        }
        self._fd = -1
        self._file: OwnRecord | None = None

    def begin(self) -> None:
        """Write and lock the record, in the place of a dead process's.

        The descriptor that stays open is for reading: people run the command in the record, so code that a
        guest injects into the service must not be able to change it.
        """
        try:
            self._told["namespace"] = network_namespace()
            self._told["unit"] = unit_of(Path("/proc/self/cgroup").read_text())
            with suppress(FileNotFoundError):
                self.path.unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(self.path, flags, 0o600), "w") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(json.dumps(self._told) + "\n")
            self._fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK))
            self._file = OwnRecord(self.path)
        except OSError as e:
            log.warning("%s: %s; 'status' will not tell if the service is killed", self.path, e.strerror)
            self._close()

    def beat(self) -> None:
        """Give a sign of life."""
        if self._file is not None:
            self._file.touch()

    def end(self) -> None:
        """Remove the record, as the service ends in good order. Idempotent."""
        if self._file is not None:
            self._file.remove()
            self._file = None
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _lock(kind: int) -> bytes:
    return _FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0)


def _directory() -> str:
    """Return the working directory; "" if it was removed."""
    try:
        return str(Path.cwd())
    except OSError:
        return ""


def unit_of(cgroups: str) -> str:
    """Return the unit that started a service, from its /proc/PID/cgroup; "" if a person did."""
    last = cgroups.rstrip().rpartition("/")[2]
    return last if re.fullmatch(r"(?:vtl|vortex)-[\w@.\\:-]+\.service", last) else ""


def network_namespace() -> int:
    """Return the inode of this thread's network namespace."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def record_of(control_socket: Path) -> Path:
    """Return where the record of the service with this control socket is."""
    return control_socket.with_name(control_socket.name.removesuffix(".sock") + ".run")


def read(path: Path) -> RunRecord | None:
    """Return the record in a file; None: there is none, or others may have written it."""
    try:
        with os.fdopen(broker.open_private(path), "rb") as file:
            told: Any = json.loads(file.read(_OCTETS_MAX))
            lock = fcntl.fcntl(file, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
            return RunRecord(
                str(told["service"]), int(told["pid"]), float(told["started"]),
                [str(link) for link in told["links"]],
                {str(name): str(form) for name, form in dict(told["guards"]).items()},
                [str(word) for word in told["command"]],
                os.fstat(file.fileno()).st_mtime, _FLOCK.unpack(lock)[0] != fcntl.F_UNLCK,
                int(told["namespace"]), str(told["directory"]), str(told["unit"]),
            )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
