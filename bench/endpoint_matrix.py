"""The endpoint's goodput beside the kernel's over the same emulated wide area, by round trip and loss.

usage: bench/endpoint_matrix.py [--quick] [--json] [--congestion NAME ...]      (needs root, and tcp_bbr)

A row per control, round trip and loss: goodput of our endpoint and of the kernel's with the same control, to
a kernel, both means over the rounds, and their ratio. The path is vtl-wan with a rate of 20 Mbit/s and
a queue of one round trip, at least 20 ms. Loss falls in both directions, and in a round on the same packets
of both: where it is random, a run without the other says little.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from scene import ROOT, SERVER, Scene, say

from lab.netns import Lab

PORT = 5997
OURS, OUR_MAC = "10.9.0.3", "02:00:00:00:00:77"  # of endpoint_sender.py
RATE = "20mbit"
ROUND_TRIPS_MS = (1, 10, 50, 100, 400)
LOSSES = ("0%", "0.1%", "1%", "5%")
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


def cell(scene: Scene, congestion: str, rtt_ms: float, loss: str, rounds: int) -> dict[str, float | str]:
    settings = [
        "--delay", f"{rtt_ms / 2}ms", "--rate", RATE, "--queue", f"{max(20.0, rtt_ms)}ms", "--loss", loss,
    ]  # fmt: skip
    if loss == "0%":
        del settings[-2:]
    seconds = 6.0 + 25 * rtt_ms / 1000
    program = ROOT / "bench/endpoint_sender.py"
    mine = program, "vc", OURS, SERVER, scene.server.mac("vs"), str(PORT), congestion
    ours, theirs = [], []
    for seed in range(rounds):
        path = ("--iface", "vmnet1", "--uplink", "eth0", *settings, "--seed", str(seed))
        for found, source in (ours, mine), (theirs, ("-c", SOURCE, SERVER, str(PORT), congestion)):
            with scene.vtl(*path, service="vtl-wan"):
                found.append(measure(scene, seconds, *source))
    row: dict[str, float | str] = {
        "congestion": congestion, "rtt_ms": rtt_ms, "loss": loss,
        "mbit_s": round(statistics.mean(ours), 2), "kernel_mbit_s": round(statistics.mean(theirs), 2),
        "ratio": round(sum(ours) / sum(theirs), 3),
    }  # fmt: skip
    say(f"{row}  {[round(x, 2) for x in ours]} {[round(x, 2) for x in theirs]}")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round, and fewer cells")
    parser.add_argument("--json", action="store_true", help="a row of JSON per cell")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rtt", nargs="*", type=float, default=ROUND_TRIPS_MS, metavar="MS")
    parser.add_argument("--loss", nargs="*", default=LOSSES, metavar="PERCENT")
    parser.add_argument("--congestion", nargs="*", default=["cubic", "bbr"], metavar="NAME")
    asked = parser.parse_args()
    trips, losses, rounds = asked.rtt, asked.loss, asked.rounds
    if asked.quick:
        trips, losses, rounds = (10, 100), ("0%", "1%"), 1
    with Lab() as lab:
        scene = Scene(lab)
        neighbour = (OURS, "lladdr", OUR_MAC, "dev", "vs")  # the client's kernel is known to the server, too
        scene.server.run("ip", "neigh", "replace", *neighbour)
        rows = [
            cell(scene, congestion, rtt_ms, loss, rounds)
            for congestion in asked.congestion
            for rtt_ms in trips
            for loss in losses
        ]
    form = "{congestion:6} {rtt_ms:4} ms {loss:>5} {mbit_s:8} {kernel_mbit_s:8} {ratio:6}"
    for row in rows:
        print(json.dumps(row) if asked.json else form.format(**row))


if __name__ == "__main__":
    main()
