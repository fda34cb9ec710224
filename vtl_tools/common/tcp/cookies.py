"""The cookies of TCP fast open (RFC 7413), which a server gives and a client remembers."""

from collections import OrderedDict, deque
from hashlib import blake2b
from hmac import compare_digest
from typing import Final, final

from vtl_tools.common.tcp.wire import Path

_COOKIE_OCTETS: Final = 8
_RESET_S: Final = 60.0
"""Time for which a connection that was reset counts as pending (section 5.1), as in Linux."""
_BLOCKED_S: Final = 3600.0
"""Time without fast open to a port after a negative response (section 4.1.3.1)."""
_NONE: Final = b""


@final
class Remembered:
    """The cookie of a server, and the MSS that it offered."""

    __slots__ = ("cookie", "mss")

    def __init__(self, cookie: bytes, mss: int) -> None:
        self.cookie, self.mss = cookie, mss


_UNKNOWN: Final = Remembered(_NONE, 0)


@final
class FastOpen:
    """The cookies of one machine, as a server and as a client, and its limits: one for all connections.

    secret: up to 64 octets that nobody else knows, the same for all connections. pending_max: connections
    that were opened early and whose handshake is not complete, at most; more are opened as usual (section
    4.2). remembered_max: servers that a client remembers, those that were asked last.
    """

    __slots__ = (
        "_blocked",
        "_former",
        "_pending_max",
        "_remembered",
        "_remembered_max",
        "_resets",
        "_secret",
        "pending",
    )

    def __init__(self, secret: bytes, *, pending_max: int = 256, remembered_max: int = 1024) -> None:
        self._secret, self._former = secret, secret
        self._pending_max, self._remembered_max = pending_max, remembered_max
        self._remembered: OrderedDict[tuple[bytes, bytes], Remembered] = OrderedDict()
        self._blocked: OrderedDict[tuple[bytes, bytes, int], float] = OrderedDict()
        self._resets: deque[float] = deque()
        self.pending = 0

    # --- a server

    def rotate(self, secret: bytes) -> None:
        """Give cookies by another secret. Cookies by the former secret are valid until the next rotation."""
        self._secret, self._former = secret, self._secret

    def cookie(self, path: Path) -> bytes:
        """Return the cookie of a client, which is of its address and ours (section 4.1.2)."""
        return _cookie(self._secret, path)

    def knows(self, path: Path, cookie: bytes) -> bool:
        """Return whether a cookie is one that we gave to this client."""
        return compare_digest(cookie, self.cookie(path)) or compare_digest(
            cookie, _cookie(self._former, path)
        )

    def admit(self, now: float) -> bool:
        """Count one more pending connection. Return False if there are too many."""
        resets = self._resets
        while resets and resets[0] <= now:
            resets.popleft()
        if self.pending + len(resets) >= self._pending_max:
            return False
        self.pending += 1
        return True

    def was_reset(self, now: float) -> None:
        """Count a reset connection as pending for some time: its SYN's source may be forged (section 5.1)."""
        if len(self._resets) < self._pending_max:
            self._resets.append(now + _RESET_S)

    # --- a client

    def offer(self, path: Path, now: float) -> Remembered | None:
        """Return what is known of a server, an empty cookie if there is none yet; None: no fast open."""
        port = path.local, path.remote, path.remote_port
        until = self._blocked.get(port)
        if until is not None:
            if now < until:
                return None
            del self._blocked[port]
        known = self._remembered.get(port[:2])
        if known is None:
            return _UNKNOWN
        self._remembered.move_to_end(port[:2])
        return known

    def learn(self, path: Path, cookie: bytes, mss: int) -> None:
        """Remember a server's cookie, and the MSS that it offered (section 4.1.3)."""
        ends = path.local, path.remote
        self._remembered[ends] = Remembered(cookie, mss)
        self._remembered.move_to_end(ends)
        if len(self._remembered) > self._remembered_max:
            self._remembered.popitem(last=False)

    def block(self, path: Path, now: float) -> None:
        """Open as usual for some time: the server does not take such SYNs, or the path drops them."""
        self._blocked[path.local, path.remote, path.remote_port] = now + _BLOCKED_S
        if len(self._blocked) > self._remembered_max:
            self._blocked.popitem(last=False)


def _cookie(secret: bytes, path: Path) -> bytes:
    return blake2b(
        path.remote + path.local, digest_size=_COOKIE_OCTETS, key=secret, person=b"cookie"
    ).digest()
