"""vtl-udt: TCP of a guest goes over another transport, and becomes TCP again at its other end. Paper 3.3."""

from typing import TYPE_CHECKING, Any, Final

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.completion import LINK
from vtl_tools.common.cli.parameters import (
    ListenParam,
    NeighbourParam,
    NetworkParam,
    PeerParam,
    RouteParam,
    SecretParam,
)
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_keygen, add_status

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options

TRANSPORTS: Final = ["auto", "udt", "tcp", "srt"]


@click.group("vtl-udt", cls=Tool)
@opts.iface_option()
@click.option("--uplink", "-u", type=LINK, metavar="LINK", help="The link for all other traffic.")
@click.option(
    "--peer", "peers", type=PeerParam(), multiple=True, metavar="[PREFIX=]HOST:PORT",
    help="The far module that a prefix is behind, or all destinations; may be repeated.",
)  # fmt: skip
@click.option("--listen", type=ListenParam(), metavar="ADDRESS:PORT", help="Be a far module.")
@click.option(
    "--transport", type=click.Choice(TRANSPORTS), default="auto", show_default=True,
    help="The transport between the modules.",
)  # fmt: skip
@click.option(
    "--key-file", "key", type=SecretParam(), metavar="FILE", help="The key that both modules share."
)
@click.option("--encrypt/--no-encrypt", default=True, help="Encrypt what goes between them (default).")
@click.option(
    "--to", "routes", type=RouteParam(), multiple=True, metavar="PREFIX[=ROUTER]",
    help="For --listen: destinations; may be repeated.  [default: neighbours on --iface]",
)  # fmt: skip
@click.option(
    "--from", "clients", type=NetworkParam(), multiple=True, metavar="PREFIX",
    help="For --listen: clients; may be repeated.  [default: all]",
)  # fmt: skip
@click.option(
    "--station", "stations", type=NeighbourParam(), multiple=True, metavar="IP=MAC",
    help="A host at either end that --uplink reaches as well, with its Ethernet address; may be repeated.",
)  # fmt: skip
@opts.on_demand_option
@click.option(
    "--connections", type=click.IntRange(1, 1 << 20), default=65536, show_default=True, metavar="N",
    help="Connections at once, in each direction.",
)  # fmt: skip
@click.option(
    "--memory", type=click.IntRange(1, 1 << 20), default=256, show_default=True, metavar="MIB",
    help="Total buffer memory of the connections in each direction.",
)  # fmt: skip
@opts.guard_option()
@opts.common_options
def main(iface: str, uplink: str | None, guard: str, options: "Options", **settings: Any) -> None:
    """Carry a guest's TCP connections over another transport to a second vtl-udt, where they are TCP again.

    \b
    vtl-udt keygen udt.key
    vtl-udt --iface vmnet1 --peer 10.2.0.0/16=192.0.2.9:7700 --key-file udt.key
    vtl-udt --iface vmnet2 --listen 0.0.0.0:7700 --key-file udt.key
    """
    opts.require(
        (iface, "--iface", "the interface that the guest is behind"),
        (settings["peers"] or settings["listen"], "--peer or --listen", "what carries the connections"),
        (settings["key"], "--key-file", "the key that both modules share; 'vtl-udt keygen FILE' makes one"),
    )
    if uplink is None and (settings["stations"] or settings["on_demand"]):
        raise click.UsageError("--station and --on-demand need --uplink: other connections pass to it")
    for name in "routes", "clients":
        if settings[name] and not settings["listen"]:
            raise click.UsageError(
                f"--{'to' if name == 'routes' else 'from'} is for a far module: give --listen"
            )
    from vtl_tools.services.udt.start import make_stage

    links = (iface,) if uplink is None else (iface, uplink)
    run_service(
        lambda: make_stage(uplink=uplink is not None, **settings),
        links_of(*links),
        options,
        guard=guard,
        vm_sides=1,
        verbs=lambda stage: stage.verbs(),
    )


add_keygen(main, "the other module's host")
add_events(main)
add_status(main)
