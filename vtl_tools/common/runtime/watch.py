"""The live table that --watch draws for one or more services."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from vtl_tools.common.text import printable, rich_console, rich_text

Status = dict[str, Any]

_UNITS: Final = ("", "k", "M", "G", "T")


class Watch:
    """A live display on standard error; standard output stays free for results."""

    period_s: Final = 1.0

    def __init__(self) -> None:
        self._live = Live(console=rich_console(stderr=True), auto_refresh=False)
        self._before: dict[tuple[int, str], Status] = {}
        self._then = time.monotonic()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, statuses: Sequence[Status]) -> None:
        """Draw the services' statuses, with rates since the last call."""
        now = time.monotonic()
        elapsed_s = max(now - self._then, 1e-3)
        parts = [part for status in statuses for part in draw(status, self._before, elapsed_s)]
        self._before = {(s["pid"], link["link"]): link for s in statuses for link in s["links"]}
        self._then = now
        self._live.update(Group(*parts), refresh=True)


def draw(
    status: Status, before: dict[tuple[int, str], Status] | None = None, elapsed_s: float = 1.0
) -> list[Table | Text]:
    """Return one service's status as tables; with `before`, rates instead of totals."""
    cpu = status["cpu_s"]
    title = f"{printable(status['service'])}  pid {status['pid']}  up {status['uptime_s']:.0f} s  "
    title += f"cpu {cpu['user'] + cpu['system']:.1f} s"
    table = Table(title=Text(title, "table.title"), title_justify="left", expand=False)
    unit = "/s" if before is not None else ""
    for name in ("link", "state", f"frames in{unit}", f"frames out{unit}", f"bit in{unit}", f"bit out{unit}"):
        table.add_column(name, justify="left" if name in ("link", "state") else "right")
    table.add_column("dropped")
    for link in status["links"]:
        old = (before or {}).get((status["pid"], link["link"]), {})

        def since(key: str, link: Status = link, old: Status = old) -> float:
            if before is None:
                return float(link[key])
            return float(link[key] - old.get(key, link[key])) / elapsed_s

        table.add_row(
            rich_text(link["link"]),
            Text("up", "green") if link["up"] else Text("down", "red"),
            human(since("rx_frames")),
            human(since("tx_frames")),
            human(8 * since("rx_octets")),
            human(8 * since("tx_octets")),
            rich_text(reasons(link["drops"])),
        )
    parts: list[Table | Text] = [table]
    if status["drops"]:
        parts.append(rich_text(f"dropped by the service: {reasons(status['drops'])}"))
    for name, value in status.items():
        if isinstance(value, dict) and name not in ("drops", "cpu_s") and value:
            parts.append(_details(name, value))
    return parts


def _details(name: str, rows: Status) -> Table:
    table = Table(title=Text(printable(name), "table.title"), title_justify="left")
    first = next(iter(rows.values()))
    columns = list(first) if isinstance(first, dict) else ["value"]
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(rich_text(column))
    for key, value in rows.items():
        cells = [value.get(c, "") for c in columns] if isinstance(value, dict) else [value]
        cells = [", ".join(f"{k} {v}" for k, v in c.items()) if isinstance(c, dict) else c for c in cells]
        cells = [", ".join(map(str, c)) if isinstance(c, list) else c for c in cells]
        table.add_row(rich_text(key), *(rich_text(f"{c:.1f}" if isinstance(c, float) else c) for c in cells))
    return table


def reasons(drops: dict[str, int]) -> str:
    """Return counters by reason as one line."""
    return ", ".join(f"{reason} {n:,}" for reason, n in drops.items() if n)


def human(value: float) -> str:
    """Return a number with at most four digits and a decimal unit."""
    for unit in _UNITS[:-1]:
        if value < 1000:
            return f"{value:.0f}{unit}" if not unit else f"{value:.1f}{unit}"
        value /= 1000
    return f"{value:.1f}{_UNITS[-1]}"
