"""Initial sequence numbers that off-path attackers cannot guess (RFC 6528), and timestamp offsets."""

import struct
from hashlib import blake2b
from typing import Final

from vtl_tools.common.tcp.wire import Path

_TICK_S: Final = 4e-6  # RFC 9293 section 3.4.1: M is a timer of 4 microseconds
_MASK: Final = 0xFFFF_FFFF
_PORTS: Final = struct.Struct("!HH")
_HALF: Final = 0x8000_0000
_APART: Final = 0x1_0001
"""Numbers between a connection and the one after it, for segments that were sent and never counted."""
_NUMBERS: Final = struct.Struct("!II")


def initial_numbers(secret: bytes, path: Path, now: float) -> tuple[int, int]:
    """Return ISN = M + F(localip, localport, remoteip, remoteport, secretkey), and a timestamp offset.

    secret: up to 64 octets that nobody else knows, the same for all connections. The offset is added to the
    timestamp clock, so that TSval does not reveal our uptime (RFC 7323 section 5.4).
    """
    _, _, local, remote, local_port, remote_port = path
    ends = local + remote + _PORTS.pack(local_port, remote_port)
    number, offset = _NUMBERS.unpack(blake2b(ends, digest_size=8, key=secret).digest())
    return (int(now / _TICK_S) + number) & _MASK, offset


def number_after(iss: int, snd_nxt: int) -> int:
    """Return an ISN above all numbers of an earlier connection: iss, if that is (RFC 9293 section 3.6.1)."""
    return iss if (snd_nxt + _APART - iss) & _HALF else (snd_nxt + _APART) & _MASK
