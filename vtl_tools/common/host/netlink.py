"""Questions to the kernel about interfaces and routes, and the attributes in its answers (rtnetlink(7))."""

import socket
import struct
from collections.abc import Iterator
from typing import Final

GETLINK: Final = 18  # RTM_GETLINK
GETROUTE: Final = 26  # RTM_GETROUTE
ALL: Final = 0x300  # NLM_F_DUMP
LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg: family, hardware type, index, flags, change
LINKINFO: Final = 18  # IFLA_LINKINFO
INFO_KIND: Final = 1  # IFLA_INFO_KIND

_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct rtattr
_TYPE: Final = 0x3FFF  # NLA_TYPE_MASK
_REQUEST: Final = 1  # NLM_F_REQUEST
_MULTI: Final = 2  # NLM_F_MULTI
_DONE: Final = 3  # NLMSG_DONE; lesser types are errors
_MOST: Final = 1 << 20


def ask(kind: int, body: bytes, flags: int = 0) -> Iterator[bytes]:
    """Yield the body of each message that answers a question; none if there is no such object.

    flags: ALL for all objects of the kind. Raises OSError.
    """
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as sock:
        sock.send(_HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, 1, 0) + body)
        while True:
            octets = sock.recv(_MOST, 0 if flags & ALL else socket.MSG_DONTWAIT)  # answered within send()
            while len(octets) >= _HEADER.size:
                size, answer, how, _, _ = _HEADER.unpack_from(octets)
                if answer <= _DONE:
                    return
                yield octets[_HEADER.size : size]
                if not how & _MULTI:
                    return
                octets = octets[_aligned(size) :]


def attributes(octets: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield attributes by type."""
    while len(octets) >= _ATTRIBUTE.size:
        size, kind = _ATTRIBUTE.unpack_from(octets)
        yield kind & _TYPE, octets[_ATTRIBUTE.size : size]
        octets = octets[max(_aligned(size), _ATTRIBUTE.size) :]


def _aligned(size: int) -> int:
    return (size + 3) & ~3
