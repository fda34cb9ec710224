"""State machine of a peer on the direct link: candidate, probing, up, holding.

A peer is one Ethernet address that is claimed for a VM. Before the service sends packets to it, the peer has
answered several probes in a row, and confirmed that it accepts ours: both directions were tested.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

NONCES_MAX: Final = 8
"""Maximum outstanding probes to one peer."""


class PeerState(Enum):
    """State of the direct path to a peer."""

    CANDIDATE = "candidate"  # known, but not needed
    PROBING = "probing"  # being tested
    UP = "up"  # in use
    HOLDING = "holding"  # lost or not found; not probed for a while


class Discovery(Enum):
    """How a peer was found."""

    ANNOUNCED = "announced"  # by an announcement
    GIVEN = "given"  # by the user
    HEARD = "heard"  # by its ARP, neighbour discovery or packets


@dataclass(frozen=True)
class Timing:
    """Times in seconds."""

    probe_s: float = 0.2
    """Interval of probes."""
    replies: int = 3
    """Replies in a row before the path is used."""
    lost_s: float = 0.7
    """Time after the last reply at which the path is lost, if `unanswered` probes were sent since."""
    unanswered: int = 3
    setup_s: float = 2.0
    """Maximum duration of probing."""
    hold_s: float = 0.5
    """Time without probes after a loss; doubled each time, up to hold_max_s."""
    hold_max_s: float = 30.0
    stable_s: float = 30.0
    """A path that was up so long is stable: after a loss the hold time is hold_s again."""
    wanted_s: float = 30.0
    """Time that a path is kept after the last packet to it."""
    verified_s: float = 5.0
    """Time after a reply during which the peer's packets are accepted, as it may still use the path."""
    announce_s: float = 5.0
    silent_s: float = 16.0
    """Time after which an announced peer that is silent is removed."""
    heard_s: float = 300.0
    """The same for a peer found by ARP, which need not send often."""


@dataclass(eq=False)
class Shortcut:
    """The direct path to one address of a peer."""

    address: bytes
    peer: "Peer"
    gateway: bytes | None = None
    """The Ethernet address by which our VM reaches the address on the default link, once known."""
    asked: bool = False
    """Whether our VM itself sent to that Ethernet address."""
    reported: PeerState = PeerState.CANDIDATE
    """The state last reported."""
    tx_frames: int = 0
    tx_octets: int = 0
    rx_frames: int = 0
    rx_octets: int = 0

    @property
    def state(self) -> PeerState:
        """The peer's state; a candidate if the peer is up but accepts nothing for this address."""
        peer = self.peer
        if not peer.is_up or (
            self.address in peer.current and any(len(octets) == len(self.address) for octets in peer.takes)
        ):
            return peer.state
        return PeerState.CANDIDATE

    @property
    def spared(self) -> tuple[int, int]:
        """Frames and octets that the default link was spared."""
        return self.tx_frames + self.rx_frames, self.tx_octets + self.rx_octets


