"""System calls for Linux namespaces, which the standard library of Python 3.11 lacks.

A namespace belongs to a thread: each call changes the calling thread and no other.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
OWN_NETWORK: Final = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args: object) -> None:
    """Call a function of the C library that returns 0 on success. Raises OSError."""
    if getattr(_libc, name)(*args) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """Give the calling thread new namespaces (CLONE_NEWPID: its next child is the first process there)."""
    call("unshare", ctypes.c_int(flags))


def setns(namespace: int | str, flags: int) -> None:
    """Move the calling thread into a namespace, by descriptor or path (CLONE_NEWPID: its children)."""
    fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC) if isinstance(namespace, str) else namespace
    try:
        call("setns", ctypes.c_int(fd), ctypes.c_int(flags))
    finally:
        if fd != namespace:
            os.close(fd)


@contextlib.contextmanager
def inside_network(namespace: int | str) -> Iterator[None]:
    """Move the calling thread into a network namespace, and back at the end.

    A socket opened inside stays in that network, whichever thread uses it later.
    """
    home = os.open(OWN_NETWORK, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(namespace, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)
