"""vtl-wan: the wide area, emulated between two links. Paper section 3.3."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from vtl_tools.common.cli import options as opts
from vtl_tools.common.cli.output import echo, print_json
from vtl_tools.common.cli.run import links_of, run_service
from vtl_tools.common.cli.selftest import program_of
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import add_events, add_status, ask_each, current_tool
from vtl_tools.common.errors import VTLError

if TYPE_CHECKING:
    from vtl_tools.common.runtime.runner import Options

P = ParamSpec("P")
R = TypeVar("R")

_SETTINGS = {
    "delay": ("TIME", "Delay of each frame, one way."),
    "jitter": ("TIME", "Deviation of the delay."),
    "distribution": ("NAME", "Of the jitter: normal, uniform or pareto."),
    "loss": ("LOSS", "Share of frames that are lost: 0.1%, burst:1%,5 or ge:..."),
    "rate": ("RATE", "Rate of the bottleneck, such as 10mbit; none: no bottleneck."),
    "queue": ("BOUND", "Bound of the queue before it, such as 100ms or 64kb."),
    "aqm": ("NAME", "Management of the queue: droptail or codel."),
    "ecn": ("on|off", "Mark frames instead of dropping them, where both ends agreed to it."),
    "reorder": ("SHARE", "Share of frames that later ones overtake."),
    "duplicate": ("SHARE", "Share of frames that arrive twice."),
    "corrupt": ("SHARE", "Share of frames with a flipped bit."),
}


def settings_options(function: Callable[P, R]) -> Callable[P, R]:
    """Add the options of the settings. The function gets those that are given as `changes`, and `preset`."""

    def collect(*args: Any, **kwargs: Any) -> R:
        given = {name: kwargs.pop(name) for name in _SETTINGS}
        kwargs["changes"] = {name: text for name, text in given.items() if text is not None}
        return function(*args, **kwargs)

    preset = click.option("--preset", metavar="NAME", help="A typical path, such as lan, 4g, geo.")
    settings = (
        click.option(f"--{name}", metavar=metavar, help=text) for name, (metavar, text) in _SETTINGS.items()
    )
    return opts.in_place_of(function, collect, (preset, *settings))


@click.group("vtl-wan", cls=Tool)
@opts.iface_option(multiple=True)
@click.option("--uplink", "-u", metavar="LINK", help="The second link, if the host uses it, too.")
@settings_options
@click.option("--trace", type=opts.FILE, metavar="FILE", help="A Mahimahi trace, in place of a rate.")
@click.option("--trace-back", type=opts.FILE, metavar="FILE", help="A trace for the way back.")
@click.option("--timeline", type=opts.FILE, metavar="FILE", help="Changes at times, from a file.")
@click.option(
    "--seed", type=int, default=None, metavar="N", help="Makes a run repeatable.  [default: random]"
)
@click.option(
    "--memory", type=click.IntRange(1, 1 << 16), default=256, show_default=True, metavar="MIB",
    help="Frames that may wait in each direction.",
)  # fmt: skip
@click.option("--realtime", is_flag=True, help="Run before other processes, so that times are exact.")
@opts.guard_option()
@opts.common_options
def main(
    iface: tuple[str, ...], uplink: str | None, preset: str | None, changes: dict[str, str],
    trace: Path | None, trace_back: Path | None, timeline: Path | None, seed: int | None, memory: int,
    realtime: bool, guard: str, options: "Options",
) -> None:  # fmt: skip
    """Join two links as a wide area would: with delay, loss, a bottleneck and its queue.

    \b
    vtl-wan --iface vmnet1 --uplink eth0 --delay 50ms --rate 100mbit --loss 0.1%
    vtl-wan --iface vmnet1 --iface vmnet2 --preset 4g --timeline drive.txt --seed 7

    A value is for both directions, or THERE/BACK. The first is the way from the first link to the second.
    """
    links = iface if uplink is None else (*iface, uplink)
    if len(links) != 2 or not iface:
        raise click.UsageError(
            "give --iface twice, or --iface and --uplink: a wide area is between two links"
        )
    from vtl_tools.common.host.scheduling import take_realtime_priority
    from vtl_tools.services.wan.start import make_stage

    make = partial(
        make_stage,
        preset,
        changes,
        traces=(trace, trace_back),
        timeline=timeline,
        seed=seed,
        memory=memory << 20,
        realtime=realtime,
    )
    make()  # an error in a setting is one before anything is opened
    if realtime:
        take_realtime_priority()
    run_service(
        make, links_of(*links), options, guard=guard, vm_sides=len(iface),
        verbs=lambda stage: {"set": stage.set},
    )  # fmt: skip


@main.command("set")
@settings_options
@opts.verb_options
def set_(link: str | None, json: bool, preset: str | None, changes: dict[str, str]) -> None:
    """Change settings while frames pass. Those that are not named stay; with --preset, all are replaced."""
    if not changes and preset is None:
        raise click.UsageError("give a setting, such as --delay 100ms, or --preset")
    results = list(ask_each(current_tool(), "set", link, changes=changes, preset=preset))
    if json:
        print_json(results, "vtl-wan.set/1")


@main.command()
@settings_options
@click.option("--frames", type=click.IntRange(100, 10**7), default=20_000, show_default=True, metavar="N",
              help="Frames that are sent.")  # fmt: skip
@click.option("--per-second", type=click.IntRange(10, 10**6), default=5000, show_default=True, metavar="N",
              help="Frames that are sent in a second.")  # fmt: skip
@opts.json_option
@opts.verbose_option
def verify(preset: str | None, changes: dict[str, str], frames: int, per_second: int, json: bool) -> None:
    """Measure how exactly this machine keeps the settings: delay, loss and rate.

    \b
    vtl-wan verify --delay 50ms --loss 1%

    Needs no privilege: a vtl-wan of its own runs between two channels. The exit status is 1 if a setting is
    not kept.
    """
    from dataclasses import asdict

    from vtl_tools.services.wan.start import settings_of
    from vtl_tools.services.wan.verify import measure

    words = [word for name, text in changes.items() for word in (f"--{name}", text)]
    words += [] if preset is None else ["--preset", preset]
    all_kept = True
    for one in measure(program_of("vtl-wan"), words, settings_of(preset, changes), frames, per_second):
        all_kept &= one.kept
        if json:
            print_json([asdict(one)], "vtl-wan.verify/1")
            continue
        echo(one.line())
    if not all_kept:
        raise VTLError("verify: this machine does not keep the settings; see the list above")


add_status(main)
add_events(main)
