"""vtl-freeze: a VM's TCP connections outlast its absence, however long. Paper section 3.5."""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from vtl_tools.common.cli import tool as cli
from vtl_tools.common.errors import NotRunningError, SpecError, VTLError
from vtl_tools.services.freeze import state
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.freeze.report import report as report_of
from vtl_tools.services.freeze.stage import SAVED_AT_ONCE_S, Freeze

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vtl_tools.common.runtime.runner import Options

TOOL: Final = "vtl-freeze"


# --- the command


def _verbs(stage: Freeze) -> dict[str, Any]:
    import asyncio

    from vtl_tools.common.host.broker import HandedFile

    clock = time.monotonic
    assert stage.snapshot is not None
    beside = HandedFile(_beside(stage.snapshot.path), state.OCTETS_MAX)

    def later() -> None:
        asyncio.get_running_loop().call_later(SAVED_AT_ONCE_S, lambda: stage.save(clock()))

    def start(_: dict[str, Any]) -> dict[str, object]:
        told = stage.start(clock())
        later()
        return told

    async def stop(_: dict[str, Any]) -> dict[str, object]:
        told = stage.stop(clock())
        while stage.freezer.thawing:
            stage.wake(clock())
            stage.settle(clock())
            await asyncio.sleep(0)  # frames have their turn
        later()
        return told

    async def written(_: dict[str, Any]) -> dict[str, object]:
        """Write the state, and tell in which file it is."""
        assert stage.snapshot is not None
        snapshot = stage.snapshot
        before = snapshot.written
        for _again in range(2):  # a write that is under way may be from before
            while not snapshot.begin(clock()):
                await asyncio.sleep(0.01)
        while snapshot.is_writing:
            await asyncio.sleep(0.01)
        if snapshot.written == before:
            raise VTLError(f"{snapshot.path}: cannot be written; see whether there is room")
        return {"file": str(snapshot.path)}

    def take_up(request: dict[str, Any]) -> dict[str, object]:
        """Read the state that was put beside ours."""
        try:
            text = beside.take()
        except OSError as e:
            raise VTLError(f"{beside.path}: {e.strerror or e}; run import as the service's user") from None
        told = stage.qemu.import_state(text, str(request.get("name")), clock())
        later()
        return told

    return {
        "start": start,
        "stop": stop,
        "report": lambda request: report_of(stage.freezer, clock()),
        "export": written,
        "import": take_up,
        "announce": lambda _: stage.announce(clock()),
    }


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.import")


def _serve(
    iface: str, vm: str, mac: str | None, qmp: str | None, state_file: Path | None, options: "Options"
) -> None:
    if not iface:
        raise click.UsageError("give --iface: the interface that the VM is behind, or a link to its network")
    overlay = ":" in iface
    own = _mac(mac)
    if overlay and own is None:
        raise click.UsageError("give --mac: on a link that is not the VM's own, its address tells its frames")
    from vtl_tools.common.host.guard import MARK
    from vtl_tools.common.runtime.control import path_for
    from vtl_tools.common.runtime.snapshot import Snapshot

    path = state_file or path_for(TOOL, iface).with_suffix(".state")
    links: list[Any] = []

    def make_links(_: int) -> list[Any]:
        if overlay:
            from vtl_tools.common.device.spec import open_device

            links.append(open_device(iface, mark=MARK))
        else:
            from vtl_tools.common.device.interface_sides import NetworkSide, VMSide

            links.extend((VMSide(iface, mark=MARK), NetworkSide(iface, mark=MARK)))
        return links

    def listen(wanted: bool) -> None:
        for link in () if overlay else links:
            link.listen(wanted)

    def make_stage() -> Freeze:
        freezer = Freezer(any_mac=own is None)
        ring = None
        if not overlay:
            from vtl_tools.common.device.ring import Ring

            ring = Ring(iface, freezer.overhear, mark=MARK)
        if state_file is None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        snapshot = Snapshot(path, lambda now: state.dump(freezer, stage.vm, now), state.OCTETS_MAX)
        stage = Freeze(freezer, vm, mac=own, listen=listen, snapshot=snapshot, overlay=overlay)
        if (text := snapshot.read()) is not None:
            stage.import_state(text, str(path), time.monotonic())
        snapshot.save(time.monotonic())  # so that it is known at once whether that can be done
        if ring is not None:
            stage.listen_on(ring)
        if qmp is not None:
            from vtl_tools.services.freeze.qmp import Monitor

            stage.follow(Monitor(qmp, stage.qemu.on_event))
        return stage

    cli.run(make_stage, make_links, options, guard="off", watches=True, verbs=_verbs)


