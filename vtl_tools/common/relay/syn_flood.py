"""Tells a client's SYN from a SYN flood, once half of the half-open flows that the limit allows exist.

A client retransmits its SYN after a second; a flood seldom repeats one. A retransmitted SYN is challenged
when the table is three quarters full: the answer is a SYN-ACK that acknowledges a number which was never
sent. A client resets it (RFC 9293 section 3.10.7.3), which proves that it received the SYN-ACK, and sends its
SYN again, most stacks at once. A packet filter in the guest may prevent that reset.
"""

from collections.abc import Callable, Sequence
from enum import Enum
from hashlib import blake2b
from typing import Final

from vtl_tools.common.packet import derive
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.relay.budget import RelayBudget
from vtl_tools.common.tcp.wire import Frame, Pieces, Segment

_REMEMBERED_MAX: Final = 65536
_REMEMBERED_S: Final = 10.0
_RETRANSMITTED_S: Final = 0.8
"""A SYN that is repeated sooner is no retransmission, which takes a second (RFC 6298 section 2.1)."""
_CHALLENGES_PER_S: Final = 2000
"""A challenge costs as much as three dropped frames."""


class SynVerdict(Enum):
    """The verdict on a SYN."""

    ACCEPT = "accept"
    CHALLENGE = "challenge"
    DROP = "drop"


class SynFloodGuard:
    """Remembers SYNs, and answered challenges. secret: up to 64 octets that no guest knows. most: of each."""

    def __init__(self, secret: bytes, most: int = _REMEMBERED_MAX) -> None:
        self._secret, self._most = secret, most
        self._seen: dict[bytes, float] = {}
        self._proved: dict[bytes, float] = {}
        self._challenges = TokenBucket(_CHALLENGES_PER_S)

    def passes(
        self,
        segment: Segment,
        frame: Frame,
        budget: RelayBudget,
        send: Callable[[Sequence[Pieces], float], object],
        now: float,
    ) -> bool:
        """Tell whether a SYN is accepted; challenge its sender, if that is the verdict."""
        half_open, most = budget.half_open, budget.limits.half_open
        verdict = self.judge(segment.flow, now, half_open=half_open, most=most)
        if verdict is SynVerdict.CHALLENGE:
            challenge = self.challenge(frame, segment)
            if challenge is not None:
                send([(challenge,)], now)
        return verdict is SynVerdict.ACCEPT

    def judge(self, flow: bytes, now: float, *, half_open: int, most: int) -> SynVerdict:
        """Return the verdict on a SYN. The last quarter of the table is for those that passed a challenge."""
        if half_open < most // 2:
            return SynVerdict.ACCEPT
        if half_open >= most:
            return SynVerdict.DROP
        if self._proved and now - self._proved.pop(flow, -_REMEMBERED_S) < _REMEMBERED_S:
            return SynVerdict.ACCEPT
        since = now - self._seen.setdefault(flow, now)
        if since < _RETRANSMITTED_S:
            self._bound(self._seen)
            return SynVerdict.DROP
        del self._seen[flow]
        if since >= _REMEMBERED_S:
            self._seen[flow] = now
            return SynVerdict.DROP
        if half_open < most * 3 // 4:
            return SynVerdict.ACCEPT
        return SynVerdict.CHALLENGE if self._challenges.take(now) else SynVerdict.DROP

    def challenge(self, frame: Frame, segment: Segment) -> bytes | None:
        """Return a SYN-ACK that a client answers by a reset."""
        answer = derive.syn_ack(Packet.at(frame), iss=0, window=0)
        if answer is None:
            return None
        header = Packet.at(answer).tcp
        assert header is not None
        header.ack = self._number(segment.flow)
        return bytes(answer)

    def on_reset(self, segment: Segment, now: float) -> None:
        """Take a reset that belongs to no flow: it may answer a challenge."""
        if segment.seq == self._number(segment.flow):
            self._proved[segment.flow] = now
            self._bound(self._proved)

    def _number(self, flow: bytes) -> int:
        return int.from_bytes(blake2b(flow, digest_size=4, key=self._secret, person=b"crowd").digest(), "big")

    def _bound(self, table: dict[bytes, float]) -> None:
        """Evict the oldest entry of a full table."""
        if len(table) > self._most:
            del table[next(iter(table))]
