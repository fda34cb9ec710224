"""The interface between the sender and congestion control.

The sender tells each control what an acknowledgement delivered, which data was lost, and what is in flight.
The control answers with a window and a pacing rate. Only a control changes them.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Final

_SEGMENT: Final = 1460
"""Octets of a usual segment: ten of them are 14,600, the initial window of RFC 6928."""
UNLIMITED: Final = 1 << 30
"""A window or threshold, in octets, that limits nothing."""


class Sample:
    """The facts of one acknowledgement. Octets, seconds, and octets a second.

    now: arrival. delivered: newly acknowledged or SACKed. lost: newly considered lost. before: in flight
    before the acknowledgement; flight: FlightSize of RFC 5681 then; in_flight: in flight after it, lost data
    excluded. limited: the window, and not the user or the peer, has limited the sender in the last round
    trip. una, nxt: positions SND.UNA and SND.NXT after it; advanced: SND.UNA has moved. partial: it has,
    without SACK, in fast recovery, and not to its end (RFC 6582). rtt_s: of the data newly delivered that was
    sent last; None if only retransmissions were delivered.

    The rest is the rate sample (draft-cheng-iccrg-delivery-rate-estimation), for a control that `samples`:
    rate: delivery rate, 0.0 if unknown. interval_s: time over which it was taken. app_limited: the user had
    too little to send. total: octets delivered since the start; prior: the same when the delivered data was
    sent. tx_in_flight: in flight when that data was sent, itself included; lost_since: octets lost since.
    """

    __slots__ = (
        "advanced", "app_limited", "before", "delivered", "flight", "in_flight", "interval_s", "limited",
        "lost", "lost_since", "now", "nxt", "partial", "prior", "rate", "rtt_s", "total", "tx_in_flight",
        "una",
    )  # fmt: skip

    def __init__(self) -> None:
        self.now = self.rate = self.interval_s = 0.0
        self.rtt_s: float | None = None
        self.delivered = self.lost = self.before = self.flight = self.in_flight = self.una = self.nxt = 0
        self.total = self.prior = self.tx_in_flight = self.lost_since = 0
        self.limited = self.app_limited = self.advanced = self.partial = False


class Congestion(ABC):
    """One algorithm, for one connection.

    cwnd: octets that may be in flight. ssthresh: the slow start threshold, for information. smss: segment
    size. pacing_rate: octets a second; None: segments leave as soon as the window permits. quantum: octets
    that may leave at once at that rate. samples: whether it needs rate samples, and sent().
    """

    __slots__ = ("cwnd", "initial", "pacing_rate", "quantum", "samples", "smss", "ssthresh")

    name: ClassVar[str]

    def __init__(self, smss: int, initial_window: int) -> None:
        self.smss = smss
        self.initial = initial_window
        self.cwnd = self.initial_octets(smss)
        self.ssthresh = UNLIMITED
        self.pacing_rate: float | None = None
        self.quantum = UNLIMITED
        self.samples = False

    def begin(self, smss: int) -> None:
        """Use the segment size that the SYNs agreed on."""
        self.smss = smss
        self.cwnd = self.initial_octets(smss)

    def initial_octets(self, smss: int) -> int:
        """Return the initial window: fewer segments, and at least two, if they are large (RFC 6928)."""
        return min(self.initial * smss, max(2 * smss, self.initial * _SEGMENT))

    def opened(self, now: float, rtt_s: float | None) -> None:  # noqa: B027 - few controls need it
        """Start sending, after a handshake that took so long; None: unknown."""

    @abstractmethod
    def acked(self, sample: Sample) -> None:
        """Process an acknowledgement, in any phase."""

    @abstractmethod
    def lost(self, now: float, in_flight: int, flight: int) -> None:
        """Enter fast recovery. in_flight: without lost data. flight: FlightSize of RFC 5681."""

    @abstractmethod
    def recovered(self, now: float, in_flight: int) -> None:
        """Leave recovery: all data in flight at its start is acknowledged."""

    @abstractmethod
    def timed_out(self, now: float, in_flight: int, flight: int, *, again: bool) -> None:
        """Process a retransmission timeout. in_flight, flight: as in lost().

        again: of the same data as the last (RFC 5681 section 3.1).
        """

    @abstractmethod
    def undo(self) -> bool:
        """Revert the last reduction: nothing was lost. Return False if it was a mark's, which stays."""

    @abstractmethod
    def marked(self, sample: Sample) -> None:
        """Process the echo of a congestion mark, once a round trip (RFC 3168 section 6.1.2).

        sample: of the acknowledgement that brought it, which acked() has processed.
        """

    @abstractmethod
    def repaired(self, now: float, flight: int) -> None:
        """Process congestion that leaves nothing to repair: a loss that was repaired, or a marked SYN."""

    @abstractmethod
    def sent(self, now: float, octets: int, in_flight: int, *, app_limited: bool) -> None:
        """Record that octets leave. in_flight: before them.

        Called in recovery, and always for a control that `samples`.
        """

    def pace(self, srtt_s: float | None, sent: int) -> None:  # noqa: B027 - one that samples paces by itself
        """Set the pacing rate, for a user who wants one (Config.pacing). sent: octets so far."""

    def idle(self, times: int) -> None:
        """Halve the window for each RTO without sending, down to the initial one (RFC 2861 section 3.1)."""
        least = min(self.cwnd, self.initial_octets(self.smss))
        self.ssthresh = max(self.ssthresh, self.cwnd // 2 + self.cwnd // 4)  # so far it was good
        self.cwnd = max(self.cwnd >> min(times, 32), least)

    def syn_was_lost(self) -> None:
        """Begin with one segment (RFC 5681 section 3.1)."""
        self.cwnd = self.smss

    def resize(self, smss: int) -> None:
        """Use a smaller segment, after the path's MTU was learned."""
        self.smss = smss
