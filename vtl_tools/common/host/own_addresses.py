"""The addresses that are the host's own at this moment, as its routing tables have it (rtnetlink(7))."""

import select
import socket
import struct
from contextlib import suppress
from typing import Final

from vtl_tools.common.host import netlink

_ROUTE: Final = struct.Struct("=8BI")  # struct rtmsg
_DST: Final = struct.Struct("=HH")  # struct rtattr
_RTA_DST: Final = 1
_TYPE_AT: Final = 7
_ELSEWHERE: Final = (1, 6, 7, 8)
"""RTN_UNICAST, _BLACKHOLE, _UNREACHABLE, _PROHIBIT: such a packet is not received by the host itself."""
_CHANGES: Final = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400  # RTMGRP_: links; addresses, routes, rules of IPv4
_CHANGES6: Final = _CHANGES | 0x40000  # RTMGRP_IPV6_RULE (1 << RTNLGRP_IPV6_RULE - 1)
_KNOWN_MAX: Final = 4096
_RECEIVE_OCTETS: Final = 1 << 16


class OwnAddresses:
    """Tells own addresses from others. Answers are remembered until the kernel tells of any change."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._changes = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._changes.bind((0, _CHANGES6))
        self._news = select.poll()  # a receive in vain would raise, at twice the cost, for each connection
        self._news.register(self._changes, select.POLLIN)
        self._known: dict[bytes, bool] = {}
        self._version = 0

    def __contains__(self, octets: object) -> bool:
        """Return whether the host itself receives what it sends to an IP address.

        It does for the addresses of its interfaces, and for local, broadcast, multicast and anycast routes.
        Raises OSError if the kernel cannot be asked.
        """
        assert isinstance(octets, bytes)
        self.version  # noqa: B018 - forgets what may have changed
        known = self._known.get(octets)
        if known is None:
            known = _is_own(octets)
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[octets] = known
        return known

    @property
    def version(self) -> int:
        """A number that grows with each change of addresses, routes or interfaces."""
        while self._news.poll(0):
            with suppress(OSError):  # ENOBUFS: notifications were lost
                self._changes.recv(_RECEIVE_OCTETS)
            self._version += 1
            self._known.clear()
        return self._version

    def close(self) -> None:
        """Close the descriptor."""
        self._changes.close()


def _is_own(octets: bytes) -> bool:
    family = socket.AF_INET if len(octets) == 4 else socket.AF_INET6
    body = _ROUTE.pack(family, len(octets) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += _DST.pack(_DST.size + len(octets), _RTA_DST) + octets
    return any(answer[_TYPE_AT] not in _ELSEWHERE for answer in netlink.ask(netlink.GETROUTE, body))
