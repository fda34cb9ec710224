"""The stage of vtl-ack: finds the connection of each segment, and keeps connections within limits."""

from collections.abc import Collection
from typing import Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.model.base import LOCAL, End
from vtl_tools.common.packet import ether, ip, quick
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.packet.ether import Ethernet
from vtl_tools.common.packet.offload import bind, is_bound
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.quick import Headers
from vtl_tools.common.packet.tcp import ACK, RST, SYN
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.relay.timers import FlowTimers
from vtl_tools.common.rules.connections import ConnectionChoice, FirstSegment
from vtl_tools.common.rules.rule import IN, OUT
from vtl_tools.common.stage import Stage
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.tcb import NEVER
from vtl_tools.common.tcp.wire import Path, is_intact
from vtl_tools.services.ack.budget import AckBudget, LossReason, SegmentFate
from vtl_tools.services.ack.flow import AckFlow, Frames
from vtl_tools.services.ack.path_mtu import too_big
from vtl_tools.services.ack.predecessor import Predecessor
from vtl_tools.services.ack.register import Register, RegisteredConnection
from vtl_tools.services.ack.rewrite import is_signed

OPENING_MAX: Final = 4096
"""Maximum connections whose handshake is not complete: more evict the oldest."""
IDLE_S: Final = 300.0
"""Seconds without a segment after which a connection may leave to make room for another."""
_EXAMINED: Final = 16
"""Connections that are examined for one that may leave."""


