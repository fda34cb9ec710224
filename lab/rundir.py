"""Directories that end with their owner, or with the next one's start if the owner was killed."""

import contextlib
import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

RUN = Path("/run/vtl-lab")  # short, as a unix socket's path has 107 octets at most


@contextlib.contextmanager
def run_dir() -> Iterator[Path]:
    """Make this lab's directory, locked while we live, and remove those whose owners were killed."""
    RUN.mkdir(mode=0o755, exist_ok=True)
    guard = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY)
    lock = -1
    try:
        fcntl.flock(guard, fcntl.LOCK_EX)  # nobody sweeps between our mkdtemp and its lock
        for stale in RUN.iterdir():
            _sweep(stale)
        path = Path(tempfile.mkdtemp(dir=RUN, prefix=f"{os.getpid()}-"))
        path.chmod(0o755)  # an unprivileged QEMU passes through
        lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        os.close(guard)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def _sweep(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    except BlockingIOError:
        log.debug("%s: in use", path)
    finally:
        os.close(fd)
