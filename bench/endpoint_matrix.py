"""The endpoint's goodput beside the kernel's over the same emulated wide area, by round trip and loss.

usage: bench/endpoint_matrix.py [--quick] [--json] [--congestion NAME ...] [--rtt MS ...] [--loss PERCENT ...]
                                [--rounds N]                              (needs root, and tcp_bbr)

A row per control, round trip and loss: goodput of our endpoint and of the kernel's with the same control, to
a kernel, both means over the rounds, and their ratio. The path is vtl-wan with a rate of 20 Mbit/s and
a queue of one round trip, at least 20 ms. Loss falls in both directions, and in a round on the same packets
of both: where it is random, a run without the other says little.

CUBIC with much loss over a long path sends some hundred segments in a run, and what a run reaches depends on
which of them are lost. Such a cell is read on eight paths at once, each round with eight seeds.

--json prints an object: cells, and the least ratio of each control as cubic_min_ratio and bbr_min_ratio.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from scene import ROOT, SERVER, Scene, say

from lab.netns import Lab

PORT = 5997
OURS, OUR_MAC = "10.9.0.3", "02:00:00:00:00:77"  # of endpoint_sender.py
RATE = "20mbit"
ROUND_TRIPS_MS = (1, 10, 50, 100, 400)
LOSSES = (0, 0.1, 1, 5)
MSS = 1448
LIGHT_MBIT_S = 3.0
AT_ONCE = 8
SINK = f"""
import socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
s.bind(("", {PORT}))
s.listen()
print("ready", flush=True)
c, _ = s.accept()
room, octets, began, seconds = bytearray(1 << 20), 0, time.monotonic(), float(sys.argv[1])
c.settimeout(seconds)
while (now := time.monotonic()) < began + seconds:
    try:
        octets += c.recv_into(room)
    except TimeoutError:
        pass
print(octets * 8 / (now - began) / 1e6)
"""
SOURCE = """
import socket, sys
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 32, 16 << 20)  # SO_SNDBUFFORCE
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, sys.argv[3].encode())
s.connect((sys.argv[1], int(sys.argv[2])))
data = bytes(1 << 18)
try:
    while True:
        s.sendall(data)
except OSError:
    pass
"""


def measure(scene: Scene, seconds: float, *source: str | Path) -> float:
    """Return the goodput of a source in Mbit/s."""
    sink = scene.server.popen(sys.executable, "-c", SINK, str(seconds), stdout=subprocess.PIPE, text=True)
    assert sink.stdout is not None
    sink.stdout.readline()
    running = scene.client.popen(sys.executable, *source)
    try:
        return float(sink.communicate(timeout=10 * seconds + 60)[0])
    finally:
        running.kill()
        running.wait()


class Cell(NamedTuple):
    """One row of the table. loss: share of the packets in each direction."""

    congestion: str
    rtt_ms: float
    loss: float

    @property
    def is_light(self) -> bool:
        """Whether loss keeps the control so slow that several runs at once do not disturb each other."""
        if self.congestion == "bbr" or not self.loss:
            return False
        return MSS * 8 / (self.rtt_ms * 1e3) * math.sqrt(1.5 / self.loss) < LIGHT_MBIT_S

    def read(self, scene: Scene, seed: int) -> tuple[float, float]:
        """Return the goodput of our endpoint and of the kernel with these losses, in Mbit/s."""
        loss = ["--loss", f"{self.loss:%}"] if self.loss else []
        delay = ["--delay", f"{self.rtt_ms / 2}ms", "--queue", f"{max(20.0, self.rtt_ms)}ms"]
        path = ("--iface", "vmnet1", "--uplink", "eth0", "--rate", RATE, *delay, *loss, "--seed", str(seed))
        program = ROOT / "bench/endpoint_sender.py"
        mine = program, "vc", OURS, SERVER, scene.server.mac("vs"), str(PORT), self.congestion
        kernel = "-c", SOURCE, SERVER, str(PORT), self.congestion
        found = []
        for source in mine, kernel:
            with scene.vtl(*path, service="vtl-wan"):
                found.append(measure(scene, 6.0 + 25 * self.rtt_ms / 1000, *source))
        return found[0], found[1]


def row(cell: Cell, scenes: Sequence[Scene], rounds: int) -> dict[str, Any]:
    """Return the means of a cell, and the standard error of their ratio."""
    used = list(scenes) if cell.is_light else [scenes[0]]
    seeds = iter(range(rounds * len(used)))
    with ThreadPoolExecutor(len(used)) as workers:
        found = []
        for _ in range(rounds):
            found += workers.map(cell.read, used, [next(seeds) for _ in used])
    ours, theirs = zip(*found, strict=True)
    ratio = sum(ours) / sum(theirs)
    errors = [(a - ratio * b) / statistics.mean(theirs) for a, b in found]
    told = {
        **cell._asdict(),
        "mbit_s": round(statistics.mean(ours), 3), "kernel_mbit_s": round(statistics.mean(theirs), 3),
        "ratio": round(ratio, 3), "rounds": len(found),
        "error": round(statistics.pstdev(errors) / math.sqrt(len(found)), 3),
        "load": os.getloadavg()[0],
    }  # fmt: skip
    say(f"{told}  {[round(x, 2) for x in ours]} {[round(x, 2) for x in theirs]}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round, and fewer cells")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtt", nargs="*", type=float, default=ROUND_TRIPS_MS, metavar="MS")
    parser.add_argument("--loss", nargs="*", type=float, default=LOSSES, metavar="PERCENT")
    parser.add_argument("--congestion", nargs="*", default=["cubic", "bbr"], metavar="NAME")
    asked = parser.parse_args()
    trips, losses, rounds = asked.rtt, asked.loss, asked.rounds
    if asked.quick:
        trips, losses, rounds = (10, 100), (0, 1), 1
    cells = [
        Cell(name, rtt_ms, percent / 100)
        for name in asked.congestion
        for rtt_ms in trips
        for percent in losses
    ]
    with Lab() as lab:
        scenes = [Scene(lab) for _ in range(AT_ONCE if any(cell.is_light for cell in cells) else 1)]
        for scene in scenes:
            neighbour = (
                OURS,
                "lladdr",
                OUR_MAC,
                "dev",
                "vs",
            )  # the client's kernel is known to the server, too
            scene.server.run("ip", "neigh", "replace", *neighbour)
        rows = [row(cell, scenes, rounds) for cell in cells]
    least = {
        f"{name}_min_ratio": min(row["ratio"] for row in rows if row["congestion"] == name)
        for name in asked.congestion
    }
    if asked.json:
        print(json.dumps({**least, "cells": rows}))
        return
    form = "{congestion:6} {rtt_ms:4g} ms {loss:5.1%} {mbit_s:7} {kernel_mbit_s:7} {ratio:6} +- {error:5}"
    for one in rows:
        print(form.format(**one))
    print(*(f"{name} {ratio}" for name, ratio in least.items()))


if __name__ == "__main__":
    main()
