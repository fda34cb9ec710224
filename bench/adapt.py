"""The gain of vtl-vnet's adaptation: a direct link for a busy pair, and a service for a long path.

usage: bench/adapt.py [--quick] [--json]      (needs root)

direct_gain        TCP goodput of two VMs by a direct link over that through a third daemon
direct_rtt_gain    shortest round trip through the third daemon over that by the direct link
long_path_gain     goodput of a connection over 100 ms and 0.1 % loss, after adaptation over before
split_gain         the same, if the other daemon starts no service
direct_s, long_s, split_s   seconds from the first frames of the busy pair until the other way is taken
"""

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from long_path import FAR, READINGS, Cell, Line, LongPath, Turn
from scene import BIN, Service, quiet, say

from lab.netns import Lab
from lab.wait import until

CELL = Cell(100.0, 0.1)
PATIENCE_S = 60.0


class Triangle:
    """vm1 10.9.0.2 - [site1] and vm2 10.9.0.3 - [site2], which both call [hub]; all three in one network."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hosts = {
            name: lab.host(name, ipv6=False) for name in ("net", "hub", "site1", "site2", "vm1", "vm2", "vm0")
        }
        lab.bridge(self.hosts["net"], "br0", [])
        for n, name in enumerate(("hub", "site1", "site2")):
            lab.veth(self.hosts[name], "wan", self.hosts["net"], f"p{n}")
            self.hosts["net"].run("ip", "link", "set", f"p{n}", "master", "br0")
            self.hosts[name].addr("wan", f"192.0.2.{n + 1}/24")
            lab.veth(self.hosts[f"vm{n}"], "eth0", self.hosts[name], "vmnet1")
            self.hosts[f"vm{n}"].addr("eth0", f"10.9.0.{n + 1}/24")
        self.key = lab.dir / "triangle.key"
        subprocess.run([BIN / "vtl-vnet", "keygen", self.key], check=True, capture_output=True)

    @contextmanager
    def daemons(self, adapt: str) -> Iterator[list[Service]]:
        """Run the three daemons."""
        doors = {"hub": "door=udp:0.0.0.0:7700,listen,transit", "site2": "door=udp:0.0.0.0:7800,listen"}
        started = []
        try:
            for name in "hub", "site1", "site2":
                words = ["--iface", "vmnet1", "--key-file", self.key, "--name", name, "--adapt", adapt]
                words += [word for door in [doors.get(name)] if door for word in ("--attach", door)]
                words += [] if name == "hub" else ["--attach", "hub=udp:192.0.2.1:7700"]
                started.append(Service(self.lab, self.hosts[name], "vtl-vnet", *words).ready())
            until(self.reaches, "the other VM")
            yield started
        finally:
            for one in started:
                one.end()

    def reaches(self) -> bool:
        return not self.hosts["vm1"].run("ping", "-c1", "-W1", "10.9.0.3", check=False).returncode

    def measure(self, seconds: float) -> tuple[float, float]:
        """Return Mbit/s of a connection, and the shortest round trip in milliseconds."""
        said = self.hosts["vm1"].run("ping", "-c200", "-i0.005", "10.9.0.3").stdout
        trips = [float(line.split("time=")[1].split()[0]) for line in said.splitlines() if "time=" in line]
        server = quiet(self.hosts["vm2"], "iperf3", "--server", "--one-off")
        until(lambda: ":5201" in self.hosts["vm2"].run("ss", "-ltn").stdout, "iperf3")
        words = ("iperf3", "--client", "10.9.0.3", "--json", "--time", str(seconds))
        ran = json.loads(self.hosts["vm1"].run(*words, timeout=seconds + 60).stdout)
        server.wait(10)
        return ran["end"]["sum_received"]["bits_per_second"] / 1e6, min(trips)


def direct(lab: Lab, seconds: float) -> dict[str, float]:
    """Measure through the third daemon, and by the direct link."""
    scene = Triangle(lab)
    with scene.daemons("off"):
        before = scene.measure(seconds)
    with scene.daemons("on") as (_, site1, _):
        began = time.monotonic()
        pinging = quiet(scene.hosts["vm1"], "ping", "-q", "-i0.002", "-s1400", "10.9.0.3")
        wait(lambda: octets(site1, "site2-direct") > 10_000, "a direct link")
        took_s = time.monotonic() - began
        pinging.terminate()
        pinging.wait(10)
        after = scene.measure(seconds)
    return {
        "third_mbit": round(before[0]), "direct_mbit": round(after[0]),
        "third_rtt_ms": round(before[1], 3), "direct_rtt_ms": round(after[1], 3),
        "direct_gain": round(after[0] / before[0], 2), "direct_rtt_gain": round(before[1] / after[1], 2),
        "direct_s": round(took_s, 1),
    }  # fmt: skip


def octets(site: Service, link: str) -> int:
    return int(site.status()["overlay"].get(link, {}).get("octets_out", 0))


def wait(is_there: Callable[[], bool], what: str) -> None:
    until(is_there, what, PATIENCE_S)


def long_path(lab: Lab, kind: str, *, is_quick: bool) -> dict[str, Any]:
    """Measure a connection over an udp: link, and one that begins after adaptation.

    kind: of the service; "split": the other daemon starts none.
    """
    path = LongPath(lab)
    path.set(CELL)
    key = lab.dir / "vnet.key"
    subprocess.run([BIN / "vtl-vnet", "keygen", key], check=True, capture_output=True)
    far_adapts = "on" if kind == "udt" else "off"
    sites = (
        (path.far, "vmnet2", "far", far_adapts, f"near=udp:{FAR}:7700,server"),
        (path.edge, "vmnet1", "near", "on", f"far=udp:{FAR}:7700"),
    )
    line = Line("vnet", "", "", lambda _: nullcontext())
    reading = READINGS[is_quick]
    with ExitStack() as stack:
        running = []
        for host, iface, name, adapt, link in sites:
            words = ("--iface", iface, "--name", name, "--attach", link, "--key-file", key, "--adapt", adapt)
            running.append(Service(lab, host, "vtl-vnet", *words).ready())
            stack.callback(running[-1].end)
        near = running[1]
        wait(lambda: near.status()["overlay"]["far"]["up"], "the link")

        def services() -> list[dict[str, Any]]:
            return list(near.status()["adapt"]["carried"].values())

        def decided_s() -> float:
            wait(lambda: near.status()["overlay"]["far"]["out_mbit"] > 1, "a busy pair")
            began = time.monotonic()
            wait(lambda: any((one["kind"], one["state"]) == (kind, "carrying") for one in services()), kind)
            return time.monotonic() - began

        decision = ThreadPoolExecutor().submit(decided_s)
        before = path.goodput(line, CELL, reading, Turn())
        took_s = decision.result()
        after = path.goodput(line, CELL, reading, Turn())
    if before is None or after is None:
        raise SystemExit("bench: no connection over the long path")
    return {
        "before_mbit": round(before, 1), "after_mbit": round(after, 1), "gain": round(after / before, 1),
        "s": round(took_s, 1),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found: dict[str, Any] = {}
    with Lab() as lab:
        found |= direct(lab, 2.0 if asked.quick else 10.0)
    for name, kind in ("long", "udt"), ("split", "split"):
        with Lab() as lab:
            each = long_path(lab, kind, is_quick=asked.quick)
        found |= {f"{name}_{figure}": value for figure, value in each.items()}
    found["long_path_gain"] = found.pop("long_gain")
    if asked.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        say(f"{name:18} {value}")


if __name__ == "__main__":
    main()
