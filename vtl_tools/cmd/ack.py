"""vtl-ack: acknowledges TCP data locally, for paths that are long and reliable. Paper section 3.3."""

from functools import partial
from typing import TYPE_CHECKING

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status
from vtl_tools.common.tcp.congestion.choice import CONTROLS

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options


@click.group("vtl-ack", cls=Tool)
@opts.iface_option()
@click.option("--uplink", "-u", metavar="LINK", help="The link to the network.")
@click.option(
    "--only",
    multiple=True,
    metavar="CONDITION",
    help='Connections to process, in words of vtl-fw(5), such as "out port 5001".  [default: all]',
)
@click.option(
    "--direction",
    type=click.Choice(["out", "in", "both"]),
    default="out",
    show_default=True,
    help="Data to acknowledge: the guest's, the network's, or both.",
)
@click.option(
    "--buffer",
    type=click.IntRange(1, 1 << 10),
    default=32,
    show_default=True,
    metavar="MIB",
    help="Data of one connection and direction that may wait for its receiver.",
)
@click.option(
    "--memory",
    type=click.IntRange(1, 1 << 16),
    default=256,
    show_default=True,
    metavar="MIB",
    help="Data of all connections that may wait.",
)
@click.option(
    "--give-up",
    type=click.IntRange(1, 86_400),
    default=60,
    show_default=True,
    metavar="SEC",
    help="Reset a connection whose receiver acknowledges nothing for this long.",
)
@click.option(
    "--congestion",
    type=click.Choice(list(CONTROLS)),
    default="bbr",
    show_default=True,
    help="Congestion control of the delivery.",
)
@opts.guard_option()
@opts.common_options
def main(
    iface: str | None,
    uplink: str | None,
    only: tuple[str, ...],
    direction: str,
    buffer: int,
    memory: int,
    give_up: int,
    congestion: str,
    guard: str,
    options: "Options",
) -> None:
    """Acknowledge a guest's TCP data at once, and deliver it over a long path.

    \b
    vtl-ack --iface vmnet1 --uplink eth0
    vtl-ack --iface vmnet1 --uplink eth0 --only "out port 5001" --direction both

    The receiver's window is respected, lost segments are sent again, and connections keep their sequence
    numbers.
    """
    opts.require((iface, "--iface", "the link to the guest"), (uplink, "--uplink", "the link to the network"))
    assert iface is not None
    assert uplink is not None
    from vtl_tools.common.rules.connections import ConnectionChoice
    from vtl_tools.services.ack.start import make_stage

    ConnectionChoice.parse("--only", only)  # an error in a condition is one before anything is opened
    limits = buffer << 20, memory << 20, float(give_up)
    run_service(
        partial(make_stage, iface, only, direction, *limits, congestion, options),
        links_of(iface, uplink), options, guard=guard, vm_sides=1,
    )  # fmt: skip


add_status(main)
add_events(main)
