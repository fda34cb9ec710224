"""The broker: a small root process for the few operations that a service needs after it gave up root.

Before the service gives up its privileges, it registers each file that it will replace, each socket that it
will connect to again, and each file to remove at its end. Then start() forks the broker, which performs
these operations on request. It accepts no file name from the service: an attacker who takes over the
service can replace the content of its own state file, up to a fixed size, and touch no other file. The
broker may start no program, and write only in the directories of those files.

If no privileges are given up, start() is never called, and the same calls do the work in the service itself.
"""

import atexit
import contextlib
import errno
import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final
from weakref import WeakSet

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host import confinement, privilege
from vtl_tools.common.host.process import close_all_but
from vtl_tools.common.host.temporary_file import memory_file, new_beside

PATIENCE_S: Final = 5.0
"""Seconds that the broker has to answer while the service waits."""
READ_S: Final = 60.0
"""Seconds that it has to read files while frames go on."""
DAC_OVERRIDE: Final = 1  # CAP_DAC_OVERRIDE: other users' sockets, and files in other users' directories


class BrokeredResource:
    """An object on which the broker operates. _serve() runs there and returns an errno and a descriptor.

    capabilities: of the broker, besides those that start() is given.
    """

    capabilities: frozenset[int] = frozenset()

    def __init__(self, path: Path | str) -> None:
        self.path = Path(os.path.abspath(path))  # noqa: PTH100 - a symbolic link stays one
        self._channel: socket.socket | None = None
        self.room: socket.socket | None = None
        self.word = 0
        """The number that came with a request."""
        _resources.add(self)

    def _serve(self, fd: int) -> tuple[int, int]:
        raise NotImplementedError

    def _ask(self, fd: int, patience_s: float | None = PATIENCE_S, word: int = 0) -> tuple[int, int]:
        """Request the operation; return an errno and the resulting descriptor.

        fd: a descriptor to pass; -1: none. word: a number of 32 bits to pass.
        """
        assert self._channel is not None
        self._channel.settimeout(patience_s)
        _send(self._channel, word, fd)
        return _receive(self._channel)

    def _run(self) -> None:
        """Serve requests until the service has ended."""
        assert self.room is not None
        with contextlib.suppress(OSError):
            while True:
                self.word, fd = _receive(self.room)
                try:
                    code, made = self._serve(fd)
                except OSError as e:
                    code, made = e.errno or errno.EIO, -1
                finally:
                    if fd >= 0:
                        os.close(fd)
                _send(self.room, code, made)
                if made >= 0:
                    os.close(made)


_resources: "WeakSet[BrokeredResource]" = WeakSet()


def _send(sock: socket.socket, code: int, fd: int) -> None:
    socket.send_fds(sock, [code.to_bytes(4, "big")], [fd] if fd >= 0 else [])


def _receive(sock: socket.socket) -> tuple[int, int]:
    octets, fds, _, _ = socket.recv_fds(sock, 4, 1)
    if len(octets) != 4:
        raise OSError(errno.EPIPE, "the broker has ended")
    return int.from_bytes(octets, "big"), fds[0] if fds else -1


