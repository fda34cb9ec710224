"""The DNS servers that the guest's queries go to, and its search list: those given, or the host's."""

import os
import socket
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from vtl_tools.common.guest_net.search_list import domain
from vtl_tools.services.split.destinations import DNS_PORT, SocketAddress

RESOLV_CONF: Final = Path("/etc/resolv.conf")
SERVERS_MAX: Final = 3
"""As many as the resolvers of most guests use (MAXNS, resolv.conf(5))."""
_OCTETS_MAX: Final = 1 << 16


class HostResolver:
    """Returns the address of a server by its number. given: of the user; none: of a file.

    The file is read again when it changes.
    """

    def __init__(self, given: Sequence[str] = (), path: Path = RESOLV_CONF) -> None:
        self._given, self._path = given, path
        self._version: tuple[int, int, int] | None = None
        self._servers: list[str] = []
        self.search: list[str] = []
        """The domains of the file, as it was read last."""
        self._look()

    @property
    def count(self) -> int:
        """How many servers there are now: SERVERS_MAX at most."""
        return len((self._given or self._servers)[:SERVERS_MAX])

    def __call__(self, number: int) -> SocketAddress | None:
        """Return the socket address of a server, counted from 0; None: there is none."""
        if not self._given:
            self._look()
        servers = self._given or self._servers
        return address_of(servers[number]) if number < len(servers) else None

    def _look(self) -> None:
        try:
            found = os.stat(self._path)  # noqa: PTH116 - a query costs this call
            version = found.st_ino, found.st_mtime_ns, found.st_size
            if version != self._version:
                with self._path.open(encoding="utf-8", errors="replace") as file:
                    self._servers, self.search = _read(file.read(_OCTETS_MAX))
                self._version = version
        except OSError:  # it is being replaced: what was read last holds
            pass


def _read(text: str) -> tuple[list[str], list[str]]:
    """Return the servers and the search list of a file (resolv.conf(5))."""
    servers: dict[str, None] = {}
    search: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2:
            continue
        if words[0] == "nameserver" and address_of(words[1]) is not None:
            servers[words[1]] = None
        elif words[0] in ("search", "domain"):  # the last such line counts
            search = [each for word in words[1:] if (each := _domain(word))]
    return list(servers), search


def _domain(text: str) -> str:
    try:
        return domain(text)
    except ValueError:
        return ""


def address_of(text: str) -> SocketAddress | None:
    """Return the socket address of a DNS server, such as 192.0.2.1 or fe80::1%eth0; None: it is none now."""
    host, _, scope = text.partition("%")
    try:
        if ip_address(host).version == 4:
            return None if scope else (host, DNS_PORT)
        index = 0 if not scope else int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
    except (ValueError, OSError):
        return None
    return host, DNS_PORT, 0, index
