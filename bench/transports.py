"""The rate of each transport between the modules of vtl-udt, alone: no guest, one flow.

usage: bench/transports.py [--seconds S] [--transport NAME]... [--path NAME]... [--json]      (needs root)

For each path and transport, in Mbit/s: plain, encrypted; cpu: seconds of processor time a GiB, of both ends.
The paths: veth (a kernel bridge), 100ms (a round trip, by vtl-wan), and link (100 ms, 300 Mbit/s, 0.1 % lost
each way). Offloads are off at the ends of the emulated paths.
"""

import argparse
import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Any

from scene import ROOT, SERVER, Scene, say

from lab.netns import Lab

TRANSPORTS = ("tcp", "udt", "srt")
WAN = ("--iface", "vmnet1", "--uplink", "eth0", "--delay", "50ms", "--memory", "512")
PATHS = {
    "veth": None,
    "100ms": WAN,
    "link": (*WAN, "--rate", "300mbit", "--queue", "100ms", "--loss", "0.1%"),
}
END = ROOT / "lab" / "transport_end.py"
KEY = "5a" * 32
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def used_s(process: "subprocess.Popen[Any]") -> float:
    """Return the processor time of a process and its descendants so far."""
    total, pids = 0.0, [process.pid]
    while pids:
        pid = pids.pop()
        try:
            with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
                fields = file.read().rpartition(")")[2].split()
            with open(f"/proc/{pid}/task/{pid}/children") as file:  # noqa: PTH123
                pids += map(int, file.read().split())
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) * TICK_S
    return total


def measure(scene: Scene, transport: str, seconds: float, *, encrypt: bool) -> tuple[float, float]:
    """Return the rate of one flow from the far end, and the processor seconds a GiB."""
    common = KEY, str(int(encrypt))
    far = scene.server.popen(
        sys.executable, END, "far", transport, SERVER, "7100", *common, stdout=subprocess.PIPE, text=True
    )
    assert far.stdout is not None
    far.stdout.readline()
    job = json.dumps({"port": 19, "seconds": seconds})
    near = scene.client.popen(
        sys.executable, END, "near", transport, SERVER, "7100", *common, "2", job,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert near.stdout is not None
    try:
        for line in near.stdout:
            done = json.loads(line)
            if done["event"] == "done":
                break
        else:
            return 0.0, 0.0
        spent = used_s(far) + used_s(near)
        received = done["path"]["octets_received"]
        say(f"{transport} {'encrypted' if encrypt else 'plain'}: {done['mbit']:.0f} {done['path']}")
        return round(done["mbit"], 1), round(spent / received * 2**30, 2)
    finally:
        for process in near, far:
            process.terminate()
            process.wait(10)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--transport", action="append")
    parser.add_argument("--path", action="append")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    result: dict[str, Any] = {}
    with Lab() as lab:
        scene = Scene(lab)
        for name in asked.path or PATHS:
            settings = PATHS[name]
            passage: AbstractContextManager[Any] = scene.kernel()
            if settings is not None:
                passage = scene.vtl(*settings, service="vtl-wan")
                for host, end in (scene.client, "vc"), (scene.server, "vs"):
                    host.run("ethtool", "-K", end, "tso", "off", "gso", "off", "gro", "off", "tx", "off")
            with passage:
                for transport in asked.transport or TRANSPORTS:
                    plain, _ = measure(scene, transport, asked.seconds, encrypt=False)
                    encrypted, cpu = measure(scene, transport, asked.seconds, encrypt=True)
                    result[f"{name} {transport}"] = {"plain": plain, "encrypted": encrypted, "cpu": cpu}
    print(json.dumps(result) if asked.json else "\n".join(f"{k:12} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
