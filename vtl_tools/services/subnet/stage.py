"""The stage of vtl-subnet: sends frames for peers on the direct link, all others on the default link."""

import logging
from typing import TYPE_CHECKING, Any, Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, derive, icmp
from vtl_tools.common.packet.offload import bind
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.stage import Stage
from vtl_tools.services.subnet import headers as wire
from vtl_tools.services.subnet.message import MTU_MIN
from vtl_tools.services.subnet.path_cache import LONG, OURS, PROTOCOL, PathCache
from vtl_tools.services.subnet.peer import PeerState, Shortcut
from vtl_tools.services.subnet.peers import Peers
from vtl_tools.services.subnet.report import report
from vtl_tools.services.subnet.vm import VM

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

FROM_VM, DEFAULT, DIRECT = 0, 1, 2
ERRORS_PER_S: Final = 100.0
LISTED_MAX: Final = 1000
IPV6_MTU_MIN: Final = 1280  # RFC 8200 section 5

NEIGHBOURS: Final = "neighbours"


class Subnet(Stage):
    """Three ports: the VM, its network, and the direct link. Packets for a peer take the direct link.

    options: of Peers.
    """

    def __init__(self, vm: VM, **options: Any) -> None:
        super().__init__(3)
        self.vm = vm
        self.peers = Peers(vm, on_change=self._told, ignored=self.drops, **options)
        self._ways = PathCache(self.peers)
        self._errors = TokenBucket(ERRORS_PER_S)
        self._picked = Batch()
        self._takes = self._from_vm, self._from_default, self._from_direct

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Forward each frame on the link that its addresses select."""
        self._ways.refresh(now)
        self._takes[port](batch, now)

    # --- from the VM

    def _from_vm(self, batch: Batch, now: float) -> None:
        short: list[int] = []
        lost: list[int] = []
        known = self._ways.known[FROM_VM]
        for i, frame in enumerate(batch):
            head = bytes(frame[: wire.HEAD])
            way = known.get(wire.key(head))
            if way is None:
                way = self._ways.look(FROM_VM, head, now)
            if way == LONG:
                continue
            if isinstance(way, str):
                self.drops[way] += 1
                lost.append(i)
            elif self._may_shorten(way, frame, head, now):
                wire.hop(frame, head, way.peer.mac)
                way.tx_frames += 1
                way.tx_octets += len(frame) - VNET
                short.append(i)
        if len(short) == batch.count:
            self.out[DIRECT](batch, now)
        elif not short and not lost:
            self.out[DEFAULT](batch, now)
        else:
            gone = {*short, *lost}
            self._pass(DEFAULT, batch, [i for i in range(batch.count) if i not in gone], now)
            self._pass(DIRECT, batch, short, now)

    def _may_shorten(self, shortcut: Shortcut, frame: memoryview, head: bytes, now: float) -> bool:
        """Return whether a packet may take a shortcut: a router would forward it without an ICMP error."""
        if wire.hops(head, frame) < 2 or not _is_honest(frame, head):
            return False
        if len(frame) - wire.L3 <= MTU_MIN:
            return True
        mtu = self.peers.mtu_of(shortcut.peer)
        if wire.largest(frame) <= mtu:
            return True
        is_told = wire.must_not_fragment(head) and (head[wire.KIND] == wire.V4 or mtu >= IPV6_MTU_MIN)
        if is_told and self._errors.take(now):
            self._tell_mtu(frame, mtu, now)
        return False

    def _tell_mtu(self, frame: memoryview, mtu: int, now: float) -> None:
        """Send the VM an ICMP error with the MTU of the shortcut, so that later packets fit it."""
        try:
            pkt = Packet.at(frame)
            net = pkt.ip
            if net is None:
                return
            is_v4 = len(net.dst) == 4
            kind = icmp.UNREACHABLE if is_v4 else icmp.V6_PACKET_TOO_BIG
            code = icmp.FRAGMENTATION_NEEDED if is_v4 else 0
            error = derive.icmp_error(pkt, kind, code, src=net.dst, rest=mtu)
        except Malformed:
            return
        if error is not None:
            self.send(FROM_VM, [(bytes(error),)], now)

    # --- from its network

    def _from_default(self, batch: Batch, now: float) -> None:
        known, lost = self._ways.known[DEFAULT], []
        for i, frame in enumerate(batch):
            head = bytes(frame[: wire.HEAD])
            way = known.get(wire.key(head))
            if way is None:
                way = self._ways.look(DEFAULT, head, now)
            if way != LONG:
                lost.append(i)
        if lost:
            self.drop(batch, lost, PROTOCOL)
        if batch.count:
            self.out[FROM_VM](batch, now)

    # --- from the direct link

    def _from_direct(self, batch: Batch, now: float) -> None:
        known, lost = self._ways.known[DIRECT], []
        for i, frame in enumerate(batch):
            head = bytes(frame[: wire.HEAD])
            way = known.get(wire.key(head)) if head[wire.KIND] in wire.IP else "not-ip"
            if way is None:
                way = self._ways.look(DIRECT, head, now)
            if isinstance(way, Shortcut):
                way = self._deliver(way, frame, head)
            if way != LONG:
                self._keep_out(way, frame, head, now)
                lost.append(i)
        if not lost:
            self.out[FROM_VM](batch, now)
        elif len(lost) < batch.count:
            gone = set(lost)
            self._pass(FROM_VM, batch, [i for i in range(batch.count) if i not in gone], now)

    def _deliver(self, shortcut: Shortcut, frame: memoryview, head: bytes) -> str:
        """Change a packet as if the gateway had forwarded it; return LONG, or the reason of its drop."""
        gateway = shortcut.gateway or self.vm.gateway
        if gateway is None:
            return "no-gateway"
        hops = wire.hops(head, frame)
        if hops == wire.HOPS_MAX:  # vtl-subnet at the peer would have decremented it
            return "no-hop"
        if not hops:
            return "options"
        if not _is_honest(frame, head):
            return "offload"
        frame[wire.SRC_MAC] = gateway
        shortcut.rx_frames += 1
        shortcut.rx_octets += len(frame) - VNET
        return LONG

    def _keep_out(self, why: str, frame: memoryview, head: bytes, now: float) -> None:
        """Learn from a frame that is not for the VM, and count it."""
        if head[wire.KIND] == OURS:
            self.peers.receive(frame, now)
        elif head[wire.KIND] == wire.ARP or wire.is_neighbour_discovery(head):
            self.peers.listen(frame, now)
            self.drops[NEIGHBOURS] += 1
        else:
            self.drops[why] += 1

    # --- frames

    def _pass(self, port: int, batch: Batch, indices: "Sequence[int]", now: float) -> None:
        if indices:
            self.out[port](self._picked.pick(batch, indices), now)

    def settle(self, now: float) -> None:
        """Send the messages to peers."""
        if self.peers.outbox:
            frames, self.peers.outbox = self.peers.outbox, []
            self.send(DIRECT, [(frame,) for frame in frames], now)

    # --- links and time

    def on_mtu(self, port: int, octets: int) -> None:
        """Note the MTU of the direct link and of the VM's link; that of the default link does not matter."""
        if port == DIRECT:
            self.peers.mtu = min(octets, 65535)
        elif port == FROM_VM:
            self.peers.vm_mtu = min(octets, 65535)

    def on_link(self, port: int, up: bool, now: float) -> None:
        """Stop using the direct link at once when it fails."""
        if port == DIRECT and up:
            self.peers.changed(now)
        elif port == DIRECT:
            self.peers.lost_link("link-down", now)

    def deadline(self) -> float | None:
        """Return when the next probe or announcement is due."""
        return self.peers.deadline()

    def wake(self, now: float) -> None:
        """Send probes and announcements, and drop peers that do not answer."""
        self.peers.wake(now)

    def on_stop(self, now: float) -> None:
        """Tell the peers to use the default path from now on."""
        self.peers.withdraw()
        self.settle(now)

    def _told(self, shortcut: Shortcut, state: PeerState, was: PeerState, why: str) -> None:
        mine, mac = address.format_ip(shortcut.address), address.format_mac(shortcut.peer.mac)
        log.debug("%s: %s, was %s: %s", mine, state.value, was.value, why)
        cause = mine, mac, state, why
        told = {"address": mine, "peer": mac, "state": state.value, "was": was.value, "reason": why}
        self.event("shortcut", cause=cause, **told)

    def status(self, now: float) -> dict[str, object]:
        """Return the VM's addresses, its shortcuts, and the traffic that took them."""
        return report(self.peers, now, LISTED_MAX)


def _is_honest(frame: memoryview, head: bytes) -> bool:
    """Return whether completing a partial checksum leaves the fields that were read as they are."""
    if head[0] == 0 == head[1]:
        return True
    try:
        bind(frame)
    except Malformed:
        return False
    return frame[: wire.HEAD] == head
