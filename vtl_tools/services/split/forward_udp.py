"""Datagrams from outside to the guest: UDP ports of the host that lead to ports of the guest."""

import socket
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Final

from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.hops import NextHops
from vtl_tools.common.packet import build, quick
from vtl_tools.common.packet.fragment import fragments
from vtl_tools.common.relay.poller import Poller
from vtl_tools.services.split.arena import sender_of
from vtl_tools.services.split.destinations import Destinations
from vtl_tools.services.split.forward import Forward

CLIENTS_MAX: Final = 4096
"""Clients that get answers; the one that was silent for longest gives way."""
_READ_MAX: Final = 64
"""Datagrams of one port that are read in one turn."""
_HELD_MAX: Final = 64
"""Datagrams that wait for the guest's Ethernet address."""
_DATAGRAM: Final = 65_536
_FIRST_PORT: Final = 49_152
_PORTS_TRIED: Final = 16


class _Client:
    """A sender outside. parties: of the guest's answers, as in quick.Headers. port: as the guest has it."""

    __slots__ = ("address", "key", "local", "parties", "port", "sock")

    def __init__(
        self, key: tuple[int, str, int], sock: socket.socket, address: tuple[str, int], local: bytes
    ) -> None:
        self.key, self.sock, self.address, self.local = key, sock, address, local
        self.port, self.parties = address[1], b""


class ForwardedDatagrams:
    """The clients of all forwarded UDP ports. send: puts a frame on the guest's link. mtu: of that."""

    def __init__(
        self,
        network: GuestAddresses,
        destinations: Destinations,
        hops: NextHops,
        poller: Poller,
        *,
        send: Callable[[bytes | bytearray, float], object],
    ) -> None:
        self._network, self._destinations, self._hops, self._poller = network, destinations, hops, poller
        self._send = send
        self.mtu = network.mtu
        self._clients: OrderedDict[tuple[int, str, int], _Client] = OrderedDict()
        self._by_parties: dict[bytes, _Client] = {}
        self._ready: dict[int, tuple[socket.socket, Forward]] = {}
        self._held = self._number = self._ports = 0
        self.to_guest = self.from_guest = 0

    def listen(self, sock: socket.socket, forward: Forward) -> None:
        """Take datagrams from a socket that is bound."""
        self._poller.add(sock, (sock, forward), self._on_event)

    def _on_event(self, bound: tuple[socket.socket, Forward], events: int, now: float) -> None:
        self._ready[bound[0].fileno()] = bound

    @property
    def has_more(self) -> bool:
        """Whether settle() has sockets to read."""
        return bool(self._ready)

    def settle(self, now: float) -> None:
        """Bring the guest what waits at the sockets: a bounded part of it."""
        for key, (sock, forward) in list(self._ready.items()):
            if not self._receive(sock, forward, now):
                del self._ready[key]

    def _receive(self, sock: socket.socket, forward: Forward, now: float) -> bool:
        """Read a socket; return whether more may wait there."""
        for _ in range(_READ_MAX):
            try:
                octets, address = sock.recvfrom(_DATAGRAM)
            except BlockingIOError:
                return False
            except OSError:  # an ICMP error about an answer of the guest
                continue
            client = self._client(sock, address, forward)
            if client is None or self._held >= _HELD_MAX:
                continue
            self._held += 1
            found = partial(self._on_found, client, forward, octets)
            self._hops.find(forward.guest.packed, self._network.gateway, found, now)
        return True

    def _client(self, sock: socket.socket, address: tuple[str, int], forward: Forward) -> _Client | None:
        key = sock.fileno(), *address[:2]
        client = self._clients.get(key)
        if client is not None:
            self._clients.move_to_end(key)
            return client
        guest = forward.guest.packed
        try:
            local = self._destinations.seen_as(sender_of(*address[:2])[2:], len(guest))
        except OSError:  # the kernel has no room for the question whose address it is
            return None
        client = _Client(key, sock, address, local)
        for _ in range(_PORTS_TRIED):
            ports = forward.guest_port.to_bytes(2, "big") + client.port.to_bytes(2, "big")
            client.parties = guest + local + ports
            if client.parties not in self._by_parties:
                break
            self._ports += 1
            client.port = _FIRST_PORT + self._ports % (65_536 - _FIRST_PORT)
        else:
            return None
        if len(self._clients) >= CLIENTS_MAX:
            _, silent = self._clients.popitem(last=False)
            del self._by_parties[silent.parties]
        self._clients[key] = self._by_parties[client.parties] = client
        return client

    def _on_found(
        self, client: _Client, forward: Forward, octets: bytes, mac: bytes | None, now: float
    ) -> None:
        """Send the guest a datagram, now that its Ethernet address is known."""
        self._held -= 1
        if mac is None:
            return
        frame = build.udp(
            src_mac=self._network.mac, dst_mac=mac, src=client.local, dst=forward.guest.packed,
            sport=client.port, dport=forward.guest_port, payload=octets,
        )  # fmt: skip
        self.to_guest += 1
        if len(frame) - quick.L3 <= self.mtu:
            self._send(frame, now)
            return
        self._number += 1
        for each in fragments(frame, self.mtu, self._number):
            self._send(each, now)

    def take(self, parties: bytes, payload: memoryview, size: int) -> bool:
        """Send an answer of the guest to its client; False: it is no answer.

        size: of each datagram in the payload; 0: it is one.
        """
        client = self._by_parties.get(parties)
        if client is None:
            return False
        self._clients.move_to_end(client.key)
        for at in range(0, len(payload) or 1, size or _DATAGRAM):
            try:
                client.sock.sendto(payload[at : at + (size or _DATAGRAM)], client.address)
                self.from_guest += 1
            except OSError:  # an error of an earlier datagram, or no room
                continue
        return True

    def status(self) -> dict[str, object]:
        """Return the counters."""
        return {"clients": len(self._clients), "to_guest": self.to_guest, "from_guest": self.from_guest}
