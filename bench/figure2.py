"""The paper's Figure 2 anew: the greatest TCP bandwidth through the kernel's bridge and through VTL's.

usage: bench/figure2.py [--output FILE] [--rounds N] [--seconds S]      (needs root, and matplotlib)

The paper compared the in-kernel bridge with VTL as one process, half duplex, and as two processes that
together are full duplex. TCP needs both directions, so our one process is a whole bridge.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from figures import save, subplots
from scene import ROOT, Scene, alternate

from lab.netns import Lab

THERE = ("--iface", "vmnet1", "--iface", "eth0")
BACK = ("--iface", "eth0", "--iface", "vmnet1")


@contextmanager
def two_processes(scene: Scene) -> Iterator[None]:
    with scene.vtl(*THERE, "--half-duplex"), scene.vtl(*BACK, "--half-duplex"):
        yield


def measure(scene: Scene, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Return Gbit/s of each way of bridging, a reading a round."""
    ways: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "kernel bridge": scene.kernel,
        "vtl-bridge,\none process": lambda: scene.vtl(*THERE),
        "vtl-bridge,\ntwo half-duplex\nprocesses": lambda: two_processes(scene),
    }

    def reading(way: Callable[[], AbstractContextManager[object]]) -> Callable[[], float]:
        def read() -> float:
            with way():
                scene.reach()
                return scene.tcp(seconds)

        return read

    readings = alternate(rounds, *(reading(way) for way in ways.values()))
    return dict(zip(ways, readings, strict=True))


def draw(found: dict[str, list[float]], output: Path) -> None:
    """Draw medians as bars, with the least and the greatest reading."""
    medians = [statistics.median(values) for values in found.values()]
    below = [m - min(v) for m, v in zip(medians, found.values(), strict=True)]
    above = [max(v) - m for m, v in zip(medians, found.values(), strict=True)]
    figure, (axes,) = subplots(1, (6, 4))
    bars = axes.bar(list(found), medians, yerr=[below, above], capsize=6, color=["#999", "#3a7", "#37a"])
    axes.bar_label(bars, fmt="%.1f", label_type="center", color="white")
    axes.set_ylabel("TCP goodput, one flow (Gbit/s)")
    axes.set_title("Performance overhead of VTL (paper, Figure 2)")
    save(figure, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/figures/figure2.svg")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    options = parser.parse_args()
    with Lab() as lab:
        found = measure(Scene(lab), options.rounds, options.seconds)
    draw(found, options.output)
    print(json.dumps({name.replace("\n", " "): [round(v, 2) for v in vs] for name, vs in found.items()}))


if __name__ == "__main__":
    main()
