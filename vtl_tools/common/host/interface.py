"""Interfaces of the host by name and index.

An index stays the same while an interface exists; names change.
"""

import socket
import sys
from typing import Final

from vtl_tools.common.errors import DeviceError
from vtl_tools.common.host import netlink

_CARRIER_UP_COUNT: Final = 47  # IFLA_CARRIER_UP_COUNT
_ETHERNET: Final = 1  # ARPHRD_ETHER


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


def occupant(index: int) -> str:
    """Return a text that changes once the host has put another VM behind an interface; "": there is none.

    An interface that is created again has another index. A tap also has another occupant when a program opens
    it: its carrier comes up then, and goes only with the program that had it open. No guest has a part in it.
    Every other carrier may be the guest's: root in a container takes that of its veth down and up.
    """
    told = next(netlink.ask(netlink.GETLINK, netlink.LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)), None)
    if told is None:
        return ""
    _, kind, *_ = netlink.LINK.unpack_from(told)
    attributes = dict(netlink.attributes(told[netlink.LINK.size :]))
    info = dict(netlink.attributes(attributes.get(netlink.LINKINFO, b"")))
    is_tap = kind == _ETHERNET and info.get(netlink.INFO_KIND, b"").rstrip(b"\0") == b"tun"
    opened = int.from_bytes(attributes.get(_CARRIER_UP_COUNT, b""), sys.byteorder) if is_tap else 0
    return f"interface {index} {opened}"
