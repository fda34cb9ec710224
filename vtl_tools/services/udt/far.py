"""The far side: connects the flows that a near module asks for to their destinations, as their clients.

Each connection is an active endpoint that speaks for the client's address: the destination sees the client.
"""

import logging
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.guest_net.hops import NextHops
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.relay.active import ActiveConnector, ActiveEndpoints
from vtl_tools.common.relay.budget import RelayBudget, RelayLimits
from vtl_tools.common.relay.splice import PIECE, Splice
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.wire import Path, Segment
from vtl_tools.services.udt.allowed import AllowList, Refusal
from vtl_tools.services.udt.causes import Causes
from vtl_tools.services.udt.load import CONTROL, CarrierId, Reporter
from vtl_tools.services.udt.transport.flow import MuxFlow

log = logging.getLogger(__name__)

_RETRY_S: Final = 0.02
_RETRY_MOST_S: Final = 10.0
"""Time for which a flow waits for an earlier connection of the same addresses and ports to end."""
RETRIES_MAX: Final = 256
"""Flows that wait so. A peer may open thousands with the same addresses and ports."""
_EVICTED_MAX: Final = 64


class FarFlow:
    """One flow, from the request to its end. splice: once the destination is connected. ended: it is gone."""

    __slots__ = (
        "buffered", "carrier", "connector", "ended", "incoming", "retry_at", "scheduled", "splice",
        "started_at",
    )  # fmt: skip

    def __init__(self, carrier: CarrierId, incoming: MuxFlow, now: float) -> None:
        self.carrier, self.incoming, self.started_at = carrier, incoming, now
        self.connector: ActiveConnector | None = None
        self.splice: Splice | None = None
        self.retry_at: float | None = None
        self.scheduled = self.ended = False
        self.buffered = 0


