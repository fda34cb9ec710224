"""The connections that a far module may make: clients, destinations, and the neighbours to reach them by."""

from collections.abc import Container, Iterable
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Final, Generic, NamedTuple, TypeVar

from vtl_tools.common.packet.address import embedded, is_broadcast, is_link_local, is_single_host
from vtl_tools.services.udt.transport.base import FlowOpening

Network = IPv4Network | IPv6Network
Value = TypeVar("Value")


class Refusal(StrEnum):
    """Why the far module connects to no destination; the values are what --json prints."""

    MALFORMED = "malformed"
    CLIENT = "client"
    """The client is none that --from allows, or no single host."""
    NOT_ALLOWED = "not-allowed"
    """The destination is none that --to allows."""
    SPECIAL = "special"
    """The destination is loopback, link-local, a group, or no host."""
    OWN = "own"
    """The destination is an address of this host, perhaps within an IPv6 address; or nobody knows."""
    TOO_MANY = "too-many"


class Route(NamedTuple):
    """An allowed prefix. router: its address on the link; None: the destinations are on the link."""

    network: Network
    router: bytes | None = None


class Prefixes(Generic[Value]):
    """Looks up the longest prefix that has an address. Each comes with a value."""

    def __init__(self, entries: Iterable[tuple[Network, Value]]) -> None:
        by_length = sorted(entries, key=lambda one: one[0].prefixlen, reverse=True)
        self._entries = [
            (len(net.network_address.packed), int(net.network_address), int(net.netmask), value)
            for net, value in by_length
        ]

    def find(self, octets: bytes) -> Value | None:
        """Return the value of the longest prefix; None: no prefix has the address."""
        number, size = int.from_bytes(octets, "big"), len(octets)
        for length, first, mask, value in self._entries:
            if length == size and number & mask == first:
                return value
        return None


class AllowList:
    """The allow-lists. routes: of --to; none: every neighbour on the link. clients: of --from; none: all.

    own: tells the host's own addresses.
    """

    def __init__(
        self, routes: Iterable[Route], clients: Iterable[Network], own: Container[bytes] = ()
    ) -> None:
        routes, clients = list(routes), list(clients)
        self._routes = Prefixes((route.network, route) for route in routes) if routes else None
        self._clients = Prefixes((network, network) for network in clients) if clients else None
        self._own = own

    def refusal(self, opening: FlowOpening) -> Refusal | None:
        """Return why a flow is not connected; None: it may be."""
        client, destination = opening.client, opening.destination
        if len(client) != len(destination) or not opening.client_port or not opening.destination_port:
            return Refusal.MALFORMED
        if not _is_ordinary(client) or client == destination or self._is_own(client):
            return Refusal.CLIENT
        if self._clients is not None and self._clients.find(client) is None:
            return Refusal.CLIENT
        if not _is_ordinary(destination):
            return Refusal.SPECIAL
        if self._is_own(destination):
            return Refusal.OWN
        if self._routes is not None and self._routes.find(destination) is None:
            return Refusal.NOT_ALLOWED
        return None

    def _is_own(self, octets: bytes) -> bool:
        try:
            return any(each in self._own for each in (octets, *embedded(octets)))
        except OSError:  # the kernel cannot be asked, such as without descriptors
            return True

    def next_hop(self, destination: bytes) -> bytes:
        """Return the address of the neighbour that packets for a destination are sent to."""
        found = self._routes.find(destination) if self._routes is not None else None
        return destination if found is None or found.router is None else found.router


MAPPED: Final = bytes(10) + b"\xff\xff"
"""The first octets of an IPv4 address within IPv6 (RFC 4291 section 2.5.5.2), which is none on a wire."""


def _is_ordinary(octets: bytes) -> bool:
    return (
        is_single_host(octets)
        and not is_link_local(octets)
        and not is_broadcast(octets)
        and not (len(octets) == 16 and octets[:12] in (MAPPED, bytes(12)))
    )
