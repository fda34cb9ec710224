"""The output of a command: lines, tables and JSON."""

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from vtl_tools.common.table import Kind, Table, fitted, plain, screen_of
from vtl_tools.common.text import printable


def echo(line: str, *, err: bool = False) -> None:
    """Print a line that may contain text from outside."""
    click.echo(printable(line), err=err)


def print_table(
    titles: Sequence[str],
    rows: Iterable[Sequence[object]],
    right: Sequence[str] = (),
    names: Sequence[str] = (),
) -> None:
    """Print a table on standard output: fitted to a terminal, else a line for each row, and no titles.

    right: titles of columns of numbers; names: of columns whose ends matter, such as connections.
    """
    kinds = {**dict.fromkeys(right, Kind.NUMBER), **dict.fromkeys(names, Kind.NAME)}
    show(Table([(title, kinds.get(title, Kind.TEXT)) for title in titles], list(rows)))


def show(*tables: Table) -> None:
    """Print tables on standard output."""
    screen = screen_of(sys.stdout)
    for table in tables:
        for line in plain(table) if screen is None else fitted(table, screen):
            click.echo(line)


def print_results(
    results: Iterable[Any],
    *,
    json: bool,
    schema: str,
    lines: Callable[[Any], Iterable[str]],
    summary: Callable[[Any], str] | None = None,
) -> None:
    """Print results as JSON of a schema, or of each the lines, and a summary on standard error."""
    if json:
        print_json(results, schema)
        return
    for result in results:
        for line in lines(result):
            echo(line)
        if summary is not None:
            echo(summary(result), err=True)


def print_json(results: Iterable[Any], schema: str | None = None) -> None:
    """Print results on standard output, one object a line. schema: of those that do not name theirs.

    docs/schemas/ describes each.
    """
    for result in results:
        told = result if schema is None else {"schema": schema, **result}
        print(json.dumps(told), flush=True)
