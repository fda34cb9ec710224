"""Initial sequence numbers that off-path attackers cannot guess (RFC 6528), and timestamp offsets."""

from hashlib import blake2s
from typing import Final

from vtl_tools.common.packet.quick import u32

_hash: Final = blake2s
_TICK_S: Final = 4e-6  # RFC 9293 section 3.4.1: M is a timer of 4 microseconds
_MASK: Final = 0xFFFF_FFFF
_HALF: Final = 0x8000_0000
_APART: Final = 0x1_0001
"""Numbers between a connection and the one after it, for segments that were sent and never counted."""


def initial_numbers(secret: bytes, ends: bytes, now: float) -> tuple[int, int]:
    """Return ISN = M + F(localip, localport, remoteip, remoteport, secretkey), and a timestamp offset.

    ends: addresses and ports, as Framer has them. secret: octets that nobody else knows, the same for all
    connections. The offset is added to the timestamp clock, so that TSval does not reveal our uptime (RFC
    7323 section 5.4).
    """
    # A secret in front of the octets is a key to BLAKE2. As its `key` it would be a block more to hash, and
    # with keyword arguments the call takes twice as long.
    digest = _hash(secret + ends).digest()
    return (int(now / _TICK_S) + u32(digest, 0)) & _MASK, u32(digest, 4)


def number_after(iss: int, snd_nxt: int) -> int:
    """Return an ISN above all numbers of an earlier connection: iss, if that is (RFC 9293 section 3.6.1)."""
    return iss if (snd_nxt + _APART - iss) & _HALF else (snd_nxt + _APART) & _MASK
