"""vtl-guard: show, raise and lift the guards that keep the host's stack off an interface."""

import click

from vtl_tools.common.cli.completion import LINK
from vtl_tools.common.cli.options import json_option, verbose_option, version_option
from vtl_tools.common.cli.output import print_json, print_table
from vtl_tools.common.cli.tool import Tool


@click.group("vtl-guard", cls=Tool, invoke_without_command=False)
@version_option
@verbose_option
def main() -> None:
    """Show, raise and lift the guards that keep the host's network stack off an interface."""


@main.command("list")
@json_option
def list_(json: bool) -> None:
    """List the guards: whether each is in force, and which service uses the interface."""
    from vtl_tools.common.host import guard, interface, lock

    found = guard.list_guards()
    holders = lock.holders()

    def holder(name: str) -> lock.Holder:
        return holders.get(interface.index_of(name), lock.Holder())

    if json:
        print_json(
            [
                {**g._asdict(), "service": holder(g.name).service, "service_pid": holder(g.name).pid}
                for g in found
            ],
            "vtl-guard.guard/1",
        )
        return
    if not found:
        click.echo("no guards", err=True)
        return
    rows = (
        (
            g.name,
            "in force" if g.in_force else f"not in force: {g.fault}",
            f"process {g.pid}" if g.pid else f"vtl-guard clear {g.name}",
            f"{holder(g.name).service} {holder(g.name).pid}" if holder(g.name).pid else "none",
            g.kept_in,
            g.kept_out,
            f"{g.raised_by} {g.raised_at}".strip(),
        )
        for g in found
    )
    counts = ("kept from host", "from guest")
    titles = ("interface", "state", "ends with", "service", *counts, "raised by")
    print_table(titles, rows, right=counts, names=("interface",))


@main.command("raise")
@click.argument("iface", type=LINK)
@click.option("--force", is_flag=True, help="Also where the host's default route is cut off.")
def raise_(iface: str, force: bool) -> None:
    """Raise a guard before a service starts. Until one does, the guest reaches nothing."""
    from vtl_tools.common.errors import SpecError
    from vtl_tools.common.host import interface
    from vtl_tools.common.host.guard import Guard
    from vtl_tools.common.host.routes import default_routes

    routes = default_routes(interface.find(iface)[1])
    if routes and not force:
        versions = " and ".join(f"IPv{family[1:]}" for family, _ in routes)
        remedies = " and ".join(f"'ip {family} route del default dev {device}'" for family, device in routes)
        raise SpecError(
            f"{iface}: carries the host's default route of {versions}: a guard would cut the host off from "
            f"its network, and you from the host; remove the route by {remedies} where a VM is behind it, or "
            "give --force"
        )
    with Guard(iface, "kept", "vtl-guard") as guard:
        click.echo(f"{guard.name}: guarded until 'vtl-guard clear {guard.name}'", err=True)


@main.command("clear")
@click.argument("iface", type=LINK)
def clear(iface: str) -> None:
    """Lift the guard of an interface: the host's network stack receives its frames again."""
    from vtl_tools.common.errors import VTLError
    from vtl_tools.common.host import guard, interface, lock
    from vtl_tools.common.runtime import discovery

    try:
        holder = lock.holders().get(interface.index_of(iface), lock.Holder())
    except PermissionError:
        holder = lock.Holder()  # guard.clear() raises an error that says so
    if holder.keeps:
        raise VTLError(f"{iface}: {holder.service} (process {holder.pid}) uses it; stop that service first")
    name = interface.real(iface)
    if guard.clear(iface):
        discovery.forget(name)
    else:
        owned = [g.pid for g in guard.list_guards() if g.name == name]
        if owned:
            raise VTLError(f"{iface}: guarded by process {owned[0]}, which still runs; stop that instead")
        raise VTLError(f"{iface}: no guard to lift; see 'vtl-guard list'")
    click.echo(f"{iface}: guard lifted", err=True)
