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
from vtl_tools.common.relay.splice import Splice, Splices
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


class FarFlow:
    """One flow, from the request to its end. splice: once the destination is connected. ended: it is gone."""

    __slots__ = ("carrier", "connector", "ended", "incoming", "retry_at", "splice", "started_at")

    def __init__(self, carrier: CarrierId, incoming: MuxFlow, now: float) -> None:
        self.carrier, self.incoming, self.started_at = carrier, incoming, now
        self.connector: ActiveConnector | None = None
        self.splice: Splice | None = None
        self.retry_at: float | None = None
        self.ended = False


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
        self._splices = Splices(self.budget, far_is_guest=False)
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
        flow.splice = self._splices.join(
            flow.incoming.stream, flow.connector.stream, partial(self._remove, flow)
        )
        flow.incoming.accept(now)

    def _fail(self, flow: FarFlow, reason: Reason, now: float) -> None:
        """Tell the peer why the destination was not connected."""
        self.budget.failed += 1
        flow.incoming.refuse(reason, now)
        self._remove(flow)

    # --- events

    def _on_near(self, flow: FarFlow, events: int, now: float) -> None:
        if flow.splice is not None:
            flow.splice.on_near(events)
        elif flow.incoming.is_gone and not flow.ended:  # the client gave up, or the session ended
            self.budget.failed += 1
            self._remove(flow)

    def _on_far(self, flow: FarFlow, events: int, now: float) -> None:
        if flow.splice is not None:
            flow.splice.on_far(events)
        elif not flow.ended:
            self._connect(flow, events, now)

    def on_frame(self, segment: Segment, frame: memoryview, now: float) -> bool:
        """Take a segment that came in at the link; False: it belongs to none of our connections."""
        return self.active.on_frame(segment, frame, now)

    # --- carrying

    @property
    def has_more(self) -> bool:
        """Whether settle() has something to do."""
        return self._splices.has_more or self.active.has_more

    def settle(self, now: float) -> None:
        """Carry what can be carried, and send it."""
        self._splices.settle()
        self.active.settle(now)

    def _remove(self, flow: FarFlow) -> None:
        """Let go of a flow. Both ends are reset, unless both directions have ended."""
        flow.ended = True
        del self.flows[id(flow)]
        self._retries.pop(id(flow), None)
        client = flow.incoming.opening.client
        self.clients[client] -= 1
        if not self.clients[client]:
            del self.clients[client]
        if flow.splice is None:
            self.budget.half_open -= 1
        else:
            self._splices.leave(flow.splice)
        flow.incoming.stream.close()
        if flow.connector is not None:
            if flow.splice is None or not flow.splice.is_whole:
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
