"""What all the commands share: options, units, and one place where errors become lines and exit statuses.

Heavy modules are imported where they are used, so that --help costs a tenth of a second.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.text import printable

if TYPE_CHECKING:
    from vtl_tools.common.device.base import Device
    from vtl_tools.common.host.interfaces import Interfaces
    from vtl_tools.common.runtime import control
    from vtl_tools.common.runtime.runner import Options

P = ParamSpec("P")
R = TypeVar("R")

EPILOG = "Links, shared options and exit statuses are explained in vtl-tools(7)."


class _Line(logging.Formatter):
    """A line of a log, a part of which may be of others' making."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the record's line."""
        return printable(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 - likewise
        """Return the traceback, in which others' text may be quoted."""
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).splitlines())


class Tool(click.Group):
    """A command that runs a service, and whose verbs ask one that runs.

    A VTLError from anywhere within becomes one line on standard error, and its exit status.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("invoke_without_command", True)
        kwargs.setdefault("epilog", EPILOG)
        kwargs.setdefault(
            "context_settings", {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        )
        super().__init__(*args, **kwargs)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run, and exit with the status that vtl-tools(7) documents."""
        logging.basicConfig(level=logging.WARNING)
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_Line(f"{self.name}: %(message)s"))
        kwargs["standalone_mode"] = False  # so that errors and interrupts come here, not only to click
        try:
            sys.exit(super().main(*args, **kwargs))
        except click.ClickException as e:
            command = getattr(getattr(e, "ctx", None), "command_path", self.name)
            problem = e.format_message().rstrip(".").replace("\n", " ")
            stop = "" if problem.endswith(("?", ")")) else ";"
            self._say(f"{problem[:1].lower()}{problem[1:]}{stop} see '{command} --help'", e.exit_code)
        except click.Abort:
            sys.exit(130)
        except VTLError as e:
            self._say(str(e), e.exit_code)
        except BrokenPipeError:
            # Whoever read our output has gone, as in 'vtl-bridge status | head -1'.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except Exception as e:
            if logging.getLogger().isEnabledFor(logging.DEBUG):
                raise
            self._say(f"internal error: {e!r}; run again with -vv and report it", 1)

    def _say(self, problem: str, exit_code: int) -> None:
        self._event(problem, exit_code)
        click.echo(f"{self.name}: {printable(problem)}", err=True)
        sys.exit(exit_code)

    @staticmethod
    def _event(problem: str, exit_code: int) -> None:
        if "--json" in sys.argv:
            print(json.dumps({"event": "error", "error": problem, "exit": exit_code}), flush=True)


def common_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add the options of every service; they arrive as one keyword, `options`."""

    def collect(
        *args: Any,
        json: bool,
        watch: bool,
        pcap: Path | None,
        control: Path | None,
        reconnect: bool,
        spin: int | None,
        user: str | None,
        **kwargs: Any,
    ) -> R:
        context = click.get_current_context()
        if context.invoked_subcommand is not None:
            return None  # type: ignore[return-value] # a verb follows; there is nothing to run
        from vtl_tools.common.runtime.runner import SPIN_S, Options

        kwargs["options"] = Options(
            service=str(context.find_root().command.name),
            json=json,
            watch=watch,
            pcap=pcap,
            control=control,
            reconnect=reconnect,
            spin_s=SPIN_S if spin is None else spin * 1e-6,
            user=user,
        )
        return function(*args, **kwargs)

    wrapped: Any = collect
    wrapped.__doc__ = function.__doc__
    wrapped.__name__ = function.__name__
    wrapped.__click_params__ = getattr(function, "__click_params__", [])
    path = click.Path(path_type=Path, dir_okay=False)
    for option in reversed(
        (
            click.option("--watch", is_flag=True, help="Draw a live table on the terminal."),
            json_option,
            click.option("--pcap", type=path, metavar="FILE", help="Record what is seen and sent (pcapng)."),
            click.option("--control", type=path, metavar="PATH", help="Where to put the control socket."),
            click.option(
                "--reconnect/--no-reconnect",
                default=True,
                help="Wait for a link that went away (default), or end with status 4.",
            ),
            click.option(
                "--spin",
                type=click.IntRange(0, 1000),
                metavar="USEC",
                help="How long to look for more frames before sleeping.  [default: 100]",
            ),
            click.option(
                "--user",
                metavar="USER",
                help="Who the service is once it runs, if root starts it.  [default: vtl, or else nobody]",
            ),
            verbose_option,
            click.version_option(package_name="vtl-tools", prog_name=None),
        )
    ):
        wrapped = option(wrapped)
    result: Callable[P, R] = wrapped
    return result


def _set_verbosity(context: click.Context, parameter: click.Parameter, count: int) -> int:
    if count:
        logging.getLogger().setLevel(logging.INFO if count == 1 else logging.DEBUG)
    return count


json_option = click.option("--json", is_flag=True, help="Print JSON, one object a line.")

verbose_option = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    is_eager=True,
    callback=_set_verbosity,
    help="Say more on standard error; -vv for state changes.",
)


def guard_option_of(default: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add --guard. A service that guards its guest keeps it by default."""
    return click.option(
        "--guard",
        type=click.Choice(["process", "keep", "off"]),
        default=default,
        show_default=True,
        help="Keep the host's stack off the VM's interface while the service runs; "
        "'keep' also afterwards, until vtl-guard clears it.",
    )