class StateFile(BrokeredResource):
    """A state file, read at the start and replaced as a whole, of mode 0600. most: maximum size in octets."""

    def __init__(self, path: Path | str, most: int) -> None:
        super().__init__(path)
        self._most = most
        self._owed = False
        self._writer: threading.Thread | None = None
        self._failure: OSError | None = None

    def read(self) -> bytes | None:
        """Return its octets; None: there is no such file.

        Raises OSError, also if other users could have written it, or if it is too large.
        """
        try:
            with os.fdopen(open_private(self.path), "rb") as file:
                octets = file.read(self._most + 1)
        except FileNotFoundError:
            return None
        if len(octets) > self._most:
            raise OSError(errno.EFBIG, "too large")
        return octets

    def replace(self, pieces: Iterable[str], *, sync: bool = True) -> None:
        """Replace the file and wait for completion. sync: until it is on the disk. Raises OSError."""
        if self._channel is None:
            self._settle_own(None)
            replace(self.path, pieces, sync=sync)
            return
        self._settle(None)
        with memory_file(pieces) as fd:
            _raise(self._ask(fd, None)[0])

    def begin(self, text: str) -> bool:
        """Start to replace the file. False: the previous call is not complete.

        Raises OSError of the previous one.
        """
        if self._channel is None:
            if not self._settle_own(0.0):
                return False
            self._writer = threading.Thread(target=self._replace, args=(text,), daemon=True)
            self._writer.start()
            return True
        if not self._settle(0.0):
            return False
        with memory_file([text]) as fd:
            self._channel.settimeout(0.0)
            _send(self._channel, 0, fd)
            self._owed = True
        return True

    def finish(self) -> bool:
        """Wait for the completion of begin(). Raises its OSError."""
        return self._settle(PATIENCE_S) if self._channel is not None else self._settle_own(PATIENCE_S)

    def _replace(self, text: str) -> None:
        try:
            replace(self.path, [text], sync=False)
        except OSError as e:
            self._failure = e

    def _settle_own(self, patience_s: float | None) -> bool:
        """Likewise where this process does the work, in a thread, as a slow disk must not delay frames."""
        if self._writer is not None:
            self._writer.join(patience_s)
            if self._writer.is_alive():
                return False
            self._writer = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return True

    def _settle(self, patience_s: float | None) -> bool:
        """Collect the result of begin(). False: it is not complete. Raises OSError."""
        if not self._owed:
            return True
        assert self._channel is not None
        self._channel.settimeout(patience_s)
        try:
            code, _ = _receive(self._channel)
        except BlockingIOError:
            return False
        self._owed = False
        _raise(code)
        return True

    def _serve(self, fd: int) -> tuple[int, int]:
        if fd < 0 or not stat.S_ISREG(os.fstat(fd).st_mode) or os.fstat(fd).st_size > self._most:
            return errno.EINVAL, -1
        with new_beside(self.path) as (beside, target):
            at, left = 0, os.fstat(fd).st_size
            while left and (copied := os.sendfile(target, fd, at, left)):
                at, left = at + copied, left - copied
            os.fsync(target)
            beside.replace(self.path)
        return 0, -1


class HandedFile(BrokeredResource):
    """A file that a privileged user places there for the service to read once. most: maximum octets read."""

    def __init__(self, path: Path | str, most: int) -> None:
        super().__init__(path)
        self._most = most

    def take(self) -> bytes:
        """Read and remove the file; return its content, at most `most` + 1 octets. Raises OSError."""
        if self._channel is None:
            fd = self._open()
        else:
            code, fd = self._ask(-1)
            _raise(code)
        with os.fdopen(fd, "rb") as file:
            return file.read(self._most + 1)

    def _open(self) -> int:
        fd = open_private(self.path)
        self.path.unlink()
        return fd

    def _serve(self, fd: int) -> tuple[int, int]:
        return 0, self._open()


class ReadAgain(BrokeredResource):
    """Files that the service reads again and again. make: reads them, and returns a descriptor of all in
    memory.

    It is chosen before the start, so that the service gets the content of no other file.
    """

    def __init__(self, path: Path | str, make: Callable[[], int]) -> None:
        super().__init__(path)
        self._make = make
        self._owed = 0

    def read(self) -> int:
        """Return a descriptor of the content now. Waits up to READ_S. Raises OSError."""
        if self._channel is None:
            return self._make()
        self._channel.settimeout(READ_S)
        _send(self._channel, 0, -1)
        self._owed += 1
        code = fd = -1
        while self._owed:  # the answers to requests that took too long come first
            if fd >= 0:
                os.close(fd)
            code, fd = _receive(self._channel)
            self._owed -= 1
        _raise(code)
        return fd

    def _serve(self, fd: int) -> tuple[int, int]:
        return 0, self._make()


class DeviceFile(BrokeredResource):
    """A device file that is opened repeatedly for reading and writing."""

    _FLAGS: Final = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC

    def open(self) -> int:
        """Return a descriptor. Raises OSError."""
        try:
            return os.open(self.path, self._FLAGS)
        except PermissionError:
            if self._channel is None:
                raise
        code, fd = self._ask(-1)
        _raise(code)
        return fd

    def _serve(self, fd: int) -> tuple[int, int]:
        return 0, os.open(self.path, self._FLAGS)


