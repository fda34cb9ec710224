"""The files that records go to: captures that rotate, logs, and descriptors from the start of the service.

A target is opened by the service, and then used by the process of a Scribe only. write() takes octets from a
queue.
"""

import errno
import fcntl
import os
import stat
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vtl_tools.common.host.octet_queue import OctetQueue

_NUMBERS_MAX: Final = 1_000_000
_AT_ONCE: Final = 1 << 20
_STREAM_AT_ONCE: Final = 1 << 17
"""Octets of one write; a record has less."""
_HEADER_MAX: Final = 1 << 20


class Target:
    """A descriptor that octets are written to. name: for messages."""

    process = "vtl-log"
    """The name of the process that writes."""

    places: tuple[Path, ...] = ()
    """Directories in which it creates and removes files, or files that it opens again."""
    owes = False
    """Whether there is something to write besides what waits in queues."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name

    def begin(self) -> None:
        """Write what the file starts with, if it is new. Raises OSError."""

    def write(self, queue: OctetQueue) -> bool:
        """Write octets that wait in a queue. False: there is no room at present. Raises OSError."""
        done = self._append(queue, min(queue.waiting, _AT_ONCE))
        queue.take(done)
        return done > 0

    def _append(self, queue: OctetQueue, octets: int) -> int:
        try:
            return os.writev(self.fd, queue.views(octets))
        except BlockingIOError:
            return 0

    def reopen(self) -> None:
        """Open the file by its name again, if it has one. Raises OSError."""

    def finish(self) -> None:
        """Close the descriptor. Raises OSError."""
        os.close(self.fd)


class LogFile(Target):
    """A file to append to, of mode 0600, which is created again when it was renamed or removed.

    Raises OSError, also if the file may be another user's.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - a symbolic link stays one
        super().__init__(open_private(self._path, os.O_APPEND), str(path))
        self.places = (self._path.parent if is_regular(self.fd) else self._path,)

    def reopen(self) -> None:
        """Open the file by its name."""
        fd = open_private(self._path, os.O_APPEND)
        os.dup2(fd, self.fd, inheritable=False)
        os.close(fd)