guard_option = guard_option_of("process")


def iface_option(*, multiple: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add --iface: the side of the VM, or, with `multiple`, every side."""
    return click.option(
        "--iface",
        "-i",
        metavar="LINK",
        multiple=multiple,
        help="A link: an interface's name, tap:, qemu:, dgram:, vxlan:, channel:, pcap: or libpcap:.",
    )


def check_links(specs: Sequence[str]) -> None:
    """Raise SpecError where a link is named twice."""
    for spec in specs:
        if specs.count(spec) > 1:
            raise SpecError(f"{spec}: given twice; a service stands between different links")


def interfaces_of(links: Sequence["Device"], form: str, service: str, vm_sides: int | None) -> "Interfaces":
    """Return those of the links that are interfaces of this host, to be locked and guarded.

    vm_sides: how many of them, from the first, a VM is behind; None: all. The rest are uplinks.
    """
    from vtl_tools.common.host.interfaces import Interfaces, Side
    from vtl_tools.common.host.lock import BOTH, FROM, TO

    forms: dict[str, Any] = {"off": None, "process": "process", "keep": "kept"}
    sides = []
    for port, link in enumerate(links):
        is_vm = vm_sides is None or port < vm_sides
        directions = (TO,) if link.silent else (FROM,) if link.unwritten else BOTH
        if link.interface:
            sides.append(Side(link.interface, directions if is_vm else None))
    return Interfaces(service, forms[form], sides, links[0].interface if links else "")


link_argument = click.argument("link", required=False)


def ask_each(tool: click.Group, verb: str, link: str | None, **arguments: Any) -> list[Any]:
    """Ask the running services of a tool, the one on `link` or all, and return their results."""
    from vtl_tools.common.runtime import control

    return [control.ask(path, verb, **arguments) for path in control.find(str(tool.name), link)]


def echo(line: str, *, err: bool = False) -> None:
    """Print a line, of which others may have made a part."""
    click.echo(printable(line), err=err)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table on standard output. right: the titles of columns that are numbers."""
    from rich.table import Table

    from vtl_tools.common.runtime.watch import console, text

    table = Table()
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left")
    for row in rows:
        table.add_row(*map(text, row))
    console().print(table)


def status_verb(tool: Tool) -> None:
    """Give a tool its `status` verb."""

    @tool.command(name="status", epilog=EPILOG)
    @link_argument
    @json_option
    @click.option("--watch", is_flag=True, help="Draw a live table until interrupted.")
    @verbose_option
    def status(link: str | None, json: bool, watch: bool) -> None:
        """Show what a running service does: links, frames, and what it dropped and why.

        LINK is the service's first link, or the path of its control socket; without it all are shown.
        """
        from vtl_tools.common.runtime import control

        service = str(tool.name)
        paths = control.find(service, link)
        if json:
            print_json([control.ask(path, "status") for path in paths])
        elif watch:
            _watch(paths)
        else:
            from vtl_tools.common.runtime.watch import console, draw

            for path in paths:
                console().print(*draw(control.ask(path, "status")), sep="\n")


def print_json(results: Sequence[object]) -> None:
    """Print results on standard output, an object a line."""
    for result in results:
        print(json.dumps(result), flush=True)


def _watch(paths: Sequence[Path]) -> None:
    import time

    from vtl_tools.common.runtime import control
    from vtl_tools.common.runtime.watch import Watch

    with Watch() as watch:
        while True:
            watch.show([control.ask(path, "status") for path in paths])
            time.sleep(watch.period_s)


def run(
    make_stage: Callable[[], Any],
    make_links: Callable[[int], "list[Device]"],
    options: "Options",
    *,
    guard: str,
    vm_sides: int | None = None,
    watches: bool = False,
    workers: int = 1,
    verbs: "Callable[[Any], dict[str, control.Verb]] | None" = None,
) -> None:
    """Run a service until it ends, and exit.

    make_stage: may wait and fail, since the guards stand by then. make_links: makes the links, for a fanout
    number (0: all flows of the interfaces are ours alone), and opens nothing.
    vm_sides: see interfaces_of(). watches: it is in nobody's way, but beside, so that it needs no lock.
    verbs: what can be asked of the stage beside its status, by name.
    """
    from vtl_tools.common.host import privilege
    from vtl_tools.common.runtime.runner import Runner

    privilege.account(options.user)  # so that a user that there is not is told at once
    if workers > 1 and options.pcap is not None:
        raise SpecError("--pcap: several workers cannot write one file; record with --workers 1")
    links = make_links(0)
    with interfaces_of(() if watches else links, guard, options.service, vm_sides) as interfaces:
        if workers == 1:
            stage = make_stage()
            own_verbs = {} if verbs is None else verbs(stage)
            sys.exit(Runner(stage, links, options, interfaces, own_verbs).run())
        from vtl_tools.common.runtime.workers import Workers

        def make(number: int) -> Runner:
            from dataclasses import replace

            own = replace(options, watch=False, json=False)
            return Runner(make_stage(), make_links(group.fanout), own)

        group = Workers(workers, make, options, interfaces, links[0].spec)
        sys.exit(group.run())
