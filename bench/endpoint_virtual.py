"""The endpoint's goodput by buffer, loss and round-trip time, in virtual time, endpoint against endpoint.

The link has a rate and a queue, as a real one. Ideal is the least of its rate, buffer / RTT, and what
additive increase and halving get at such a loss: MSS / RTT * sqrt(3 / 2 p) (Mathis et al., 1997). That holds
for long transfers; a short one may be done before it has lost anything.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/sim")]

from tcp_link import Link, measure  # noqa: E402 - after the path is set

MBIT_S = 50.0
MSS = 1448
BUFFERS = (65_536, 262_144, 1_048_576)
LOSSES = (0.0, 0.001, 0.01, 0.03, 0.1)
DELAYS_S = (0.002, 0.02, 0.1)


def rows(octets: int, seeds: int) -> list[dict[str, Any]]:
    found = []
    for delay_s in DELAYS_S:
        for buffer in BUFFERS:
            for loss in LOSSES:
                runs = [
                    measure(Link(Random(seed), mbit_s=MBIT_S, delay_s=delay_s / 2, loss=loss), buffer, octets)
                    for seed in range(seeds)
                ]
                goodput = sum(run.mbit_s for run in runs) / seeds
                limits = [MBIT_S, buffer * 8 / delay_s / 1e6]
                if loss:
                    limits.append(MSS * 8 / delay_s * math.sqrt(1.5 / loss) / 1e6)
                ideal = min(limits)
                found.append(
                    {"rtt_ms": delay_s * 1e3, "buffer": buffer, "loss": loss,
                     "mbit_s": round(goodput, 2), "ideal_mbit_s": round(ideal, 2),
                     "of_ideal": round(goodput / ideal, 3),
                     "retransmits": round(sum(run.retransmits for run in runs) / seeds, 1)}
                )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="a row of JSON per cell")
    parser.add_argument("--octets", type=int, default=3_000_000, help="octets per transfer")
    parser.add_argument(
        "--seeds", type=int, default=2, help="transfers per cell, each with a seed of its own"
    )
    asked = parser.parse_args()
    found = rows(asked.octets, asked.seeds)
    if asked.json:
        for row in found:
            print(json.dumps(row))
        return
    from rich.console import Console
    from rich.table import Table

    for delay_s in DELAYS_S:
        title = f"Mbit/s (and share of the ideal) at {MBIT_S:g} Mbit/s and an RTT of {delay_s * 1e3:g} ms"
        table = Table(title=title)
        table.add_column("buffer", justify="right")
        for loss in LOSSES:
            table.add_column(f"loss {loss:.1%}", justify="right")
        for buffer in BUFFERS:
            cells = [r for r in found if r["rtt_ms"] == delay_s * 1e3 and r["buffer"] == buffer]
            table.add_row(
                f"{buffer // 1024} KiB", *(f"{c['mbit_s']:.1f} ({c['of_ideal']:.0%})" for c in cells)
            )
        Console().print(table)


if __name__ == "__main__":
    main()
