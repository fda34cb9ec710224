"""vtl-guard: show, raise and lift the guards that keep the host's stack off an interface."""

import click

from vtl_tools.common import cli


@click.group("vtl-guard", cls=cli.Tool, invoke_without_command=False)
@click.version_option(package_name="vtl-tools", prog_name=None)
@cli.verbose_option
def main() -> None:
    """Show, raise and lift the guards that keep the host's network stack off an interface."""


@main.command("list")
@cli.json_option
def list_(json: bool) -> None:
    """List the guards that stand, whether a service runs behind them or not."""
    from vtl_tools.common import guard

    found = guard.standing()
    if json:
        from dataclasses import asdict

        cli.print_json([asdict(g) for g in found])
        return
    if not found:
        click.echo("no guard stands", err=True)
        return
    rows = (
        (
            g.name,
            g.form,
            f"process {g.pid}" if g.pid else f"vtl-guard clear {g.name}",
            f"{g.kept_in:,}",
            f"{g.kept_out:,}",
        )
        for g in found
    )
    cli.print_table(("interface", "form", "ends with", "kept from the host", "kept from the guest"), rows)


@main.command("raise")
@click.argument("iface")
def raise_(iface: str) -> None:
    """Raise a guard that stays, before a service starts: until then the guest reaches nobody."""
    from vtl_tools.common.guard import Guard

    with Guard(iface, "kept"):
        click.echo(f"{iface}: guarded until 'vtl-guard clear {iface}'", err=True)


@main.command("clear")
@click.argument("iface")
def clear(iface: str) -> None:
    """Lift the guard that a service left on an interface; the host's stack sees its frames again."""
    from vtl_tools.common import guard
    from vtl_tools.common.errors import VTLError

    if not guard.clear(iface):
        owned = [g.pid for g in guard.standing() if g.name == iface]
        if owned:
            raise VTLError(f"{iface}: guarded by process {owned[0]}, which runs; end that instead")
        raise VTLError(f"{iface}: no guard to lift; see 'vtl-guard list'")
    click.echo(f"{iface}: guard lifted", err=True)
