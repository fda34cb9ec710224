"""The volunteer's host as the client uses it: its addresses and sockets, and the silence of its stack."""

import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path
from typing import Final

from vtl_tools.common.host import interface, netlink
from vtl_tools.common.host.own_addresses import OwnAddresses
from vtl_tools.services.vortex.disguise import StackTraits
from vtl_tools.services.vortex.limits import Network, Sources
from vtl_tools.services.vortex.port_events import PolledPorts, PortEvents
from vtl_tools.services.vortex.ports import Port, PortUse
from vtl_tools.services.vortex.silence import Silence
from vtl_tools.services.vortex.sock_diag import has_receiver, sockets_of_host
from vtl_tools.services.vortex.tap import BesideStack, Leaving

_GETADDR: Final = 22
_ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg: family, prefix length, flags, scope, index
_IFA_ADDRESS: Final = 1


class Volunteer:
    """The host (client.VolunteerHost). events: what tells of ports that become used."""

    def __init__(
        self, name: str, ports: PortUse, sources: Sources, tap: BesideStack, leaving: Leaving,
        events: PortEvents | PolledPorts, silence: Silence,
    ) -> None:  # fmt: skip
        self._ports, self._sources, self._tap, self._leaving = ports, sources, tap, leaving
        self._events, self._silence = events, silence
        self._own = OwnAddresses()
        self._version = -1
        self.has_closed = events.has_closed

    def is_own(self, octets: bytes) -> bool:
        """Return whether an IP address is the host's."""
        return octets in self._own

    def sockets(self) -> tuple[set[Port], bool]:
        """Return the ports that sockets use now, and whether a socket is closing. Raises OSError."""
        return sockets_of_host()

    def has_receiver(self, remote: bytes, remote_port: int, local: bytes, local_port: int) -> bool:
        """Return whether a socket of UDP would receive a datagram between these addresses."""
        try:
            return has_receiver(remote, remote_port, local, local_port)
        except OSError:
            return True  # in doubt it is the host's

    def moved(self) -> bool:
        """Return whether addresses changed since the last call; then `sources` have the new networks."""
        if self._own.version == self._version:
            return False
        self._version = self._own.version
        return self._sources.set_neighbours(tuple(_networks()))

    def give_back(self, ports: Iterable[Port]) -> None:
        """Let the stack refuse at these ports again, and hear nothing of them."""
        self._silence.give_back(ports)
        self._refresh(is_open=True)

    def take(self, ports: Iterable[Port]) -> None:
        """Silence the stack for ports that are unused again, and receive what is for them."""
        self._silence.take(ports)
        self._refresh(is_open=True)

    def apply(self) -> None:
        """Silence the stack for all ports that are wormholed, and receive what is for these."""
        self._silence.apply(self._ports.used, self._sources.excluded)
        self._refresh(is_open=True)

    def restore(self) -> None:
        """Let the stack answer as without us."""
        self._refresh(is_open=False)
        self._silence.restore()

    def _refresh(self, *, is_open: bool) -> None:
        with suppress(OSError):  # the interface went; it is opened anew with a filter
            self._tap.refresh(is_open=is_open)
            self._leaving.refresh(is_open=is_open)


def _networks() -> Iterator[Network]:
    """Yield the networks that the host's addresses are in. Raises OSError."""
    for message in netlink.ask(_GETADDR, _ADDRESS.pack(0, 0, 0, 0, 0), netlink.ALL):
        family, length, _, _, _ = _ADDRESS.unpack_from(message)
        if family not in (socket.AF_INET, socket.AF_INET6):
            continue
        for kind, octets in netlink.attributes(message[_ADDRESS.size :]):
            if kind == _IFA_ADDRESS:
                yield ip_network((octets, length), strict=False)


def traits_of_host(name: str) -> StackTraits:
    """Return the traits of the host's stack on an interface, as sysctl(8) tells them."""
    _, initial, most = _numbers("net/ipv4/tcp_rmem", 4096, 131072, 6291456)
    most = max(most, *_numbers("net/core/rmem_max", 212992))
    scale = min(max(most.bit_length() - 16, 0), 14)  # tcp_select_initial_window()
    return StackTraits(
        ttl4=_numbers("net/ipv4/ip_default_ttl", 64)[0],
        ttl6=_numbers(f"net/ipv6/conf/{interface.real(name)}/hop_limit", 64)[0],
        window_scale=scale if _numbers("net/ipv4/tcp_window_scaling", 1)[0] else None,
        timestamps=_numbers("net/ipv4/tcp_timestamps", 1)[0] != 0,
        sack=_numbers("net/ipv4/tcp_sack", 1)[0] != 0,
        ecn=_numbers("net/ipv4/tcp_ecn", 2)[0] != 0,
        space=initial // 2,
    )


def _numbers(name: str, *defaults: int) -> tuple[int, ...]:
    """Return the numbers of a setting; the defaults if it has others, or is absent."""
    try:
        found = tuple(map(int, (Path("/proc/sys") / name).read_text().split()))
    except (OSError, ValueError):
        return defaults
    return found if len(found) == len(defaults) else defaults
