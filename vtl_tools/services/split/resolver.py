"""The DNS server that the guest's queries go to: the one given, or the first of the host's resolv.conf."""

import os
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from vtl_tools.services.split.destinations import DNS_PORT, SocketAddress

RESOLV_CONF: Final = Path("/etc/resolv.conf")
_OCTETS_MAX: Final = 1 << 16


class HostResolver:
    """Returns the address of the server. given: of the user; None: of a file, read again when it changes."""

    def __init__(self, given: str | None = None, path: Path = RESOLV_CONF) -> None:
        self._given, self._path = given, path
        self._version: tuple[int, int, int] | None = None
        self._address: SocketAddress | None = None

    def __call__(self) -> SocketAddress | None:
        """Return the socket address of the server; None: there is none."""
        if self._given is not None:
            return address_of(self._given)
        try:
            found = os.stat(self._path)  # noqa: PTH116 - a query costs this call
            version = found.st_ino, found.st_mtime_ns, found.st_size
            if version != self._version:
                with self._path.open(encoding="utf-8", errors="replace") as file:
                    self._address = _first(file.read(_OCTETS_MAX))
                self._version = version
        except OSError:  # it is being replaced: what was read last holds
            pass
        return self._address


def _first(text: str) -> SocketAddress | None:
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0] == "nameserver" and (address := address_of(words[1])) is not None:
            return address
    return None


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
