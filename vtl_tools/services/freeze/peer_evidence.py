"""Derives the VM's acknowledgement from its peer's retransmissions.

An acknowledgement of the VM may have passed unseen: before the service ran, or because segments are sampled.
Its value is then the place where the peer retransmits once nothing is answered. A retransmission timer sends
the earliest segment that is not acknowledged (RFC 6298 section 5.4), each time after twice the time. A probe
or keep-alive is the octet before it (RFC 9293 sections 3.8.4 and 3.8.6.1). A wrong conclusion would lose
octets, so no other segment may be mistaken for it:

* a tail loss probe (RFC 8985 section 7) repeats the last segment once, and recovery repeats missing segments
  a round trip after they were sent: three repetitions with growing pauses are neither;
* a copy made by the network has the timestamp of the original; without timestamps, four repetitions are
  required;
* a segment with a lower number restarts the count.

An attacker can send the same segment three times in the name of a peer. So a proof holds for one SEG.ACK,
which the answers use as their number: if the attacker does not know it, the peer ignores the answers. A
segment that contradicts a proof ends it, even a complete one.
"""

from typing import Final

from vtl_tools.common.packet.seq import seq_add, seq_gt, seq_lt
from vtl_tools.services.freeze.headers import SegmentHeader

APART_S: Final = 0.15
"""Minimum pause of a retransmission timer: 0.2 s less a tick. A shorter one is a copy, or recovery."""
PROBES_APART_S: Final = 0.9
"""Minimum pause of probes: keep-alives are at least a second apart, and no delay occurs twice."""
GROWS: Final = 1.4
"""Minimum growth of a pause: a timer doubles it, but the network may shorten it."""
LONGEST_S: Final = 45.0
"""Length from which a pause need not grow: RFC 6298 (2.5) permits a maximum of one minute."""
STAMPED: Final = 3
UNSTAMPED: Final = 4
"""Required repetitions, with different timestamps and without timestamps."""
PATIENCE_S: Final = 250.0
"""Seconds after which a candidate without repetition is discarded: two of Linux's longest pauses. So long,
data that came once is not acknowledged either."""


class PeerEvidence:
    """Segments of one peer since the VM went away. now: seconds.

    ack: SEG.ACK of all segments that count. floor: the VM's own acknowledgement, if it was seen.
    highest: end of the data that the peer was seen to send. number: SND.UNA, once it is proven; heard: the
    earlier values, by a connection's fields.
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
        """Whether the peer was probed for SND.NXT, as its last empty segment may be a probe."""

    @property
    def is_under_way(self) -> bool:
        """Whether a segment was repeated as by a timer."""
        return self._count > 1 or self._below > 0

    def is_contradicted(self, segment: SegmentHeader) -> bool:
        """Return whether a segment cannot come from a peer with this evidence."""
        if segment.ack != self.ack:
            return True
        return self.number is not None and segment.length > 0 and seq_lt(segment.seq, self.number)

    def take(self, segment: SegmentHeader, now: float) -> int | None:
        """Add a segment that contradicts nothing. Return SND.UNA if it is proven."""
        end = seq_add(segment.seq, segment.length)
        if self.highest is None or seq_gt(end, self.highest):
            self.highest = end
        if segment.length:
            return self.data(segment.seq, segment.tsval, now)
        return self.empty(segment.seq, segment.tsval, self.highest, now)

    def data(self, seq: int, tsval: int | None, now: float) -> int | None:
        """Add a segment with data or a FIN. Return SND.UNA if it is proven.

        tsval: None without timestamps.
        """
        if self._empty is not None and not seq_gt(seq, self._empty):
            self._empty = None  # repeated data is not acknowledged, so no probe was before it
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
        """Add a segment without data. Return SND.UNA if it is proven.

        highest: end of the data that the peer was seen to send. An ordinary acknowledgement has this number.
        A probe has one less, as it is sent only if nothing is in flight. A lower number is late.
        """
        if highest is not None and seq_gt(highest, seq_add(seq, 1)):
            return None
        if self._seq is not None and not seq_lt(seq, self._seq) and now - self._last <= PATIENCE_S:
            return None  # this octet came as data, so it is not acknowledged: the peer probes a zero window
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
