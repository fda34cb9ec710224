"""Limits of all connections together, and what is counted of them."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum


class LossReason(StrEnum):
    """Why acknowledged data was not delivered; the values are what --json prints."""

    RESET_BY_SENDER = "reset-by-sender"
    RESET_BY_RECEIVER = "reset-by-receiver"
    NO_ANSWER = "no-answer"  # the receiver acknowledged nothing for the time-out
    STOPPED = "stopped"  # this service ended


class SegmentFate(StrEnum):
    """Reasons why a segment goes no further, besides those of the model."""

    CHECKSUM = "checksum"
    MEMORY = "memory"  # its sender retransmits it, as it is not acknowledged
    REORDERED = "reordered"  # the same: too many gaps before it
    RESET = "reset"  # of a connection that was reset; it is answered by a reset
    NOT_ORDINARY = "not-ordinary"  # with VLAN tags, IP options or extension headers
    NO_ROOM = "no-room"  # the answer to a SYN, while the register is full


@dataclass(slots=True)
class AckBudget:
    """buffer: octets of one connection and direction. memory: octets of all.

    held: octets of memory that acknowledged data takes; held_max: the most that it took. acknowledged,
    delivered: octets of data since the start. lost: octets that were acknowledged and not delivered in the
    end; lost_connections: with such octets. retransmits: of the deputies of connections that ended.
    """

    buffer: int
    memory: int
    held: int = 0
    held_max: int = 0
    acknowledged: int = 0
    delivered: int = 0
    lost: int = 0
    lost_connections: int = 0
    retransmits: int = 0
    drops: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        """Octets that are left of the memory."""
        return max(0, self.memory - self.held)

    def recount(self, before: int, now: int) -> None:
        """Account for a connection that held `before` octets."""
        self.held += now - before
        self.held_max = max(self.held_max, self.held)
