"""The paper's Figure 7 anew: goodput of one TCP connection of a guest, against the latency of its path.

usage: bench/figure7.py [--quick] [--json] [--only LINE...] [--ms MS...] [--loss PERCENT...]
                        [--server-buffer PRODUCTS] [--add FILE] [--output FILE]
                        (needs root; --output needs matplotlib)

    client - [edge] - vtl-wan - [far] - server

The path is a vtl-wan: a bottleneck of 300 Mbit/s, half of the round trip as delay, and random loss, in each
direction. Its queue is drop-tail and holds two bandwidth-delay products (20 ms at least), so that the end of
slow start loses nothing and does not have to be waited for. Offloads are off at its ends. Lines:

cubic           plain TCP (CUBIC, buffers as the kernel tunes them): edge and far are kernel bridges
large_buffers   the same with socket buffers of 1.5 bandwidth-delay products, as in the paper
bbr             BBR with buffers of 3 bandwidth-delay products, since it keeps two in flight
udt, tcp, auto  cubic, with vtl-udt at edge and far, and this --transport
split           cubic, with vtl-split --uplink at edge
ack             cubic, with vtl-ack at edge; without loss only, since it is for paths that are reliable

Goodput is that of the application: octets that the server's process has read, in Mbit/s. A reading begins
when the connection has started: after 60 round trips (slow start from 10 segments to a product of 10,000
takes ten, and what it exceeds a lossy path by takes CUBIC some fifty to lose), and at once when the server
reads at nine tenths of the link. It lasts 30 round trips and 6 s at least. With --quick, the start is waited
for 10 s or 15 round trips at most, and a reading lasts 6 round trips and 1.5 s. It is taken between moments
near both ends at which nothing is missing: a connection that waits for a lost segment delivers nothing, and
then much at once. There are two such paths, since a long connection starts slowly: the next one starts on the
other path while one is read, if the round trip is 200 ms or more. CUBIC with loss at 100 ms or more, a few
Mbit/s, is read on a third path meanwhile.

A receiver's window bounds what is in flight, and a lost segment keeps it from moving for two round trips.
So the server's buffer, which the kernel lets grow to the maximum of net.ipv4.tcp_rmem, bounds split and ack
on long paths. --server-buffer PRODUCTS gives it so many bandwidth-delay products at least. The table has
split over bbr, and --json the same at 100 ms and 0.1 %: split_over_bbr.

--add FILE keeps readings in a file, so that lines and cells can be measured one by one; the figure is drawn
from all of them.
"""

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from figures import save, subplots
from long_path import LIGHT_MS, LINK_MBIT, READINGS, Cell, Line, LongPath, Reading, Turn
from scene import say

from lab.netns import Lab

QUICK = ([10, 100, 400], [0, 0.1])
FULL = ([1, 3, 10, 30, 100, 400, 1000], [0, 0.1, 1])

LINES = [
    Line("cubic", "TCP", "#999", LongPath.plain, is_slow=True),
    Line(
        "large_buffers", "TCP, buffers of 1.5 BDP", "#555", LongPath.plain,
        products=1.5, is_slow=True,
    ),
    Line(
        "bbr", "TCP, BBR", "#a73", LongPath.plain,
        congestion="bbr", products=3,
    ),
    Line("udt", "vtl-udt, UDT", "#37a", lambda scene: scene.at_both("udt")),
    Line("tcp", "vtl-udt, TCP", "#7bd", lambda scene: scene.at_both("tcp")),
    Line("auto", "vtl-udt, auto", "#3a7", lambda scene: scene.at_both("auto")),
    Line("split", "vtl-split", "#b4a", lambda scene: scene.at_edge("vtl-split")),
    Line("ack", "vtl-ack", "#c33", lambda scene: scene.at_edge("vtl-ack"), with_loss=False),
]  # fmt: skip


