"""Types of options: a proxy, networks, IP and Ethernet addresses, a key."""

import logging
import re
import stat
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vtl_tools.common.errors import SpecError
from vtl_tools.common.guest_net.search_list import NO_SEARCH, domain
from vtl_tools.common.packet import address
from vtl_tools.common.units import rate

if TYPE_CHECKING:
    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # a class without parameters before click 8.3

log = logging.getLogger(__name__)

SECRET_MIN: Final = 16
"""Octets of the shortest key."""
_OPENING: Final = r"(?:\[(?P<v6>[^][/]+)\]|(?P<v4>[0-9.]+))(?P<bits>/[0-9]+)?:(?P<port>[0-9]{1,5})"
"""A network with a port."""
_FORWARD: Final = (
    r"(?P<protocol>tcp|udp):(?:(?:\[(?P<host6>[^][/]+)\]|(?P<host4>[0-9.]+)):)?(?P<port>[0-9]{1,5})"
    r":(?:(?:\[(?P<guest6>[^][/]+)\]|(?P<guest4>[0-9.]+)):)?(?P<guest_port>[0-9]{1,5})"
)
"""A port of the host, and one of the guest, each with an address or without."""
NOT_FOR_GUESTS: Final = {
    "0.0.0.0/8": "addresses of this network",
    "127.0.0.0/8": "loopback addresses",
    "169.254.0.0/16": "link-local addresses",
    "198.18.0.0/15": "the addresses that vtl-tor maps names to",
    "224.0.0.0/3": "multicast and reserved addresses",
}
"""Networks that a guest's subnet may not overlap, and what they are for."""


class ProxyParam(ParamType):
    """HOST:PORT, or unix:PATH."""

    name = "proxy"
    example = "127.0.0.1:9050"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int] | str:
        """Return (host, port), or the path of a unix socket."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        if value.startswith("unix:") and len(value) > len("unix:"):
            return value.removeprefix("unix:")
        return _host_and_port(
            self, value, param, ctx, f"write HOST:PORT or unix:PATH, such as {self.example}"
        )


class MetricsParam(ProxyParam):
    """Where to listen: HOST:PORT, or unix:PATH."""

    name = "metrics"
    example = "127.0.0.1:9437"


class SubnetParam(ParamType):
    """An IPv4 network whose addresses can be leased."""

    name = "subnet"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> IPv4Network:
        """Return the value."""
        try:
            network = IPv4Network(value)
        except ValueError as e:
            self.fail(f"{e}; write a network such as 10.0.2.0/24", param, ctx)
        if not 8 <= network.prefixlen <= 29:
            self.fail(f"{value}: write a network of 8 to 29 bits", param, ctx)
        for taken, what in NOT_FOR_GUESTS.items():
            if network.overlaps(IPv4Network(taken)):
                self.fail(
                    f"{value}: overlaps {taken}, {what}; write a network such as 10.0.2.0/24", param, ctx
                )
        return network


class NetworkParam(ParamType):
    """An address or a prefix, of either version of IP."""

    name = "network"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> IPv4Network | IPv6Network:
        """Return the value."""
        try:
            return ip_network(value)
        except ValueError as e:
            self.fail(f"{e}; write 192.0.2.5 or 2001:db8::/64", param, ctx)


class OpeningParam(ParamType):
    """An address or a prefix, of either version of IP, and a port: 192.0.2.5:22, [2001:db8::]/64:22."""

    name = "opening"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[IPv4Network | IPv6Network, int]:
        """Return the network and the port; 0: all ports."""
        text = str(value)
        found = re.fullmatch(_OPENING, text)
        network, port = text, 0
        try:
            if found is not None:
                network = (found["v6"] or found["v4"]) + (found["bits"] or "")
                port = int(found["port"])
                if not 0 < port < 1 << 16:
                    raise ValueError(f"{port} is no port")
            return ip_network(network), port
        except ValueError as e:
            self.fail(f"{e}; write 192.0.2.5, 192.0.2.5:22 or [2001:db8::1]:22", param, ctx)


class ForwardParam(ParamType):
    """A port of the host that leads to one of the guest: tcp:192.0.2.5:8080:80."""

    name = "forward"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, IPv4Address | IPv6Address, int, IPv4Address | IPv6Address | None, int]:
        """Return the protocol, the host's address and port, the guest's address, if given, and port."""
        found = re.fullmatch(_FORWARD, str(value))
        try:
            if found is None:
                raise ValueError(f"{value!r} is no port to forward")
            ports = int(found["port"]), int(found["guest_port"])
            for port in ports:
                if not 0 < port < 1 << 16:
                    raise ValueError(f"{port} is no port")
            host = ip_address(found["host6"] or found["host4"] or "127.0.0.1")
            guest = found["guest6"] or found["guest4"]
            target = None if guest is None else ip_address(guest)
            if target is not None and not address.is_single_host(target.packed):
                raise ValueError(f"{guest} is not the address of a host")
            return found["protocol"], host, ports[0], target, ports[1]
        except ValueError as e:
            self.fail(f"{e}; write tcp:8080:80, udp:192.0.2.5:53:53 or tcp:80:10.0.2.16:80", param, ctx)


class ResolverParam(ParamType):
    """The IP address of a DNS server, as text; a link-local one has a scope, such as fe80::1%eth0."""

    name = "resolver"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the value."""
        host, _, scope = str(value).partition("%")
        try:
            if not address.is_single_host(octets := address.ip(host)) and not address.is_loopback(octets):
                raise ValueError(f"{value!r} is not the address of a host")
            if bool(scope) != (len(octets) == 16 and address.is_link_local(octets)):
                raise ValueError(f"{value!r}: a link-local address of IPv6 has a scope, and no other has one")
        except ValueError as e:
            self.fail(f"{e}; write an address such as 192.0.2.1 or fe80::1%eth0", param, ctx)
        return str(value)