def _mac(text: str | None) -> bytes | None:
    if text is None:
        return None
    from vtl_tools.common.packet import address

    try:
        own = address.mac(text)
    except ValueError as e:
        raise click.BadParameter(str(e), param_hint="'--mac'") from None
    if address.is_multicast_mac(own) or not any(own):
        raise click.BadParameter(f"{text} is no machine's address", param_hint="'--mac'")
    return own


def _run_options(function: Any) -> Any:
    """Add the options by which the service is run."""
    path = click.Path(path_type=Path, dir_okay=False)
    for option in (
        cli.common_options,
        click.option("--state", "state_file", type=path, metavar="FILE", help="Where to keep what is known."),
        click.option("--qmp", metavar="SOCKET", help="Freeze and thaw as this monitor of QEMU tells."),
        click.option("--mac", metavar="MAC", help="The VM's Ethernet address.  [default: learned]"),
        click.option("--vm", default="", metavar="NAME", help="A name for the VM, by which verbs find it."),
        cli.iface_option(),
    ):
        function = option(function)
    return function


@click.group(TOOL, cls=cli.Tool)
@_run_options
def main(
    iface: str, vm: str, mac: str | None, qmp: str | None, state_file: Path | None, options: "Options"
) -> None:
    """Keep a VM's TCP connections alive while it is suspended, or migrates, for as long as that takes.

    \b
    vtl-freeze run --iface vnet0 &
    virsh suspend VM; vtl-freeze start; ...; virsh resume VM; vtl-freeze stop
    """
    _serve(iface, vm, mac, qmp, state_file, options)


@main.command(epilog=cli.EPILOG)
@_run_options
def run(
    iface: str, vm: str, mac: str | None, qmp: str | None, state_file: Path | None, options: "Options"
) -> None:
    """Follow the VM's connections, and do what the other verbs ask. The word may be left out."""
    _serve(iface, vm, mac, qmp, state_file, options)


# --- verbs


def _which(function: Any) -> Any:
    """Add the options by which a verb chooses its service."""
    for option in (
        cli.verbose_option,
        cli.json_option,
        click.option("--vm", metavar="NAME", help="The service of this VM."),
        click.option("--iface", "-i", metavar="LINK", help="The service on this link."),
    ):
        function = option(function)
    return function


def _found(iface: str | None, vm: str | None) -> "Iterator[Path]":
    """Yield the control sockets that are meant. Raises NotRunningError."""
    from vtl_tools.common.runtime import control

    paths = control.find(TOOL, iface)
    found = [path for path in paths if vm is None or control.ask(path, "status")["freeze"]["vm"] == vm]
    if not found:
        raise NotRunningError(f"{vm}: no service is for this VM; see 'vtl-freeze status'")
    yield from found


def _one(iface: str | None, vm: str | None) -> Path:
    """Return the one control socket that is meant. Raises NotRunningError, SpecError."""
    path, *others = _found(iface, vm)
    if others:
        raise SpecError("several services run here: say which by --iface or --vm")
    return path


def _ask(verb: str, iface: str | None, vm: str | None, **arguments: Any) -> "Iterator[dict[str, Any]]":
    from vtl_tools.common.runtime import control

    for path in _found(iface, vm):
        yield control.ask(path, verb, **arguments)


