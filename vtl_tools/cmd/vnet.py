"""vtl-vnet: a layer 2 overlay of virtual machines, of which a service may be a link. Paper section 2.2."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.completion import LINK
from vtl_tools.common.cli.output import print_json, print_table
from vtl_tools.common.cli.parameters import SecretParam
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.selftest import program_of
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_keygen, add_status, ask_each, current_tool

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options


@click.group("vtl-vnet", cls=Tool)
@click.option("--config", type=opts.FILE, metavar="FILE", help="Links and rules, as TOML.")
@opts.iface_option(multiple=True)
@click.option("--uplink", "-u", type=LINK, metavar="LINK", help="The physical network, for a proxy.")
@click.option(
    "--attach", "attached", multiple=True, metavar="NAME=SPEC",
    help="Another link: tcp:HOST:PORT, service:NAME?OPTIONS, ...; may be repeated.",
)  # fmt: skip
@click.option(
    "--rule", "rules", multiple=True, metavar="RULE", help="The link of some frames; may be repeated."
)
@click.option("--key-file", "key", type=SecretParam(), metavar="FILE", help="The key that all daemons share.")
@click.option("--name", metavar="NAME", help="Of this daemon, for the others.  [default: the host's]")
@click.option(
    "--adapt",
    type=click.Choice(["off", "suggest", "on"]),
    help="Fit the links to the traffic.  [default: off]",
)
@click.option(
    "--adapt-port", type=click.IntRange(1, 65527), metavar="PORT",
    help="The first of eight ports for services that --adapt makes.  [default: 7710]",
)  # fmt: skip
@click.option(
    "--adapt-idle", type=click.IntRange(1, 86_400), metavar="SECONDS",
    help="Undo a service of --adapt that carries nothing for so long.  [default: 60]",
)  # fmt: skip
@opts.guard_option()
@opts.common_options
def main(
    config: Path | None, iface: tuple[str, ...], uplink: str | None, attached: tuple[str, ...],
    rules: tuple[str, ...], key: bytes | None, name: str | None, adapt: str | None, adapt_port: int | None,
    adapt_idle: int | None, guard: str, options: "Options",
) -> None:  # fmt: skip
    """Join virtual machines on many hosts to one Ethernet, with services as links of it.

    \b
    vtl-vnet keygen vnet.key
    vtl-vnet --iface vmnet1 --key-file vnet.key --attach site2=tcp:192.0.2.9:7700
    vtl-vnet link add fw 'service:fw?rules=/etc/vtl/web.rules'
    vtl-vnet rule add on vmnet1 via fw
    """
    from vtl_tools.services.vnet.start import VnetSettings, make_stage, read_config

    settings = VnetSettings() if config is None else read_config(config)
    settings.iface += iface
    settings.uplink = uplink or settings.uplink
    settings.name = name or settings.name
    settings.adapt = adapt or settings.adapt
    settings.adapt_port = adapt_port or settings.adapt_port
    settings.adapt_idle = adapt_idle or settings.adapt_idle
    settings.rules += rules
    for each in attached:
        link, equals, spec = each.partition("=")
        if not equals:
            raise click.UsageError(f"--attach: {each!r} is not NAME=SPEC")
        settings.links.append((link, spec))
    settings.check()
    opts.require((settings.iface or settings.uplink, "--iface or --uplink", "the first link"))
    if key is None and settings.key_file is not None:
        key = SecretParam().convert(settings.key_file, None, None)
    ports = [*settings.iface, *([] if settings.uplink is None else [settings.uplink])]
    run_service(
        lambda: make_stage(settings, key, program_of, options.user, ports),
        links_of(*ports),
        options,
        guard=guard,
        vm_sides=len(settings.iface),
        verbs=lambda stage: stage.verbs(),
    )


@main.command("link")
@click.argument("action", type=click.Choice(["add", "remove", "list"]))
@click.argument("name", required=False)
@click.argument("spec", required=False)
@opts.verb_options
def link_(action: str, name: str | None, spec: str | None, link: str | None, json: bool) -> None:
    """Add, remove or list links while frames pass.

    \b
    vtl-vnet link add tor 'service:tor?socks=127.0.0.1:9050'
    vtl-vnet link remove tor
    """
    if (name is None) != (action == "list") or (spec is None) != (action != "add"):
        raise click.UsageError("write 'link add NAME SPEC', 'link remove NAME' or 'link list'")
    results = list(ask_each(current_tool(), "link", link, action=action, name=name, spec=spec))
    if json:
        print_json(results, "vtl-vnet.link/1")
    elif action == "list":
        rows = [
            (name, one["kind"], "up" if one["up"] else "down", one["in_mbit"], one["out_mbit"], one["spec"])
            for result in results
            for name, one in result["links"].items()
        ]
        print_table(("link", "kind", "state", "Mbit/s in", "out", "spec"), rows, names=("link", "spec"))


@main.command("rule")
@click.argument("action", type=click.Choice(["add", "remove", "list"]))
@click.argument("words", nargs=-1)
@click.option("--position", type=click.IntRange(1), metavar="N", help="Add it as the Nth.  [default: last]")
@click.option(
    "--drain", type=click.IntRange(0, 86_400), default=300, show_default=True, metavar="SECONDS",
    help="How long connections of a removed rule keep a service that ends TCP.",
)  # fmt: skip
@opts.verb_options
def rule_(
    action: str, words: tuple[str, ...], position: int | None, drain: int, link: str | None, json: bool
) -> None:
    """Add, remove or list rules while frames pass. The first that matches counts.

    \b
    vtl-vnet rule add from-mac 02:00:00:00:00:01 protocol tcp via tor
    vtl-vnet rule remove from-mac 02:00:00:00:00:01 protocol tcp via tor
    """
    if bool(words) == (action == "list"):
        raise click.UsageError("write 'rule add RULE', 'rule remove RULE' or 'rule list'")
    text = " ".join(words)
    asked = {"action": action, "rule": text, "position": position, "drain": drain}
    results = list(ask_each(current_tool(), "rule", link, **asked))
    if json:
        print_json(results, "vtl-vnet.rule/1")
    elif action == "list":
        rows = [
            (one["number"], one["hits"], one["connections"], "draining" if one["draining"] else "", text)
            for result in results
            for text, one in result["rules"].items()
        ]
        titles = ("number", "hits", "connections", "state", "rule")
        print_table(titles, rows, right=titles[:3], names=("rule",))


add_keygen(main, "the hosts of all daemons")
add_events(main)
add_status(main)
