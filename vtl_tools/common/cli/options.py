"""Options that several commands have, each declared once."""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import click

from vtl_tools.common.cli.completion import LINK, RUNNING
from vtl_tools.common.cli.parameters import MetricsParam

P = ParamSpec("P")
R = TypeVar("R")

FILE = click.Path(path_type=Path, dir_okay=False)
"""The type of an option that names a file."""


def _set_verbosity(context: click.Context, parameter: click.Parameter, count: int) -> int:
    if count:
        logging.getLogger().setLevel(logging.INFO if count == 1 else logging.DEBUG)
    return count


json_option = click.option("--json", is_flag=True, help="Print JSON, one object a line.")

link_option = click.option(
    "--link",
    type=RUNNING,
    metavar="LINK",
    help="First link or control socket of the running service.  [default: all]",
)

verbose_option = click.option(
    "-v",
    "--verbose",
    count=True,
    expose_value=False,
    is_eager=True,
    callback=_set_verbosity,
    help="Print more messages; -vv adds state changes.",
)


def _show_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or ctx.resilient_parsing:
        return
    from importlib.metadata import version

    from vtl_tools.common.tcp import state

    build = "compiled" if state.__file__.endswith(".so") else "pure Python"
    click.echo(f"{ctx.find_root().info_name}, version {version('vtl-tools')} ({build})")
    ctx.exit()


version_option = click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_show_version,
    help="Show the version and exit.",
)  # fmt: skip

_RUN_OPTIONS = (
    click.option("--watch", is_flag=True, help="Draw a live table on the terminal."),
    json_option,
    click.option("--pcap", type=FILE, metavar="FILE", help="Record all frames received and sent (pcapng)."),
    click.option(
        "--pcap-size",
        type=click.IntRange(1, 1 << 20),
        metavar="MIB",
        help="Begin another capture file before one is larger.  [default: no limit]",
    ),
    click.option(
        "--pcap-files",
        type=click.IntRange(2, 1000),
        metavar="N",
        help="With --pcap-size: keep the newest N files of this run.  [default: all]",
    ),
    click.option("--pcap-overwrite", is_flag=True, help="Overwrite a capture file that is there already."),
    click.option(
        "--log", type=FILE, metavar="FILE", help="Append messages to a file, not to standard error."
    ),
    click.option("--control", type=FILE, metavar="PATH", help="Path of the control socket."),
    click.option(
        "--metrics",
        type=MetricsParam(),
        metavar="ADDRESS",
        help="Answer Prometheus at HOST:PORT or unix:PATH.  [default: off]",
    ),
    click.option(
        "--reconnect/--no-reconnect",
        default=True,
        help="When a link fails, wait for it (default) or exit with status 4.",
    ),
    click.option(
        "--spin",
        type=click.IntRange(0, 1000),
        metavar="USEC",
        help="Poll for more frames for this long before sleeping.  [default: 100]",
    ),
    click.option(
        "--user",
        metavar="USER",
        help="When started by root, run as this user.  [default: vtl if it exists, else nobody]",
    ),
    verbose_option,
    version_option,
)


def common_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add the options of every service. The function gets them as one keyword, `options`.

    The function is not called when a verb follows.
    """

    def collect(
        *args: Any,
        json: bool,
        watch: bool,
        pcap: Path | None,
        pcap_size: int | None,
        pcap_files: int | None,
        pcap_overwrite: bool,
        log: Path | None,
        control: Path | None,
        metrics: tuple[str, int] | str | None,
        reconnect: bool,
        spin: int | None,
        user: str | None,
        **kwargs: Any,
    ) -> R:
        context = click.get_current_context()
        if context.invoked_subcommand is not None:
            return None  # type: ignore[return-value] # a verb follows
        from vtl_tools.common.device.recording import CaptureLimits
        from vtl_tools.common.runtime.runner import SPIN_S, Options

        kwargs["options"] = Options(
            service=str(context.find_root().command.name),
            json=json,
            watch=watch,
            pcap=pcap,
            captures=CaptureLimits((pcap_size or 0) << 20, pcap_files or 0, pcap_overwrite),
            log=log,
            control=control,
            metrics=metrics,
            reconnect=reconnect,
            spin_s=SPIN_S if spin is None else spin * 1e-6,
            user=user,
        )
        return function(*args, **kwargs)

    return in_place_of(function, collect, _RUN_OPTIONS)


def in_place_of(
    function: Callable[P, R], collect: Callable[..., R], options: Iterable[Callable[[Any], Any]]
) -> Callable[P, R]:
    """Return `collect` with the name and the options of a command's function, and further options before."""
    wrapped: Any = collect
    wrapped.__doc__ = function.__doc__
    wrapped.__name__ = function.__name__
    wrapped.__click_params__ = getattr(function, "__click_params__", [])
    for option in reversed(list(options)):
        wrapped = option(wrapped)
    result: Callable[P, R] = wrapped
    return result


def require(*given: tuple[object, str, str]) -> None:
    """Raise click.UsageError for the first option without a value. Each: value, option, what to give."""
    for value, option, what in given:
        if not value:
            raise click.UsageError(f"give {option}: {what}")


def verb_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add --link, --json and --verbose: the options of a verb that asks running services."""
    return link_option(json_option(verbose_option(function)))


def guard_option(default: str = "process") -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add --guard."""
    return click.option(
        "--guard",
        type=click.Choice(["process", "keep", "off"]),
        default=default,
        show_default=True,
        help="Keep the host's network stack off the VM's interface while the service runs. "
        "'keep': also afterwards, until vtl-guard clears it.",
    )


on_demand_option: Final = click.option(
    "--on-demand",
    is_flag=True,
    help="Take connections that begin while the control socket asks for it; pass all others.",
)


def iface_option(*, multiple: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Add --iface: the VM side, or every link if `multiple`."""
    return click.option(
        "--iface",
        "-i",
        type=LINK,
        metavar="LINK",
        multiple=multiple,
        help="A link: an interface's name, tap:, qemu:, dgram:, vxlan:, channel:, pcap: or libpcap:.",
    )
