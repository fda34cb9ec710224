"""Who is on the direct link, and by which short ways it is reached: listens, announces, probes, answers.

Pulled like every machine: frames and `now` in; `outbox` has the frames that are to be sent on that link.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, arp, build, nd
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.shortcut.message import ADDRESSES_MAX, GROUP, NONCE, Kind, Message
from vtl_tools.common.shortcut.peer import Found, Peer, Shortcut, State, Timing
from vtl_tools.common.shortcut.vm import VM, Network

PEERS_MAX: Final = 1024
CHANGE_S: Final = 0.5
"""How soon a change is announced, and how often at most."""
HOP_LIMIT: Final = 255  # of neighbour discovery (RFC 4861 section 7.1)


class Peers:
    """The table of peers and shortcuts of one VM.

    allow: prefixes of addresses to and from which the short way may be taken. given: addresses and the
    Ethernet addresses where they are, also allowed. nonce: returns so many octets that nobody can guess.
    admit: says whether there is time for one more stranger. told: called with each shortcut that changed
    its state, what it was, and why. ignored: counts what is heard and not heeded, by why.
    """

    def __init__(
        self,
        vm: VM,
        *,
        nonce: Callable[[int], bytes],
        allow: Iterable[Network] = (),
        given: "dict[bytes, bytes] | None" = None,
        key: bytes | None = None,
        timing: Timing | None = None,
        admit: Callable[[float], bool] = lambda now: True,
        told: Callable[[Shortcut, State, str], object] = lambda shortcut, was, why: None,
        ignored: Counter[str] | None = None,
    ) -> None:
        self.vm, self.key, self.timing = vm, key, timing or Timing()
        self.mtu = 65535
        """Of the direct link, in octets of the largest IP packet."""
        self.vm_mtu = 65535
        self.outbox: list[bytes] = []
        self.shortcuts: dict[bytes, Shortcut] = {}
        self.peers: OrderedDict[tuple[bytes, bytes | None], Peer] = OrderedDict()
        self.ignored = Counter() if ignored is None else ignored
        self.conflicts = 0
        self.spared = [0, 0]
        """Frames and octets of shortcuts that are no more."""
        self.is_changed = True
        """Whether what the short way is taken for may have changed; the owner looks, and resets it."""
        self._allow = [(net.network_address.packed, net.broadcast_address.packed) for net in allow]
        self._given = dict(given or {})
        self._nonce, self._admit, self._told = nonce, admit, told
        self._active: set[Peer] = set()
        self._announce_at = 0.0
        self._sweep_at = 0.0
        self._due = 0.0
        for octets in self._given:
            self._restore(octets, 0.0)

    # --- questions

    def is_allowed(self, octets: bytes, mac: bytes | None = None) -> bool:
        """Say whether the short way may be taken to and from an address, which is at mac."""
        if (named := self._given.get(octets)) is not None:
            return mac is None or mac == named
        return any(len(octets) == len(first) and first <= octets <= last for first, last in self._allow)

    def mtu_of(self, peer: Peer) -> int:
        """Return the octets of the largest IP packet that goes to a peer."""
        return min(self.mtu, peer.mtu)

    def gateway_of(self, shortcut: Shortcut) -> bytes | None:
        """Return the Ethernet address from which our VM expects what a shortcut brings; None: not known."""
        return shortcut.gateway or self.vm.gateway

    def takes_from(self, octets: bytes, mac: bytes, now: float) -> bool:
        """Say whether packets from an address at mac are delivered to our VM."""
        shortcut = self.shortcuts.get(octets)
        return (
            shortcut is not None
            and shortcut.peer.mac == mac
            and shortcut.peer.is_verified(now)
            and octets in shortcut.peer.current
        )

    # --- what our VM and its network do

    def changed(self, now: float) -> None:
        """Note that the VM's addresses changed: all are told soon."""
        self.is_changed = True
        self._announce_by(now + CHANGE_S)

    def want(self, shortcut: Shortcut, now: float) -> None:
        """Note that the VM has something for the address of a shortcut."""
        if self.vm.mac is not None:
            shortcut.peer.want(now)
            self._follow(shortcut.peer)

    def lost_link(self, why: str, now: float) -> None:
        """Note that the direct link is gone: every shortcut is lost."""
        for peer in list(self._active):
            peer.lose(why, now)

    def leave(self) -> None:
        """Tell the peers that probed us that we go."""
        for peer in self.peers.values():
            if peer.their_nonce is not None:
                self._say(Kind.BYE, peer.mac, nonce=peer.their_nonce)

    # --- what comes on the direct link

    def receive(self, frame: Buffer, now: float) -> None:
        """Take a frame of message.ETHERTYPE."""
        try:
            said = Message.at(frame, self.key)
        except Malformed as err:
            self.ignored["unauthenticated" if err.what == "tag" else "malformed-message"] += 1
            return
        if said.mac == self.vm.mac or self.vm.mac is None:
            return
        to_us = bytes(frame[VNET : VNET + 6]) == self.vm.mac
        peer = self.peers.get((said.mac, None))
        if said.kind is Kind.ANNOUNCE:
            self._announced_by(said, peer, now)
        elif not to_us:
            return
        elif said.kind is Kind.PROBE:
            self._probed_by(said, peer, now)
        elif peer is None:
            self.ignored["unasked-reply"] += 1
        elif said.kind is Kind.REPLY:
            if peer.awaits(said.nonce):
                peer.set_mtu(said.mtu)
                self._set_claims(peer, said.addresses, now)
                peer.replied(said.nonce, said.accepts, frozenset(peer.addresses), now)
                self._follow(peer)
            else:
                self.ignored["unasked-reply"] += 1
        elif peer.knows(said.nonce):
            self._gone(peer, "bye", now)
        else:
            self.ignored["unasked-bye"] += 1

    def listen(self, frame: Buffer, now: float) -> None:
        """Hear who says by ARP or neighbour discovery where an address is."""
        try:
            pkt = Packet.at(frame)
            mac = pkt.eth.src
            if (said := pkt.arp) is not None:
                if said.sha == mac:
                    self._heard(said.spa, mac, now, is_answer=said.oper == arp.REPLY)
                return
            message, net = pkt.nd, pkt.ipv6
            if message is None or net is None or net.hop_limit != HOP_LIMIT or not pkt.verify():
                return
            if isinstance(message, nd.NeighborAdvert):
                if message.target_lladdr in (None, mac):
                    self._heard(message.target, mac, now, is_answer=True)
            elif isinstance(message, nd.NeighborSolicit) and message.source_lladdr == mac:
                self._heard(net.src, mac, now)
        except Malformed:
            self.ignored["malformed-arp"] += 1

    def heard_from(self, octets: bytes, mac: bytes, now: float) -> None:
        """Note that a packet from an address came from mac."""
        self._heard(octets, mac, now)

    # --- time

    def deadline(self) -> float:
        """Return when wake() is due."""
        return self._due

    def wake(self, now: float) -> None:
        """Do what is due. Early is harmless."""
        if now < self._due:
            return
        if now >= self._announce_at:
            self._announce(now)
        if now >= self._sweep_at:
            self._sweep(now)
        for peer in list(self._active):
            if peer.wake(now):
                self._probe(peer, now)
            if peer.deadline() is None:
                self._active.discard(peer)
        due = (when for peer in self._active if (when := peer.deadline()) is not None)
        self._due = min(self._sweep_at, self._announce_at, *due)

    def _announce_by(self, when: float) -> None:
        self._announce_at = min(self._announce_at, when)
        self._due = min(self._due, when)

    def _follow(self, peer: Peer) -> None:
        if (when := peer.deadline()) is not None:
            self._active.add(peer)
            self._due = min(self._due, when)

    def _sweep(self, now: float) -> None:
        self._sweep_at = now + self.timing.announce_s
        for peer in [peer for peer in self.peers.values() if peer.is_gone(now)]:
            self._gone(peer, "silent", now)
        if self.vm.wake(now):
            self.changed(now)

    # --- saying

    def _say(self, kind: Kind, to: bytes, *, packet: int = 0, **fields: "bytes | int | bool") -> None:
        mac = self.vm.mac
        if mac is None:
            return
        mtu = min(self.mtu, self.vm_mtu)
        said = Message(kind, mac, mtu, self.vm.addresses, **fields)  # type: ignore[arg-type]
        self.outbox.append(said.frame(to, self.key, packet))

    def _announce(self, now: float) -> None:
        jitter = 0.8 + 0.4 * self._nonce(1)[0] / 255  # so that not all speak at once
        self._announce_at = now + self.timing.announce_s * jitter
        if self.vm.addresses:
            for to in (GROUP, *dict.fromkeys(self._given.values())):
                self._say(Kind.ANNOUNCE, to)

    def _probe(self, peer: Peer, now: float) -> None:
        mac = self.vm.mac
        if mac is None:
            return
        nonce, packet = self._nonce(NONCE), self.mtu_of(peer) if peer.state is State.PROBING else 0
        if peer.address is None:
            peer.probed(nonce, self.vm.addresses, now)
            wanted = peer.state is not State.CANDIDATE
            self._say(Kind.PROBE, peer.mac, packet=packet, nonce=nonce, wanted=wanted)
            return
        # An answer to ARP has no nonce: the peer's address is what tells to which probe it belongs.
        peer.probed(peer.address, self.vm.addresses, now)
        if len(peer.address) == 4:  # from nobody, so that no neighbour learns anything (RFC 5227 section 2.1)
            frame = build.arp(
                src_mac=mac, dst_mac=peer.mac, sha=mac, spa=address.UNSPECIFIED4, tpa=peer.address
            )
        else:
            frame = build.neighbor_solicit(
                src_mac=mac,
                dst_mac=peer.mac,
                src=address.link_local(mac),
                dst=peer.address,
                target=peer.address,
            )
        self.outbox.append(bytes(frame).ljust(VNET + 14 + packet, b"\0"))

    # --- hearing

    def _announced_by(self, said: Message, peer: Peer | None, now: float) -> None:
        if peer is None:
            peer = self._newcomer(said, now)
            if peer is None:
                return
            self._announce_by(now + CHANGE_S)  # it does not know us either
        self._spoke(peer, said, now)
        peer.alive(now)
        self._follow(peer)

    def _spoke(self, peer: Peer, said: Message, now: float) -> None:
        """Note what a peer says unasked: it may claim addresses, and gives none up, as it may be a replay."""
        peer.heard = now
        if not peer.is_verified(now):
            peer.set_mtu(said.mtu)
        for octets in said.addresses:
            self._claim(octets, peer, now)
        self.peers.move_to_end((peer.mac, None))

    def _newcomer(self, said: Message, now: float) -> Peer | None:
        if not any(self.is_allowed(octets, said.mac) for octets in said.addresses):
            self.ignored["not-allowed"] += 1
            return None
        return self._new(Peer(said.mac, Found.ANNOUNCED, self.timing, self._changed, now, mtu=said.mtu), now)

    def _new(self, peer: Peer, now: float) -> Peer | None:
        """Make room for a peer that was not known. None: too many strangers come, or none can go."""
        if peer.found is not Found.GIVEN:
            if (self.key is None or peer.found is Found.HEARD) and not self._admit(now):
                self.ignored["too-many"] += 1
                return None
            if len(self.peers) >= PEERS_MAX:
                idle = next((other for other in self.peers.values() if other.is_idle(now)), None)
                if idle is None:
                    self.ignored["too-many"] += 1
                    return None
                self._gone(idle, "evicted", now)
        self.peers[peer.mac, peer.address] = peer
        return peer

    def _probed_by(self, said: Message, peer: Peer | None, now: float) -> None:
        if peer is None:
            peer = self._newcomer(said, now)
        if peer is not None:
            self._spoke(peer, said, now)
            peer.their_nonce = said.nonce
        if peer is None and not self._admit(now):
            return
        accepts = 0
        if self.vm.gateway is not None:
            for i, octets in enumerate(said.addresses):
                accepts |= self.takes_from(octets, said.mac, now) << i
        self._say(Kind.REPLY, said.mac, nonce=said.nonce, accepts=accepts)
        if peer is not None and said.wanted and peer.may_probe(now):
            self._probe(peer, now)  # so that we know, too, and may say that we take what comes

    def _heard(self, octets: bytes, mac: bytes, now: float, *, is_answer: bool = False) -> None:
        if not address.is_single_host(octets) or mac[0] & 1 or not self.is_allowed(octets, mac):
            return
        if mac == self.vm.mac or octets in self.vm.addresses:
            return
        if self.key is not None and octets not in self._given:
            return  # nobody vouches for it
        shortcut = self.shortcuts.get(octets)
        if shortcut is None:
            fresh = Peer(mac, Found.HEARD, self.timing, self._changed, now, octets)
            peer = self._new(fresh, now)
            if peer is not None:
                self._claim(octets, peer, now)
            return
        peer = shortcut.peer
        if peer.address is None:
            return  # the word of a process goes before what is overheard
        if peer.mac != mac:
            if not peer.is_verified(now) and peer.found is Found.HEARD:
                self._gone(peer, "moved", now)
                self._heard(octets, mac, now)
            return
        if is_answer and peer.knows(octets):
            peer.replied(octets, 0xFFFF, frozenset((octets,)), now)
        else:
            peer.alive(now)
        self._follow(peer)

    # --- who has which address

    def _claim(self, octets: bytes, peer: Peer, now: float) -> None:
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

    def _set_claims(self, peer: Peer, said: tuple[bytes, ...], now: float) -> None:
        """Hold a peer to what it says when asked: these are its addresses, and no others."""
        for octets in peer.addresses - set(said):
            peer.addresses.discard(octets)
            self._release(octets, now)
        for octets in said:
            self._claim(octets, peer, now)

    def _release(self, octets: bytes, now: float) -> None:
        """Take note that nobody claims an address any more."""
        shortcut = self.shortcuts.pop(octets)
        self.spared = [a + b for a, b in zip(self.spared, shortcut.spared, strict=True)]
        self.is_changed = True
        self._restore(octets, now)

    def _restore(self, octets: bytes, now: float) -> None:
        if (mac := self._given.get(octets)) is not None:
            peer = self._new(Peer(mac, Found.GIVEN, self.timing, self._changed, now, octets), now)
            assert peer is not None
            self._claim(octets, peer, now)

    def _gone(self, peer: Peer, why: str, now: float) -> None:
        """Forget a peer, and its claims."""
        self._forget(peer, why, now)
        for octets in list(peer.addresses):
            self._release(octets, now)

    def _forget(self, peer: Peer, why: str, now: float) -> None:
        peer.lose(why, now)
        self._active.discard(peer)
        del self.peers[peer.mac, peer.address]
        self.is_changed = True

    def _changed(self, peer: Peer, was: State, why: str) -> None:
        self.is_changed = True
        if peer.state is not was:
            for octets in sorted(peer.addresses):
                self._told(self.shortcuts[octets], was, why)
