"""The cost of vortex-client for a volunteer, and how fast a port is the volunteer's again.

usage: bench/vortex.py [--quick] [--json]      (needs root)

own_gbit            one TCP flow to the volunteer's own iperf3, beside a running vortex-client
own_traffic_ratio   the same over what the volunteer has without it: median of pairs
give_back_p50_ms    from before a process calls bind() until the stack answers for the port again: filter and
give_back_p99_ms    nftables table are changed by then; half of the ports are of TCP, half of UDP
given_back          ports of those that were given back
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from scene import BIN, ROOT, quiet, say

from lab.netns import Host, Lab
from lab.wait import until

VOLUNTEER = "203.0.113.5"
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
from vtl_tools.common.packet import address
from vtl_tools.common.runtime.runner import Options, Runner
from vtl_tools.services.vortex.limits import Limits
from vtl_tools.services.vortex.start import Build

place = (address.ip("198.18.0.2"), address.ip("2001:2::2"))
build = Build("eth0", "worm", [(1, 32767)], place, Limits(), echo=False, allow_private=False)
links = build.links(0)
stage = build.stage()
give_back = stage.host.give_back

def timed(port):
    give_back(port)
    print(*port, time.monotonic(), flush=True)

stage.host.give_back = timed
Runner(stage, links, Options(service="vortex-client", control=Path(sys.argv[1]), user="root")).run()
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
        told = json.loads(self.attacker.run(*words).stdout)
        return float(told["end"]["sum_received"]["bits_per_second"]) / 1e9

    def pair(self, seconds: float) -> tuple[float, float]:
        """Return Gbit/s without and with vortex-client: twice each, in the order that a drift cancels."""
        before = self.flow(seconds)
        with self.beside():
            found = [self.flow(seconds) for _ in range(2)]
        alone = (before + self.flow(seconds)) / 2
        say(f"alone {alone:.2f}, beside vortex-client {sum(found) / 2:.2f} Gbit/s")
        return alone, sum(found) / 2

    def give_backs(self, count: int) -> list[float]:
        """Return milliseconds, of each port that was given back."""
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        binder = self.volunteer.popen(sys.executable, "-c", BINDER, str(count), **pipes)
        client = self.volunteer.popen(
            sys.executable, "-c", CLIENT, str(self.lab.dir / "t.sock"), stdout=subprocess.PIPE, text=True,
            cwd=ROOT,
        )  # fmt: skip
        until(lambda: (self.lab.dir / "t.sock").exists(), "vortex-client")
        bound, _ = binder.communicate("go\n")
        client.terminate()
        given, _ = client.communicate()
        at = {tuple(words[:2]): float(words[2]) for words in map(str.split, given.splitlines())}
        found = []
        for protocol, port, began in map(str.split, bound.splitlines()):
            if (protocol, port) in at:
                found.append((at[protocol, port] - float(began)) * 1e3)
        return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with Lab() as lab:
        bench = Bench(lab)
        pairs = [bench.pair(2.0 if asked.quick else 5.0) for _ in range(3 if asked.quick else 7)]
        count = 300 if asked.quick else 2000
        times = bench.give_backs(count)
        result: dict[str, object] = {
            "own_gbit": round(statistics.median(pair[1] for pair in pairs), 2),
            "own_traffic_ratio": round(statistics.median(pair[1] / pair[0] for pair in pairs), 3),
            "give_back_p50_ms": round(times[len(times) // 2], 3),
            "give_back_p99_ms": round(times[len(times) * 99 // 100], 3),
            "given_back": f"{len(times)} of {count}",
        }
    print(json.dumps(result) if asked.json else "\n".join(f"{k:20} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
