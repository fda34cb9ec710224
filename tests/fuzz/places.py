"""Directories of targets that need some, such as for unix sockets."""

import atexit
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp


def place() -> Path:
    """Return a new directory, which goes with the process; under libFuzzer, which skips that, with run.py."""
    made = Path(mkdtemp(prefix="vtl-fuzz-"))
    atexit.register(rmtree, made, ignore_errors=True)
    return made
