"""vortex-client: a volunteer's unused ports, answered by a backend. Paper section 3.6."""

from operator import itemgetter
from typing import TYPE_CHECKING, Final

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.flows import add_log
from vtl_tools.common.cli.output import echo as say
from vtl_tools.common.cli.output import print_json
from vtl_tools.common.cli.parameters import ListenParam, SecretParam
from vtl_tools.common.cli.run import run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status, ask_each, current_tool

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options

_SLICE_S: Final = 1e-4
"""The work for a port that becomes used takes about as long."""


@click.group("vortex-client", cls=Tool)
@opts.iface_option()
@click.option("--backend", metavar="LINK", help="The link to the backend: tcp:HOST:PORT, or any other.")
@click.option("--key-file", "key", type=SecretParam(), metavar="FILE", help="The key for a tcp: link.")
@click.option(
    "--ports", default="1-32767", show_default=True, metavar="RANGES", help="The scope: 1-1023,8080."
)
@click.option(
    "--backend-address", "addresses", metavar="ADDRESS", multiple=True,
    help="Address of the backend on the link; twice, for IPv4 and IPv6.  [default: 198.18.0.2, 2001:2::2]",
)  # fmt: skip
@click.option("--echo", is_flag=True, help="Let the backend answer pings, too.")
@click.option("--private", is_flag=True, help="Wormhole sources in private networks and neighbours, too.")
@click.option("--rate", default="2mbit", show_default=True, metavar="RATE", help="Limit of each direction.")
@click.option(
    "--quota", default="1gb", show_default=True, metavar="SIZE", help="Octets in a day; 0: no limit."
)
@click.option(
    "--amplification", type=click.IntRange(1, 100), default=3, show_default=True, metavar="N",
    help="Octets that a source gets for each of its own until it completed a handshake of TCP.",
)  # fmt: skip
@click.option("--realtime", is_flag=True, help="Run before other processes: ports are given back at once.")
@opts.guard_option()
@opts.common_options
def main(
    iface: str | None, backend: str | None, key: bytes | None, ports: str, addresses: tuple[str, ...],
    echo: bool, private: bool, rate: str, quota: str, amplification: int, realtime: bool, guard: str,
    options: "Options",
) -> None:  # fmt: skip
    """Let a backend answer for the ports of this host that no process uses. The host keeps its stack.

    \b
    vortex-client --iface eth0 --backend tcp:198.51.100.7:7701 --key-file alice.key
    vortex-client --iface eth0 --backend vxlan:192.0.2.7/51

    The backend is vortex-backend, or any host on the link with the address 198.18.0.2. It sees the
    attackers' addresses.
    """
    opts.require(
        (iface, "--iface", "the interface of this host"), (backend, "--backend", "the link to the backend")
    )
    assert iface is not None
    assert backend is not None
    if ":" in iface or iface == backend:
        raise click.UsageError(f"--iface: {iface}: name an interface of this host, and another as --backend")
    from vtl_tools.common import units
    from vtl_tools.common.host.scheduling import ask_for_short_slices, take_realtime_priority
    from vtl_tools.common.runtime.control import path_for
    from vtl_tools.services.vortex.addresses import parse_pair
    from vtl_tools.services.vortex.limits import Limits
    from vtl_tools.services.vortex.ports import parse_ranges
    from vtl_tools.services.vortex.start import Build, Wormhole, verbs

    wormhole = Wormhole(backend, _target(backend, key), key or b"")
    build = Build(
        iface, wormhole, parse_ranges(ports), parse_pair(addresses, "--backend-address"),
        Limits(units.rate(rate), units.size(quota), amplification), echo=echo, allow_private=private,
    )  # fmt: skip
    if realtime:
        take_realtime_priority()
    else:
        ask_for_short_slices(_SLICE_S)
    if options.control is None:
        options = options._replace(control=path_for(options.service, iface))
    run_service(build.stage, build.links, options, guard=guard, vm_sides=1, verbs=verbs)


def _target(backend: str, key: bytes | None) -> tuple[str, int] | None:
    """Return where a tcp: link leads; None: it is another one."""
    if not backend.startswith("tcp:"):
        if key is not None:
            raise click.UsageError("--key-file: is for --backend tcp:HOST:PORT; leave it out")
        return None
    if key is None:
        raise click.UsageError("give --key-file: the key that the backend made for this host")
    return ListenParam().convert(backend.removeprefix("tcp:"), None, None)


@main.command()
@opts.verb_options
def pause(link: str | None, json: bool) -> None:
    """Stop for now: the host's own stack answers for all ports, as without the service."""
    _switch("pause", link, json)


@main.command()
@opts.verb_options
def resume(link: str | None, json: bool) -> None:
    """Go on after a pause."""
    _switch("resume", link, json)


def _switch(verb: str, link: str | None, json: bool) -> None:
    for told in ask_each(current_tool(), verb, link):
        if json:
            print_json([told], "vortex-client.state/1")
        else:
            say("paused" if told["paused"] else "running")


add_log(
    main,
    "vortex-client.flow/1",
    {
        "protocol": itemgetter("protocol"),
        "from": lambda flow: f"{flow['from']} {flow['from_port']}",
        "to": lambda flow: f"{flow['to']} {flow['to_port']}",
    },
    "List what was sent: flows by source and port, with frames and octets of both directions.",
)
add_status(main)
add_events(main)