class FarSide:
    """The flows of all peers that are connected on one link. mac: the Ethernet address of our frames.

    send: puts frames on the link. event: see Stage.event. has_bbr: whether this host has BBR. losses: returns
    the share of packets that were lost, by transport. stations: Ethernet addresses that are known beforehand.
    """

    def __init__(
        self,
        send: Callable[[Sequence[Pieces], float], object],
        *,
        mac: bytes,
        secret: bytes,
        hops: NextHops,
        allowed: AllowList,
        limits: RelayLimits,
        drops: Counter[str],
        event: Callable[..., object],
        has_bbr: bool,
        stations: Mapping[bytes, bytes],
        losses: Callable[[], Mapping[str, float | None]],
    ) -> None:
        self._mac, self._hops, self._allowed, self._stations = mac, hops, allowed, stations
        self._limits, self._event, self._losses = limits, event, losses
        self.budget = RelayBudget(limits)
        self.active = ActiveEndpoints(send, secret, drops=drops, is_full=lambda: self.budget.is_full)
        self.flows: dict[int, FarFlow] = {}
        self.clients: Counter[bytes] = Counter()
        """Flows of each client's address, which we speak for."""
        self.refused: Counter[str] = Counter()
        self._logged = Causes()
        self.reporter = Reporter(has_bbr=has_bbr)
        self._room = memoryview(bytearray(PIECE))
        self._scheduled: list[FarFlow] = []
        self._retries: dict[int, FarFlow] = {}

    # --- what a peer asks for

    def on_flow(self, transport: str, incoming: MuxFlow, now: float) -> None:
        """Take a flow that a peer asks for by a transport: refuse it, or begin to connect it."""
        opening = incoming.opening
        carrier = transport, incoming.peer.rpartition(":")[0]
        if opening == CONTROL:
            incoming.accept(now)
            self.reporter.add(carrier, incoming, now)
            return
        refusal = self._allowed.refusal(opening)
        if refusal is None and len(self.flows) >= self._limits.connections:
            refusal = Refusal.TOO_MANY
        if refusal is not None:
            self._refuse(incoming, refusal, now)
            return
        flow = FarFlow(carrier, incoming, now)
        self.flows[id(flow)] = flow
        self.clients[opening.client] += 1
        self.budget.opened += 1
        self.budget.half_open += 1
        incoming.stream.on_event = partial(self._on_near, flow)
        hop = self._allowed.next_hop(opening.destination)
        if hop in self._stations:
            self._on_found(flow, self._stations[hop], now)
        else:
            self._hops.find(hop, opening.client, partial(self._on_found, flow), now)

    def _refuse(self, incoming: MuxFlow, refusal: Refusal, now: float) -> None:
        opening = incoming.opening
        self.refused[refusal] += 1
        told = {
            "peer": incoming.peer,
            "client": f"{_text(opening.client)} {opening.client_port}",
            "destination": f"{_text(opening.destination)} {opening.destination_port}",
            "reason": str(refusal),
        }
        cause = incoming.peer.rpartition(":")[0], refusal
        level = logging.WARNING if self._logged.is_first(cause) else logging.DEBUG
        log.log(level, "%(peer)s: refused %(client)s to %(destination)s: %(reason)s", told)
        self._event("refused", cause=cause, **told)
        incoming.refuse(Reason.PROHIBITED, now)

    def _on_found(self, flow: FarFlow, mac: bytes | None, now: float) -> None:
        """Connect, now that the neighbour is known, or known to be absent."""
        if flow.ended:
            return
        if mac is None:
            self._fail(flow, Reason.HOST_UNREACHABLE, now)
            return
        opening = flow.incoming.opening
        path = Path(
            self._stations.get(opening.client, self._mac), mac, opening.client, opening.destination,
            opening.client_port, opening.destination_port,
        )  # fmt: skip
        flow.connector = self.active.connector(path, now)
        flow.connector.stream.on_event = partial(self._on_far, flow)
        self._connect(flow, 0, now)

    def _connect(self, flow: FarFlow, events: int, now: float) -> None:
        assert flow.connector is not None
        flow.retry_at = None
        try:
            result = flow.connector.step(events)
        except BlockingIOError:
            if now - flow.started_at > _RETRY_MOST_S or len(self._retries) >= RETRIES_MAX:
                self._fail(flow, Reason.HOST_UNREACHABLE, now)
            else:
                flow.retry_at = now + _RETRY_S
                self._retries[id(flow)] = flow
            return
        if result is None:
            return
        if isinstance(result, Reason):
            self._fail(flow, result, now)
            return
        self.budget.half_open -= 1
        self.budget.established += 1
        flow.splice = Splice(flow.incoming.stream, flow.connector.stream, self._room)
        flow.incoming.accept(now)
        self._schedule(flow)

    def _fail(self, flow: FarFlow, reason: Reason, now: float) -> None:
        """Tell the peer why the destination was not connected."""
        self.budget.failed += 1
        flow.incoming.refuse(reason, now)
        self._remove(flow)

    # --- events

    def _on_near(self, flow: FarFlow, events: int, now: float) -> None:
        if flow.splice is not None:
            flow.splice.on_near(events)
            self._schedule(flow)
        elif flow.incoming.is_gone and not flow.ended:  # the client gave up, or the session ended
            self.budget.failed += 1
            self._remove(flow)

    def _on_far(self, flow: FarFlow, events: int, now: float) -> None:
        if flow.splice is not None:
            flow.splice.on_far(events)
            self._schedule(flow)
        elif not flow.ended:
            self._connect(flow, events, now)

    def on_frame(self, segment: Segment, frame: memoryview, now: float) -> bool:
        """Take a segment that came in at the link; False: it belongs to none of our connections."""
        return self.active.on_frame(segment, frame, now)

    # --- carrying

    def _schedule(self, flow: FarFlow) -> None:
        if not flow.scheduled and not flow.ended:
            flow.scheduled = True
            self._scheduled.append(flow)

    @property
    def has_more(self) -> bool:
        """Whether settle() has something to do."""
        return bool(self._scheduled) or self.active.has_more

    def settle(self, now: float) -> None:
        """Carry what can be carried, and send it."""
        scheduled, self._scheduled = self._scheduled, []
        for flow in scheduled:
            flow.scheduled = False
            splice = flow.splice
            if flow.ended or splice is None:
                continue
            up, down = splice.up.moved, splice.down.moved
            assert flow.connector is not None
            # octets of the flow itself are not buffered by moving them on
            may_buffer = self.budget.allows(splice.buffered + flow.connector.stream.buffered)
            splice.carry(up=may_buffer)
            self.budget.octets_up += splice.up.moved - up
            self.budget.octets_down += splice.down.moved - down
            self._recount(flow)
            if splice.is_over:
                self._remove(flow)
            elif splice.down.has_more or (may_buffer and splice.up.has_more):
                self._schedule(flow)
        if self.budget.is_exceeded:
            self._evict()
        self.active.settle(now)

    def _recount(self, flow: FarFlow) -> None:
        assert flow.splice is not None
        assert flow.connector is not None
        buffered = flow.splice.buffered + flow.connector.stream.buffered + flow.incoming.stream.buffered
        self.budget.buffered += buffered - flow.buffered
        flow.buffered = buffered

    def _evict(self) -> None:
        """Reset the flows with the most buffered octets."""
        bound = self._limits.most * 7 // 8
        largest = sorted(self.flows.values(), key=lambda each: each.buffered, reverse=True)
        for flow in largest[:_EVICTED_MAX]:
            if self.budget.buffered <= bound:
                return
            self.budget.evicted += 1
            self._remove(flow)

    def _remove(self, flow: FarFlow) -> None:
        """Let go of a flow. Both ends are reset, unless both directions have ended."""
        flow.ended = True
        del self.flows[id(flow)]
        self._retries.pop(id(flow), None)
        client = flow.incoming.opening.client
        self.clients[client] -= 1
        if not self.clients[client]:
            del self.clients[client]
        self.budget.buffered -= flow.buffered
        splice = flow.splice
        self.budget.half_open -= splice is None
        flow.incoming.stream.close()
        if flow.connector is not None:
            if splice is None or splice.broken or not splice.is_over:
                flow.connector.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 1)
            flow.connector.stream.close()

    # --- time

    def deadline(self) -> float | None:
        """Return when the first of its timers is due."""
        retries = [flow.retry_at for flow in self._retries.values() if flow.retry_at is not None]
        parts = (*retries, self.active.deadline(), self.reporter.deadline())
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        for key, flow in list(self._retries.items()):
            if flow.retry_at is None:
                del self._retries[key]
            elif now >= flow.retry_at:
                del self._retries[key]
                self._connect(flow, 0, now)
        self.active.wake(now)
        self.reporter.wake(self.flows.values(), self._losses, now)

    def on_stop(self, now: float) -> None:
        """Reset all connections."""
        self.active.on_stop(now)

    def status(self) -> dict[str, object]:
        """Return the counters."""
        return {
            "flows": len(self.flows),
            **self.budget.status(),
            "refused": dict(self.refused),
            "endpoints": self.active.status(),
        }


def _text(octets: bytes) -> str:
    return format_ip(octets) if len(octets) in (4, 16) else octets.hex()
