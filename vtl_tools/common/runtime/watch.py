"""The status of services as tables and as lines, and the live tables that --watch draws."""

import os
import select
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Self, TextIO

from vtl_tools.common.errors import SpecError
from vtl_tools.common.table import Kind, Screen, Table, fitted, screen_of, whole

Status = dict[str, Any]

_UNITS: Final = ("", "k", "M", "G", "T")
_HEAD: Final = ("schema", "service", "pid", "uptime_s", "cpu_s", "links", "drops")
_ERASE: Final = "\r\x1b[J"
_UP: Final = "\x1b[{}A"
_DOWN: Final = "\x1b[{}B"


class Watch:
    """Live tables on a terminal, which is never waited for: a picture that it does not take is skipped.

    The line above the tables stays empty, and the cursor in it: a message that the process prints meanwhile
    takes this line, and the next picture begins below. stream: a terminal, as require_terminal() checks.
    """

    period_s: Final = 1.0

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._fd = _open_anew(stream.fileno())
        self._owed = b""
        self._height = 0
        self._before: dict[tuple[int, str], Status] = {}
        self._then = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._height:
            self._write(_DOWN.format(self._height) + "\n")
        os.close(self._fd)

    def show(self, statuses: Sequence[Status], notes: Sequence[Table] = ()) -> None:
        """Draw the services' statuses, with rates since the last call. notes: tables before them."""
        now = time.monotonic()
        elapsed_s = max(now - self._then, 1e-3)
        each = [draw(status, self._before, elapsed_s) for status in statuses]
        heads, details = [tables[0] for tables in each], [part for tables in each for part in tables[1:]]
        self._before = {(s["pid"], link["link"]): link for s in statuses for link in s["links"]}
        self._then = now
        screen = screen_of(self._stream) or Screen(80, 24)
        lines = list(_within(screen, (*notes, *heads, *details)))
        if not self._owed:
            self._height = len(lines)
            picture = "".join(f"\n{line}" for line in lines)
            self._write(_ERASE + picture + (_UP.format(self._height) if lines else "") + "\r")
        else:
            self._write("")

    def _write(self, text: str) -> None:
        octets = self._owed + text.encode(errors="replace")
        try:
            room = select.select([], [self._fd], [], 0)[1]
            self._owed = octets[os.write(self._fd, octets) :] if room else octets
        except BlockingIOError:
            self._owed = octets
        except OSError:  # the terminal was closed
            self._owed = b""


def require_terminal(stream: TextIO, instead: str) -> None:
    """Raise SpecError if a stream leads to no terminal, or to one that cannot move its cursor."""
    if screen_of(stream) is None:
        raise SpecError(f"--watch: no terminal to draw on; {instead}")
    if os.environ.get("TERM", "dumb") == "dumb":
        raise SpecError(f"--watch: the terminal cannot move its cursor (TERM); {instead}")


def _open_anew(fd: int) -> int:
    """Return a descriptor of the same terminal that does not block, and shares no flags with the shell's."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:  # another user's terminal, as after su
        return os.dup(fd)


def _within(screen: Screen, tables: Sequence[Table]) -> Iterator[str]:
    """Yield the lines that the screen has room for, and a line on the others."""
    lines = [line for table in tables for line in fitted(table, screen)]
    room = max(screen.lines - 2, 1)
    if len(lines) <= room:
        yield from lines
        return
    yield from lines[: room - 1]
    yield f"... {len(lines) - room + 1} more lines; see 'status'"[: screen.columns]


def draw(
    status: Status, before: dict[tuple[int, str], Status] | None = None, elapsed_s: float = 1.0
) -> list[Table]:
    """Return one service's status as tables, its links first; with `before`, rates instead of totals."""
    cpu = status["cpu_s"]
    title = f"{status['service']}  pid {status['pid']}  up {status['uptime_s']:.0f} s  "
    title += f"cpu {cpu['user'] + cpu['system']:.1f} s"
    title += "".join(f"  {name} {whole(value)}" for name, value in _scalars(status))
    title += "" if before is None else "  per second:"
    numbers = ("frames in", "frames out", "bit in", "bit out", "dropped")
    rows: list[tuple[object, ...]] = []
    for link in status["links"]:
        old = (before or {}).get((status["pid"], link["link"]), {})

        def since(key: str, link: Status = link, old: Status = old) -> float:
            if before is None:
                return float(link[key])
            return float(link[key] - old.get(key, link[key])) / elapsed_s

        rows.append(
            (
                link["link"], "up" if link["up"] else "down",
                human(since("rx_frames")), human(since("tx_frames")),
                human(8 * since("rx_octets")), human(8 * since("tx_octets")),
                sum(link["drops"].values()),
            )
        )  # fmt: skip
    columns = [("link", Kind.NAME), ("state", Kind.TEXT), *((name, Kind.NUMBER) for name in numbers)]
    parts = [("dropped", _dropped(status)), *_parts(status)]
    return [Table(columns, rows, title), *(_details(name, part, status) for name, part in parts if part)]


