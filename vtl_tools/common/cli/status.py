"""The verb `status`: services that run, and those that do not answer, with the reason and the remedy."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

from vtl_tools.common.cli.output import echo, print_json
from vtl_tools.common.errors import DiedError, NotRunningError, PermissionNeededError, VTLError
from vtl_tools.common.runtime import control, discovery
from vtl_tools.common.runtime.discovery import Found
from vtl_tools.common.runtime.run_record import record_of
from vtl_tools.common.runtime.watch import Watch, draw, lines_of, require_terminal
from vtl_tools.common.table import Kind, Table, fitted, plain, screen_of, whole
from vtl_tools.common.text import stamp

Status = dict[str, Any]
Absent = tuple[Found, VTLError]


def print_status(service: str, found: Sequence[Found], *, json: bool) -> None:
    """Print each service, and exit with the status of those that do not answer: vtl-tools(7) lists them."""
    statuses, absent = _ask(found)
    screen = screen_of(sys.stdout)
    if json:
        print_json([*statuses, *(_object(service, *each) for each in absent)])
    elif screen is None:
        _print_lines(service, statuses, absent)
    else:
        notes = [_notes(service, absent)] if absent else []
        tables = [*(part for status in statuses for part in draw(status)), *notes]
        for table in tables:
            for line in fitted(table, screen):
                click.echo(line)
            if table is not tables[-1]:
                click.echo()
        for one, error in absent:
            for line in _advice(one, error):
                echo(line)
    sys.exit(_exit_code(statuses, absent))


def watch_status(service: str, found: Sequence[Found], *, json: bool) -> None:
    """Draw the services until interrupted; in a pipe, print their lines each period."""
    if json or screen_of(sys.stdout) is None:
        while True:
            statuses, absent = _ask(found)
            if json:
                print_json([*statuses, *(_object(service, *each) for each in absent)])
            else:
                _print_lines(service, statuses, absent)
            sys.stdout.flush()
            time.sleep(Watch.period_s)
    require_terminal(sys.stdout, f"use '{service} status' without it")
    with Watch(sys.stdout) as watch:
        while True:
            statuses, absent = _ask(found)
            watch.show(statuses, [_notes(service, absent)] if absent else [])
            time.sleep(watch.period_s)


def _ask(found: Sequence[Found]) -> tuple[list[Status], list[Absent]]:
    statuses: list[Status] = []
    absent: list[Absent] = []
    for one in found:
        now = one if one.state == "running" else discovery.look_at(one.socket)
        if now.state != "running":
            absent.append((now, now.error()))
            continue
        try:
            statuses.append(control.ask(now.socket, "status"))
        except DiedError as e:
            absent.append((discovery.look_at(one.socket), e))
        except VTLError as e:
            if len(found) == 1 and not isinstance(e, NotRunningError):
                raise
            absent.append((Found(one.socket, "not answering", one.record), e))
    return statuses, absent


def _exit_code(statuses: Sequence[Status], absent: Sequence[Absent]) -> int:
    """Return the status of the worst: a service that died, one that does not answer, or another user's.

    Services of other users are no failure where one answers.
    """
    codes = {error.exit_code for _, error in absent}
    if statuses:
        codes.discard(PermissionNeededError.exit_code)
    return max(codes, default=0)


def _row(service: str, one: Found) -> tuple[object, ...]:
    record = one.record
    if record is None:
        return service, "-", one.socket.name, one.state, "-", "-"
    links = " ".join(record.links)
    cut_off = ", ".join(record.cut_off()) if one.state == "died" else ""
    return service, str(record.pid), links, one.state, stamp(record.alive, exact=False), cut_off or "-"


def _notes(service: str, absent: Iterable[Absent]) -> Table:
    columns = [
        ("service", Kind.TEXT), ("pid", Kind.NUMBER), ("links", Kind.NAME), ("state", Kind.TEXT),
        ("last alive", Kind.NUMBER), ("cut off", Kind.NAME),
    ]  # fmt: skip
    return Table(columns, [_row(service, one) for one, _ in absent])


def _advice(one: Found, error: VTLError) -> Iterator[str]:
    """Yield what to do about a service that does not answer. Commands stay whole, to be copied."""
    if one.record is None or one.state != "died":
        yield str(error)
        return
    again, *back = one.record.remedies()
    yield f"{one.record.subject()}: {one.record.fate()}"
    yield f"  start it again:    {again}"
    for command in back:
        yield f"  or give it back:   {command}"
    if not back:
        yield f"  or forget it:      rm {record_of(one.socket)}"


def _print_lines(service: str, statuses: Iterable[Status], absent: Iterable[Absent]) -> None:
    for status in statuses:
        for line in lines_of(status):
            click.echo(line)
    for one, error in absent:
        _, pid, links, state, alive, cut_off = map(whole, _row(service, one))
        row = (service, pid, state, f"link={links}", f"last_alive={alive}", f"cut_off={cut_off}", str(error))
        click.echo(next(plain(Table([], [row]))))


def _object(service: str, one: Found, error: VTLError) -> Status:
    record = one.record
    return {
        "schema": "absent/1",
        "service": service,
        "state": one.state,
        "control": str(one.socket),
        "pid": None if record is None else record.pid,
        "links": [] if record is None else list(record.links),
        "started": None if record is None else stamp(record.started),
        "last_alive": None if record is None else stamp(record.alive),
        "cut_off": record.cut_off() if record is not None and one.state == "died" else [],
        "remedies": record.remedies() if record is not None and one.state == "died" else [],
        "error": str(error),
        "exit": error.exit_code,
    }
