"""Builds vtl-ack: its limits, and the register beside the control socket."""

import errno
import mmap
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.model.base import LOCAL, REMOTE
from vtl_tools.common.rules.connections import ConnectionChoice
from vtl_tools.common.runtime.control import directory, path_for
from vtl_tools.common.runtime.runner import Options
from vtl_tools.common.tcp.config import Config
from vtl_tools.services.ack.budget import AckBudget
from vtl_tools.services.ack.predecessor import Predecessor
from vtl_tools.services.ack.register import OCTETS, Register
from vtl_tools.services.ack.stage import LocalAck

DIRECTIONS: Final = {"out": (LOCAL,), "in": (REMOTE,), "both": (LOCAL, REMOTE)}
"""By direction of the data: the ends whose data is acknowledged here."""


def make_stage(
    iface: str,
    only: Sequence[str],
    direction: str,
    buffer: int,
    memory: int,
    give_up_s: float,
    congestion: str,
    options: Options,
) -> LocalAck:
    """Return the stage. buffer, memory: octets. Raises SpecError, VTLError."""
    if buffer > memory:
        raise SpecError("--buffer: more than --memory; give less")
    choice = ConnectionChoice.parse("--only", only)
    config = Config(
        receive_buffer=buffer, send_buffer=buffer, no_delay=True, user_timeout_s=give_up_s,
        congestion=congestion,
    )  # fmt: skip
    now = time.monotonic()
    register = Register(shared_memory((options.control or path_for("vtl-ack", iface)).with_suffix(".flows")))
    predecessor = Predecessor(register, now)
    return LocalAck(choice, DIRECTIONS[direction], config, AckBudget(buffer, memory), register, predecessor)


def shared_memory(path: Path) -> memoryview:
    """Return the octets of a file that other processes of this user may have left. Raises VTLError."""
    try:
        if path.parent == directory():
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
                raise PermissionError(errno.EPERM, "others may have written it")
            if found.st_nlink != 1:  # a link to a file of this user's that another user made
                raise PermissionError(errno.EPERM, "it has another name, too")
            if found.st_size != OCTETS:
                os.ftruncate(fd, 0)  # of another version: its entries have no meaning
                os.ftruncate(fd, OCTETS)
            return memoryview(mmap.mmap(fd, OCTETS))
        finally:
            os.close(fd)
    except OSError as e:
        raise VTLError(f"{path}: {e.strerror}; choose another place with --control") from None
