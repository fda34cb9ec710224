"""The bandwidth that a link to another daemon has left, by its own traffic (as Wren does). Sans-IO.

No packet is sent for it. While a link's round trip is that of an empty path, and nothing is lost, the path
carries what is sent: the available bandwidth is at least that. When the round trip grows by a queue, or
records are lost, what arrives is what the path can carry beside the traffic of others.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

_QUEUE_MS: Final = 2.0
_QUEUE_SHARE: Final = 0.25
"""A round trip that is longer than the shortest one by both of these together shows a queue."""
_LOSS: Final = 1.0
"""Percent of a second's records, whose loss shows a queue that is full: less may be the path's own."""
_LOOKS: Final = 5
"""Seconds of saturation whose highest rate counts: within one, TCP in the frames may pause."""
_MEMORY_S: Final = 600.0
_BUSY_MBIT: Final = 0.1


@dataclass
class Available:
    """An estimate for one link. mbit: None before there was traffic. is_least: there may be more."""

    mbit: float | None = None
    is_least: bool = True
    _at: float = 0.0
    _shortest_ms: float | None = None
    _shortest_at: float = 0.0
    _full: deque[float] = field(default_factory=lambda: deque(maxlen=_LOOKS))

    def note(self, sent_mbit: float, rtt_ms: float | None, loss_percent: float, now: float) -> None:
        """Take a second of traffic. loss_percent: of this second."""
        if rtt_ms is None:
            return
        if self._shortest_ms is None or rtt_ms < self._shortest_ms or now >= self._shortest_at + _MEMORY_S:
            self._shortest_ms, self._shortest_at = rtt_ms, now
        if now >= self._at + _MEMORY_S:
            self.mbit, self.is_least = None, True
        if sent_mbit < _BUSY_MBIT:
            self._full.clear()
            return
        arrived = sent_mbit * (1 - loss_percent / 100)
        if loss_percent >= _LOSS or rtt_ms > self._shortest_ms * (1 + _QUEUE_SHARE) + _QUEUE_MS:
            self._full.append(arrived)
            self.mbit, self.is_least, self._at = max(self._full), False, now
        elif self.mbit is None or arrived >= self.mbit:
            self._full.clear()
            self.mbit, self.is_least, self._at = arrived, True, now
