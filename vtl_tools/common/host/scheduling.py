"""How soon the kernel lets this process run when it has something to do (sched(7))."""

import ctypes
import os
import struct
from typing import Final

from vtl_tools.common.errors import PermissionNeededError

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355}
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""struct sched_attr: size, policy, flags, nice, priority; runtime, deadline, period in nanoseconds."""
_libc = ctypes.CDLL(None, use_errno=True)


def take_realtime_priority() -> None:
    """Let this process run before all that have no real-time priority; its children do not inherit it.

    The kernel leaves those others a twentieth of each second. Raises PermissionNeededError.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError as e:
        raise PermissionNeededError(
            f"--realtime: {e.strerror}; run as root or with CAP_SYS_NICE, or without --realtime"
        ) from None


def ask_for_short_slices(slice_s: float) -> bool:
    """Let this process run sooner when it wakes, for no longer than slice_s at once. Return whether it may.

    Its share of the processors stays what it was, so it needs no privilege. Linux 6.12 and later.
    """
    number = _SCHED_SETATTR.get(os.uname().machine)
    if number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, int(slice_s * 1e9), 0, 0)
    done: int = _libc.syscall(number, 0, attributes, 0)
    return done == 0
