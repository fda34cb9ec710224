"""Claims of addresses on the direct link: peers, and the shortcuts to their addresses.

A process has precedence over observed packets. Of two processes, the first keeps an address until it is
silent.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from vtl_tools.services.subnet.message import ADDRESSES_MAX
from vtl_tools.services.subnet.peer import Discovery, Peer, PeerState, Shortcut, Timing
from vtl_tools.services.subnet.vm import VM, Network

PEERS_MAX: Final = 1024

OnChange = Callable[[Shortcut, PeerState, PeerState, str], object]
"""Called for each change of state with the shortcut, its new state, its old state, and the reason."""


class ClaimTable:
    """Peers and shortcuts of one VM.

    allow: prefixes of addresses that may use shortcuts. given: addresses and their Ethernet addresses, also
    allowed. ignored: counts ignored claims, by reason.
    """

    def __init__(
        self,
        vm: VM,
        timing: Timing,
        allow: Iterable[Network],
        given: Mapping[bytes, bytes],
        on_change: OnChange,
        ignored: Counter[str],
    ) -> None:
        self.vm, self.timing, self.given = vm, timing, given
        self.ignored = ignored
        self.shortcuts: dict[bytes, Shortcut] = {}
        self.peers: OrderedDict[tuple[bytes, bytes | None], Peer] = OrderedDict()
        """By Ethernet address, and the one IP address of a peer without a process; longest silent first."""
        self.conflicts = 0
        self.spared = [0, 0]
        """Frames and octets of removed shortcuts."""
        self.is_changed = True
        """Whether cached paths may be outdated; the owner reads and resets it."""
        self._allow = [(net.network_address.packed, net.broadcast_address.packed) for net in allow]
        self._on_change = on_change
        for octets in given:
            self._restore(octets, 0.0)

    # --- questions

    def is_allowed(self, octets: bytes, mac: bytes | None = None) -> bool:
        """Return whether an address, which is at mac, may use shortcuts."""
        if (named := self.given.get(octets)) is not None:
            return mac is None or mac == named
        return any(len(octets) == len(first) and first <= octets <= last for first, last in self._allow)

    def takes_from(self, octets: bytes, mac: bytes, now: float) -> bool:
        """Return whether packets from an address at mac are delivered to our VM."""
        shortcut = self.shortcuts.get(octets)
        if shortcut is None:
            return False
        peer = shortcut.peer
        return peer.mac == mac and peer.is_verified(now) and octets in peer.current

    def process_at(self, mac: bytes) -> Peer | None:
        """Return the peer with a process at mac."""
        return self.peers.get((mac, None))

    def has(self, peer: Peer) -> bool:
        """Return whether a peer is still in the table."""
        return self.peers.get((peer.mac, peer.address)) is peer

    # --- peers

    def add(self, mac: bytes, found: Discovery, now: float, address: bytes | None = None) -> Peer | None:
        """Add a peer; may evict an unused one. None: there is no room."""
        if found is not Discovery.GIVEN and len(self.peers) >= PEERS_MAX:
            idle = next((other for other in self.peers.values() if other.is_idle(now)), None)
            if idle is None:
                self.ignored["too-many"] += 1
                return None
            self.remove(idle, "evicted", now)
        peer = Peer(mac, found, self.timing, self._changed, now, address)
        self.peers[mac, address] = peer
        if address is not None:
            self.claim(address, peer, now)
        return peer

    def remove(self, peer: Peer, why: str, now: float) -> None:
        """Remove a peer and its claims."""
        self._forget(peer, why, now)
        for octets in list(peer.addresses):
            self._release(octets, now)

    def note_message(self, peer: Peer, now: float) -> None:
        """Note a message of a peer."""
        peer.heard = now
        self.peers.move_to_end((peer.mac, peer.address))

    def sweep(self, now: float) -> None:
        """Remove peers that were silent for long."""
        for peer in [peer for peer in self.peers.values() if peer.is_gone(now)]:
            self.remove(peer, "silent", now)

    # --- claims

    def claim(self, octets: bytes, peer: Peer, now: float) -> None:
        """Assign an address to a peer that claims it, if it may have it."""
        if octets in peer.addresses or octets in self.vm.addresses or len(peer.addresses) >= ADDRESSES_MAX:
            return
        if not self.is_allowed(octets, peer.mac):
            return
        shortcut = self.shortcuts.get(octets)
        if shortcut is None:
            self.shortcuts[octets] = Shortcut(octets, peer)
        else:
            owner = shortcut.peer
            if owner.address is None and not owner.is_gone(now) and not owner.is_mute():
                self.conflicts += 1
                return
            if owner.addresses == {octets}:
                self._forget(owner, "claimed", now)
            owner.addresses.discard(octets)
            shortcut.peer = peer
        peer.addresses.add(octets)
        self.is_changed = True

    def set_claims(self, peer: Peer, said: tuple[bytes, ...], now: float) -> None:
        """Set a peer's claims to the addresses of its reply, and no others."""
        for octets in peer.addresses - set(said):
            peer.addresses.discard(octets)
            self._release(octets, now)
        for octets in said:
            self.claim(octets, peer, now)

    def _release(self, octets: bytes, now: float) -> None:
        """Note that no peer claims an address any more."""
        shortcut = self.shortcuts.pop(octets)
        if shortcut.reported is not PeerState.CANDIDATE:
            self._on_change(shortcut, PeerState.CANDIDATE, shortcut.reported, "given-up")
        self.spared = [a + b for a, b in zip(self.spared, shortcut.spared, strict=True)]
        self.is_changed = True
        self._restore(octets, now)

    def _restore(self, octets: bytes, now: float) -> None:
        if (mac := self.given.get(octets)) is not None:
            self.add(mac, Discovery.GIVEN, now, octets)

    def _forget(self, peer: Peer, why: str, now: float) -> None:
        peer.mark_lost(why, now)
        del self.peers[peer.mac, peer.address]
        self.is_changed = True

    def _changed(self, peer: Peer, why: str) -> None:
        self.is_changed = True
        for octets in sorted(peer.addresses):
            shortcut = self.shortcuts[octets]
            if (state := shortcut.state) is not shortcut.reported:
                was, shortcut.reported = shortcut.reported, state
                self._on_change(shortcut, state, was, why)