def _dropped(status: Status) -> Status:
    """Return the counts of dropped frames, by where and why."""
    return {
        f"{link['link']} {reason}": count
        for link in (*status["links"], {"link": status["service"], "drops": status["drops"]})
        for reason, count in link["drops"].items()
        if count
    }


def _scalars(status: Status) -> Iterator[tuple[str, Any]]:
    yield from ((k, v) for k, v in status.items() if k not in _HEAD and not isinstance(v, dict | list))


def _parts(status: Status) -> Iterator[tuple[str, Status]]:
    yield from ((k, v) for k, v in status.items() if k not in _HEAD and v and isinstance(v, dict))


def _details(name: str, rows: Status, status: Status) -> Table:
    title = f"{name} of {status['service']} {status['pid']}"
    first = next(iter(rows.values()))
    titles = list(first) if isinstance(first, dict) else [""]
    is_table = isinstance(first, dict)
    cells = [
        [row.get(t, "") for t in titles] if is_table and isinstance(row, dict) else [row]
        for row in rows.values()
    ]
    columns = [(t, _kind([row[i] for row in cells if i < len(row)])) for i, t in enumerate(titles)]
    filled = [[key, *row, *[""] * (len(titles) - len(row))] for key, row in zip(rows, cells, strict=True)]
    return Table([("", Kind.NAME), *columns], filled, title)


def _kind(values: Sequence[object]) -> Kind:
    are_numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return Kind.NUMBER if are_numbers else Kind.TEXT


def lines_of(status: Status) -> Iterator[str]:
    """Yield one service's status as lines for programs, with exact numbers.

    Each begins with the service and its process: one for the service, one for each link, and one for each row
    of the other parts.
    """
    who = f"{whole(status['service'])}\t{whole(status['pid'])}"
    cpu = status["cpu_s"]
    told = {"uptime_s": status["uptime_s"], "cpu_s": round(cpu["user"] + cpu["system"], 3)}
    yield f"{who}\trunning\t{_pairs({**told, **dict(_scalars(status))})}"
    for link in status["links"]:
        rest = {key: value for key, value in link.items() if key not in ("link", "up", "drops")}
        drops = {f"drops.{reason}": count for reason, count in link["drops"].items()}
        state = "up" if link["up"] else "down"
        yield f"{who}\tlink\t{whole(link['link'])}\t{state}\t{_pairs({**rest, **drops})}"
    for name, rows in (("drops", status["drops"]), *_parts(status)):
        flat = {key: value for key, value in rows.items() if not isinstance(value, dict)}
        if flat:
            yield f"{who}\t{whole(name)}\t{_pairs(flat)}"
        for key, value in rows.items():
            if isinstance(value, dict):
                yield f"{who}\t{whole(name)}\t{whole(key)}\t{_pairs(value)}"


def _pairs(values: Status) -> str:
    return "\t".join(f"{whole(name)}={whole(value)}" for name, value in values.items())


def human(value: float) -> str:
    """Return a number with at most four digits and a decimal unit."""
    for unit in _UNITS[:-1]:
        if value < 1000:
            return f"{value:.0f}{unit}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}{_UNITS[-1]}"
