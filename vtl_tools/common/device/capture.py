"""Capture files, through scapy: the one place that imports it for them, and only when one is opened."""

import contextlib
import errno
import logging
import os
import stat
import struct
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, Self

from vtl_tools.common.errors import DeviceError

_ETHERNET: Final = 1  # LINKTYPE_ETHERNET
INBOUND: Final = 1  # pcapng's epb_flags
OUTBOUND: Final = 2
_BUFFER: Final = 4096


@contextlib.contextmanager
def quiet_scapy() -> Iterator[None]:
    """Import scapy in here: without the deprecation warnings of what it imports, nor its own log lines."""
    for name in "scapy.runtime", "scapy.loading":  # which tell of damaged records and a missing libpcap
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _scapy() -> Any:
    with quiet_scapy():
        import scapy.utils
    return scapy.utils


def create_private(path: Path) -> int:
    """Open a file for writing, empty, of mode 0600 whatever the umask. Raises OSError.

    In a directory where others may write, one that exists must be ours alone: another user could have a link
    there to somebody else's file, or a file of its own to read from.
    """
    flags = os.O_WRONLY | os.O_CLOEXEC
    directory = path.parent.stat()
    is_closed = directory.st_uid in (0, os.geteuid()) and not directory.st_mode & 0o022
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if not is_closed:
            _check_ours(path.lstat())
            flags |= os.O_NOFOLLOW
        fd = os.open(path, flags)
    try:
        found = os.fstat(fd)
        if not is_closed:
            _check_ours(found)
        if stat.S_ISREG(found.st_mode):
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, 0)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_ours(found: os.stat_result) -> None:
    if stat.S_ISLNK(found.st_mode):
        raise OSError(errno.ELOOP, "a symbolic link where others may write")
    if found.st_uid != os.geteuid() or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
        raise OSError(errno.EPERM, "another user's file")


class CaptureReader:
    """Time in seconds and octets of each Ethernet frame in a pcap or pcapng file, perhaps gzipped.

    Raises DeviceError at once for what is no capture. A file that is damaged ends where the damage is.
    """

    def __init__(self, spec: str, path: str) -> None:
        utils = _scapy()
        try:
            self._file = open(path, "rb")  # noqa: PTH123, SIM115 - scapy leaves it open when it gives up
        except OSError as e:
            raise DeviceError(f"{spec}: {path}: {e.strerror}; name a file that can be read") from None
        try:
            self._reader = utils.RawPcapReader(self._file)
        except Exception as e:  # scapy's errors have no base of their own
            self.close()
            raise DeviceError(f"{spec}: {path}: {_one_line(e)}; name a pcap or pcapng file") from None
        self._nano = 1e9 if getattr(self._reader, "nano", False) else 1e6
        kind = getattr(self._reader, "linktype", _ETHERNET)
        if kind != _ETHERNET:
            self.close()
            raise DeviceError(f"{spec}: {path}: its frames are not Ethernet (link type {kind}); name another")

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[float, bytes]:
        while not self._file.closed:
            try:
                data, about = self._reader._read_packet()
                if hasattr(about, "sec"):
                    return about.sec + about.usec / self._nano, data
                if about.linktype == _ETHERNET:
                    return ((about.tshigh or 0) << 32 | (about.tslow or 0)) / about.tsresol, data
            except (EOFError, OSError, struct.error, ValueError, ArithmeticError, LookupError, TypeError):
                self.close()
        raise StopIteration

    def close(self) -> None:
        """Close the file; there are no more frames then. Idempotent."""
        self._file.close()


def _one_line(e: object) -> str:
    return " ".join(str(e).split()).rstrip(" !.") or type(e).__name__


class _Captured(bytes):
    """Octets with what scapy's writer looks for on its own packets."""

    sniffed_on: str
    direction: int


class CaptureWriter:
    """A pcapng file that several devices write to, flushed every FLUSH_OCTETS and when closed."""

    FLUSH_OCTETS: Final = 1 << 16

    def __init__(self, spec: str, path: str) -> None:
        try:
            file = os.fdopen(create_private(Path(path)), "wb", _BUFFER)
        except OSError as e:
            raise DeviceError(f"{spec}: {path}: {e.strerror}; name a file that can be written") from None
        self._writer = _scapy().RawPcapNgWriter(os.devnull)  # which opens files by name only
        self._writer.f.close()
        self._writer.f = file
        self._writer.linktype = _ETHERNET
        self._unflushed = 0
        self._closed = False

    def write(self, interface: str, frames: Iterable[memoryview], direction: int, now: float) -> None:
        """Append Ethernet frames. now: seconds since 1970. interface: by name, described on first use."""
        if self._closed:
            return
        for frame in frames:
            captured = _Captured(frame)
            captured.sniffed_on, captured.direction = interface, direction
            if not self._writer.header_present:
                self._writer.write_header(captured)
            self._writer.write_packet(captured, sec=now, usec=0)
            self._unflushed += len(captured)
        if self._unflushed > self.FLUSH_OCTETS:
            self.flush()

    def flush(self) -> None:
        """Give everything to the system, so that other programs see it."""
        self._unflushed = 0
        if not self._closed:
            self._writer.flush()

    def close(self) -> None:
        """End the file. Idempotent."""
        if not self._closed:
            self._closed = True
            self._writer.close()
