"""What a peer's own retransmissions prove about how much of its data was acknowledged.

An acknowledgement by the VM may have passed unseen: before the service ran, or because it looks at a sample
only. What it acknowledged is then where its peer repeats itself, once nothing is answered: a retransmission
timer sends the earliest segment that is not acknowledged (RFC 6298 section 5.4), each time after twice as
long, and a probe or keep-alive is the octet before it (RFC 9293 sections 3.8.4 and 3.8.6.1). To take another
for that would cost octets, so a segment in the middle must not pass for one:

* a tail loss probe (RFC 8985 section 7) repeats the last segment once, and recovery repeats what is missing,
  a round trip after it was sent: three times, with pauses that grow, is neither;
* a copy that the network made has the timestamp of the first one; without timestamps, four times it must be;
* whatever comes from before begins anew.

Anybody can send the same segment three times in the name of a peer. So a proof is of one SEG.ACK, and that is
the number which answers bear: an attacker who does not know it makes the service send what the peer does not
take. A segment that contradicts a proof ends it, even when it is complete.
"""

from typing import Final

from vtl_tools.common.packet.seq import seq_add, seq_gt, seq_lt
from vtl_tools.services.freeze.headers import SegmentHeader

APART_S: Final = 0.15
"""What comes again sooner is a copy, or recovery: retransmission timers are 0.2 s at least, less a tick."""
PROBES_APART_S: Final = 0.9
"""The same for probes: keep-alives are a second apart at least, and nothing is so late twice."""
GROWS: Final = 1.4
"""A timer doubles its pause; the network may shorten it."""
LONGEST_S: Final = 45.0
"""Pauses that are as long as this need not grow any more: RFC 6298 (2.5) lets them stop at a minute."""
STAMPED: Final = 3
UNSTAMPED: Final = 4
"""How often the same must come, by different timestamps or without them."""
PATIENCE_S: Final = 250.0
"""When a candidate that did not come again is given up: two of Linux's longest pauses."""


class PeerEvidence:
    """What was seen of one peer since the VM is away. now: seconds.

    ack: SEG.ACK of all that counts. floor: what the VM was heard to have acknowledged itself, if at all.
    highest: behind all that the peer was seen to have sent. number: SND.UNA, once it is proven; heard: what
    was in its place before, by a connection's fields.
    """

    __slots__ = (
        "_below", "_count", "_empty", "_empty_at", "_empty_stamp", "_last", "_pause", "_seq", "_stamp",
        "ack", "asked", "floor", "heard", "highest", "number",
    )  # fmt: skip

    def __init__(self, ack: int = 0, floor: int | None = None, highest: int | None = None) -> None:
        self.ack, self.floor, self.highest = ack, floor, highest
        self.number: int | None = None
        self.heard: dict[str, int | None] = {}
        self._seq: int | None = None
        self._count, self._last, self._pause = 0, 0.0, 0.0
        self._stamp: int | None = None
        self._empty_stamp: int | None = None
        self._empty: int | None = None
        self._below, self._empty_at = 0, 0.0
        self.asked = False
        """Whether the peer was asked what it sends next, as its last empty segment may be a probe."""

    @property
    def is_under_way(self) -> bool:
        """Whether something came again as a timer sends it."""
        return self._count > 1 or self._below > 0

    def is_contradicted(self, segment: SegmentHeader) -> bool:
        """Whether a segment cannot be of a peer that has shown this."""
        if segment.ack != self.ack:
            return True
        return self.number is not None and segment.length > 0 and seq_lt(segment.seq, self.number)

    def take(self, segment: SegmentHeader, now: float) -> int | None:
        """Take a segment that contradicts nothing; return SND.UNA if that is proven."""
        end = seq_add(segment.seq, segment.length)
        if self.highest is None or seq_gt(end, self.highest):
            self.highest = end
        if segment.length:
            return self.data(segment.seq, segment.tsval, now)
        return self.empty(segment.seq, segment.tsval, self.highest, now)

    def data(self, seq: int, tsval: int | None, now: float) -> int | None:
        """Take a segment with data or a FIN; return SND.UNA if that is proven. tsval: None without stamps."""
        if self._empty is not None and not seq_gt(seq, self._empty):
            self._empty = None  # what comes again is not acknowledged, so no probe was before it
        first = self._seq
        if first is None or seq_lt(seq, first) or (seq != first and now - self._last > PATIENCE_S):
            self._seq, self._count, self._last, self._pause, self._stamp = seq, 1, now, 0.0, tsval
            return None
        pause = now - self._last
        if seq != first or pause < APART_S or (tsval is not None and tsval == self._stamp):
            return None
        if self._count == 1 or pause >= GROWS * self._pause or pause >= LONGEST_S:
            self._count += 1
        self._last, self._pause, self._stamp = now, pause, tsval
        return first if self._count >= (STAMPED if tsval is not None else UNSTAMPED) else None

    def empty(self, seq: int, tsval: int | None, highest: int | None, now: float) -> int | None:
        """Take a segment without data; return SND.UNA if that is proven.

        highest: behind all that the peer was seen to have sent. An ordinary acknowledgement is there; a probe
        is one before, as it is sent only where nothing is on its way. What is before that is late.
        """
        if highest is not None and seq_gt(highest, seq_add(seq, 1)):
            return None
        first = self._empty
        if first is None or seq_lt(seq, first) or (seq != first and now - self._empty_at > PATIENCE_S):
            self._empty, self._empty_at, self.asked = seq, now, False
            self._below, self._empty_stamp = 0, tsval
            return None
        copy = tsval is not None and tsval == self._empty_stamp
        if copy or seq != first or now - self._empty_at < PROBES_APART_S:
            return None
        self._empty_at, self._empty_stamp = now, tsval
        self._below += highest == seq_add(seq, 1)
        return seq_add(seq, 1) if self._below >= 2 else None
