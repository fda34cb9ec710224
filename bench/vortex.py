"""The cost of vortex-client for a volunteer, and how fast a port is the volunteer's again.

usage: bench/vortex.py [--quick] [--json]      (needs root)

own_gbit            one TCP flow to the volunteer's own iperf3, beside a running vortex-client
own_traffic_ratio   the same over what the volunteer has without it: median of neighbouring runs, interleaved
own_traffic_spread  the quartiles of those ratios
alone_ratio         the same of two neighbouring runs without it: what the machine alone makes of the ratio
give_back_p50_ms    from before a process calls bind() until no frame to its port goes to the backend;
give_back_p99_ms    half of the ports are of TCP, half of UDP
realtime_p99_ms     the same as give_back_p99_ms with --realtime: whatever else runs on the machine
refusals_p99_ms     the same until a RST of that port passes again: the nftables table is changed by then
machine_p99_ms      how late a wake-up through a pipe is in the same minute, without any of our code
given_back          ports of those that were given back
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scene import BIN, ROOT, quiet, say

from lab.netns import Host, Lab
from lab.wait import until

VOLUNTEER = "203.0.113.5"
PIPE = """
import os, select, threading, time
inlet, outlet = os.pipe()
late = []
def sleeper():
    for _ in range(300):
        os.read(inlet, 1)
        late.append(time.monotonic())
thread = threading.Thread(target=sleeper)
thread.start()
sent = []
for _ in range(300):
    time.sleep(0.01)
    sent.append(time.monotonic())
    os.write(outlet, b"x")
thread.join()
print(sorted(b - a for a, b in zip(sent, late))[297] * 1e3)
"""
BINDER = """
import socket, sys, time
sys.stdin.readline()
for i in range(int(sys.argv[1])):
    kind = (socket.SOCK_STREAM, socket.SOCK_DGRAM)[i % 2]
    sock = socket.socket(socket.AF_INET, kind)
    began = time.monotonic()
    sock.bind(("", 2000 + i))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    print((6, 17)[i % 2], 2000 + i, began, flush=True)
    time.sleep(0.01)
    sock.close()
"""
CLIENT = """
import sys, time
from pathlib import Path
from vtl_tools.common.host.scheduling import ask_for_short_slices, take_realtime_priority
from vtl_tools.common.packet import address
from vtl_tools.common.runtime.runner import Options, Runner
from vtl_tools.services.vortex.limits import Limits
from vtl_tools.services.vortex.start import Build, Wormhole

place = (address.ip("198.18.0.2"), address.ip("2001:2::2"))
build = Build("eth0", Wormhole("worm"), [(1, 32767)], place, Limits(), echo=False, allow_private=False)
links = build.links(0)
stage = build.stage()
use, give_back, noted = stage.ports.use, stage.host.give_back, []

def timed_use(port):
    is_new = use(port)
    if is_new:
        noted.append(("used", port, time.monotonic()))
    return is_new

def timed_give_back(ports):
    give_back(ports)
    noted.extend(("lifted", port, time.monotonic()) for port in ports)

stage.ports.use, stage.host.give_back = timed_use, timed_give_back
if sys.argv[2:]:
    take_realtime_priority()
else:
    ask_for_short_slices(1e-4)
options = Options(service="vortex-client", json=True, control=Path(sys.argv[1]), user="root")
Runner(stage, links, options).run()
for what, port, at in noted:
    print(what, *port, at)
