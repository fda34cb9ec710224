"""The file of the name map: which address stands for which name, so that it still does after a restart.

The file has a secret, from which addresses are made, and a record for each name, written in place before the
guest gets the address. So it is complete whenever the process ends, and as large as the name map at most. It
stays open, since the service gives up the privileges that opening it took.
"""

import fcntl
import logging
import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import Malformed, VTLError
from vtl_tools.common.guest_net.dns import NAMES_MAX
from vtl_tools.common.guest_net.name_map import MappedName

log = logging.getLogger(__name__)

SECRET: Final = 32
_HEADER: Final = struct.Struct(f"!16s{SECRET}s16x")
_MAGIC: Final = b"vtl-tor names 1\n"
_RECORD: Final = struct.Struct("!IIB255s")
"""Checksum of what follows; the place of the address in its range; the name, behind its length."""
OCTETS_MAX: Final = _HEADER.size + NAMES_MAX * _RECORD.size


def parse(data: bytes) -> tuple[bytes, list[MappedName]]:
    """Return the secret and the names of a file. Raises Malformed; records that are broken are left out."""
    if len(data) < _HEADER.size or len(data) > OCTETS_MAX:
        raise Malformed("names.size", len(data))
    magic, secret = _HEADER.unpack_from(data)
    if magic != _MAGIC or not any(secret):
        raise Malformed("names.header")
    return secret, list(_records(data))


def _records(data: bytes) -> Iterator[MappedName]:
    whole = (len(data) - _HEADER.size) // _RECORD.size
    for row in range(whole):
        at = _HEADER.size + row * _RECORD.size
        total, slot, size, octets = _RECORD.unpack_from(data, at)
        if not size or zlib.crc32(data[at + 4 : at + _RECORD.size]) != total:
            continue
        name = octets[:size].decode("latin-1")
        if name.isascii() and name.isprintable():
            yield MappedName(row, slot, name)


def record(placed: MappedName) -> bytes:
    """Return the record of a name, of 1 to 255 octets."""
    name = placed.name.encode("ascii")
    octets = _RECORD.pack(0, placed.slot, len(name), name)[4:]
    return zlib.crc32(octets).to_bytes(4, "big") + octets


class BusyError(VTLError):
    """Another process has locked the file."""


class NameStore:
    """The file, open and locked. secret, names: its content. option: the option that chooses another file.

    A damaged file is replaced, with a warning. A file that other users could have written is refused.
    Raises VTLError.
    """

    def __init__(self, path: Path, option: str = "--state") -> None:
        self.path, self._option = path, option
        self._failed = False
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            self._fd = os.open(path, flags, 0o600)
        except OSError as e:
            raise VTLError(f"{path}: {e.strerror}; choose another with {option}") from None
        try:
            self.secret, self.names = self._open()
        except OSError as e:
            self.close()
            kind = BusyError if isinstance(e, BlockingIOError) else VTLError
            why = (
                "a service already runs there; stop it, or"
                if isinstance(e, BlockingIOError)
                else f"{e.strerror};"
            )
            raise kind(f"{path}: {why} choose another with {option}") from None

    def _open(self) -> tuple[bytes, list[MappedName]]:
        fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not self._is_own():
            self.close()
            raise VTLError(
                f"{self.path}: not a file of our own, of mode 0600; choose another with {self._option}"
            )
        data = os.pread(self._fd, OCTETS_MAX + 1, 0)
        return self._read(data) if data else self._begin()

    def _is_own(self) -> bool:
        """Whether only this user can have written it, or for root its later user, who owns the directory."""
        found, user = os.fstat(self._fd), os.geteuid()
        owners = (user,) if user else (user, self.path.parent.stat().st_uid)
        return stat.S_ISREG(found.st_mode) and found.st_uid in owners and not found.st_mode & 0o077

    def _read(self, data: bytes) -> tuple[bytes, list[MappedName]]:
        try:
            return parse(data)
        except Malformed:
            log.warning("%s: damaged; names get other addresses than before", self.path)
            return self._begin()

    def _begin(self) -> tuple[bytes, list[MappedName]]:
        secret = os.urandom(SECRET)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, _HEADER.pack(_MAGIC, secret), 0)
        os.fsync(self._fd)
        return secret, []

    def put(self, placed: MappedName) -> None:
        """Write a name over the record that was there."""
        try:
            os.pwrite(self._fd, record(placed), _HEADER.size + placed.row * _RECORD.size)
        except OSError as e:
            if not self._failed:
                log.warning("%s: %s; after a restart, guests may have to ask anew", self.path, e.strerror)
            self._failed = True

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def open_store(chosen: Path | None, beside: Path) -> NameStore | None:
    """Open the file of the name map: the chosen one, or else the one beside the control socket.

    Returns None if another service has that one locked: it has the link or the control socket as well, which
    is reported when this service opens them.
    """
    if chosen is not None:
        return NameStore(chosen)
    path = beside.with_suffix(".names")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(BusyError):
        return NameStore(path, "--control")
    return None
