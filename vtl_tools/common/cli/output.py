"""The output of a command: lines, tables and JSON."""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from vtl_tools.common.text import printable, rich_console, rich_text


def echo(line: str, *, err: bool = False) -> None:
    """Print a line that may contain text from outside."""
    click.echo(printable(line), err=err)


def print_table(titles: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print a table on standard output. right: titles of columns of numbers."""
    from rich.table import Table

    table = Table()
    for title in titles:
        table.add_column(title, justify="right" if title in right else "left")
    for row in rows:
        table.add_row(*map(rich_text, row))
    rich_console().print(table)


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
