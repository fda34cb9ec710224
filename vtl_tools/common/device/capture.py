"""Reader and writer of capture files. Uses scapy, imported only when a file is opened."""

import contextlib
import errno
import gzip
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
INBOUND: Final = 1  # epb_flags of pcapng
OUTBOUND: Final = 2
_GZIP: Final = b"\x1f\x8b"
_BUFFER: Final = 4096


@contextlib.contextmanager
def quiet_scapy() -> Iterator[None]:
    """Suppress scapy's log lines and the deprecation warnings of its imports, for an import of scapy."""
    for name in "scapy.runtime", "scapy.loading":  # they report damaged records and a missing libpcap
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _scapy() -> Any:
    with quiet_scapy():
        import scapy.utils
    return scapy.utils


def create_private(path: Path) -> int:
    """Open an empty file for writing, of mode 0600 regardless of the umask. Raises OSError.

    In a directory where others may write, an existing file must belong to us: another user could place a link
    to a third user's file there, or a file of their own to read from.
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
        raise OSError(errno.ELOOP, "a symbolic link in a directory where others may write")
    if found.st_uid != os.geteuid() or (stat.S_ISREG(found.st_mode) and found.st_nlink > 1):
        raise OSError(errno.EPERM, "another user's file")


class CaptureReader:
    """Iterates over the frames of a pcap or pcapng file, perhaps gzipped: (time in seconds, Ethernet frame).

    Raises DeviceError at once if the file is no capture. A damaged file ends at the damage.
    """

    def __init__(self, spec: str, path: str) -> None:
        utils = _scapy()
        try:
            self._file = open(path, "rb")  # noqa: PTH123, SIM115 - scapy leaves it open when it gives up
        except OSError as e:
            raise DeviceError(f"{spec}: {path}: {e.strerror}; name a file that can be read") from None
        try:
            is_zipped = self._file.peek(2)[:2] == _GZIP  # scapy before 2.6 looks only if it opens the file
            self._reader = utils.RawPcapReader(gzip.GzipFile(fileobj=self._file) if is_zipped else self._file)
        except Exception as e:  # scapy's errors have no common base
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
        """Close the file. Iteration then ends. Idempotent."""
        self._file.close()


def _one_line(e: object) -> str:
    return " ".join(str(e).split()).rstrip(" !.") or type(e).__name__


class _Captured(bytes):
    """A frame with the attributes that scapy's writer reads from its own packets."""

    sniffed_on: str
    direction: int


class CaptureWriter:
    """A pcapng file that several devices may share, flushed every FLUSH_OCTETS and when closed."""

    FLUSH_OCTETS: Final = 1 << 16

    def __init__(self, spec: str, path: str) -> None:
        try:
            file = os.fdopen(create_private(Path(path)), "wb", _BUFFER)
        except OSError as e:
            raise DeviceError(f"{spec}: {path}: {e.strerror}; name a file that can be written") from None
        self._writer = _scapy().RawPcapNgWriter(os.devnull)  # it opens files by name only
        self._writer.f.close()
        self._writer.f = file
        self._writer.linktype = _ETHERNET
        self._unflushed = 0
        self._closed = False

    def write(self, interface: str, frames: Iterable[memoryview], direction: int, now: float) -> None:
        """Append Ethernet frames. now: seconds since 1970.

        interface: its name, described in the file on first use.
        """
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
        """Write buffered frames to the file, so that other programs see them."""
        self._unflushed = 0
        if not self._closed:
            self._writer.flush()

    def close(self) -> None:
        """Flush and close the file. Idempotent."""
        if not self._closed:
            self._closed = True
            self._writer.close()
