"""Which way frames go, told by the first of those from one to another, and what is learned from it."""

from typing import Final

from vtl_tools.services.subnet import headers as wire
from vtl_tools.services.subnet.message import ETHERTYPE
from vtl_tools.services.subnet.peer import PeerState, Shortcut
from vtl_tools.services.subnet.peers import Peers

LONG: Final = ""
Way = Shortcut | str
"""A shortcut; LONG, the way that it would go without us; or why it goes no further."""
PROTOCOL: Final = "protocol"
OURS: Final = ETHERTYPE.to_bytes(2, "big")
"""The type of frames that processes say something by, which pass from no link to the VM, and back."""


LOOK_S: Final = 2.0
"""How often what goes from whom to whom is looked at anew, so that it is seen to be still in use."""
WAYS_MAX: Final = 4096


class PathCache:
    """Remembers for the frames that follow the first which way they go. head: as in wire.py."""

    def __init__(self, peers: Peers) -> None:
        self.peers, self.vm = peers, peers.vm
        self.known: tuple[dict[bytes, Way], ...] = ({}, {}, {})
        """For each port, by wire.key()."""
        self._until = 0.0
        self._looks = self.from_vm, self.from_default, self.from_direct

    def refresh(self, now: float) -> None:
        """Forget what may not be so any more. To be called before each batch."""
        if self.peers.table.is_changed or now >= self._until:
            self.peers.table.is_changed = False
            self._until = now + LOOK_S
            for known in self.known:
                known.clear()

    def look(self, port: int, head: bytes, now: float) -> Way:
        """Look at a frame of whose kind none is known, and remember what is found."""
        known = self.known[port]
        if len(known) >= WAYS_MAX:
            known.clear()
        way = known[wire.key(head)] = self._looks[port](head, now)
        return way

    def from_vm(self, head: bytes, now: float) -> Way:
        """Return which way frames of the VM go, and learn from them who it is and whom it talks to."""
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
        if shortcut is None or dst_mac == shortcut.peer.mac:  # of its own subnet: there is no mismatch
            return LONG
        shortcut.gateway, shortcut.asked = dst_mac, True
        self.peers.want(shortcut, now)
        is_up = shortcut.state is PeerState.UP and src in vm.addresses and src in shortcut.peer.takes
        return shortcut if is_up else LONG

    def from_default(self, head: bytes, now: float) -> Way:
        """Learn from what the VM's network delivers which addresses it takes the VM for."""
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

    def from_direct(self, head: bytes, now: float) -> Way:
        """Return whether frames of the direct link are a peer's for our VM, which then is a shortcut."""
        vm, table, src_mac = self.vm, self.peers.table, head[wire.SRC_MAC]
        ends = wire.ends(head)
        if ends is None:
            return "not-ip"
        src, dst = ends
        if src_mac == vm.mac:
            self.peers.name_taken(now)
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
