"""Which connections may share a way through Tor: it tells them apart by user and password."""

import os
from enum import StrEnum

from vtl_tools.common.socks import Credentials


class IsolationMode(StrEnum):
    """What shares no circuit."""

    NONE = "none"
    GUEST = "guest"
    DEST = "dest"
    PORT = "port"
    CONN = "conn"


class Isolation:
    """Makes credentials. Those of another process, or of before renew(), are never the same.

    Tor's IsolateSOCKSAuth, which is its default, goes by them. With Apart.NONE there are none before renew(),
    so that proxies which take none are served as well.
    """

    def __init__(self, apart: IsolationMode) -> None:
        self.apart = apart
        self.identity = 0
        self._salt = os.urandom(8).hex().encode()
        self._connections = 0

    def renew(self) -> int:
        """Have what is opened from now on share nothing with what was; return how often that was asked."""
        self.identity += 1
        return self.identity

    def credentials(self, guest: bytes, dest: bytes, port: int) -> Credentials | None:
        """Return what to tell the proxy. guest, dest: whatever octets tell them apart."""
        password = b"%d" % self.identity
        if self.apart is IsolationMode.NONE:
            return Credentials(b"vtl", password) if self.identity else None
        self._connections += 1
        within = {
            IsolationMode.GUEST: b"",
            IsolationMode.DEST: dest.hex().encode(),
            IsolationMode.PORT: b"%d" % port,
            IsolationMode.CONN: b"%d" % self._connections,
        }[self.apart]
        return Credentials(b"-".join((b"vtl", self._salt, guest.hex().encode(), within[:64])), password)
