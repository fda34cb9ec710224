"""System calls that the standard library of Python 3.11 does not have."""

import ctypes
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_REC_PRIVATE = 0x4000 | 0x40000
NET_NS = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces of its own (CLONE_NEWPID: its next child gets it)."""
    _call("unshare", ctypes.c_int(flags))


def setns(path: str, flags: int) -> None:
    """Move the calling thread, and no other, into the namespace at `path` (CLONE_NEWPID: its children)."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns_fd(fd, flags)
    finally:
        os.close(fd)


def setns_fd(fd: int, flags: int) -> None:
    """Move the calling thread into the namespace that `fd` holds open."""
    _call("setns", ctypes.c_int(fd), ctypes.c_int(flags))


def mount(source: str, target: str, kind: str | None, flags: int = 0) -> None:
    """Mount, in the mount namespace of the calling thread."""
    kind_octets = None if kind is None else kind.encode()
    _call("mount", source.encode(), target.encode(), kind_octets, ctypes.c_ulong(flags), None)
