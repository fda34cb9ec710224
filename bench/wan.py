"""How exact the emulated wide area is, and how much it carries.

usage: bench/wan.py [--quick] [--json]      (needs root)

frames_per_s         60-byte frames a second that come out of a delay of 10 ms
bridge_ratio         the same over what vtl-bridge carries in this run
delay_error_p50_us   how much later than 10 ms a frame comes out, at 10,000 a second, with --realtime: median
delay_error_p99_us   and what 99 of 100 keep
polled_p50_us, polled_p99_us    the same without --realtime
machine_p50_us, machine_p99_us  how late a loop in C that never sleeps notices a moment, right after
flow_gbit            one TCP connection (BBR, forced buffers) over a round trip of 50 ms
loss_error           share of lost frames over the setting of 1 %, less 1
rate_error           rate over the setting of 100 Mbit/s, less 1
and without --quick, the delay errors at 1,000 to 100,000 frames a second.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from scene import ROOT, SERVER, Scene, ratio, say

from lab.netns import Lab

TWO = ("--iface", "vmnet1", "--uplink", "eth0")
DELAY_US = 10_000
PORT = 5999
SINK = f"""
import socket, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 33, 256 << 20)  # SO_RCVBUFFORCE
s.bind(("", {PORT}))
s.listen()
print("ready", flush=True)
c, _ = s.accept()
room, octets, marks = bytearray(1 << 20), 0, []
while n := c.recv_into(room):
    octets += n
    marks.append((time.monotonic(), octets))
half = marks[len(marks) // 2]
print((marks[-1][1] - half[1]) * 8 / (marks[-1][0] - half[0]))
"""
SOURCE = """
import socket, sys, time
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, 32, 256 << 20)  # SO_SNDBUFFORCE
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
s.connect((sys.argv[1], int(sys.argv[2])))
data, until = bytes(1 << 20), time.monotonic() + float(sys.argv[3])
while time.monotonic() < until:
    s.sendall(data)
"""


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Bench:
    def __init__(self, scene: Scene, load: Path) -> None:
        self.scene, self.load = scene, load

    def paced(self, per_s: int, count: int, octets: int, *settings: str) -> tuple[list[float], float]:
        """Send frames evenly; return the delays of those that come, in us, and the seconds that it took."""
        with self.scene.vtl(*TWO, *settings, service="vtl-wan"):
            sink = self.scene.server.popen(
                self.load, "receive", "vs", str(count), "2", stdout=subprocess.PIPE, text=True
            )
            assert sink.stdout is not None
            sink.stdout.readline()
            began = time.monotonic()
            self.scene.client.run(self.load, "send", "vc", str(per_s), str(count), str(octets))
            took = time.monotonic() - began
            return [float(line.split()[1]) for line in sink.communicate()[0].splitlines()], took

    def errors(self, per_s: int, count: int, *settings: str) -> tuple[float, float]:
        """Return the median and the 99th percentile of the error, in us."""
        delays, _ = self.paced(per_s, count, 200, "--delay", "10ms", *settings)
        late = [delay - DELAY_US for delay in delays]
        found = round(percentile(late, 0.5), 1), round(percentile(late, 0.99), 1)
        say(f"{per_s:,} a second {' '.join(settings)}: {found} us, {len(delays)} of {count} came")
        return found

    def machine(self, seconds: float) -> tuple[float, float]:
        """Return the same of a busy loop: what other processes take from it."""
        p50, p99 = self.scene.middle.run(self.load, "busy", str(seconds)).stdout.split()
        return float(p50), float(p99)

    def flood(self, service: str, *settings: str) -> float:
        counter = Path("/sys/class/net/vs/statistics/rx_packets")
        with self.scene.vtl(*TWO, *settings, service=service):
            before, began = int(self.scene.server.call(counter.read_text)), time.monotonic()
            self.scene.client.run(self.load, "flood", "vc", "3", "60")
            return (int(self.scene.server.call(counter.read_text)) - before) / (time.monotonic() - began)

    def flow(self, seconds: float) -> float:
        with self.scene.vtl(*TWO, "--delay", "25ms", "--memory", "1024", service="vtl-wan"):
            self.scene.reach()
            sink = self.scene.server.popen(sys.executable, "-c", SINK, stdout=subprocess.PIPE, text=True)
            assert sink.stdout is not None
            sink.stdout.readline()
            self.scene.client.run(sys.executable, "-c", SOURCE, SERVER, str(PORT), str(seconds))
            return float(sink.communicate()[0]) / 1e9

    def rate(self) -> float:
        """Return the rate at which frames come out of 100 Mbit/s, in bit/s."""
        delays, _ = self.paced(20_000, 60_000, 1000, "--rate", "100mbit", "--queue", "100ms")
        return len(delays) * 8000 / (3.0 + 0.1)  # sent for 3 s, and the queue of 0.1 s is emptied after


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Lab() as lab:
        load = Path(place) / "wan"
        subprocess.run(["gcc", "-O2", "-o", load, ROOT / "bench/wan.c"], check=True)
        bench = Bench(Scene(lab), load)
        rounds = 1 if asked.quick else 3
        rates = [
            [bench.flood("vtl-bridge"), bench.flood("vtl-wan", "--delay", "10ms")] for _ in range(rounds)
        ]
        say(f"60-byte frames: {[[int(r) for r in pair] for pair in rates]} a second")
        exact = bench.errors(10_000, 50_000, "--realtime")
        polled, machine = bench.errors(10_000, 50_000), bench.machine(5)
        lost, _ = bench.paced(20_000, 100_000, 200, "--loss", "1%", "--seed", "1")
        gbit = [bench.flow(6.0) for _ in range(rounds)]
        result: dict[str, object] = {
            "frames_per_s": int(statistics.median(pair[1] for pair in rates)),
            "bridge_ratio": ratio([pair[1] for pair in rates], [pair[0] for pair in rates]),
            "delay_error_p50_us": exact[0],
            "delay_error_p99_us": exact[1],
            "polled_p50_us": polled[0],
            "polled_p99_us": polled[1],
            "machine_p50_us": machine[0],
            "machine_p99_us": machine[1],
            "flow_gbit": round(statistics.median(gbit), 2),
            "loss_error": round((1 - len(lost) / 100_000) / 0.01 - 1, 3),
            "rate_error": round(bench.rate() / 100e6 - 1, 4),
        }
        if not asked.quick:
            for per_s in 1000, 10_000, 50_000, 100_000:
                count = min(5 * per_s, 200_000)
                result[f"at_{per_s}"] = bench.errors(per_s, count, "--realtime")
                result[f"polled_at_{per_s}"] = bench.errors(per_s, count)
    print(json.dumps(result) if asked.json else "\n".join(f"{k:20} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
