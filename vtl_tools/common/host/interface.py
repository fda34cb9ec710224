"""Interfaces of the host by name and index.

An index stays the same while an interface exists; names change.
"""

import socket
import sys
from typing import Final

from vtl_tools.common.errors import DeviceError
from vtl_tools.common.host import netlink

_ADDRESS, _CARRIER_UP_COUNT = 1, 47  # IFLA_ADDRESS, IFLA_CARRIER_UP_COUNT
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
    found = _ask(index)
    if found is None:
        return ""
    kind, attributes = found
    is_tap = kind == _ETHERNET and _driver(attributes) == b"tun"
    opened = int.from_bytes(attributes.get(_CARRIER_UP_COUNT, b""), sys.byteorder) if is_tap else 0
    return f"interface {index} {opened}"


def mac_of(index: int) -> bytes:
    """Return the Ethernet address of an interface; b"" if there is no such interface."""
    found = _ask(index)
    return found[1].get(_ADDRESS, b"") if found else b""


def is_macvlan(index: int) -> bool:
    """Return whether an interface is a macvlan. In passthru mode, all its frames are of type PACKET_HOST."""
    found = _ask(index)
    return found is not None and _driver(found[1]) in (b"macvlan", b"macvtap")


def _driver(attributes: dict[int, bytes]) -> bytes:
    info = dict(netlink.attributes(attributes.get(netlink.LINKINFO, b"")))
    return info.get(netlink.INFO_KIND, b"").rstrip(b"\0")


def _ask(index: int) -> tuple[int, dict[int, bytes]] | None:
    """Return the hardware type and the attributes of an interface (rtnetlink(7)); None: it does not exist."""
    asked = netlink.LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    told = next(netlink.ask(netlink.GETLINK, asked), None)
    if told is None:
        return None
    _, kind, *_ = netlink.LINK.unpack_from(told)
    return kind, dict(netlink.attributes(told[netlink.LINK.size :]))
