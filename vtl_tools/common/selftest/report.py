"""Prints the results of a self-test, as a table or as JSON."""

import json
from collections.abc import Iterable

from rich.table import Table

from vtl_tools.common.selftest.result import TrialResult
from vtl_tools.common.text import printable, rich_console

_ASKED_MAX = 3


def print_json(results: Iterable[TrialResult]) -> bool:
    """Print one line for each kind when it is done, and one for all. Return whether nothing leaked."""
    done = []
    for result in results:
        done.append(result)
        print(json.dumps({"schema": "selftest.class/1", **result.as_json()}), flush=True)
    leaked = sum(result.leaked for result in done)
    held = all(result.verdict == "held" for result in done)
    total = {
        "schema": "selftest.total/1",
        "classes": len(done),
        "sent": sum(result.sent for result in done),
        "leaked": leaked,
        "held": held,
    }
    print(json.dumps(total), flush=True)
    return held


def print_table(results: Iterable[TrialResult], *, has_proxy: bool = True) -> bool:
    """Print a table when all is done, with the leaks below it. Return whether nothing leaked."""
    console, done = rich_console(), list[TrialResult]()
    with console.status("starting a service between a guest and a host of our own") as status:
        for result in results:
            done.append(result)
            status.update(f"{len(done)} kinds of traffic, the last: {result.kind}")
    table = Table()
    titles = ["traffic", "sent", "answered by", "the proxy was asked to", "leaked", "verdict"]
    for title in titles if has_proxy else [*titles[:3], *titles[4:]]:
        is_number = title in ("sent", "leaked")
        table.add_column(title, justify="right" if is_number else "left", no_wrap=title != "answered by")
    for result in done:
        answered = ", ".join(f"{kind} {count}" for kind, count in result.answered.most_common())
        asked = [printable(each) for each in result.asked[:_ASKED_MAX]]
        asked += [f"and {len(result.asked) - _ASKED_MAX} more"] if len(result.asked) > _ASKED_MAX else []
        row = [result.kind, str(result.sent + result.calls), answered or "nothing"]
        row += ["\n".join(asked)] if has_proxy else []
        style = None if result.verdict == "held" else "red"
        table.add_row(*row, str(result.leaked), result.verdict, style=style)
    console.print(table)
    for result in done:
        for leak in result.leaks:
            console.print(f"{result.kind}: {printable(leak)}", style="red", soft_wrap=True)
    return all(result.verdict == "held" for result in done)