class DomainParam(ParamType):
    """A domain of a search list, or the word for none."""

    name = "domain"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the domain."""
        try:
            return domain(str(value))
        except ValueError as e:
            self.fail(f"{e}; write a domain such as lab.example, or {NO_SEARCH}", param, ctx)


class RateParam(ParamType):
    """Bits a second."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the value."""
        if isinstance(value, float):
            return value
        try:
            bits = rate(value)
        except SpecError as e:
            self.fail(str(e), param, ctx)
        if not bits:
            self.fail(f"{value}: write a rate, such as 100mbit", param, ctx)
        return bits


class IPv4Param(ParamType):
    """The IPv4 address of a host, as octets."""

    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Return the value."""
        if isinstance(value, bytes):
            return value
        try:
            octets = address.ip(value)
        except ValueError:
            octets = b""
        if len(octets) != 4 or not address.is_single_host(octets):
            self.fail(
                f"{value!r}: not the IPv4 address of a host; write an address such as 192.0.2.1", param, ctx
            )
        return octets


class MacParam(ParamType):
    """The Ethernet address of a machine, as octets."""

    name = "mac"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Return the value."""
        if isinstance(value, bytes):
            return value
        try:
            octets = address.mac(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)
        if address.is_multicast_mac(octets) or not any(octets):
            self.fail(
                f"{value}: not the address of one machine; write an address such as 52:54:00:00:00:01",
                param,
                ctx,
            )
        return octets


class NeighbourParam(ParamType):
    """IP=MAC."""

    name = "neighbour"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[bytes, bytes]:
        """Return both addresses as octets."""
        text, _, mac_text = str(value).partition("=")
        try:
            octets, mac = address.ip(text), address.mac(mac_text)
        except ValueError as e:
            self.fail(f"{e}; write IP=MAC, such as 192.0.2.7=52:54:00:00:00:07", param, ctx)
        if not address.is_single_host(octets) or address.is_link_local(octets) or mac[0] & 1 or not any(mac):
            self.fail(
                f"{value}: not the addresses of one machine; write 192.0.2.7=52:54:00:00:00:07",
                param,
                ctx,
            )
        return octets, mac


class SecretParam(ParamType):
    """A file with a key. The value is its octets, without white space at both ends."""

    name = "secret"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bytes:
        """Return the value."""
        if isinstance(value, bytes):
            return value
        remedy = "make one with 'openssl rand -hex 32'"
        try:
            path = Path(value)
            secret = path.read_bytes().strip()
            if path.stat().st_mode & stat.S_IROTH:
                log.warning("%s: other users may read it; run 'chmod o= %s'", path, path)
        except OSError as e:
            self.fail(f"{value}: {e.strerror}; {remedy}", param, ctx)
        if len(secret) < SECRET_MIN:
            self.fail(f"{value}: shorter than {SECRET_MIN} octets; {remedy}", param, ctx)
        return secret


class ListenParam(ParamType):
    """Where to listen: ADDRESS:PORT."""

    name = "listen"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Return the address and the port."""
        return _host_and_port(self, value, param, ctx, "write ADDRESS:PORT, such as 0.0.0.0:7700")


class PeerParam(ParamType):
    """HOST:PORT of a peer, or PREFIX=HOST:PORT for the destinations of a prefix only."""

    name = "peer"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[IPv4Network | IPv6Network | None, tuple[str, int]]:
        """Return the prefix, or None, and host and port."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        prefix, is_prefix, where = value.rpartition("=")
        network = NetworkParam().convert(prefix, param, ctx) if is_prefix else None
        remedy = "write HOST:PORT or PREFIX=HOST:PORT, such as 10.2.0.0/16=192.0.2.9:7700"
        return network, _host_and_port(self, where, param, ctx, remedy)


class RouteParam(ParamType):
    """A prefix that is on a link, or PREFIX=ROUTER for one that is behind a router there."""

    name = "route"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[IPv4Network | IPv6Network, bytes | None]:
        """Return the prefix, and the router's address or None."""
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        prefix, is_routed, text = value.partition("=")
        network = NetworkParam().convert(prefix, param, ctx)
        if not is_routed:
            return network, None
        try:
            router = address.ip(text)
        except ValueError as e:
            self.fail(f"{e}; write PREFIX=ROUTER, such as 10.3.0.0/16=10.2.0.1", param, ctx)
        if not address.is_single_host(router) or len(router) != len(network.network_address.packed):
            self.fail(f"{value}: {text} is no router of {prefix}; write 10.3.0.0/16=10.2.0.1", param, ctx)
        return network, router


def _host_and_port(
    kind: ParamType, value: Any, param: click.Parameter | None, ctx: click.Context | None, remedy: str
) -> tuple[str, int]:
    if not isinstance(value, str):
        return value  # type: ignore[no-any-return]
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        kind.fail(f"{value!r}: {remedy}", param, ctx)
    return host.strip("[]"), int(port)
