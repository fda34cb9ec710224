"""Connections from outside to the guest: TCP ports of the host that lead to ports of the guest.

Towards the guest each is an active endpoint, which speaks for the client's own address where the guest can
reach that, and for the router's otherwise.
"""

import errno
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.errors import PermissionNeededError, VTLError
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.hops import NextHops
from vtl_tools.common.relay.active import ACTIVE, ActiveConnector, ActiveEndpoints
from vtl_tools.common.relay.budget import RelayBudget, RelayLimits
from vtl_tools.common.relay.connector import FAILED
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.relay.splice import Splice, Splices
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.wire import Path, Segment
from vtl_tools.services.split.arena import sender_of
from vtl_tools.services.split.destinations import Destinations

_TOWARDS_GUEST: Final = replace(
    ACTIVE, syn_timeout_s=20.0, time_wait_s=1.0, keep_alive_s=300.0, keep_alive_interval_s=30.0,
    keep_alive_probes=5,
)  # fmt: skip
_BACKLOG: Final = 1024
_ACCEPTED_MAX: Final = 64
"""Clients of one port that are accepted in one turn."""
_RETRY_S: Final = 0.1
"""Seconds until a client is accepted again, after there was no descriptor for it."""
_PORTS_TRIED: Final = 16
_FIRST_PORT: Final = 49_152
"""Of the dynamic ports (RFC 6335), for clients whose own port is in use in the eyes of the guest."""
_RESET: Final = b"\1\0\0\0\0\0\0\0"
"""A struct linger, with which close() resets."""


class Forward(NamedTuple):
    """A port of the host, at one of its addresses, that leads to a port of the guest."""

    protocol: str
    host: IPv4Address | IPv6Address
    port: int
    guest: IPv4Address | IPv6Address
    guest_port: int

    def open(self) -> socket.socket:
        """Return the socket, which listens. Raises VTLError."""
        kind = socket.SOCK_STREAM if self.protocol == "tcp" else socket.SOCK_DGRAM
        family = socket.AF_INET if self.host.version == 4 else socket.AF_INET6
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((str(self.host), self.port))
            if kind == socket.SOCK_STREAM:
                sock.listen(_BACKLOG)
        except OSError as e:
            sock.close()
            where = f"--forward: {self.protocol} port {self.port} of {self.host}"
            if e.errno in (errno.EACCES, errno.EPERM):
                raise PermissionNeededError(
                    f"{where}: not permitted; run as root, or choose a port from 1024 on"
                ) from None
            problem = (e.strerror or str(e)).lower()
            raise VTLError(f"{where}: {problem}; see 'ss -lnp' and 'ip address'") from None
        return sock


class _ForwardedFlow:
    """One client. splice: once the guest is connected. ended: it is gone."""

    __slots__ = ("client", "client_port", "connector", "ended", "guest", "guest_port", "sock", "splice")

    def __init__(self, sock: socket.socket, client: bytes, client_port: int, forward: Forward) -> None:
        self.sock, self.client, self.client_port = sock, client, client_port
        self.guest, self.guest_port = forward.guest.packed, forward.guest_port
        self.connector: ActiveConnector | None = None
        self.splice: Splice | None = None
        self.ended = False


