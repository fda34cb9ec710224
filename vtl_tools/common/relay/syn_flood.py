"""Telling a caller from a flood of SYNs, when half of the places for those who are not through yet are taken.

A caller asks again after a second, which a flood has no time to, unless it repeats itself. Then it answers a
SYN-ACK that acknowledges what it never sent by a reset (RFC 9293 section 3.10.7.3), which only who saw that
SYN-ACK can. It asks again then, most stacks at once. A guest's own packet filter may keep that from it.
"""

from enum import Enum
from hashlib import blake2b
from typing import Final

from vtl_tools.common.packet import derive
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.tcp.wire import Frame, Segment

_REMEMBERED_MAX: Final = 65536
_REMEMBERED_S: Final = 10.0
_AGAIN_S: Final = 0.8
"""Before the first second is over nobody asks again by himself (RFC 6298 section 2.1)."""
_CHALLENGES_PER_S: Final = 2000
"""Each costs as much as three frames of a flood that are dropped."""


class SynVerdict(Enum):
    """What becomes of a SYN."""

    PASS = "pass"  # noqa: S105 - not a password
    PROVE = "prove"
    DROP = "drop"


class SynFloodGuard:
    """Who asked, and who answered a challenge. secret: up to 64 octets that no guest knows."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._asked: dict[bytes, float] = {}
        self._proved: dict[bytes, float] = {}
        self._challenges = TokenBucket(_CHALLENGES_PER_S)

    def judge(self, flow: bytes, now: float, *, half_open: int, most: int) -> SynVerdict:
        """Say what becomes of a SYN. The last quarter of the places is for those who proved themselves."""
        if half_open < most // 2:
            return SynVerdict.PASS
        if half_open >= most:
            return SynVerdict.DROP
        if self._proved and now - self._proved.pop(flow, -_REMEMBERED_S) < _REMEMBERED_S:
            return SynVerdict.PASS
        since = now - self._asked.setdefault(flow, now)
        if since < _AGAIN_S:
            _bound(self._asked)
            return SynVerdict.DROP
        del self._asked[flow]
        if since >= _REMEMBERED_S:
            self._asked[flow] = now
            return SynVerdict.DROP
        if half_open < most * 3 // 4:
            return SynVerdict.PASS
        return SynVerdict.PROVE if self._challenges.take(now) else SynVerdict.DROP

    def challenge(self, frame: Frame, segment: Segment) -> bytes | None:
        """Return the frame that a caller answers by a reset."""
        answer = derive.syn_ack(Packet.at(frame), iss=0, window=0)
        if answer is None:
            return None
        header = Packet.at(answer).tcp
        assert header is not None
        header.ack = self._number(segment.flow)
        return bytes(answer)

    def on_reset(self, segment: Segment, now: float) -> None:
        """Take a reset that belongs to no connection."""
        if segment.seq == self._number(segment.flow):
            self._proved[segment.flow] = now
            _bound(self._proved)

    def _number(self, flow: bytes) -> int:
        return int.from_bytes(blake2b(flow, digest_size=4, key=self._secret, person=b"crowd").digest(), "big")


def _bound(table: dict[bytes, float]) -> None:
    """Forget the oldest where there are too many."""
    if len(table) > _REMEMBERED_MAX:
        del table[next(iter(table))]
