"""Files that exist for a moment: beside the file that they will replace, or in memory."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def new_beside(path: Path) -> Iterator[tuple[Path, int]]:
    """Create a temporary file beside another, in a directory that no other user can redirect."""
    beside = path.with_name(f"{path.name}.new")
    beside.unlink(missing_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(beside, flags, 0o600)
    try:
        os.fchmod(fd, 0o600)  # regardless of the umask
        yield beside, fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def memory_file(pieces: Iterable[str]) -> Iterator[int]:
    """Yield the descriptor of a memory file that holds the text."""
    fd = os.memfd_create("state", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "w", encoding="utf-8") as file:
            file.writelines(pieces)
        yield fd
    finally:
        os.close(fd)
