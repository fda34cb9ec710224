"""The host's default routes, and the interfaces that they depend on: what a guard would cut off.

Read by rtnetlink (RFC 3549, rtnetlink(7)), in all routing tables.
"""

import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

Family = Literal["-4", "-6"]
"""A version of IP, as an option of ip(8)."""

_HEADER: Final = struct.Struct("IHHII")  # struct nlmsghdr
_ATTRIBUTE: Final = struct.Struct("HH")
_HOP: Final = struct.Struct("HBBi")  # struct rtnexthop
_DUMP: Final = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_DONE: Final = 3
_GETLINK, _GETROUTE = 18, 26
_LINK_SIZE, _ROUTE_SIZE = 16, 12  # struct ifinfomsg, struct rtmsg
_NAME, _LINK, _MASTER, _LINKINFO, _PARENT_DEVICE = 3, 5, 10, 18, 56  # IFLA_...
_KIND: Final = 1  # IFLA_INFO_KIND
_OIF, _MULTIPATH = 4, 9  # RTA_...
_UNICAST: Final = 1
_NESTED: Final = 0x3FFF
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
    for body in _dump(_GETLINK, bytes(_LINK_SIZE)):
        (index,) = struct.unpack_from("i", body, 4)
        told = dict(_attributes(body[_LINK_SIZE:]))
        kind = dict(_attributes(told.get(_LINKINFO, b""))).get(_KIND, b"")
        kind_text, name = (os.fsdecode(octets.rstrip(b"\0")) for octets in (kind, told.get(_NAME, b"")))
        below, master = (int.from_bytes(told.get(each, b""), sys.byteorder) for each in (_LINK, _MASTER))
        yield LinkEntry(index, name, kind_text, below, master, _PARENT_DEVICE in told)


def _default_hops(family: int) -> Iterator[int]:
    """Yield the index of the interface of each default route."""
    for body in _dump(_GETROUTE, bytes([family]) + bytes(_ROUTE_SIZE - 1)):
        if body[1] or body[7] != _UNICAST:  # it has a destination, or is unreachable or the like
            continue
        for kind, value in _attributes(body[_ROUTE_SIZE:]):
            if kind == _OIF:
                yield int.from_bytes(value, sys.byteorder)
            while kind == _MULTIPATH and len(value) >= _HOP.size:
                size, _, _, index = _HOP.unpack_from(value)
                yield index
                value = value[max(size + 3 & ~3, _HOP.size) :]


def _attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    while len(octets) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(octets)
        yield kind & _NESTED, octets[_ATTRIBUTE.size : size]
        octets = octets[max(size + 3 & ~3, _ATTRIBUTE.size) :]


def _dump(kind: int, request: bytes) -> Iterator[bytes]:
    """Yield the body of each message that answers a request for all. Raises OSError."""
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as sock:
        sock.send(_HEADER.pack(_HEADER.size + len(request), kind, _DUMP, 1, 0) + request)
        while True:
            octets = sock.recv(1 << 20)
            while len(octets) >= _HEADER.size:
                size, answer, *_ = _HEADER.unpack_from(octets)
                if answer <= _DONE:  # the end, or an error
                    return
                yield octets[_HEADER.size : size]
                octets = octets[size + 3 & ~3 :]