class Readings:
    """Readings: a cell's lines in Mbit/s. file: where it is kept; None: nowhere."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        kept = json.loads(file.read_text())["cells"] if file is not None and file.exists() else []
        self.cells = {Cell(one.pop("ms"), one.pop("loss_percent")): one for one in kept}

    def add(self, cell: Cell, line: Line, mbit: float | None) -> None:
        values = self.cells.setdefault(cell, {one.name: None for one in LINES})
        values[line.name] = None if mbit is None else round(mbit, 2)
        if self.file is not None:
            self.file.write_text(json.dumps(self.told(), indent=1) + "\n")

    def told(self) -> dict[str, Any]:
        cells = [{**cell._asdict(), **values} for cell, values in sorted(self.cells.items())]
        ratio = over_bbr(self.cells.get(Cell(100, 0.1), {}))
        return {"link_mbit": LINK_MBIT, "cells": cells} | ({"split_over_bbr": ratio} if ratio else {})

    def table(self) -> str:
        """Return a table in Markdown."""
        names = [line.name for line in LINES]
        rows = [["loss, %", "RTT, ms", *names, "split / bbr"], ["---"] * (len(names) + 3)]
        for cell, values in sorted(self.cells.items(), key=lambda item: item[0][::-1]):
            numbers = ["" if values[name] is None else f"{values[name]:.3g}" for name in names]
            rows.append([f"{cell.loss_percent:g}", f"{cell.ms:g}", *numbers, str(over_bbr(values) or "")])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def over_bbr(values: dict[str, float | None]) -> float | None:
    """Return the goodput of split over that of the kernel's BBR; None if one of them is missing."""
    ours, theirs = values.get("split"), values.get("bbr")
    return round(ours / theirs, 2) if ours and theirs else None


def draw(found: Readings, output: Path) -> None:
    """Draw a panel for each loss, goodput over round-trip time."""
    losses = sorted({cell.loss_percent for cell in found.cells})
    figure, panels = subplots(len(losses), (4 * len(losses), 4.2))
    for panel, loss in zip(panels, losses, strict=True):
        for line in LINES:
            points = [
                (cell.ms, values[line.name])
                for cell, values in sorted(found.cells.items())
                if cell.loss_percent == loss and values[line.name]
            ]
            if points:
                panel.plot(
                    *zip(*points, strict=True), "o-", markersize=3, color=line.colour, label=line.label
                )
        panel.axhline(LINK_MBIT, color="#ccc", linestyle=":")
        panel.set(xscale="log", yscale="log", xlabel="round-trip time (ms)", title=f"{loss:g} % loss")
        for axis in panel.xaxis, panel.yaxis:
            axis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("TCP goodput, one flow (Mbit/s)")
    figure.suptitle("A guest's bandwidth over latency (paper, Figure 7)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, output)


def measure(
    lab: Lab, jobs: list[tuple[Cell, Line]], reading: Reading, found: Readings, products: float
) -> None:
    """Take a reading of each line in each cell, alternately on two paths, of which one is read at a time.

    A third path has the lines of which it is known that they need next to nothing of the machine.
    products: of bandwidth and delay in the server's buffer, at least.
    """

    def one(path: LongPath, cell: Cell, line: Line, turn: Turn) -> float | None:
        try:
            return path.goodput(line, cell, reading, turn)
        finally:
            turn.ends()

    workers = [(LongPath(lab, products), ThreadPoolExecutor(1)) for _ in range(3)]
    turns: dict[bool, Turn | None] = {True: None, False: None}
    results = []
    for number, (cell, line) in enumerate(jobs):
        is_light = line.is_slow and cell.loss_percent > 0 and cell.ms >= LIGHT_MS
        path, worker = workers[2 if is_light else number % 2]
        turns[is_light] = turn = Turn(turns[is_light])
        results.append((cell, line, worker.submit(one, path, cell, line, turn)))
    for cell, line, result in results:
        mbit = result.result()
        found.add(cell, line, mbit)
        say(f"{cell.ms:g} ms, {cell.loss_percent:g} %: {line.name}: {mbit and round(mbit, 1)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[line.name for line in LINES])
    parser.add_argument("--ms", nargs="+", type=float)
    parser.add_argument("--loss", nargs="+", type=float)
    parser.add_argument("--server-buffer", type=float, default=0.0)
    parser.add_argument("--add", type=Path)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    usual = QUICK if asked.quick else FULL
    found = Readings(asked.add)
    cells = [Cell(ms, loss) for ms in asked.ms or usual[0] for loss in asked.loss or usual[1]]
    lines = [line for line in LINES if line.name in (asked.only or line.name)]
    jobs = [(cell, line) for cell in cells for line in lines if line.with_loss or not cell.loss_percent]
    with Lab() as lab:
        measure(lab, jobs, READINGS[asked.quick], found, asked.server_buffer)
    if asked.output is not None:
        draw(found, asked.output)
    print(json.dumps(found.told()) if asked.json else found.table())


if __name__ == "__main__":
    main()