"""


class Bench:
    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.attacker, self.volunteer, self.backend = (
            lab.host(name, ipv6=False) for name in ("attacker", "volunteer", "backend")
        )
        lab.veth(self.attacker, "eth0", self.volunteer, "eth0")
        lab.veth(self.volunteer, "worm", self.backend, "eth0")
        self.attacker.addr("eth0", "203.0.113.9/24")
        self.volunteer.addr("eth0", f"{VOLUNTEER}/24")
        self.backend.addr("eth0", "198.18.0.2/24")
        quiet(self.volunteer, "iperf3", "--server")
        until(lambda: self.listens(self.volunteer), "iperf3")

    def listens(self, host: Host) -> bool:
        return ":5201" in host.run("ss", "-ltn").stdout

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run vortex-client on the volunteer."""
        command = [BIN / "vortex-client", "--iface", "eth0", "--backend", "worm", "--json"]
        command += ["--control", self.lab.dir / "v.sock"]
        process = self.volunteer.popen(*command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()
        yield
        process.terminate()
        process.communicate()

    def flow(self, seconds: float) -> float:
        words = ("iperf3", "--client", VOLUNTEER, "--json", "--time", str(seconds))
        for _ in range(20):
            ran = self.attacker.run(*words, check=False)
            if ran.returncode == 0:
                return float(json.loads(ran.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
            time.sleep(0.1)  # the server is still busy with the last run
        raise SystemExit(f"bench: iperf3: {ran.stdout[-200:]}")

    def flows(self, seconds: float, rounds: int) -> tuple[list[float], list[float], list[float]]:
        """Return Gbit/s beside vortex-client, its ratios to those without it, and ratios of the latter.

        Runs alternate: without, with, without, with, ...; each with is over the mean of its two neighbours.
        """
        alone, beside = [self.flow(seconds)], []
        for _ in range(rounds):
            with self.beside():
                beside.append(self.flow(seconds))
            alone.append(self.flow(seconds))
            say(f"alone {alone[-1]:.2f}, beside vortex-client {beside[-1]:.2f} Gbit/s")
        ratios = [2 * found / (alone[i] + alone[i + 1]) for i, found in enumerate(beside)]
        return beside, sorted(ratios), [alone[i + 1] / alone[i] for i in range(rounds)]

    def machine(self) -> float:
        return float(self.volunteer.run(sys.executable, "-c", PIPE).stdout)

    def give_backs(self, count: int, *words: str) -> tuple[list[float], list[float]]:
        """Return milliseconds until each port was given back, and until its refusals pass."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        binder = self.volunteer.popen(sys.executable, "-c", BINDER, str(count), **pipes)
        client = self.volunteer.popen(
            sys.executable, "-c", CLIENT, str(self.lab.dir / "t.sock"), *words,
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert '"ready"' in client.stdout.readline()
        bound, _ = binder.communicate("go\n")
        client.terminate()
        given, _ = client.communicate()
        began = {(protocol, port): float(at) for protocol, port, at in map(str.split, bound.splitlines())}
        found: dict[str, list[float]] = {"used": [], "lifted": []}
        for what, protocol, port, at in (line.split() for line in given.splitlines() if line[0] != "{"):
            if (protocol, port) in began:
                found[what].append((float(at) - began[protocol, port]) * 1e3)
        return sorted(found["used"]), sorted(found["lifted"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with Lab() as lab:
        bench = Bench(lab)
        beside, ratios, without = bench.flows(1.0 if asked.quick else 3.0, 9 if asked.quick else 21)
        count = 300 if asked.quick else 2000
        times, lifted = bench.give_backs(count)
        machine_ms = bench.machine()
        realtime, _ = bench.give_backs(count, "realtime")
        result: dict[str, object] = {
            "own_gbit": round(statistics.median(beside), 2),
            "own_traffic_ratio": round(statistics.median(ratios), 3),
            "own_traffic_spread": [round(ratios[len(ratios) * i // 4], 3) for i in (1, 3)],
            "alone_ratio": round(statistics.median(without), 3),
            "give_back_p50_ms": round(times[len(times) // 2], 3),
            "give_back_p99_ms": round(times[len(times) * 99 // 100], 3),
            "realtime_p99_ms": round(realtime[len(realtime) * 99 // 100], 3),
            "refusals_p99_ms": round(lifted[len(lifted) * 99 // 100], 3),
            "machine_p99_ms": round(machine_ms, 3),
            "given_back": f"{len(times)} of {count}",
        }
    print(json.dumps(result) if asked.json else "\n".join(f"{k:20} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
