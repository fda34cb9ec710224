"""vtl-tor: carry a guest's TCP connections and DNS queries through Tor. Paper section 3.1."""

import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.flows import add_flows
from vtl_tools.common.cli.output import echo, print_json
from vtl_tools.common.cli.parameters import ProxyParam, SubnetParam
from vtl_tools.common.cli.run import run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status, ask_each
from vtl_tools.common.errors import VTLError

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options

F = TypeVar("F", bound=Callable[..., Any])

DEFAULT_SOCKS: Final = "127.0.0.1:9050"
_FILE: Final = click.Path(path_type=Path, dir_okay=False)
_EXISTING: Final = click.Path(path_type=Path, dir_okay=False, exists=True)

socks_option = click.option(
    "--socks", type=ProxyParam(), metavar="HOST:PORT", default=DEFAULT_SOCKS, show_default=True,
    help="Tor's SOCKS port, or unix:PATH.",
)  # fmt: skip


def _number_option(name: str, most: int | None, default: int, metavar: str, text: str) -> Callable[[F], F]:
    kind = click.IntRange(1, most)
    return click.option(name, type=kind, default=default, show_default=True, metavar=metavar, help=text)


def _choice_option(name: str, values: list[str], default: str, text: str) -> Callable[[F], F]:
    return click.option(name, type=click.Choice(values), default=default, show_default=True, help=text)


@click.group("vtl-tor", cls=Tool)
@opts.iface_option()
@socks_option
@click.option("--start-tor", is_flag=True, help="Start a tor process, in place of --socks.")
@click.option("--torrc", type=_EXISTING, metavar="FILE", help="Further configuration for --start-tor.")
@_choice_option(
    "--isolate", ["none", "guest", "dest", "port", "conn"], "guest",
    "Use separate circuits: for none, or per guest, destination, port or connection.",
)  # fmt: skip
@_choice_option(
    "--dns", ["map", "resolve"], "map",
    "Answer with an address that stands for the name, or with the one that Tor resolves it to.",
)  # fmt: skip
@click.option("--dhcp", is_flag=True, help="Lease addresses, so that a guest needs no setting.")
@click.option("--subnet", type=SubnetParam(), metavar="NETWORK", help="For --dhcp.  [default: 10.0.2.0/24]")
@_number_option("--connections", 1 << 20, 65536, "N", "Connections of the guest at once.")
@_number_option("--memory", 1 << 20, 256, "MIB", "Total buffer memory of all connections.")
@_number_option("--idle", None, 7440, "SECONDS", "Reset a connection that was silent for so long.")
@click.option("--pcap-dropped", type=_FILE, metavar="FILE", help="Record dropped frames (pcapng).")
@click.option(
    "--state", type=_FILE, metavar="FILE",
    help="File of the names that addresses stand for.  [default: beside the control socket]",
)  # fmt: skip
@click.option("--check/--no-check", default=True, help="Check the proxy before the start (default).")
@click.option("--url", metavar="URL", help="Also ask a web service which address it sees; see 'check'.")
@opts.guard_option("keep")
@opts.common_options
def main(iface: str, guard: str, options: "Options", **settings: Any) -> None:
    """Carry a guest's TCP connections and DNS queries through Tor, and drop everything else.

    \b
    vtl-tor --iface vmnet1
    vtl-tor --iface tap:vtl0 --start-tor --dhcp
    """
    if not iface:
        raise click.UsageError("give --iface: the interface that the guest is behind")
    if settings["torrc"] is not None and not settings["start_tor"]:
        raise click.UsageError("--torrc configures the tor of --start-tor: give both")
    source = click.get_current_context().get_parameter_source("socks")
    if settings["start_tor"] and source is click.core.ParameterSource.COMMANDLINE:
        raise click.UsageError("--start-tor takes the place of --socks: give one of them")
    if settings["subnet"] is not None and not settings["dhcp"]:
        raise click.UsageError("--subnet is what --dhcp leases from: give both")
    from vtl_tools.common.device.spec import open_device
    from vtl_tools.common.host.guard import MARK
    from vtl_tools.services.tor.build import make_stage

    run_service(
        lambda: make_stage(iface, options, partial(_show_exit, link=iface, json=options.json), **settings),
        lambda _: [open_device(iface, mark=MARK)],
        options,
        guard=guard,
        verbs=lambda stage: {
            "newnym": lambda _: {"identity": stage.new_identity()},
            "flows": lambda _: {"flows": stage.list_flows(time.monotonic())},
        },
    )


def _show_exit(seen: dict[str, object], *, link: str, json: bool) -> None:
    from vtl_tools.common.runtime.events import made

    if json:
        print_json([made("vtl-tor", link, "exit", {"seen": seen})])
    else:
        echo(f"vtl-tor: the world sees {seen.get('IP', seen)}", err=True)


@main.command()
@opts.link_option
@opts.verbose_option
def newnym(link: str | None) -> None:
    """Use other circuits for connections that are opened from now on."""
    for told in ask_each(main, "newnym", link):
        echo(f"identity {told['identity']}", err=True)


@main.command()
@socks_option
@click.option("--url", metavar="URL", help="A web service that answers with the address it sees.")
@opts.json_option
@opts.verbose_option
def check(socks: tuple[str, int] | str, url: str | None, json: bool) -> None:
    """Check whether the proxy answers, whether it is Tor, and which address a web service sees."""
    from vtl_tools.services.tor.proxy_check import CHECK_URL, described, exit_address, probe, resolved

    socks = resolved(socks)
    name, is_tor = described(socks), probe(socks).is_tor
    if not json:
        click.echo(f"{name}: {'is Tor' if is_tor else 'answers, and is not Tor'}")
    seen = exit_address(socks, url or CHECK_URL)
    if json:
        print_json([{"socks": name, "is_tor": is_tor, "seen": seen}], "vtl-tor.check/1")
    else:
        echo(f"the world sees {seen.get('IP', seen)}")
    if not is_tor:
        raise VTLError(f"{name}: not Tor: it sees where a guest goes; name Tor's SOCKS port")


@main.command()
@click.argument("options", nargs=-1, metavar="[-- OPTION...]")
@opts.json_option
@opts.verbose_option
def selftest(options: tuple[str, ...], json: bool) -> None:
    """Send every kind of traffic that may leak, in private networks, and report what leaked.

    \b
    vtl-tor selftest
    vtl-tor selftest -- --dns resolve --isolate conn

    A service with the OPTIONs runs between a guest and a host that forwards everything. Needs root. The exit
    status is 1 if anything leaked.
    """
    if "--start-tor" in options:
        raise click.UsageError("selftest has a proxy of its own: leave --start-tor out")
    from vtl_tools.common.device.capture import quiet_scapy

    with quiet_scapy():
        from vtl_tools.common.selftest import report
        from vtl_tools.services.tor.selftest import run
    command = [sys.executable, "-P", "-c", "from vtl_tools.cmd.tor import main; main(prog_name='vtl-tor')"]
    results = run.run([*command, *options])
    held = report.print_json(results) if json else report.print_table(results)
    if not held:
        raise VTLError("selftest: traffic leaked; it is listed above")


add_flows(main, "vtl-tor.flow/1")
add_events(main)
add_status(main)
