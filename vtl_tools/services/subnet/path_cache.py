"""Decides the path of a frame, learns from it, and caches the decision for similar frames."""

from typing import Final

from vtl_tools.services.subnet import headers as wire
from vtl_tools.services.subnet.message import ETHERTYPE
from vtl_tools.services.subnet.peer import PeerState, Shortcut
from vtl_tools.services.subnet.peers import Peers

LONG: Final = ""
Path = Shortcut | str
"""A shortcut; LONG, the default link; or the reason for a drop."""
PROTOCOL: Final = "protocol"
OURS: Final = ETHERTYPE.to_bytes(2, "big")
"""EtherType of the processes' own messages, which are not forwarded to or from the VM."""


LOOK_S: Final = 2.0
"""Seconds that a decision is cached; the next look notes that the path is in use."""
WAYS_MAX: Final = 4096


class PathCache:
    """Caches the path of frames with the same addresses. head: as in headers.py."""

    def __init__(self, peers: Peers) -> None:
        self.peers, self.vm = peers, peers.vm
        self.known: tuple[dict[bytes, Path], ...] = ({}, {}, {})
        """For each port, by headers.key()."""
        self._until = 0.0
        self._looks = self.from_vm, self.from_default, self.from_direct

    def refresh(self, now: float) -> None:
        """Remove outdated decisions. Call it before each batch."""
        if self.peers.table.is_changed or now >= self._until:
            self.peers.table.is_changed = False
            self._until = now + LOOK_S
            for known in self.known:
                known.clear()

    def look(self, port: int, head: bytes, now: float) -> Path:
        """Decide the path of a frame without a cached decision, and cache it."""
        known = self.known[port]
        if len(known) >= WAYS_MAX:
            known.clear()
        way = known[wire.key(head)] = self._looks[port](head, now)
        return way

    def from_vm(self, head: bytes, now: float) -> Path:
        """Return the path of frames of the VM; learn the VM's addresses and peers from them."""
        vm, src_mac, dst_mac = self.vm, head[wire.SRC_MAC], head[wire.DST_MAC]
        if head[wire.KIND] == OURS:
            return PROTOCOL
        if len(src_mac) < 6 or src_mac[0] & 1:
            return LONG
        if vm.mac is None and any(src_mac):
            vm.mac = src_mac
            self.peers.changed(now)
        ends = wire.ends(head)
        if ends is None or src_mac != vm.mac or dst_mac[0] & 1:
            return LONG
        src, dst = ends
        vm.gateway = dst_mac
        if vm.sent(src, now):
            self.peers.changed(now)
        shortcut = self.peers.table.shortcuts.get(dst)
        if shortcut is None or dst_mac == shortcut.peer.mac:  # on its own subnet: it needs no shortcut
            return LONG
        shortcut.gateway, shortcut.asked = dst_mac, True
        self.peers.note_demand(shortcut, now)
        is_up = shortcut.state is PeerState.UP and src in vm.addresses and src in shortcut.peer.takes
        return shortcut if is_up else LONG

    def from_default(self, head: bytes, now: float) -> Path:
        """Learn the VM's addresses from the packets that its network delivers to it."""
        vm, src_mac = self.vm, head[wire.SRC_MAC]
        if head[wire.KIND] == OURS:
            return PROTOCOL
        if head[wire.KIND] == wire.ARP and (said := wire.arp_sender(head)) is not None:
            sha, spa = said
            if sha != vm.mac and vm.disputed(spa, now):
                self.peers.changed(now)
        ends = wire.ends(head)
        if ends is None or vm.mac is None or head[wire.DST_MAC] != vm.mac or src_mac[0] & 1:
            return LONG
        src, dst = ends
        vm.gateway = vm.gateway or src_mac
        if vm.delivered(dst, now):
            self.peers.changed(now)
        shortcut = self.peers.table.shortcuts.get(src)
        if shortcut is not None and not shortcut.asked:
            shortcut.gateway = src_mac
        return LONG

    def from_direct(self, head: bytes, now: float) -> Path:
        """Return the shortcut of frames from the direct link, if they are a peer's for our VM."""
        vm, table, src_mac = self.vm, self.peers.table, head[wire.SRC_MAC]
        ends = wire.ends(head)
        if ends is None:
            return "not-ip"
        src, dst = ends
        if src_mac == vm.mac:
            self.peers.mac_conflict(now)
            return "own-mac"
        if head[wire.DST_MAC] != vm.mac:
            self.peers.observe(src, src_mac, now)
            return "not-for-vm"
        if not table.is_allowed(src):
            return "not-allowed"
        if not table.takes_from(src, src_mac, now):
            return "unknown-peer"
        if dst not in vm.addresses:
            return "not-vms-address"
        return table.shortcuts[src]
