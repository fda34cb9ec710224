"""Limits how many handshakes one source may begin: each costs us computation, and a stranger nothing."""

import socket
from typing import Final

from vtl_tools.common.rate_limit import KeyedBuckets, RateLimit

PER_S: Final = 20.0
BURST: Final = 100.0
_SOURCES_MAX: Final = 4096
_MAPPED: Final = bytes(10) + b"\xff\xff"


def source_of(host: str) -> bytes:
    """Return the addresses that one party can easily have: an IPv4 address, or a /64 of IPv6.

    A socket of both families shows IPv4 addresses within IPv6 ones (RFC 4291 section 2.5.5.2).
    """
    if ":" not in host:
        return socket.inet_aton(host)
    octets = socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return octets[12:] if octets.startswith(_MAPPED) else octets[:8]


class CallerLimit:
    """Handshakes by source. refused: those that were too many."""

    def __init__(self) -> None:
        self._limit = RateLimit(PER_S, BURST)
        self._buckets: KeyedBuckets[bytes] = KeyedBuckets(_SOURCES_MAX)
        self.refused = 0

    def admits(self, host: str, now: float) -> bool:
        """Return whether a host that has shown its address may begin a handshake."""
        if self._buckets.take(source_of(host), self._limit, now):
            return True
        self.refused += 1
        return False
