"""vtl-bridge: join links, as a cable (two) or as a switch that learns (more). Paper section 2.3, Figure 1."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from vtl_tools.common.cli.completion import LINK
from vtl_tools.common.cli.options import common_options, guard_option, iface_option
from vtl_tools.common.cli.run import check_links, run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status
from vtl_tools.common.errors import SpecError

if TYPE_CHECKING:
    from vtl_tools.common.device.base import Device
    from vtl_tools.common.runtime.runner import Options


@click.group("vtl-bridge", cls=Tool)
@iface_option(multiple=True)
@click.option(
    "--uplink", "-u", type=LINK, metavar="LINK", help="A link to a network that the host also uses."
)
@click.option("--half-duplex", is_flag=True, help="Carry frames from the first link to the second only.")
@click.option(
    "--workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Spread the flows of interfaces over N processes.",
)
@guard_option()
@common_options
def main(
    iface: tuple[str, ...],
    uplink: str | None,
    half_duplex: bool,
    workers: int,
    guard: str,
    options: "Options",
) -> None:
    """Join links: two as a cable, more as a switch that learns.

    \b
    vtl-bridge --iface vmnet1 --uplink eth0
    vtl-bridge --iface qemu:unix:/run/vm1.sock,server --iface vxlan:192.0.2.7/42
    """
    links = iface if uplink is None else (*iface, uplink)
    if len(links) < 2 or not iface:
        raise click.UsageError("give --iface twice or more, or --iface and --uplink: a bridge joins links")
    check_links(links)
    if half_duplex and len(links) != 2:
        raise click.UsageError("--half-duplex joins exactly two links: give two")
    from vtl_tools.services.bridge import Bridge, Switch

    make_stage = partial(Bridge, half_duplex=half_duplex) if len(links) == 2 else partial(Switch, links)
    make_links = partial(_links, links, half_duplex, workers)
    run_service(make_stage, make_links, options, guard=guard, vm_sides=len(iface), workers=workers)


def _links(specs: Sequence[str], half_duplex: bool, workers: int, fanout: int) -> "list[Device]":
    from vtl_tools.common.device.afpacket import PacketDevice
    from vtl_tools.common.device.spec import open_device
    from vtl_tools.common.host.guard import MARK

    links = [
        open_device(spec, receive=not (half_duplex and port == 1), mark=MARK, fanout=fanout and fanout + port)
        for port, spec in enumerate(specs)
    ]
    links[0].unwritten = half_duplex
    if workers > 1:
        for link in links:
            if not isinstance(link, PacketDevice):
                raise SpecError(f"{link.spec}: not an interface; --workers needs interfaces")
    return links


add_events(main)
add_status(main)
