"""A file in memory that nobody can change: the large part of a request on the control socket."""

import fcntl
import os
from collections.abc import Iterable
from types import TracebackType
from typing import Final, Self

from vtl_tools.common.errors import VTLError

SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class SealedFile:
    """Owns a descriptor from a client. It may be any file; read() refuses all but sealed memory."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def of(cls, pieces: Iterable[bytes]) -> Self:
        """Return a sealed file that holds the pieces, one after the other. Raises OSError."""
        made = cls(os.memfd_create("vtl", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
        with open(made.fd, "wb", closefd=False) as file:
            file.writelines(pieces)
        fcntl.fcntl(made.fd, fcntl.F_ADD_SEALS, SEALS)
        return made

    def read(self, most: int) -> bytes:
        """Return all octets. Raises VTLError if there are more than `most`, or if the file is not sealed.

        A seal means that this is memory, so reading does not block, and that it neither grows nor shrinks.
        """
        try:
            seals = fcntl.fcntl(self.fd, fcntl.F_GET_SEALS)
        except OSError:
            seals = 0
        if seals & SEALS != SEALS:
            raise VTLError("upload: not a sealed memory file; use the command to send files")
        size = os.fstat(self.fd).st_size
        if size > most:
            raise VTLError(f"upload: at most {most >> 20} MiB; send less")
        return os.pread(self.fd, size, 0)

    def release(self) -> int:
        """Return the descriptor, which becomes the caller's."""
        fd, self.fd = self.fd, -1
        return fd

    def close(self) -> None:
        """Close the descriptor. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
