"""Initial sequence numbers that nobody off the path can guess (RFC 6528), and offsets of timestamps."""

import struct
from hashlib import blake2b
from typing import Final

from vtl_tools.common.tcp.wire import Path

_TICK_S: Final = 4e-6  # RFC 9293 section 3.4.1: M is a timer of 4 microseconds
_MASK: Final = 0xFFFF_FFFF


def initial_sequence_number(secret: bytes, path: Path, now: float) -> int:
    """Return ISN = M + F(localip, localport, remoteip, remoteport, secretkey).

    secret: up to 64 octets that nobody else knows, the same for as long as connections are made.
    """
    return (int(now / _TICK_S) + _keyed(secret, path, b"isn")) & _MASK


def timestamp_offset(secret: bytes, path: Path) -> int:
    """Return what to add to the clock, so that TSval tells nobody our uptime (RFC 7323 section 5.4)."""
    return _keyed(secret, path, b"timestamp")


def _keyed(secret: bytes, path: Path, purpose: bytes) -> int:
    ends = path.local + path.remote + struct.pack("!HH", path.local_port, path.remote_port)
    return int.from_bytes(blake2b(ends, digest_size=4, key=secret, person=purpose).digest(), "big")
