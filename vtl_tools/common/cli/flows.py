"""The verb `flows` of services with a relay, and `log` of those that remember the flows that ended."""

from collections.abc import Callable
from typing import Any

from vtl_tools.common.cli.options import verb_options
from vtl_tools.common.cli.output import print_json, print_table
from vtl_tools.common.cli.tool import Tool
from vtl_tools.common.cli.verbs import ask_each


def add_flows(tool: Tool, schema: str) -> None:
    """Add the verb `flows` to a tool whose service lists them by Relay.list_flows(). schema: of one."""

    @tool.command(name="flows")
    @verb_options
    def flows(link: str | None, json: bool) -> None:
        """List the guest's connections: from, to, stage, state, age, and octets."""
        found = [flow for told in ask_each(tool, "flows", link) for flow in told["flows"]]
        if json:
            print_json(found, schema)
            return
        counts = ("age", "up", "down", "waiting")
        print_table(
            ("from", "to", "stage", "state", *counts), map(_row, found), right=counts, names=("from", "to")
        )


def add_log(
    tool: Tool, schema: str, columns: dict[str, Callable[[dict[str, Any]], object]], says: str
) -> None:
    """Add the verb `log` to a tool. schema: of a flow. columns: of the table, before the state and counts."""

    @tool.command(name="log", help=says)
    @verb_options
    def log_(link: str | None, json: bool) -> None:
        found = [flow for told in ask_each(tool, "log", link) for flow in told["flows"]]
        if json:
            print_json(found, schema)
            return
        counts = ("frames_in", "octets_in", "frames_out", "octets_out")
        rows = [
            (
                *(read(flow) for read in columns.values()),
                "ended" if flow["ended"] else "open",
                *(flow[count] for count in counts),
            )
            for flow in found
        ]
        names = [name for name in columns if name != "protocol"]
        print_table((*columns, "state", *counts), rows, right=counts, names=names)


def _row(flow: dict[str, Any]) -> tuple[object, ...]:
    return (
        f"{flow['from']} {flow['from_port']}",
        f"{flow.get('name') or flow['to']} {flow['to_port']}",
        *(flow[key] for key in ("stage", "state")),
        f"{flow['age_s']:.0f} s",
        *(flow[key] for key in ("octets_up", "octets_down", "held")),
    )