class LocalAck(Stage):
    """Two ports: the guest's, and the network's.

    choice: the connections to process; all others pass untouched. taken: ends whose data is acknowledged.
    register: see register.py; predecessor: what it held at the start.
    """

    def __init__(
        self,
        choice: ConnectionChoice,
        taken: Collection[End],
        config: Config,
        budget: AckBudget,
        register: Register,
        predecessor: Predecessor,
    ) -> None:
        super().__init__()
        self.choice, self.taken, self.config, self.budget = choice, frozenset(taken), config, budget
        self.register, self.predecessor = register, predecessor
        self.flows: dict[bytes, AckFlow] = {}
        self._by_port: tuple[dict[bytes, AckFlow], dict[bytes, AckFlow]] = (self.flows, {})
        self._opening: dict[bytes, AckFlow] = {}
        self.timers = FlowTimers(self.flows)
        self._touched: dict[bytes, AckFlow] = {}
        self._mtus = [65535, 65535]
        self._picked = Batch()
        self._out: tuple[Frames, Frames] = ([], [])
        self._told_of_predecessor = False
        self.opened = self.passed = 0
        self.drops = budget.drops

    def on_mtu(self, port: int, octets: int) -> None:
        """Limit the segments of a link."""
        self._mtus[port] = octets

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Pass the frames on that are not taken here."""
        passing = [i for i, frame in enumerate(batch) if self._passes(port, frame, now)]
        if len(passing) == batch.count:
            self.out[1 - port](batch, now)
        elif passing:
            self.out[1 - port](self._picked.pick(batch, passing), now)

    def _passes(self, port: int, frame: memoryview, now: float) -> bool:
        try:
            headers = quick.read(frame)
            if headers is None:
                return self._is_other(port, frame, now)
            if headers[1] != ip.TCP:
                return True
            flow = self._by_port[port].get(headers[2])
            if flow is None or (flow.is_over and headers[5] & (SYN | ACK | RST) == SYN):
                return self._on_stranger(port, frame, headers, flow, now)
            return self._on_segment(flow, port, frame, headers, now)
        except Malformed:
            self.drops["malformed"] += 1
            return False

    def _on_segment(self, flow: AckFlow, port: int, frame: memoryview, headers: Headers, now: float) -> bool:
        if not is_bound(frame, headers):
            bind(frame)
        slot = None
        if flow.slot is None and headers[5] & (SYN | ACK) == SYN | ACK:
            slot = self._slot_for(flow, now)
            if slot is None:  # it goes on without us, unless its SYN was changed
                self._forget(flow)
                self.passed += 1
                if flow.is_widened:
                    self.drops[SegmentFate.NO_ROOM] += 1
                return not flow.is_widened
        passes = flow.on_segment(port, frame, headers[7], now)
        if slot is not None:
            if passes and flow.is_answered:
                self._opening.pop(flow.key, None)
                flow.open(slot, now)
                self.opened += 1
            else:
                self.register.free(slot)
        if flow.is_over and flow.slot is None:
            self._forget(flow)
        else:
            self._touched[flow.key] = flow
        return passes

    def _on_stranger(
        self, port: int, frame: memoryview, headers: Headers, over: AckFlow | None, now: float
    ) -> bool:
        """Process a segment of no connection that is open: a SYN may begin one."""
        _, _, parties, _, _, flags, _, _, data, end, _, _ = headers
        left = self.predecessor.find(port, parties) if len(self.predecessor) else None
        begins = flags & (SYN | ACK | RST) == SYN
        if left is not None:
            if not begins:
                if (answer := self.predecessor.answer(left, port, frame, flags)) is not None:
                    self._out[port].append((answer,))
                return False
            self.predecessor.forget(left)
        if not begins:
            return True
        if over is not None:
            self._forget(over)
        if data == end and (frame[0] & 3 or is_intact(frame)):
            self._begin(port, frame, parties, now)
        return True

    def _begin(self, port: int, frame: memoryview, parties: bytes, now: float) -> None:
        """Follow a connection from its SYN on, if it is chosen and nobody has signed it."""
        dst_mac, src_mac, _ = Ethernet.HEADER.unpack_from(frame, VNET)
        first = FirstSegment(IN if port else OUT, *quick.split(parties), src_mac, dst_mac)
        pkt = Packet.at(frame)
        path = Path.answering(frame)
        if first not in self.choice or pkt.tcp is None or is_signed(pkt.tcp) or not path.is_unicast:
            self.passed += 1
            return
        key = quick.reverse(parties) if port else parties
        try:
            flow = AckFlow(
                key, pkt, port, self.taken, self.config, self.budget, (self._mtus[0], self._mtus[1]), now
            )
        except ValueError:
            return
        if len(self._opening) >= OPENING_MAX:
            self._forget(next(iter(self._opening.values())))
        self._opening[key] = self.flows[key] = self._by_port[1][quick.reverse(key)] = flow
        self._touched[key] = flow

    def _is_other(self, port: int, frame: memoryview, now: float) -> bool:
        """Process a frame that is not ordinary. Return whether it passes."""
        pkt = Packet.at(frame)
        if pkt.ethertype not in (ether.IPV4, ether.IPV6) or pkt.l3_off != quick.L3 or not self.flows:
            return True
        if (told := too_big(pkt)) is not None:
            flow = self._by_port[1 - port].get(told.parties)
            if flow is None or not flow.path_mtu(port, told.seq, told.mtu):
                return True
            self._touched[flow.key] = flow
            return False
        if pkt.tcp is None or pkt.ip is None or pkt.is_fragment:
            return True
        parties = pkt.ip.src + pkt.ip.dst + bytes(frame[pkt.tcp.off : pkt.tcp.off + 4])
        flow = self._by_port[port].get(parties)
        if flow is None or flow.slot is None:
            return True
        self.drops[SegmentFate.NOT_ORDINARY] += 1
        return False

    # --- connections

    def _slot_for(self, flow: AckFlow, now: float) -> int | None:
        net = flow.wires[0].model.ip
        entry = RegisteredConnection(net.link.local.mac, net.link.remote.mac, flow.key)
        slot = self.register.add(entry)
        if slot is None and self._make_room(now):
            slot = self.register.add(entry)
        return slot

    def _make_room(self, now: float) -> bool:
        """Let a connection leave that has been idle and has nothing to deliver. Return whether one could."""
        for _ in range(min(_EXAMINED, len(self.flows))):
            key = next(iter(self.flows))
            flow = self.flows.pop(key)
            self.flows[key] = flow  # behind the others
            if flow.slot is not None and now - flow.heard_at > IDLE_S and flow.may_leave:
                self._forget(flow)
                return True
        return False

    def _forget(self, flow: AckFlow) -> None:
        if self.flows.get(flow.key) is not flow:
            return
        flow.release()
        if flow.slot is not None:
            self.register.free(flow.slot)
        del self.flows[flow.key], self._by_port[1][quick.reverse(flow.key)]
        self._opening.pop(flow.key, None)
        self._touched.pop(flow.key, None)

    def _report(self, flow: AckFlow) -> None:
        guest, peer, sport, dport = quick.split(flow.key)
        for end, reason, octets in flow.lost:
            self.event(
                "undelivered",
                guest=format_ip(guest), guest_port=sport, peer=format_ip(peer), peer_port=dport,
                sender="guest" if end is LOCAL else "peer", octets=octets, reason=str(reason),
                cause=("undelivered", reason),
            )  # fmt: skip
        flow.lost.clear()

    # --- time

    def settle(self, now: float) -> None:
        """Send what the segments made due."""
        touched, self._touched = self._touched, {}
        out, self._out = self._out, ([], [])
        for flow in touched.values():
            for frames, mine in zip(out, flow.settle(now), strict=True):
                frames.extend(mine)
            if flow.lost:
                self._report(flow)
            if (due := flow.deadline()) < flow.armed_at:
                self.timers.arm(flow, due)
        for port, frames in enumerate(out):
            if frames:
                self.send(port, frames, now)

    def deadline(self) -> float | None:
        """Return when wake() is due."""
        due = min(at for at in (self.timers.deadline(), self.predecessor.deadline(), NEVER) if at is not None)
        return None if due == NEVER else due

    def wake(self, now: float) -> None:
        """Process due timers, and ask the ends of connections that a killed service left."""
        if not self._told_of_predecessor:
            self._told_of_predecessor = True
            if self.predecessor.found:
                self.event("inherited", connections=self.predecessor.found)
        for frames, probes in zip(self._out, self.predecessor.probes(now), strict=True):
            frames.extend(probes)
        for flow in self.timers.expired(now):
            if flow.wake(now):
                self._forget(flow)
            else:
                self._touched[flow.key] = flow

    def on_stop(self, now: float) -> None:
        """Reset the connections that cannot go on without this service; the others do."""
        for flow in list(self.flows.values()):
            if not flow.may_leave:
                flow.abort(LossReason.STOPPED, now)
                self._touched[flow.key] = flow
        self.settle(now)
        for flow in list(self.flows.values()):
            self._forget(flow)

    def status(self, now: float) -> dict[str, object]:
        """Return counters of all connections."""
        budget = self.budget
        return {
            "ack": {
                "connections": sum(f.slot is not None and not f.is_over for f in self.flows.values()),
                "opening": len(self._opening),
                "inherited": len(self.predecessor),
                "opened": self.opened,
                "passed": self.passed,
                "held_octets": budget.held,
                "held_octets_max": budget.held_max,
                "memory_octets": budget.memory,
                "acknowledged_octets": budget.acknowledged,
                "delivered_octets": budget.delivered,
                "lost_octets": budget.lost,
                "lost_connections": budget.lost_connections,
                "retransmits": budget.retransmits + sum(f.retransmits for f in self.flows.values()),
            }
        }
