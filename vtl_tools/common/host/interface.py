"""Interfaces of the host by name and index.

An index stays the same while an interface exists; names change.
"""

import socket

from vtl_tools.common.errors import DeviceError


def find(given: str) -> tuple[int, str]:
    """Return the index and the real name of an interface, given any of its names. Raises DeviceError."""
    try:
        index = socket.if_nametoindex(given)
        return index, socket.if_indextoname(index)
    except OSError:
        raise DeviceError(f"{given}: no such network interface; list them with 'ip link'") from None


def name_of(index: int) -> str | None:
    """Return the present name of an interface; None once it is gone."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return None


def index_of(given: str) -> int:
    """Return the index of an interface, given any of its names; 0 if there is none."""
    try:
        return find(given)[0]
    except DeviceError:
        return 0


def real(given: str) -> str:
    """Return the real name of an interface, or the given name if there is no such interface."""
    try:
        return find(given)[1]
    except DeviceError:
        return given


def is_real(name: str) -> bool:
    """Return whether this is the real name of an interface, and not an alternative one."""
    return name_of(index_of(name)) == name