class ForwardedConnections:
    """The clients of all forwarded TCP ports. send: puts frames on the guest's link.

    is_taken: tells whether a connection of the guest's own has a key, as in Segment.flow.
    """

    def __init__(
        self,
        network: GuestAddresses,
        destinations: Destinations,
        hops: NextHops,
        poller: Poller,
        *,
        send: Callable[[Sequence[Pieces], float], object],
        secret: bytes,
        limits: RelayLimits,
        drops: Counter[str],
        is_taken: Callable[[bytes, float], object],
    ) -> None:
        self._network, self._destinations, self._hops, self._poller = network, destinations, hops, poller
        self._is_taken, self._limits = is_taken, limits
        self.budget = RelayBudget(limits)
        self.active = ActiveEndpoints(
            send, secret, config=_TOWARDS_GUEST, drops=drops, is_full=lambda: self.budget.is_full
        )
        self.flows: dict[int, _ForwardedFlow] = {}
        self._splices = Splices(self.budget, far_is_guest=True)
        self._waiting: dict[int, tuple[socket.socket, Forward]] = {}
        self._retry_at = 0.0
        self._ports = 0

    def listen(self, sock: socket.socket, forward: Forward) -> None:
        """Accept clients from a socket that listens."""
        self._poller.add(sock, (sock, forward), self._on_listener)

    # --- clients

    def _on_listener(self, listener: tuple[socket.socket, Forward], events: int, now: float) -> None:
        self._waiting[listener[0].fileno()] = listener

    def _accept(self, sock: socket.socket, forward: Forward, now: float) -> bool:
        """Accept clients that wait; return whether more may wait."""
        for _ in range(_ACCEPTED_MAX):
            try:
                client, address = sock.accept()
            except BlockingIOError:
                return False
            except ConnectionError:
                continue
            except OSError:  # no descriptor left
                self._retry_at = now + _RETRY_S
                return True
            self._on_client(client, address, forward, now)
        return True

    def _on_client(
        self, client: socket.socket, address: tuple[str, int], forward: Forward, now: float
    ) -> None:
        client.setblocking(False)
        if len(self.flows) >= self._limits.connections:
            _close(client, reset=True)
            return
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            origin = self._destinations.seen_as(sender_of(*address[:2])[2:], len(forward.guest.packed))
        except OSError:  # the kernel has no room for the question whose address it is
            _close(client, reset=True)
            return
        flow = _ForwardedFlow(client, origin, address[1], forward)
        try:
            self._poller.add(client, flow, self._on_near)
        except OSError:  # which has closed it
            return
        self.flows[id(flow)] = flow
        self.budget.opened += 1
        self.budget.half_open += 1
        self._hops.find(flow.guest, self._network.gateway, partial(self._on_found, flow), now)

    def _on_found(self, flow: _ForwardedFlow, mac: bytes | None, now: float) -> None:
        """Connect to the guest, now that its Ethernet address is known."""
        if flow.ended:
            return
        port = flow.client_port
        for _ in range(_PORTS_TRIED if mac is not None else 0):
            assert mac is not None
            path = Path(self._network.mac, mac, flow.client, flow.guest, port, flow.guest_port)
            connector = self.active.connector(path, now)
            if not self._is_taken(connector.stream.key, now):
                try:
                    connector.step(0)
                except BlockingIOError:  # an earlier connection of these addresses and ports
                    pass
                else:
                    flow.connector = connector
                    connector.stream.on_event = partial(self._on_far, flow)
                    return
            self._ports += 1
            port = _FIRST_PORT + self._ports % (65_536 - _FIRST_PORT)
        self._fail(flow)

    def _fail(self, flow: _ForwardedFlow) -> None:
        self.budget.failed += 1
        self._remove(flow)

    def _on_near(self, flow: _ForwardedFlow, events: int, now: float) -> None:
        if flow.splice is not None:
            flow.splice.on_near(events)
        elif events & FAILED and not flow.ended:  # the client gave up
            self._fail(flow)

    def _on_far(self, flow: _ForwardedFlow, events: int, now: float) -> None:
        assert flow.connector is not None
        if flow.splice is not None:
            flow.splice.on_far(events)
        elif not flow.ended:
            result = flow.connector.step(events)
            if isinstance(result, Reason):
                self._fail(flow)
            elif result is not None:
                self.budget.half_open -= 1
                self.budget.established += 1
                flow.splice = self._splices.join(
                    flow.sock, flow.connector.stream, partial(self._remove, flow)
                )

    # --- carrying

    def on_segment(self, segment: Segment, frame: memoryview, now: float) -> bool:
        """Take a segment of the guest; False: it belongs to none of these connections."""
        return self.active.on_frame(segment, frame, now)

    @property
    def has_more(self) -> bool:
        """Whether settle() has something to do."""
        return self._splices.has_more or self.active.has_more

    def settle(self, now: float) -> None:
        """Accept clients, and carry what can be carried."""
        if self._waiting and now >= self._retry_at:
            for key, (sock, forward) in list(self._waiting.items()):
                if not self._accept(sock, forward, now):
                    del self._waiting[key]
        self._splices.settle()
        self.active.settle(now)

    def _remove(self, flow: _ForwardedFlow) -> None:
        """Let go of a flow. Both ends are reset, unless both directions have ended."""
        flow.ended = True
        del self.flows[id(flow)]
        if flow.splice is None:
            self.budget.half_open -= 1
        else:
            self._splices.leave(flow.splice)
        reset = flow.splice is None or not flow.splice.is_whole
        if reset:
            flow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._poller.close(flow.sock)
        if flow.connector is not None:
            if reset:
                flow.connector.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 1)
            flow.connector.stream.close()

    # --- time

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        due = self.active.deadline()
        if self._waiting:
            return min(self._retry_at, due or self._retry_at)
        return due

    def wake(self, now: float) -> None:
        """Do what is due; settle() is to follow."""
        self.active.wake(now)

    def on_stop(self, now: float) -> None:
        """Reset all connections."""
        for flow in list(self.flows.values()):
            self._remove(flow)
        self.active.on_stop(now)

    def status(self) -> dict[str, object]:
        """Return the counters."""
        return {"connections": len(self.flows), **self.budget.status()}


def _close(sock: socket.socket, *, reset: bool) -> None:
    if reset:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()
