"""Prints the results of a self-test, as a table or as JSON."""

import json
import sys
from collections.abc import Iterable

from vtl_tools.common.selftest.result import TrialResult
from vtl_tools.common.table import RED, Kind, Table, cut, fitted, plain, screen_of, styled
from vtl_tools.common.text import printable


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
    done: list[TrialResult] = []
    _tell("starting a service between a guest and a host of our own")
    for result in results:
        done.append(result)
        _tell(f"{len(done)} kinds of traffic, the last: {result.kind}")
    _tell("")
    columns = [
        ("traffic", Kind.NAME), ("sent", Kind.NUMBER), ("leaked", Kind.NUMBER), ("verdict", Kind.TEXT),
        ("answered by", Kind.LIST), *([("the proxy was asked to", Kind.LIST)] if has_proxy else []),
    ]  # fmt: skip
    table = Table(columns, [_row(result, has_proxy=has_proxy) for result in done])
    screen = screen_of(sys.stdout)
    for line in plain(table) if screen is None else fitted(table, screen):
        print(line)
    for result in done:
        for leak in result.leaks:
            line = f"{result.kind}: {printable(leak)}"
            print(line if screen is None else styled(line, RED, screen))
    return all(result.verdict == "held" for result in done)


def _row(result: TrialResult, *, has_proxy: bool) -> list[object]:
    row = [result.kind, result.sent + result.calls, result.leaked, result.verdict]
    row.append(", ".join(f"{kind} {count}" for kind, count in result.answered.most_common()) or "nothing")
    return [*row, ", ".join(result.asked)] if has_proxy else row


def _tell(progress: str) -> None:
    """Show the progress on a terminal, in one line of standard error."""
    if (screen := screen_of(sys.stderr)) is not None and screen.has_colours:
        print(f"\r\x1b[K{cut(progress, screen.columns - 1)}", end="", file=sys.stderr, flush=True)
