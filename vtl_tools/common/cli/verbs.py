"""The common part of all verbs: asking running services, and `status`."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from vtl_tools.common.cli.options import FILE, verb_options, verbose_option
from vtl_tools.common.cli.output import echo, print_json
from vtl_tools.common.cli.tool import Tool

if TYPE_CHECKING:
    from vtl_tools.common.cli.event_lines import Words


def current_tool() -> click.Group:
    """Return the command that the present verb belongs to."""
    found = click.get_current_context().find_root().command
    assert isinstance(found, click.Group)
    return found


def sockets_of(tool: click.Group, link: str | None) -> list[Path]:
    """Return the control sockets of a tool's running services: the one on `link`, or all."""
    from vtl_tools.common.runtime import discovery

    return discovery.find(str(tool.name), link)


def ask_each(tool: click.Group, verb: str, link: str | None, **arguments: Any) -> Iterator[Any]:
    """Ask the running services of a tool, the one on `link` or all; yield their results as they come."""
    from vtl_tools.common.runtime import control

    for path in sockets_of(tool, link):
        yield control.ask(path, verb, **arguments)


def add_status(tool: Tool) -> None:
    """Add the verb `status` to a tool."""

    @tool.command(name="status")
    @verb_options
    @click.option("--watch", is_flag=True, help="Draw a live table until interrupted.")
    def status(link: str | None, json: bool, watch: bool) -> None:
        """Show the services: their links, frame counts, drops by reason, and which died."""
        from vtl_tools.common.cli.status import print_status, watch_status
        from vtl_tools.common.runtime import discovery

        service = str(tool.name)
        (watch_status if watch else print_status)(service, discovery.survey(service, link), json=json)


def add_keygen(tool: Tool, to: str) -> None:
    """Add the verb `keygen` to a tool. to: where the key is to be copied."""

    @tool.command(name="keygen", help=f"Create FILE with a random key, for the user only; copy it to {to}.")
    @click.argument("file", type=FILE)
    @verbose_option
    def keygen(file: Path) -> None:
        from vtl_tools.common.session.keys import make_key_file

        make_key_file(file)
        echo(f"{file}: a new key; copy it to {to}", err=True)


def add_events(tool: Tool, words: "Callable[[], Words]" = dict) -> None:
    """Add the verb `events` to a tool. words: returns what to say of the events of this service."""

    @tool.command(name="events")
    @verb_options
    @click.option(
        "--last",
        type=click.IntRange(0, 1000),
        default=0,
        show_default=True,
        metavar="N",
        help="Begin with the N events before now.",
    )
    def events(link: str | None, json: bool, last: int) -> None:
        """Follow the events of running services until interrupted, or until the services end."""
        from vtl_tools.common.cli.event_lines import exit_status, line_of
        from vtl_tools.common.runtime.follow import follow

        said, status = words(), 0
        for event in follow(sockets_of(tool, link), last):
            if event["event"] == "error":
                status = max(status, exit_status(event))
            if json:
                print_json([event])
            else:
                echo(line_of(event, said))
        if json:
            echo(f"{tool.name}: the service ended", err=True)
        sys.exit(status)
