"""A peer on the direct link, and whether the way to it holds: candidate, probing, up, holding.

A peer is one Ethernet address that is said to be a VM's. Before a packet goes to it, the peer has answered
several probes in a row, and said that it takes what comes from us: so the way was tried in both directions.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

NONCES_MAX: Final = 8
"""Probes to one peer whose answers still count."""


class PeerState(Enum):
    """What is known of the way to a peer."""

    CANDIDATE = "candidate"  # nobody has asked for it
    PROBING = "probing"  # it is being tried
    UP = "up"  # it is used
    HOLDING = "holding"  # it was lost or not found; it is left alone for a while


class Discovery(Enum):
    """How a peer was found."""

    ANNOUNCED = "announced"  # a process says it is there
    GIVEN = "given"  # the user does
    HEARD = "heard"  # its own ARP, neighbour discovery or packets do


@dataclass(frozen=True)
class Timing:
    """Times in seconds."""

    probe_s: float = 0.2
    """Between two probes."""
    replies: int = 3
    """In a row, before the way is used."""
    lost_s: float = 0.7
    """After the last reply, when `unanswered` probes were sent since, the way is lost."""
    unanswered: int = 3
    setup_s: float = 2.0
    """How long it is tried at a time."""
    hold_s: float = 0.5
    """How long it is left alone after a loss; twice as long each time, up to hold_max_s."""
    hold_max_s: float = 30.0
    stable_s: float = 30.0
    """A way that held so long is not one that comes and goes."""
    wanted_s: float = 30.0
    """How long a way is kept after the last packet for it."""
    verified_s: float = 5.0
    """How long after a reply we take packets from the peer, as it may still use the way back."""
    announce_s: float = 5.0
    silent_s: float = 16.0
    """After this time a peer that announces itself has gone."""
    heard_s: float = 300.0
    """The same for one whose ARP was heard, which need not speak often."""


@dataclass(eq=False)
class Shortcut:
    """The short way to one address of a peer."""

    address: bytes
    peer: "Peer"
    gateway: bytes | None = None
    """The Ethernet address by which our VM reaches the address the long way, once known."""
    asked: bool = False
    """Whether that is the one that our VM itself sent to."""
    told: PeerState = PeerState.CANDIDATE
    """What was told of it last."""
    tx_frames: int = 0
    tx_octets: int = 0
    rx_frames: int = 0
    rx_octets: int = 0

    @property
    def state(self) -> PeerState:
        """The peer's; a candidate only while the peer is up and takes nothing for this address."""
        peer = self.peer
        if not peer.is_up or (
            self.address in peer.current and any(len(octets) == len(self.address) for octets in peer.takes)
        ):
            return peer.state
        return PeerState.CANDIDATE

    @property
    def spared(self) -> tuple[int, int]:
        """Frames and octets that the long way was spared."""
        return self.tx_frames + self.rx_frames, self.tx_octets + self.rx_octets


