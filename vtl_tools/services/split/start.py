"""Makes the stages of vtl-split from its options."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.dhcp import first_address
from vtl_tools.common.guest_net.search_list import NO_SEARCH, shortened
from vtl_tools.common.host.open_files import raise_limit
from vtl_tools.common.host.own_addresses import OwnAddresses
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.services.split.destinations import Destinations, OpenedNetwork
from vtl_tools.services.split.forward import Forward
from vtl_tools.services.split.mappings import MAPPINGS_MAX
from vtl_tools.services.split.resolver import HostResolver
from vtl_tools.services.split.stage import SplitBySockets
from vtl_tools.services.split.tuning import Tuning
from vtl_tools.services.split.uplink import SplitByUplink

_RESERVED: Final = MAPPINGS_MAX + 2048
"""Descriptors for everything but connections."""


def make_stage(
    *,
    congestion: str | None,
    early_ack: bool,
    bandwidth: float,
    buffers: int,
    allow: Sequence[tuple[IPv4Network | IPv6Network, int]],
    forward: Sequence[tuple[str, IPv4Address | IPv6Address, int, IPv4Address | IPv6Address | None, int]],
    dns: Sequence[str],
    search: Sequence[str],
    dhcp: bool,
    subnet: IPv4Network | None,
    connections: int,
    memory: int,
    idle: int,
) -> SplitBySockets:
    """Return the stage; see vtl-split(1) for the options. Raises VTLError."""
    resolver, most = HostResolver(dns), raise_limit(_RESERVED)
    domains = [each for each in search or resolver.search if each != NO_SEARCH]
    network = GuestAddresses.of_subnet(subnet, name_servers=max(resolver.count, 1), search=shortened(domains))
    openings = [OpenedNetwork(each, port) for each, port in allow]
    return SplitBySockets(
        Destinations(network, OwnAddresses(), resolver, openings),
        Tuning(congestion, bandwidth, buffers << 20),
        network=network,
        dhcp=dhcp,
        early_ack=early_ack,
        mappings=min(MAPPINGS_MAX, most // 2),
        forwards=[
            Forward(protocol, host, port, guest or first_address(network), guest_port)
            for protocol, host, port, guest, guest_port in forward
        ],
        limits=_limits(min(connections, most), (memory << 20) >> bool(forward), idle),
    )


def make_uplink_stage(
    *, congestion: str | None, early_ack: bool, on_demand: bool, connections: int, memory: int, idle: int
) -> SplitByUplink:
    """Return the stage with an uplink; see vtl-split(1) for the options."""
    memory <<= 19  # for each direction of opening
    limits = _limits(connections, memory, idle)
    return SplitByUplink(
        limits=limits, early_ack=early_ack, on_demand=on_demand, congestion=congestion or "bbr"
    )


def _limits(connections: int, memory: int, idle: int) -> RelayLimits:
    """Return limits, of which RelayLimits.most is about so many octets of memory."""
    return RelayLimits(connections=connections, memory=memory // 2, idle_s=idle)