class CaptureFiles(Target):
    """A capture in one file after the other, each of mode 0600 and never larger than size_max; 0: no limit.

    The first is `path`; later ones have a number in their names. Only the newest files_max stay; 0: all do.
    A file that is there already is left alone, unless `overwrite`. header: what each file begins with.
    whole: returns how many octets of a queue are whole records. lasting: returns those of some records that
    later files begin with, too. Raises OSError: FileExistsError if the first file exists and is not empty.
    """

    process = "vtl-capture"

    def __init__(
        self,
        path: Path,
        header: bytes,
        whole: Callable[[OctetQueue, int], int],
        *,
        lasting: Callable[[bytes | memoryview], bytes] = lambda octets: b"",
        size_max: int = 0,
        files_max: int = 0,
        overwrite: bool = False,
    ) -> None:
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - likewise
        self._header, self._whole, self._lasting = header, whole, lasting
        self._size_max, self._files_max, self._overwrite = size_max, files_max, overwrite
        self._made: deque[tuple[Path, tuple[int, int]]] = deque(maxlen=None if files_max else 1)
        self._number = 1
        self._size = 0
        super().__init__(-1, str(path))
        self._use(open_private(self._path, os.O_TRUNC if overwrite else 0), self._path)
        self._is_file = is_regular(self.fd)
        self._rest = b"" if self._is_file else header
        self.places = (self._path.parent if self._is_file else self._path,)

    def _use(self, fd: int, path: Path) -> None:
        found = os.fstat(fd)
        self.fd, self.name, self._size = fd, str(path), 0
        if stat.S_ISREG(found.st_mode):
            _lock(fd)
            self._made.append((path, (found.st_dev, found.st_ino)))

    def write(self, queue: OctetQueue) -> bool:
        """Write records that wait in a queue, in the next file if this one is full."""
        if not self._is_file:
            return self._write_stream(queue)
        self.begin()
        octets = min(queue.waiting, _AT_ONCE)
        if self._size_max and octets > self._size_max - self._size:
            octets = self._whole(queue, max(0, self._size_max - self._size))
            if not octets:
                self._next()
                return True
        done = self._append(queue, octets)
        if done < octets:  # the file ends with a whole record
            done = self._whole(queue, done)
            os.ftruncate(self.fd, self._size + done)
            os.lseek(self.fd, self._size + done, os.SEEK_SET)
        if not done:
            raise _no_room()
        self._take(queue, done)
        self._size += done
        return True

    def _take(self, queue: OctetQueue, octets: int) -> None:
        pieces = queue.views(octets)
        if len(self._header) < _HEADER_MAX:
            self._header += self._lasting(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        queue.take(octets)

    def _write_stream(self, queue: OctetQueue) -> bool:
        """Write whole records to a pipe or a device. A new reader gets the header first."""
        if not self._rest:
            octets = self._whole(queue, min(queue.waiting, _STREAM_AT_ONCE))
            self._rest = b"".join(queue.views(octets))
            self._take(queue, octets)
        try:
            self._rest = self._rest[os.write(self.fd, self._rest) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self._rest = self._header
            raise
        finally:
            self.owes = bool(self._rest)
        return True

    def begin(self) -> None:
        """Write the header of a new file. If there is no file, begin the next."""
        if self.fd < 0:
            self._next()
        if self._size or not self._is_file:
            return
        done = os.write(self.fd, self._header)
        if done < len(self._header):
            os.ftruncate(self.fd, 0)
            os.lseek(self.fd, 0, os.SEEK_SET)
            raise _no_room()
        self._size = done

    def _next(self) -> None:
        """Go on in another file, and remove the oldest that this run made if there are too many."""
        self._close()
        while self._files_max and len(self._made) >= self._files_max:
            path, which = self._made.popleft()
            if _is(path, which):
                path.unlink()
        while self._number < _NUMBERS_MAX:
            self._number += 1
            path = self._path.with_stem(f"{self._path.stem}.{self._number}")
            try:
                self._use(open_private(path, os.O_TRUNC if self._overwrite else os.O_EXCL), path)
                return
            except FileExistsError:
                continue
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))

    def reopen(self) -> None:
        """Begin a new file if the present one was renamed or removed: of the first name, if it is free."""
        if not self._is_file or (self._made and _is(*self._made[-1])):
            return
        self._close()
        try:
            self._use(open_private(self._path, os.O_EXCL), self._path)
        except FileExistsError:
            self._next()

    def finish(self) -> None:
        """Close the file."""
        self._close()

    def _close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _no_room() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def is_regular(fd: int) -> bool:
    """Return whether a descriptor is of a file on a file system."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _lock(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise OSError(errno.EBUSY, "another recording goes there") from None
    except OSError:  # a file system without locks
        pass


def _is(path: Path, which: tuple[int, int]) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == which


def open_private(path: Path, how: int) -> int:
    """Open a file for writing, of mode 0600 regardless of the umask. Raises OSError.

    how: O_EXCL: it must not exist; 0: it must be empty; O_TRUNC: it becomes empty; O_APPEND. In a directory
    where others may write, an existing file must belong to us: another user could place a link to a third
    user's file there, or a file of their own to read from. Of a pipe or a device, writing does not block.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | how & os.O_APPEND
    directory = path.parent.stat()
    is_closed = directory.st_uid in (0, os.geteuid()) and not directory.st_mode & 0o022
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if how & os.O_EXCL:
            raise
        if not is_closed:
            _check_ours(path.lstat())
            flags |= os.O_NOFOLLOW
        fd = os.open(path, flags)
    try:
        found = os.fstat(fd)
        if not is_closed:
            _check_ours(found)
        if stat.S_ISREG(found.st_mode):
            if found.st_size and not how:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.fchmod(fd, 0o600)
            if how & os.O_TRUNC:
                os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_ours(found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "a symbolic link in a directory where others may write")
    if found.st_uid != os.geteuid() or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
        raise OSError(errno.EPERM, "another user's file")
