"""Makes the stage of vtl-split without an uplink from its options."""

from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.host.open_files import raise_limit
from vtl_tools.common.host.own_addresses import OwnAddresses
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.services.split.destinations import Destinations, Opening
from vtl_tools.services.split.resolver import HostResolver
from vtl_tools.services.split.stage import SplitBySockets
from vtl_tools.services.split.tuning import Tuning


def make_stage(
    *,
    congestion: str | None,
    early_ack: bool,
    bandwidth: float,
    buffers: int,
    allow: Sequence[tuple[IPv4Network | IPv6Network, int]],
    dns: str | None,
    dhcp: bool,
    subnet: IPv4Network | None,
    connections: int,
    memory: int,
    idle: int,
) -> SplitBySockets:
    """Return the stage; see vtl-split(1) for the options. Raises SpecError."""
    network = GuestAddresses.of_subnet(subnet)
    openings = [Opening(each, port) for each, port in allow]
    return SplitBySockets(
        Destinations(network, OwnAddresses(), HostResolver(dns), openings),
        Tuning(congestion, bandwidth, buffers << 20),
        network=network,
        dhcp=dhcp,
        early_ack=early_ack,
        limits=RelayLimits(
            connections=min(connections, raise_limit()),
            memory=memory << 19,  # RelayLimits.most is twice that
            idle_s=idle,
        ),
    )
