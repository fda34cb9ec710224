"""The service on the direct link: listens, announces, probes and answers, for one VM.

A pulled machine: frames and `now` go in; `outbox` holds the frames to send on that link.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, arp, build, nd
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.services.subnet.message import GROUP, NONCE, MessageKind, SubnetMessage
from vtl_tools.services.subnet.peer import Discovery, Peer, PeerState, Shortcut, Timing
from vtl_tools.services.subnet.table import ClaimTable, OnChange
from vtl_tools.services.subnet.vm import VM, Network

CHANGE_S: Final = 0.5
"""Seconds until a change is announced."""
NEWCOMERS_PER_S: Final = 100.0
QUIET_S: Final = 30.0
"""Seconds of silence after another station used the VM's Ethernet address."""
HOP_LIMIT: Final = 255  # of neighbour discovery (RFC 4861 section 7.1)


class Peers:
    """Represents one VM on the direct link.

    nonce: returns so many unpredictable octets. allow, given, on_change, ignored: see ClaimTable.
    """

    def __init__(
        self,
        vm: VM,
        *,
        nonce: Callable[[int], bytes],
        allow: Iterable[Network] = (),
        given: Mapping[bytes, bytes] | None = None,
        key: bytes | None = None,
        timing: Timing | None = None,
        on_change: OnChange = lambda shortcut, state, was, why: None,
        ignored: Counter[str] | None = None,
    ) -> None:
        self.vm, self.key, self.timing = vm, key, timing or Timing()
        self.ignored: Counter[str] = Counter() if ignored is None else ignored
        self.table = ClaimTable(vm, self.timing, allow, given or {}, on_change, self.ignored)
        self.mtu = 65535
        """Largest IP packet of the direct link, in octets."""
        self.vm_mtu = 65535
        self.outbox: list[bytes] = []
        self._nonce = nonce
        self._strangers, self._overheard = TokenBucket(NEWCOMERS_PER_S), TokenBucket(NEWCOMERS_PER_S)
        self._quiet_until = 0.0
        self._active: set[Peer] = set()
        self._announce_at = self._sweep_at = self._due = 0.0

    def mtu_of(self, peer: Peer) -> int:
        """Return the largest IP packet for a peer, in octets."""
        return min(self.mtu, peer.mtu)

    # --- events of our VM and its network

    def changed(self, now: float) -> None:
        """Note that the VM's addresses changed; announces them soon."""
        self.table.is_changed = True
        self._announce_by(now + CHANGE_S)

    def note_demand(self, shortcut: Shortcut, now: float) -> None:
        """Note that the VM has a packet for the address of a shortcut."""
        if self.vm.mac is not None and now >= self._quiet_until:
            shortcut.peer.note_demand(now)
            self._follow(shortcut.peer)

    def lost_link(self, why: str, now: float) -> None:
        """Note that the direct link is down: every shortcut is lost."""
        for peer in list(self._active):
            peer.mark_lost(why, now)

    def mac_conflict(self, now: float) -> None:
        """Note that another station on the direct link uses our VM's Ethernet address; be silent for a while.

        To send on would teach the link's switches that the address is here, and cut off the other station.
        """
        self._quiet_until = now + QUIET_S
        self.lost_link("name-taken", now)

    def withdraw(self) -> None:
        """Send a BYE to the peers that probed us."""
        for peer in self.table.peers.values():
            if peer.their_nonce is not None:
                self._say(MessageKind.BYE, peer.mac, nonce=peer.their_nonce)

    # --- frames from the direct link

    def receive(self, frame: Buffer, now: float) -> None:
        """Process a frame of message.ETHERTYPE."""
        try:
            said = SubnetMessage.at(frame, self.key)
        except Malformed as err:
            self.ignored["unauthenticated" if err.what == "tag" else "malformed-message"] += 1
            return
        if said.mac == self.vm.mac:
            self.mac_conflict(now)
        if self.vm.mac is None or now < self._quiet_until:
            return
        peer = self.table.process_at(said.mac)
        if said.kind is MessageKind.ANNOUNCE:
            self._announced_by(said, peer, now)
        elif bytes(frame[VNET : VNET + 6]) != self.vm.mac:
            return
        elif said.kind is MessageKind.PROBE:
            self._probed_by(said, peer, now)
        elif said.kind is MessageKind.REPLY:
            self._replied_by(said, peer, now)
        elif peer is None or not peer.knows(said.nonce):
            self.ignored["unasked-bye"] += 1
        else:
            self.table.remove(peer, "bye", now)

    def listen(self, frame: Buffer, now: float) -> None:
        """Learn addresses from ARP or neighbour discovery."""
        try:
            pkt = Packet.at(frame)
            mac = pkt.eth.src
            if mac == self.vm.mac:
                self.mac_conflict(now)
                return
            if (said := pkt.arp) is not None:
                if said.sha == mac:
                    self.observe(said.spa, mac, now, is_answer=said.oper == arp.REPLY)
                return
            message, net = pkt.nd, pkt.ipv6
            if message is None or net is None or net.hop_limit != HOP_LIMIT or not pkt.verify():
                return
            if isinstance(message, nd.NeighborAdvert):
                if message.target_lladdr in (None, mac):
                    self.observe(message.target, mac, now, is_answer=True)
            elif isinstance(message, nd.NeighborSolicit) and message.source_lladdr == mac:
                self.observe(net.src, mac, now)
        except Malformed:
            self.ignored["malformed-neighbour"] += 1

    def observe(self, octets: bytes, mac: bytes, now: float, *, is_answer: bool = False) -> None:
        """Note that a station without a process has the address at mac, as its packets show.

        is_answer: it may be the answer to our probe.
        """
        if not address.is_single_host(octets) or mac[0] & 1 or not self.table.is_allowed(octets, mac):
            return
        if octets in self.vm.addresses:
            return
        if self.key is not None and octets not in self.table.given:
            return  # no process confirms it
        shortcut = self.table.shortcuts.get(octets)
        if shortcut is None:
            if self._has_time(self._overheard, now):
                self.table.add(mac, Discovery.HEARD, now, octets)
            return
        peer = shortcut.peer
        if peer.address is None:
            return  # a process has precedence over observed packets
        if peer.mac != mac:
            if (
                peer.found is Discovery.HEARD
                and not peer.is_verified(now)
                and self._has_time(self._overheard, now)
            ):
                self.table.remove(peer, "moved", now)
                self.table.add(mac, Discovery.HEARD, now, octets)
            return
        self.table.note_message(peer, now)
        if is_answer and peer.awaits(octets):
            peer.replied(octets, 0xFFFF, frozenset((octets,)), now)
        else:
            peer.note_alive(now)
        self._follow(peer)

    # --- time

    def deadline(self) -> float:
        """Return when wake() is due."""
        return self._due

    def wake(self, now: float) -> None:
        """Process timers. An early call is harmless."""
        if now < self._due:
            return
        if now >= self._announce_at:
            self._announce(now)
        if now >= self._sweep_at:
            self._sweep_at = now + self.timing.announce_s
            self.table.sweep(now)
            if self.vm.wake(now):
                self.changed(now)
        for peer in list(self._active):
            if self.table.has(peer) and peer.wake(now):
                self._probe(peer, now)
            if peer.deadline() is None or not self.table.has(peer):
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

    # --- sending

    def _say(self, kind: MessageKind, to: bytes, *, packet: int = 0, **fields: "bytes | int | bool") -> None:
        mac = self.vm.mac
        if mac is None:
            return
        mtu = min(self.mtu, self.vm_mtu)
        said = SubnetMessage(kind, mac, mtu, self.vm.addresses, **fields)  # type: ignore[arg-type]
        self.outbox.append(said.frame(to, self.key, packet))

    def _announce(self, now: float) -> None:
        jitter = 0.8 + 0.4 * self._nonce(1)[0] / 255  # so that not all announce at once
        self._announce_at = now + self.timing.announce_s * jitter
        if self.vm.addresses and now >= self._quiet_until:
            for to in (GROUP, *dict.fromkeys(self.table.given.values())):
                self._say(MessageKind.ANNOUNCE, to)

    def _probe(self, peer: Peer, now: float) -> None:
        mac = self.vm.mac
        if mac is None or now < self._quiet_until:
            peer.postpone_probe(now)
            return
        packet = self.mtu_of(peer) if peer.state is PeerState.PROBING else 0
        if peer.address is None:
            nonce, wanted = self._nonce(NONCE), peer.state is not PeerState.CANDIDATE
            peer.probed(nonce, self.vm.addresses, now)
            self._say(MessageKind.PROBE, peer.mac, packet=packet, nonce=nonce, wanted=wanted)
            return
        # An ARP reply has no nonce: the peer's address tells to which probe it belongs.
        peer.probed(peer.address, self.vm.addresses, now)
        if len(peer.address) == 4:  # from 0.0.0.0, so that neighbours learn nothing (RFC 5227 section 2.1)
            nobody, target = address.UNSPECIFIED4, peer.address
            frame = build.arp(src_mac=mac, dst_mac=peer.mac, sha=mac, spa=nobody, tpa=target)
        else:
            own, target = address.link_local(mac), peer.address
            frame = build.neighbor_solicit(src_mac=mac, dst_mac=peer.mac, src=own, dst=target, target=target)
        self.outbox.append(bytes(frame).ljust(VNET + 14 + packet, b"\0"))

    # --- receiving

    def _announced_by(self, said: SubnetMessage, peer: Peer | None, now: float) -> None:
        if peer is None:
            peer = self._newcomer(said, now)
            if peer is None:
                return
            self._announce_by(now + CHANGE_S)  # it does not know us, either
        self._spoke(peer, said, now)
        peer.note_alive(now)
        self._follow(peer)

    def _probed_by(self, said: SubnetMessage, peer: Peer | None, now: float) -> None:
        if peer is None:
            peer = self._newcomer(said, now)
            if peer is None and not self._has_time(self._strangers, now):
                return
        accepts = 0
        if peer is not None:
            self._spoke(peer, said, now)
            peer.their_nonce = said.nonce
            if self.vm.gateway is not None:
                for i, octets in enumerate(said.addresses):
                    accepts |= self.table.takes_from(octets, said.mac, now) << i
        self._say(MessageKind.REPLY, said.mac, nonce=said.nonce, accepts=accepts)
        if peer is not None and said.wanted and peer.may_probe(now):
            self._probe(peer, now)  # so that we may confirm that we accept its packets

    def _replied_by(self, said: SubnetMessage, peer: Peer | None, now: float) -> None:
        if peer is None or not peer.awaits(said.nonce):
            self.ignored["unasked-reply"] += 1
            return
        peer.set_mtu(said.mtu)
        self.table.set_claims(peer, said.addresses, now)
        self.table.note_message(peer, now)
        peer.replied(said.nonce, said.accepts, frozenset(peer.addresses), now)
        self._follow(peer)

    def _newcomer(self, said: SubnetMessage, now: float) -> Peer | None:
        if not any(self.table.is_allowed(octets, said.mac) for octets in said.addresses):
            self.ignored["not-allowed"] += 1
            return None
        if self.key is None and not self._has_time(self._strangers, now):  # with a key: no limit
            return None
        return self.table.add(said.mac, Discovery.ANNOUNCED, now)

    def _has_time(self, bucket: TokenBucket, now: float) -> bool:
        if bucket.take(now):
            return True
        self.ignored["too-many"] += 1
        return False

    def _spoke(self, peer: Peer, said: SubnetMessage, now: float) -> None:
        """Process addresses in an unsolicited message.

        It may claim addresses but not release any: it may be a replay.
        """
        self.table.note_message(peer, now)
        if not peer.is_verified(now):
            peer.set_mtu(said.mtu)
        for octets in said.addresses:
            self.table.claim(octets, peer, now)
