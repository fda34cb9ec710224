"""The destinations that the guest may reach through the host's sockets, and the socket address of each.

A socket of the host reaches more than the guest's own packets would: services on the loopback interface and
on the host's own addresses, and neighbours that are to be reached on one link only. These are closed, in
every spelling, unless the user opens them.
"""

from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple, Protocol

from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.packet.address import embedded, format_ip, is_link_local, is_single_host
from vtl_tools.common.socks import Reason

DNS_PORT: Final = 53
SocketAddress = tuple[str, int] | tuple[str, int, int, int]
"""As socket.connect() takes it."""

_JUDGED_MAX: Final = 4096
_MAPPED: Final = bytes(10) + b"\xff\xff"
_COMPATIBLE: Final = bytes(12)
_LOOPBACK4, _LOOPBACK6 = bytes.fromhex("7f000001"), bytes(15) + b"\1"


class OpenedNetwork(NamedTuple):
    """Closed addresses that the user opens. port: 0 for all."""

    network: IPv4Network | IPv6Network
    port: int = 0

    def covers(self, octets: bytes, port: int) -> bool:
        """Return whether a destination is opened."""
        bits = len(octets) * 8 - self.network.prefixlen
        same = len(octets) * 8 == self.network.max_prefixlen
        if not same or (self.port and self.port != port):
            return False
        return int.from_bytes(octets, "big") >> bits == int(self.network.network_address) >> bits


class OwnSet(Protocol):
    """The host's own addresses. version: another number after each change."""

    @property
    def version(self) -> int:
        """Return it."""
        ...

    def __contains__(self, octets: object, /) -> bool:
        """Return whether an address is the host's own. Raises OSError."""
        ...


class Destinations:
    """Finds the socket address of a destination. own: contains the host's own addresses at this moment.

    resolver: returns the address of the DNS server with a number, from 0 on, or None. The address of the
    guest network's gateway stands for the loopback interface, as far as that is opened.
    """

    def __init__(
        self,
        network: GuestAddresses,
        own: OwnSet,
        resolver: Callable[[int], SocketAddress | None],
        openings: Sequence[OpenedNetwork] = (),
    ) -> None:
        self._network, self._own, self._resolver, self._openings = network, own, resolver, openings
        self._judged: dict[tuple[bytes, int], tuple[SocketAddress | Reason | int, tuple[bytes, ...]]] = {}

    @property
    def version(self) -> int:
        """Another number whenever find() may find otherwise, but for the resolver."""
        return self._own.version

    def is_router(self, octets: bytes) -> bool:
        """Return whether an address is the guest's router's."""
        return self._network.is_ours(octets)

    def find(self, octets: bytes, port: int) -> SocketAddress | Reason:
        """Return the socket address for a destination of the guest, or why there is none. Raises OSError."""
        judged = self._judged.get((octets, port))
        if judged is None:
            if len(self._judged) >= _JUDGED_MAX:
                self._judged.clear()
            judged = self._judged[octets, port] = self._judge(octets, port)
        found, unless_own = judged
        if isinstance(found, int):
            return self._resolver(found) or Reason.REFUSED
        for each in unless_own:
            if each in self._own:
                return Reason.PROHIBITED
        return found

    def _judge(self, octets: bytes, port: int) -> tuple[SocketAddress | Reason | int, tuple[bytes, ...]]:
        """Return what does not change of find(), or a DNS server's number; PROHIBITED if any is own."""
        network = self._network
        if network.is_ours(octets):
            number = network.name_server(octets)
            if port == DNS_PORT and number is not None:
                return number, ()
            loopback = _LOOPBACK4 if len(octets) == 4 else _LOOPBACK6
            return (_address(loopback, port) if self._is_opened(loopback, port) else Reason.REFUSED), ()
        if network.is_on_link(octets):
            return Reason.HOST_UNREACHABLE, ()  # a guest that is not there
        if len(octets) == 16 and octets[:12] in (_MAPPED, _COMPATIBLE):
            return Reason.PROHIBITED, ()  # no packet has such a destination, and a socket takes it for IPv4
        reached = self._reached(octets, port)
        return (Reason.PROHIBITED, ()) if reached is None else (_address(octets, port), reached)

    def seen_as(self, client: bytes, size: int) -> bytes:
        """Return the address that a client outside has for a guest, in so many octets.

        It is the client's own, or the router's where the guest could not answer that one. Raises OSError.
        """
        network = self._network
        is_routed = len(client) == size and is_single_host(client) and not is_link_local(client)
        if is_routed and client not in self._own and not network.is_on_link(client):
            return client
        return network.gateway if size == 4 else network.dns_servers6[0]

    def is_still(self, octets: bytes, port: int, address: SocketAddress) -> bool:
        """Return whether find() finds the same now."""
        return self.find(octets, port) == address

    def is_open(self, octets: bytes, port: int) -> bool:
        """Return whether an address may be reached now. Raises OSError."""
        reached = self._reached(octets, port)
        return reached is not None and not any(each in self._own for each in reached)

    def _reached(self, octets: bytes, port: int) -> tuple[bytes, ...] | None:
        """Return the closed addresses that one leads to, each open unless it is own; None: it is closed."""
        if self._is_opened(octets, port):
            return ()
        if not is_single_host(octets) or is_link_local(octets):
            return None
        reached = [octets]
        for inner in embedded(octets):
            further = self._reached(inner, port)
            if further is None:
                return None
            reached += further
        return tuple(reached)

    def _is_opened(self, octets: bytes, port: int) -> bool:
        return any(opening.covers(octets, port) for opening in self._openings)


def _address(octets: bytes, port: int) -> SocketAddress:
    return (format_ip(octets), port) if len(octets) == 4 else (format_ip(octets), port, 0, 0)
