"""vortex-backend: ends the wormholes of many volunteers, in front of real honeypots. Paper section 3.6."""

from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.flows import add_log
from vtl_tools.common.cli.output import echo
from vtl_tools.common.cli.parameters import ListenParam
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options

_DIRECTORY = click.Path(path_type=Path, file_okay=False)


@click.group("vortex-backend", cls=Tool)
@opts.iface_option()
@click.option("--listen", type=ListenParam(), metavar="ADDRESS:PORT", help="Where clients connect to.")
@click.option("--keys", type=_DIRECTORY, metavar="DIRECTORY", help="The clients' keys: see keygen.")
@click.option(
    "--honeypot", "honeypots", metavar="ADDRESS", multiple=True,
    help="Address of the honeypot on the link; twice, for IPv4 and IPv6.  [default: 198.18.0.2, 2001:2::2]",
)  # fmt: skip
@click.option(
    "--rate", default="10mbit", show_default=True, metavar="RATE",
    help="Limit of each direction of each client.",
)  # fmt: skip
@opts.guard_option()
@opts.common_options
def main(
    iface: str | None, listen: tuple[str, int] | None, keys: Path | None, honeypots: tuple[str, ...],
    rate: str, guard: str, options: "Options",
) -> None:  # fmt: skip
    """Give a honeypot the traffic of many vortex-clients, each as an address of its own.

    \b
    vortex-backend keygen /etc/vtl/clients alice
    vortex-backend --iface honeypot0 --listen 0.0.0.0:7701 --keys /etc/vtl/clients

    The honeypot takes connections to 198.19.0.0/16 and 2001:2:0:1::/64; client 1 is 198.19.0.1.
    """
    opts.require(
        (iface, "--iface", "the link to the honeypot"), (listen, "--listen", "where clients connect to"),
        (keys, "--keys", "a directory with the clients' keys"),
    )  # fmt: skip
    assert iface is not None
    assert listen is not None
    assert keys is not None
    from vtl_tools.common import units
    from vtl_tools.services.vortex.addresses import parse_pair
    from vtl_tools.services.vortex.start_backend import make_backend, verbs

    honeypot = parse_pair(honeypots, "--honeypot")
    rate_bps = units.rate(rate)
    run_service(
        lambda: make_backend(listen, keys, rate_bps, honeypot), links_of(iface), options, guard=guard,
        verbs=verbs,
    )  # fmt: skip


@main.command()
@click.argument("directory", type=_DIRECTORY)
@click.argument("name")
@opts.verbose_option
def keygen(directory: Path, name: str) -> None:
    """Create the key of a new client in DIRECTORY, with the next number; copy it to the client's host."""
    from vtl_tools.services.vortex.start_backend import make_client_key

    path = make_client_key(directory, name)
    echo(f"{path}: a new key; copy it to the client's host, and send vortex-backend SIGHUP", err=True)


add_log(
    main,
    "vortex-backend.flow/1",
    {
        "client": itemgetter("client"),
        "protocol": itemgetter("protocol"),
        "from": lambda flow: f"{flow['from']} {flow['from_port']}",
        "port": itemgetter("to_port"),
    },
    "List the flows of all clients: source and port, frames and octets of both directions.",
)
add_status(main)
add_events(main)
