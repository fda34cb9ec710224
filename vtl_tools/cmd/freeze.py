"""vtl-freeze: keep a VM's TCP connections alive while it is away, however long. Paper section 3.5."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtl_tools.common.cli.completion import LINK
from vtl_tools.common.cli.options import FILE, common_options, iface_option, verb_options
from vtl_tools.common.cli.output import echo, print_json, print_table
from vtl_tools.common.cli.parameters import MacParam
from vtl_tools.common.cli.run import run_service
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status

if TYPE_CHECKING:
    from vtl_tools.common.device.base import Device
    from vtl_tools.common.runtime.runner import Options


@click.group("vtl-freeze", cls=Tool)
@iface_option()
@click.option("--uplink", "-u", type=LINK, metavar="LINK", help="Pass frames between --iface and this link.")
@click.option("--vm", default="", metavar="NAME", help="A name for the VM, which --link accepts.")
@click.option("--mac", type=MacParam(), metavar="MAC", help="The VM's Ethernet address.  [default: learned]")
@click.option("--qmp", metavar="SOCKET", help="Start and stop on the events of this QEMU monitor.")
@click.option("--state", type=FILE, metavar="FILE", help="Where to keep the state of the connections.")
@common_options
def main(
    iface: str, uplink: str | None, vm: str, mac: bytes | None, qmp: str | None, state: Path | None,
    options: "Options",
) -> None:  # fmt: skip
    """Keep a VM's TCP connections alive while it is suspended or migrates, however long that takes.

    \b
    vtl-freeze --iface vnet0 &
    virsh suspend VM; vtl-freeze start; ...; virsh resume VM; vtl-freeze stop
    """
    if not iface:
        raise click.UsageError("give --iface: the interface that the VM is behind, or a link to its network")
    from vtl_tools.services.freeze import start, verbs

    if uplink is not None and not (start.is_overlay(iface) and start.is_overlay(uplink)):
        raise click.UsageError("--uplink is between two links that are no interfaces; see vtl-freeze(1)")
    if mac is None and uplink is None and start.is_overlay(iface):
        raise click.UsageError("give --mac: on a link to a network, the VM's frames are known by it")
    links: list[Device] = []

    def make_links(_: int) -> "list[Device]":
        links.extend(start.make_links(iface, uplink))
        return links

    listen = start.listen_switch(links)
    make_stage = partial(start.make_stage, iface, uplink, vm, mac, qmp, state, listen)
    run_service(make_stage, make_links, options, guard="off", watches=True, verbs=verbs.verbs)


# --- verbs


def _ask(verb: str, link: str | None) -> Iterator[dict[str, Any]]:
    from vtl_tools.common.runtime import control
    from vtl_tools.services.freeze.verbs import find

    for path in find(link):
        yield control.ask(path, verb)


@main.command()
@verb_options
def start(link: str | None, json: bool) -> None:
    """Answer the peers in the VM's place from now on: it is suspended."""
    from vtl_tools.services.freeze.holdings import lines

    for result in _ask("start", link):
        if json:
            print_json([result], "vtl-freeze.start/1")
        else:
            before = "frozen" if result["began"] else "was frozen already"
            first, *others = lines(result)
            for line in f"{before}: {first}", *others:
                echo(line, err=True)


@main.command()
@verb_options
def stop(link: str | None, json: bool) -> None:
    """Stop answering and open the peers' windows: the VM is back."""
    for result in _ask("stop", link):
        if json:
            print_json([result], "vtl-freeze.stop/1")
        else:
            echo(f"after {result['frozen_s']} s" if result["ended"] else "was not frozen", err=True)


@main.command()
@verb_options
def report(link: str | None, json: bool) -> None:
    """List the connections that are held: for how long, and what may still end them."""
    from vtl_tools.services.freeze.report import report_row

    rows = [row for result in _ask("report", link) for row in result["connections"]]
    if json:
        print_json(rows, "vtl-freeze.connection/1")
        return
    print_table(
        ("VM", "peer", "held", "probes", "not held", "risks"),
        map(report_row, rows),
        right=("held", "probes"),
        names=("VM", "peer"),
    )


@main.command()
@verb_options
def announce(link: str | None, json: bool) -> None:
    """Announce the VM's location to the network, by gratuitous ARP, neighbour advertisements and RARP."""
    for result in _ask("announce", link):
        if json:
            print_json([result], "vtl-freeze.announce/1")


@main.command()
@click.argument("file", default="-")
@verb_options
def export(file: str, link: str | None, json: bool) -> None:
    """Write the state of the VM's connections to FILE or standard output, for another host."""
    from vtl_tools.services.freeze.verbs import export_state, find_one, write_file

    text = export_state(find_one(link))
    if file == "-":
        click.echo(text, nl=False)
        return
    write_file(Path(file), text)
    if json:
        print_json([{"file": file, "octets": len(text)}], "vtl-freeze.export/1")


@main.command("import")
@click.argument("file", default="-")
@verb_options
def import_(file: str, link: str | None, json: bool) -> None:
    """Load the state that `export` wrote on another host, from FILE or standard input, and announce the VM.

    If the VM was away there, it is away here until `stop`.
    """
    from vtl_tools.services.freeze.state import OCTETS_MAX
    from vtl_tools.services.freeze.verbs import find_one, import_state, read_file

    path = find_one(link)
    name = "<stdin>" if file == "-" else file
    text = sys.stdin.buffer.read(OCTETS_MAX + 1) if file == "-" else read_file(file)
    result = import_state(path, text, name)
    if json:
        print_json([result], "vtl-freeze.import/1")
    else:
        away = "frozen" if result["frozen"] else "not frozen"
        echo(f"{result['connections']} connections, {away}", err=True)


add_events(main)
add_status(main)