@dataclass(eq=False)
class Peer:
    """One Ethernet address on the direct link. Its times are on the clock of `now`.

    address: the probed IP address of a peer without a process; None: a process answers for all its addresses.
    """

    mac: bytes
    found: Discovery
    timing: Timing
    changed: "Callable[[Peer, str], object]"
    """Called with the reason after each change of state, or of the accepted addresses."""
    heard: float
    address: bytes | None = None
    mtu: int = 65535
    addresses: set[bytes] = None  # type: ignore[assignment] # made in __post_init__
    """Addresses whose shortcuts lead to this peer."""
    state: PeerState = PeerState.CANDIDATE
    since: float = 0.0
    rtt_s: float = 0.0
    losses: int = 0
    takes: frozenset[bytes] = frozenset()
    """Our addresses from which the peer accepts packets, by its last reply."""
    current: frozenset[bytes] = frozenset()
    """The peer's addresses, by its last reply."""
    verified_until: float = -1.0
    their_nonce: bytes | None = None
    """Nonce of the peer's last probe. A message that contains it comes from the host that was probed."""

    def __post_init__(self) -> None:
        self.addresses = set()
        self.since = self.heard
        self._wanted_until = self._next_probe = self._hold_until = self._replied = self.heard
        self._streak = self._unanswered = 0
        self._flap_s = self._retry_s = 0.0
        self._is_flap = False
        self._nonces: OrderedDict[bytes, tuple[float, bool, tuple[bytes, ...]] | None] = OrderedDict()
        """By nonce of our probes: the time, whether it had the full packet size, and which of our addresses
        it contained; None: it is answered."""

    @property
    def is_up(self) -> bool:
        """Whether packets are sent to the peer."""
        return self.state is PeerState.UP

    def is_idle(self, now: float) -> bool:
        """Return whether the peer is unused, so that it may be evicted."""
        return (
            self.state is PeerState.CANDIDATE
            and self.found is not Discovery.GIVEN
            and now >= self.verified_until
        )

    def is_mute(self) -> bool:
        """Return whether the peer has not answered probes for a while."""
        return self._unanswered > 2 * self.timing.unanswered

    def is_gone(self, now: float) -> bool:
        """Return whether the peer was silent for so long that it is removed."""
        if self.found is Discovery.GIVEN or self.state in (PeerState.UP, PeerState.PROBING):
            return False
        return now - self.heard > (self.timing.heard_s if self.address else self.timing.silent_s)

    def is_verified(self, now: float) -> bool:
        """Return whether the peer answered our probe lately."""
        return now < self.verified_until

    # --- events

    def note_demand(self, now: float) -> None:
        """Note that the VM has a packet for the peer."""
        self._wanted_until = now + self.timing.wanted_s
        if self.state is PeerState.CANDIDATE:
            self._try(now, "wanted")

    def note_alive(self, now: float) -> None:
        """Note an unsolicited message of the peer: if it had only not answered, probing may start again."""
        self.heard = now
        if self.state is PeerState.HOLDING and not self._is_flap:
            self._hold_until = min(self._hold_until, now)

    def probed(self, nonce: bytes, ours: tuple[bytes, ...], now: float) -> None:
        """Note that a probe was sent to the peer, in the name of these addresses."""
        if self._unanswered >= 2:
            self._streak = 0
        self._unanswered += 1
        self._next_probe = now + self.timing.probe_s
        self._nonces[nonce] = now, self.state is PeerState.PROBING, ours
        if len(self._nonces) > NONCES_MAX:
            self._nonces.popitem(last=False)

    def postpone_probe(self, now: float) -> None:
        """Note that no probe could be sent to the peer."""
        self._next_probe = now + self.timing.probe_s

    def knows(self, nonce: bytes) -> bool:
        """Return whether this is the nonce of a probe sent to the peer lately."""
        return nonce in self._nonces

    def awaits(self, nonce: bytes) -> bool:
        """Return whether this is the nonce of an unanswered probe."""
        return self._nonces.get(nonce) is not None

    def set_mtu(self, mtu: int) -> None:
        """Set the peer's MTU. A larger one than before is probed first."""
        if mtu > self.mtu:
            if self.is_up:
                return
            self._streak = 0
        self.mtu = mtu

    def replied(self, nonce: bytes, accepts: int, current: frozenset[bytes], now: float) -> bool:
        """Process a reply. Return whether it belongs to a probe.

        accepts: bit i stands for address i of the probe.
        """
        sent = self._nonces.get(nonce)
        if sent is None:
            return False
        self._nonces[nonce] = None
        at, is_large, ours = sent
        took = now - at
        self.rtt_s = took if not self.rtt_s else self.rtt_s + (took - self.rtt_s) / 8
        self.heard = self._replied = now
        self._unanswered = 0
        self._retry_s = 0.0
        before = self.takes, self.current, self.is_verified(now)
        self.takes = frozenset(octets for i, octets in enumerate(ours) if accepts >> i & 1)
        self.current = current
        self.verified_until = now + self.timing.verified_s
        is_good = bool(self.takes and self.addresses & current)
        self._streak = self._streak + is_large if is_good else 0
        if self.state is PeerState.PROBING and self._streak >= self.timing.replies:
            self._become(PeerState.UP, "answered", now)
        elif self.is_up and not is_good:
            self.mark_lost("refused", now)
        elif (self.takes, self.current, True) != before:
            self.changed(self, "answered")
        return True

    def mark_lost(self, why: str, now: float) -> None:
        """Stop using the path at once, and do not probe for a while."""
        if not self.is_up:
            return
        self.losses += 1
        stable = now - self.since >= self.timing.stable_s
        self._flap_s = self._longer(0.0 if stable else self._flap_s)
        self._is_flap = True
        self._hold_until = now + self._flap_s
        self._become(PeerState.HOLDING, why, now)

    # --- time

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        if self.state is PeerState.CANDIDATE:
            return None
        if self.state is PeerState.HOLDING:
            return self._hold_until
        due = min(self._next_probe, self._wanted_until)
        if self.state is PeerState.PROBING:
            return min(due, self.since + self.timing.setup_s)
        return min(due, self._lost_at)

    @property
    def _lost_at(self) -> float:
        """Return when the path is lost. Not if this process was delayed and sent no probes."""
        return self._replied + self.timing.lost_s if self._unanswered >= self.timing.unanswered else 1e300

    def wake(self, now: float) -> bool:
        """Process timers. Return whether to send a probe. An early call is harmless."""
        if self.state is PeerState.HOLDING and now >= self._hold_until:
            self._is_flap = False
            if now < self._wanted_until:
                self._try(now, "again")
            else:
                self._become(PeerState.CANDIDATE, "idle", now)
        elif self.state in (PeerState.UP, PeerState.PROBING) and now >= self._wanted_until:
            self._become(PeerState.CANDIDATE, "idle", now)
        elif self.is_up and now >= self._lost_at:
            self.mark_lost("silent", now)
        elif self.state is PeerState.PROBING and now >= self.since + self.timing.setup_s:
            self._retry_s = self._longer(self._retry_s)
            self._hold_until = now + self._retry_s
            self._become(PeerState.HOLDING, "refused" if self.is_verified(now) else "unanswered", now)
        return self.state in (PeerState.UP, PeerState.PROBING) and now >= self._next_probe

    def may_probe(self, now: float) -> bool:
        """Return whether enough time passed since our last probe to send one in response to the peer's."""
        return now >= self._next_probe

    def _try(self, now: float, why: str) -> None:
        self._streak = self._unanswered = 0
        self._next_probe = now
        self._become(PeerState.PROBING, why, now)

    def _longer(self, hold_s: float) -> float:
        return min(2 * hold_s, self.timing.hold_max_s) or self.timing.hold_s

    def _become(self, state: PeerState, why: str, now: float) -> None:
        self.state, self.since = state, now
        self.changed(self, why)