@dataclass(eq=False)
class Peer:
    """One Ethernet address on the direct link. Its times are on the clock of `now`.

    address: the one that is probed, of a peer without a process; None: a process answers for all.
    """

    mac: bytes
    found: Discovery
    timing: Timing
    changed: "Callable[[Peer, str], object]"
    """Called after each change of its state, or of what it takes, with why."""
    heard: float
    address: bytes | None = None
    mtu: int = 65535
    addresses: set[bytes] = None  # type: ignore[assignment] # made in __post_init__
    """Those whose shortcuts are this peer's."""
    state: PeerState = PeerState.CANDIDATE
    since: float = 0.0
    rtt_s: float = 0.0
    losses: int = 0
    takes: frozenset[bytes] = frozenset()
    """Our addresses from which it takes packets, as it said last."""
    current: frozenset[bytes] = frozenset()
    """Its addresses, as it said last when asked."""
    verified_until: float = -1.0
    their_nonce: bytes | None = None
    """Of their last probe; who knows it speaks for the one whom they probed."""

    def __post_init__(self) -> None:
        self.addresses = set()
        self.since = self.heard
        self._wanted_until = self._next_probe = self._hold_until = self._replied = self.heard
        self._streak = self._unanswered = 0
        self._flap_s = self._retry_s = 0.0
        self._is_flap = False
        self._nonces: OrderedDict[bytes, tuple[float, bool, tuple[bytes, ...]] | None] = OrderedDict()
        """Of our probes: when it was sent, whether it was as large as what is to go there, and which of our
        addresses were in it; None: it is answered."""

    @property
    def is_up(self) -> bool:
        """Whether packets go there."""
        return self.state is PeerState.UP

    def is_idle(self, now: float) -> bool:
        """Return whether nobody would miss it."""
        return (
            self.state is PeerState.CANDIDATE
            and self.found is not Discovery.GIVEN
            and now >= self.verified_until
        )

    def is_mute(self) -> bool:
        """Return whether it was asked for a while, and says nothing."""
        return self._unanswered > 2 * self.timing.unanswered

    def is_gone(self, now: float) -> bool:
        """Return whether it was not heard of for so long that it is not there any more."""
        if self.found is Discovery.GIVEN or self.state in (PeerState.UP, PeerState.PROBING):
            return False
        return now - self.heard > (self.timing.heard_s if self.address else self.timing.silent_s)

    def is_verified(self, now: float) -> bool:
        """Return whether it answered a probe of ours lately."""
        return now < self.verified_until

    # --- what happens

    def want(self, now: float) -> None:
        """Note that the VM has something for it."""
        self._wanted_until = now + self.timing.wanted_s
        if self.state is PeerState.CANDIDATE:
            self._try(now, "wanted")

    def alive(self, now: float) -> None:
        """Note that it said something unasked: if it only had not answered, it may do so now."""
        self.heard = now
        if self.state is PeerState.HOLDING and not self._is_flap:
            self._hold_until = min(self._hold_until, now)

    def probed(self, nonce: bytes, ours: tuple[bytes, ...], now: float) -> None:
        """Note that a probe was sent to it, in the name of these addresses."""
        if self._unanswered >= 2:
            self._streak = 0
        self._unanswered += 1
        self._next_probe = now + self.timing.probe_s
        self._nonces[nonce] = now, self.state is PeerState.PROBING, ours
        if len(self._nonces) > NONCES_MAX:
            self._nonces.popitem(last=False)

    def put_off(self, now: float) -> None:
        """Note that no probe could be sent to it."""
        self._next_probe = now + self.timing.probe_s

    def knows(self, nonce: bytes) -> bool:
        """Return whether this is the nonce of a probe that it was sent lately."""
        return nonce in self._nonces

    def awaits(self, nonce: bytes) -> bool:
        """Return whether this is the nonce of a probe that it has not answered yet."""
        return self._nonces.get(nonce) is not None

    def set_mtu(self, mtu: int) -> None:
        """Note the largest IP packet that it says it takes; one larger than before is tried first."""
        if mtu > self.mtu:
            if self.is_up:
                return
            self._streak = 0
        self.mtu = mtu

    def replied(self, nonce: bytes, accepts: int, current: frozenset[bytes], now: float) -> bool:
        """Note its answer to a probe; say whether there was such a probe.

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
            self.lose("refused", now)
        elif (self.takes, self.current, True) != before:
            self.changed(self, "answered")
        return True

    def lose(self, why: str, now: float) -> None:
        """Use it no longer, at once, and leave it alone for a while."""
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
        """When it is lost; one who was not asked, as we were held up ourselves, is not."""
        return self._replied + self.timing.lost_s if self._unanswered >= self.timing.unanswered else 1e300

    def wake(self, now: float) -> bool:
        """Do what is due; say whether a probe is to be sent. Early is harmless."""
        if self.state is PeerState.HOLDING and now >= self._hold_until:
            self._is_flap = False
            if now < self._wanted_until:
                self._try(now, "again")
            else:
                self._become(PeerState.CANDIDATE, "idle", now)
        elif self.state in (PeerState.UP, PeerState.PROBING) and now >= self._wanted_until:
            self._become(PeerState.CANDIDATE, "idle", now)
        elif self.is_up and now >= self._lost_at:
            self.lose("silent", now)
        elif self.state is PeerState.PROBING and now >= self.since + self.timing.setup_s:
            self._retry_s = self._longer(self._retry_s)
            self._hold_until = now + self._retry_s
            self._become(PeerState.HOLDING, "refused" if self.is_verified(now) else "unanswered", now)
        return self.state in (PeerState.UP, PeerState.PROBING) and now >= self._next_probe

    def may_probe(self, now: float) -> bool:
        """Return whether a probe of ours, in answer to theirs, would not come too soon after the last."""
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