class UnixTarget(BrokeredResource):
    """The path of a unix socket to which the service connects repeatedly."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._where = path  # an absolute path might be too long for a socket
        self._is_denied = False

    def connect_ex(self, sock: socket.SocketType) -> int:
        """Connect a non-blocking socket like socket.connect_ex(), by the broker if the service may not."""
        code = errno.EACCES if self._is_denied else sock.connect_ex(self._where)
        if code not in (errno.EACCES, errno.EPERM) or self._channel is None:
            return code
        self._is_denied = True
        try:
            return self._ask(sock.fileno())[0]
        except OSError:
            return code

    def _serve(self, fd: int) -> tuple[int, int]:
        if fd < 0:
            return errno.EINVAL, -1
        sock = socket.socket(fileno=fd)
        try:
            if sock.family != socket.AF_UNIX:
                return errno.EINVAL, -1
            sock.setblocking(False)  # this thread must not wait, whatever the sender set
            return sock.connect_ex(self._where), -1
        finally:
            sock.detach()


class OwnSocket(BrokeredResource):
    """The file of our own unix socket, removed when the service ends unless another has replaced it."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(path)
        found = self.path.lstat()
        self._made = found.st_dev, found.st_ino

    def remove(self) -> None:
        """Remove the file now if the service may; else the broker does at the end. Idempotent."""
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == self._made:
                self.path.unlink()
                _resources.discard(self)

    def at_end(self) -> None:
        """Do in the broker what is to be done when the service has ended, in whatever way."""
        self.remove()


def _raise(code: int) -> None:
    if code:
        raise OSError(code, os.strerror(code))


# --- files


def replace(path: Path, pieces: Iterable[str], *, sync: bool = True) -> None:
    """Replace a file as a whole, readable by its owner only. Raises OSError."""
    with new_beside(path) as (beside, fd), os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
        file.writelines(pieces)
        file.flush()
        if sync:
            os.fsync(fd)
        beside.replace(path)


def open_private(path: Path) -> int:
    """Open a file for reading that only root or this user can have written. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(fd)
    if stat.S_ISREG(found.st_mode) and found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022:
        return fd
    os.close(fd)
    raise PermissionError(errno.EPERM, "others may have written it: it must be our own file, of mode 0600")


# --- the process

_lifeline: socket.socket | None = None
_pid = 0


def start(capabilities: Iterable[int] = (DAC_OVERRIDE,)) -> None:
    """Fork the broker for the objects registered so far. Later ones are out of its reach.

    It gives up its rights while its parent goes on, which calls await_start().
    """
    global _lifeline, _pid
    resources = list(_resources)
    if not resources:
        return
    for resource in resources:
        resource._channel, resource.room = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    _lifeline, theirs = socket.socketpair()
    sys.stdout.flush()
    _pid = os.fork()
    if _pid:
        for sock in theirs, *(resource.room for resource in resources):
            if sock is not None:
                sock.close()
        return
    try:
        own = {c for resource in resources for c in resource.capabilities}
        _be_broker(theirs, resources, own | set(capabilities))
    finally:
        os._exit(1)


def await_start() -> None:
    """Wait until the broker, if there is one, has given up its rights. Raises VTLError if it has ended."""
    if _lifeline is not None and not _lifeline.recv(1):
        raise VTLError("the broker did not start; use --user root to run without it")


def stop() -> None:
    """Let the broker remove the files to be removed, and wait until it has ended. Idempotent."""
    global _lifeline, _pid
    if _lifeline is None or _pid == 0:
        return
    _lifeline.close()
    _lifeline = None
    for resource in _resources:
        if resource._channel is not None:
            resource._channel.close()
    with contextlib.suppress(ChildProcessError):
        os.waitpid(_pid, 0)


atexit.register(stop)  # registered at import, and so run last: other exit handlers need the broker


def _be_broker(lifeline: socket.socket, resources: list[BrokeredResource], capabilities: set[int]) -> None:
    signal.set_wakeup_fd(-1)
    os.setsid()
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:  # the broker ends after the service
        signal.signal(number, signal.SIG_IGN)
    rooms = (resource.room.fileno() for resource in resources if resource.room is not None)
    close_all_but(2, lifeline.fileno(), *rooms)
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("vtl-broker")
    privilege.keep_only(capabilities)
    confinement.keep_memory_private()
    places = [
        resource.path.parent
        for resource in resources
        if isinstance(resource, StateFile | HandedFile | OwnSocket)
    ]
    confinement.deny_writing(
        [*places, *(resource.path for resource in resources if isinstance(resource, DeviceFile))]
    )
    confinement.deny_calls()
    for resource in resources:
        threading.Thread(target=resource._run, daemon=True).start()
    with contextlib.suppress(OSError):  # a service that failed meanwhile has not read it
        lifeline.send(b"1")
        while lifeline.recv(1):
            pass
    for resource in resources:
        if isinstance(resource, OwnSocket):
            resource.at_end()
    os._exit(0)
