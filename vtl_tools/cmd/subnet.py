"""vtl-subnet: two VMs of different subnets that share a LAN reach each other on it. Paper section 3.2."""

from typing import TYPE_CHECKING

import click

from vtl_tools.common.cli.completion import LINK
from vtl_tools.common.cli.options import common_options, guard_option, iface_option, require
from vtl_tools.common.cli.parameters import MacParam, NeighbourParam, NetworkParam, SecretParam
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status

if TYPE_CHECKING:
    from ipaddress import IPv4Network, IPv6Network

    from vtl_tools.common.runtime.runner import Options
    from vtl_tools.services.subnet.stage import Subnet


@click.group("vtl-subnet", cls=Tool)
@iface_option()
@click.option("--default", "-u", type=LINK, metavar="LINK", help="The link to the VM's network.")
@click.option("--direct", "-d", type=LINK, metavar="LINK", help="The link to the LAN that the VMs share.")
@click.option(
    "--allow",
    type=NetworkParam(),
    multiple=True,
    metavar="PREFIX",
    help="Addresses of peers; may be repeated.",
)
@click.option(
    "--peer", type=NeighbourParam(), multiple=True, metavar="IP=MAC",
    help="A peer's IP and Ethernet addresses; may be repeated.",
)  # fmt: skip
@click.option("--mac", type=MacParam(), help="The VM's Ethernet address.  [default: learned]")
@click.option(
    "--address", "own", type=NetworkParam(), multiple=True, metavar="PREFIX",
    help="An address or prefix of the VM; may be repeated, needed with --key.  [default: learned]",
)  # fmt: skip
@click.option("--key", type=SecretParam(), metavar="FILE", help="Accept only peers that have the same key.")
@guard_option()
@common_options
def main(
    iface: str,
    default: str,
    direct: str,
    allow: tuple["IPv4Network | IPv6Network", ...],
    peer: tuple[tuple[bytes, bytes], ...],
    mac: bytes | None,
    own: tuple["IPv4Network | IPv6Network", ...],
    key: bytes | None,
    guard: str,
    options: "Options",
) -> None:
    """Send a VM's traffic for a VM of another subnet on a link that both share, and all else as before.

    \b
    vtl-subnet --iface vm1 --default proxylink --direct lanlink --allow 10.2.0.0/16
    vtl-subnet --iface vm1 --default proxylink --direct lanlink --peer 10.2.0.5=52:54:00:00:00:05
    """
    require(
        (iface, "--iface", "the interface that the VM is behind"),
        (default, "--default", "the link to its network"),
        (direct, "--direct", "the link to the LAN that it shares with its peers"),
        (allow or peer, "--allow or --peer", "the addresses that the direct link may be used for"),
    )
    if key is not None and not own:
        raise click.UsageError(
            "give --address with --key: peers trust the key, and a learned address may be another VM's"
        )
    links = links_of(iface, default, direct)

    def make_stage() -> "Subnet":
        from secrets import token_bytes

        from vtl_tools.services.subnet.stage import Subnet
        from vtl_tools.services.subnet.vm import VM

        vm = VM(mac, own, learns=key is None)
        return Subnet(vm, nonce=token_bytes, allow=allow, given=dict(peer), key=key)

    # The other links are not guarded, as the host commonly uses them too.
    run_service(make_stage, links, options, guard=guard, vm_sides=1, vm_mac=mac)


add_events(main)
add_status(main)