@main.command(epilog=cli.EPILOG)
@_which
def start(iface: str | None, vm: str | None, json: bool) -> None:
    """Answer for the VM from now on: it is suspended. Without --vm or --iface, for all that are followed."""
    for told in _ask("start", iface, vm):
        if json:
            cli.print_json([told])
        else:
            before = "frozen" if told["began"] else "was frozen already"
            click.echo(f"{before}: {told['connections']} connections", err=True)


@main.command(epilog=cli.EPILOG)
@_which
def stop(iface: str | None, vm: str | None, json: bool) -> None:
    """Fall silent and open the peers' windows: the VM is back."""
    for told in _ask("stop", iface, vm):
        if json:
            cli.print_json([told])
        else:
            click.echo(f"after {told['frozen_s']} s" if told["ended"] else "was not frozen", err=True)


@main.command(epilog=cli.EPILOG)
@_which
def report(iface: str | None, vm: str | None, json: bool) -> None:
    """List the connections that are held: for how long, and what may end them all the same."""
    rows = [row for told in _ask("report", iface, vm) for row in told["connections"]]
    if json:
        cli.print_json(rows)
        return
    cli.print_table(
        ("VM", "peer", "held", "probes", "risks"),
        ((r["vm"], r["peer"], f"{r['held_s']:.0f} s", str(r["probes"]), ", ".join(r["risks"])) for r in rows),
        right=("held", "probes"),
    )


@main.command(epilog=cli.EPILOG)
@_which
def announce(iface: str | None, vm: str | None, json: bool) -> None:
    """Tell the network that the VM is here now, by gratuitous ARP, neighbour advertisements and RARP."""
    for told in _ask("announce", iface, vm):
        if json:
            cli.print_json([told])


@main.command(epilog=cli.EPILOG)
@click.argument("file", default="-")
@_which
def export(file: str, iface: str | None, vm: str | None, json: bool) -> None:
    """Write what is known of the VM's connections to FILE, or to standard output, for another host."""
    from vtl_tools.common.runtime import control

    kept = str(control.ask(_one(iface, vm), "export", patience_s=60.0)["file"])
    text = _read(kept)
    state.load(text, kept, Freezer(), 0.0)  # the service names the file, and not any file is to be told
    if file == "-":
        click.echo(text, nl=False)
    else:
        _write(Path(file), text)
        if json:
            cli.print_json([{"file": file, "octets": len(text)}])


@main.command("import", epilog=cli.EPILOG)
@click.argument("file", default="-")
@_which
def import_(file: str, iface: str | None, vm: str | None, json: bool) -> None:
    """Take up what `export` wrote on another host, from FILE or standard input, and announce the VM here.

    A VM that was away is away here as well, until `stop`.
    """
    from vtl_tools.common.runtime import control

    path = _one(iface, vm)
    name = "<stdin>" if file == "-" else file
    text = sys.stdin.buffer.read(state.OCTETS_MAX + 1) if file == "-" else _read(file)
    state.load(text, name, Freezer(), 0.0)  # what is wrong with it is told before anything is changed
    kept = str(control.ask(path, "status")["freeze"]["state"])
    state.load(
        _read(kept), kept, Freezer(), 0.0
    )  # it names the file, and not beside any file is to be written
    _write(_beside(Path(kept)), text)
    told = control.ask(path, "import", patience_s=60.0, name=name)
    if json:
        cli.print_json([told])
    else:
        away = "frozen" if told["frozen"] else "not frozen"
        click.echo(f"{told['connections']} connections, {away}", err=True)


def _read(name: str) -> bytes:
    try:
        with Path(name).open("rb") as file:
            return file.read(state.OCTETS_MAX + 1)
    except OSError as e:
        raise VTLError(f"{name}: {e.strerror}; name a file that can be read") from None


def _write(path: Path, text: bytes) -> None:
    from vtl_tools.common.host.broker import replace

    try:
        replace(path, [text.decode()])
    except OSError as e:
        raise VTLError(f"{path}: {e.strerror}; name a file that can be written") from None


cli.status_verb(main)
