"""Interfaces of the host by name and index.

An index stays the same while an interface exists; names change.
"""

import socket
from pathlib import Path
from typing import Literal

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


def default_routes(name: str) -> list[Literal["-4", "-6"]]:
    """Return the IP versions, as options of ip(8), whose default route leads through an interface."""
    found: list[Literal["-4", "-6"]] = []
    for line in _lines("route"):
        if len(line) > 7 and line[0] == name and line[1] == line[7] == "00000000":
            found.append("-4")
            break
    for line in _lines("ipv6_route"):
        if len(line) > 9 and line[9] == name and line[0] == "0" * 32 and line[1] == "00":
            if int(line[8], 16) & 0x200:  # RTF_REJECT
                continue
            found.append("-6")
            break
    return found


def _lines(table: str) -> list[list[str]]:
    path = Path("/proc/thread-self/net", table)
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []
