"""The host's default routes, and the interfaces that they depend on: what a guard would cut off.

Read by rtnetlink (RFC 3549, rtnetlink(7)), in all routing tables.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from vtl_tools.common.host import netlink

Family = Literal["-4", "-6"]
"""A version of IP, as an option of ip(8)."""

_HOP: Final = struct.Struct("=HBBi")  # struct rtnexthop
_ROUTE_SIZE: Final = 12  # struct rtmsg
_NAME, _LINK, _MASTER, _PARENT_DEVICE = 3, 5, 10, 56  # IFLA_...
_OIF, _MULTIPATH = 4, 9  # RTA_...
_UNICAST: Final = 1
_ABOVE: Final = ("vlan", "macvlan", "macvtap", "ipvlan")
"""Kinds of interfaces that send by the one that IFLA_LINK names. A veth names its peer so."""


class LinkEntry(NamedTuple):
    """An interface. number: its index; below, master: indices, or 0. is_card: it belongs to a device."""

    number: int
    name: str
    kind: str = ""
    below: int = 0
    master: int = 0
    is_card: bool = False


def default_routes(name: str) -> list[tuple[Family, str]]:
    """Return the default routes that depend on an interface: the version of IP, and the route's interface.

    Raises OSError.
    """
    links = list(_links())
    concerned = above(links, name)
    found: list[tuple[Family, str]] = []
    families: tuple[tuple[int, Family], ...] = ((socket.AF_INET, "-4"), (socket.AF_INET6, "-6"))
    for family, version in families:
        for index in _default_hops(family):
            if index in concerned and (version, concerned[index]) not in found:
                found.append((version, concerned[index]))
    return found


def above(links: Iterable[LinkEntry], name: str) -> dict[int, str]:
    """Return an interface and those that send by it, by index: VLANs, bonds, and the bridge of a card.

    A bridge commonly has several ports, of which the network's is the card; a VM's port is no way for it.
    """
    by_index = {link.number: link for link in links}
    found = {index: link.name for index, link in by_index.items() if link.name == name}
    waiting = list(found)
    while waiting:
        lower = by_index[waiting.pop()]
        for index, link in by_index.items():
            is_on_top = link.below == lower.number and link.kind in _ABOVE
            is_master = lower.master == index and (link.kind != "bridge" or lower.is_card)
            if (is_on_top or is_master) and index not in found:
                found[index] = link.name
                waiting.append(index)
    return found


def _links() -> Iterator[LinkEntry]:
    for body in netlink.ask(netlink.GETLINK, bytes(netlink.LINK.size), netlink.ALL):
        _, _, index, _, _ = netlink.LINK.unpack_from(body)
        told = dict(netlink.attributes(body[netlink.LINK.size :]))
        kind = dict(netlink.attributes(told.get(netlink.LINKINFO, b""))).get(netlink.INFO_KIND, b"")
        kind_text, name = (os.fsdecode(octets.rstrip(b"\0")) for octets in (kind, told.get(_NAME, b"")))
        below, master = (int.from_bytes(told.get(each, b""), sys.byteorder) for each in (_LINK, _MASTER))
        yield LinkEntry(index, name, kind_text, below, master, _PARENT_DEVICE in told)


def _default_hops(family: int) -> Iterator[int]:
    """Yield the index of the interface of each default route."""
    for body in netlink.ask(netlink.GETROUTE, bytes([family]) + bytes(_ROUTE_SIZE - 1), netlink.ALL):
        if body[1] or body[7] != _UNICAST:  # it has a destination, or is unreachable or the like
            continue
        for kind, value in netlink.attributes(body[_ROUTE_SIZE:]):
            if kind == _OIF:
                yield int.from_bytes(value, sys.byteorder)
            while kind == _MULTIPATH and len(value) >= _HOP.size:
                size, _, _, index = _HOP.unpack_from(value)
                yield index
                value = value[max((size + 3) & ~3, _HOP.size) :]
