"""Ports of the host that lead to the guest: both protocols, and the neighbours that they lead to."""

import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence

from vtl_tools.common.device.batch import Batch, Pieces
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.hops import NextHops
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.tcp.wire import parse
from vtl_tools.services.split.destinations import Destinations
from vtl_tools.services.split.forward import Forward, ForwardedConnections
from vtl_tools.services.split.forward_udp import ForwardedDatagrams


class Forwarding:
    """All forwarded ports. is_used: there are some. See ForwardedConnections. Raises VTLError."""

    def __init__(
        self,
        forwards: Sequence[Forward],
        network: GuestAddresses,
        destinations: Destinations,
        poller: Poller,
        *,
        send: Callable[[Sequence[Pieces], float], object],
        limits: RelayLimits,
        drops: Counter[str],
        is_taken: Callable[[bytes, float], object],
    ) -> None:
        def send_frame(frame: bytes | bytearray, now: float) -> None:
            send([(bytes(frame),)], now)

        self.is_used = bool(forwards)
        self._hops = NextHops(network.mac, send_frame)
        self.connections = ForwardedConnections(
            network, destinations, self._hops, poller,
            send=send, secret=os.urandom(32), limits=limits, drops=drops, is_taken=is_taken,
        )  # fmt: skip
        self.datagrams = ForwardedDatagrams(network, destinations, self._hops, poller, send=send_frame)
        self._sockets: list[socket.socket] = []
        for forward in forwards:
            part = self.connections if forward.protocol == "tcp" else self.datagrams
            self._sockets.append(forward.open())
            part.listen(self._sockets[-1], forward)

    def on_batch(
        self, batch: Batch, relay: Relay, on_non_tcp: Callable[[memoryview, float], object], now: float
    ) -> None:
        """Take the guest's frames: segments of these connections; those of others go to the relay."""
        for frame in batch:
            try:
                segment = parse(frame)
            except Malformed:
                segment = None
            if segment is None:
                on_non_tcp(frame, now)
            elif not self.connections.on_segment(segment, frame, now):
                relay.on_segment(segment, frame, now)

    def hear(self, pkt: Packet, now: float) -> None:
        """Learn from ARP and ND where the guest is. Raises Malformed."""
        if self.is_used:
            self._hops.hear(pkt, now)

    @property
    def has_more(self) -> bool:
        """Whether settle() has something to do."""
        return self.connections.has_more or self.datagrams.has_more

    def settle(self, now: float) -> None:
        """Carry what can be carried."""
        if self.is_used:
            self.connections.settle(now)
            self.datagrams.settle(now)

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        parts = self._hops.deadline(), self.connections.deadline()
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        self._hops.wake(now)
        self.connections.wake(now)

    def on_stop(self, now: float) -> None:
        """Reset the connections, and take no more."""
        self.connections.on_stop(now)
        for sock in self._sockets:
            sock.close()

    def status(self) -> dict[str, object]:
        """Return the counters, if there are forwarded ports."""
        if not self.is_used:
            return {}
        return {"forwarded": {**self.connections.status(), "datagrams": self.datagrams.status()}}
