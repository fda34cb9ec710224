"""Isolation: which connections may share a circuit of Tor. Tor tells them apart by user and password."""

import os
from enum import StrEnum

from vtl_tools.common.socks import Credentials


class IsolationMode(StrEnum):
    """The connections that share no circuit: those of different guests, destinations, ports, or any two."""

    NONE = "none"
    GUEST = "guest"
    DEST = "dest"
    PORT = "port"
    CONN = "conn"


class Isolation:
    """Makes SOCKS credentials. They differ between processes, and change with renew().

    Tor's IsolateSOCKSAuth, which is on by default, isolates by them. With IsolationMode.NONE there are no
    credentials before renew(), so that the service also works with proxies that take none.
    """

    def __init__(self, mode: IsolationMode) -> None:
        self.mode = mode
        self.identity = 0
        self._salt = os.urandom(8).hex().encode()
        self._connections = 0

    def renew(self) -> int:
        """Isolate connections from now on from all earlier ones; return how often this was asked for."""
        self.identity += 1
        return self.identity

    def credentials(self, guest: bytes, dest: bytes, port: int) -> Credentials | None:
        """Return the credentials of a connection. guest, dest: octets that identify them."""
        password = b"%d" % self.identity
        if self.mode is IsolationMode.NONE:
            return Credentials(b"vtl", password) if self.identity else None
        self._connections += 1
        within = {
            IsolationMode.GUEST: b"",
            IsolationMode.DEST: dest.hex().encode(),
            IsolationMode.PORT: b"%d" % port,
            IsolationMode.CONN: b"%d" % self._connections,
        }[self.mode]
        return Credentials(b"-".join((b"vtl", self._salt, guest.hex().encode(), within[:64])), password)
