"""vtl-split: end each TCP connection of a guest here, and continue it as a second one. Paper section 3.3."""

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.completion import LINK
from vtl_tools.common.cli.flows import add_flows
from vtl_tools.common.cli.parameters import (
    DomainParam,
    ForwardParam,
    OpeningParam,
    RateParam,
    ResolverParam,
    SubnetParam,
)
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options

_OF_SOCKETS = ("bandwidth", "buffers", "allow", "forward", "dns", "search", "dhcp", "subnet")
"""Options without a meaning where the second connection leaves by a link."""
_DNS_MAX = 3
"""Servers: guests use no more (MAXNS, resolv.conf(5))."""


@click.group("vtl-split", cls=Tool)
@opts.iface_option()
@click.option(
    "--uplink", "-u", type=LINK, metavar="LINK",
    help="Continue connections on this link, from the guest's own address, in place of sockets.",
)  # fmt: skip
@click.option(
    "--congestion", type=click.Choice(["bbr", "cubic", "newreno"]),
    help="Congestion control of the second connection.  [default: bbr; the host's own if it has no BBR]",
)  # fmt: skip
@opts.on_demand_option
@click.option("--early-ack", is_flag=True, help="Answer a SYN at once, not when the far side has answered.")
@click.option(
    "--bandwidth", type=RateParam(), metavar="RATE", default="1gbit", show_default=True,
    help="Of the path to the network: buffers are sized for it and for the round-trip time.",
)  # fmt: skip
@click.option(
    "--buffers", type=click.IntRange(1, 1 << 20), default=1024, show_default=True, metavar="MIB",
    help="Memory of all socket buffers that are larger than the kernel makes them by itself.",
)  # fmt: skip
@click.option(
    "--allow", type=OpeningParam(), multiple=True, metavar="NETWORK[:PORT]",
    help="Open loopback, link-local or own addresses of the host. May be repeated.",
)  # fmt: skip
@click.option(
    "--forward", type=ForwardParam(), multiple=True, metavar="PROTO:[ADDRESS:]PORT:[GUEST:]PORT",
    help="Lead a port of the host, of 127.0.0.1 or of ADDRESS, to one of the guest. May be repeated.",
)  # fmt: skip
@click.option(
    "--dns", type=ResolverParam(), multiple=True, metavar="ADDRESS",
    help="DNS server of the guest. May be repeated.  [default: the host's, three at most]",
)  # fmt: skip
@click.option(
    "--search", type=DomainParam(), multiple=True, metavar="DOMAIN",
    help="Domain in which the guest looks up short names, or none. May be repeated.  [default: the host's]",
)  # fmt: skip
@click.option("--dhcp/--no-dhcp", default=True, help="Lease addresses (default).")
@click.option(
    "--subnet", type=SubnetParam(), metavar="NETWORK", help="The guest's network.  [default: 10.0.2.0/24]"
)
@click.option(
    "--connections", type=click.IntRange(1, 1 << 20), default=65536, show_default=True, metavar="N",
    help="Connections of the guest at once.",
)  # fmt: skip
@click.option(
    "--memory", type=click.IntRange(1, 1 << 20), default=256, show_default=True, metavar="MIB",
    help="Total buffer memory of all connections.",
)  # fmt: skip
@click.option(
    "--idle", type=click.IntRange(1), default=7440, show_default=True, metavar="SECONDS",
    help="Reset a connection that was silent for so long.",
)  # fmt: skip
@opts.guard_option()
@opts.common_options
def main(iface: str, uplink: str | None, guard: str, options: "Options", **settings: Any) -> None:
    """End each TCP connection of a guest here, and continue it as a second one: through the host's sockets.

    \b
    vtl-split --iface vmnet1
    vtl-split --iface tap:vtl0 --congestion cubic --allow 192.168.1.5:22
    vtl-split --iface vmnet1 --uplink eth0

    The guest gets addresses, name resolution, UDP and ping as well, so it needs no other network. With
    --uplink the second connection is one of the guest's own on that link, and all else passes unchanged.
    """
    opts.require((iface, "--iface", "the interface that the guest is behind"))
    if len(settings["dns"]) > _DNS_MAX:
        raise click.UsageError(f"--dns: {len(settings['dns'])} servers; give {_DNS_MAX} at most")
    from vtl_tools.services.split import start

    run = partial(
        run_service, options=options, guard=guard,
        verbs=lambda stage: {
            "flows": lambda _: {"flows": stage.list_flows(time.monotonic())},
            **({} if uplink is None else stage.verbs()),
        },
    )  # fmt: skip
    if uplink is None:
        if settings.pop("on_demand"):
            raise click.UsageError("--on-demand needs --uplink: other connections pass to it")
        run(partial(start.make_stage, **settings), links_of(iface))
        return
    context = click.get_current_context()
    for name in _OF_SOCKETS:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name} is for connections through sockets; leave out it or --uplink")
        del settings[name]
    run(partial(start.make_uplink_stage, **settings), links_of(iface, uplink), vm_sides=1)


add_flows(main, "vtl-split.flow/1")
add_events(main)
add_status(main)
