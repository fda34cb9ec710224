"""The cost of a bridge in pure Python, beside the kernel's own and others, in one run.

usage: bench/bridge.py [--quick] [--json]      (needs root)

tcp_ratio            TCP goodput of one flow over the kernel bridge's
tcp8_ratio           the same with eight flows
frame_rate_ratio     60-byte frames a second over the kernel bridge's
user_us_per_frame    user CPU of vtl-bridge for one 60-byte frame
added_rtt_us         what vtl-bridge adds to a round trip, median
and without --quick, Gbit/s of one flow through other links and other bridges.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from scene import SERVER, Scene, alternate, quiet, ratio, say

from lab.netns import Lab

TWO = ("--iface", "vmnet1", "--iface", "eth0")
FLOOD = Path(__file__).with_name("flood.py")


def tcp(scene: Scene, rounds: int, seconds: float, flows: int) -> dict[str, float]:
    def through(join: Callable[[], AbstractContextManager[object]]) -> float:
        with join():
            scene.reach()
            return scene.tcp(seconds, flows)

    kernel, ours = alternate(rounds, lambda: through(scene.kernel), lambda: through(lambda: scene.vtl(*TWO)))
    name = "tcp" if flows == 1 else f"tcp{flows}"
    say(f"{name}: kernel {kernel}, vtl-bridge {ours} Gbit/s")
    return {
        f"{name}_ratio": ratio(ours, kernel),
        f"{name}_gbit": round(statistics.median(ours), 2),
        f"{name}_kernel_gbit": round(statistics.median(kernel), 2),
    }


def frames(scene: Scene, rounds: int, seconds: float) -> dict[str, float]:
    """Flood with 60-byte frames; count what comes out at the far end."""
    counter = Path("/sys/class/net/vs/statistics/rx_packets")
    user_us: list[float] = []

    def flood() -> float:
        before = int(scene.server.call(counter.read_text))
        took = float(scene.client.run(sys.executable, FLOOD, "vc", str(seconds)).stdout)
        return (int(scene.server.call(counter.read_text)) - before) / took

    def kernel() -> float:
        with scene.kernel():
            # Without an entry the bridge would flood, and learn nothing about the destination.
            scene.middle.run("bridge", "fdb", "replace", "02:00:00:00:00:02", "dev", "eth0", "master", "temp")
            return flood()

    def ours() -> float:
        with scene.vtl(*TWO) as bridge:
            before = bridge.status()
            rate = flood()
            after = bridge.status()
            passed = after["links"][0]["rx_frames"] - before["links"][0]["rx_frames"]
            user_us.append((after["cpu_s"]["user"] - before["cpu_s"]["user"]) * 1e6 / passed)
            return rate

    theirs, rates = alternate(rounds, kernel, ours)
    say(f"60-byte frames: kernel {[int(r) for r in theirs]}, vtl-bridge {[int(r) for r in rates]} a second")
    return {
        "frame_rate_ratio": ratio(rates, theirs),
        "frames_per_s": int(statistics.median(rates)),
        "user_us_per_frame": round(statistics.median(user_us), 3),
    }


def rtt(scene: Scene, rounds: int, count: int) -> dict[str, float]:
    def kernel() -> float:
        with scene.kernel():
            return scene.rtt(count)

    def ours() -> float:
        with scene.vtl(*TWO):
            scene.reach()
            return scene.rtt(count)

    theirs, took = alternate(rounds, kernel, ours)
    say(f"round trip: kernel {theirs}, vtl-bridge {took} us")
    return {
        "added_rtt_us": round(statistics.median(a - b for a, b in zip(took, theirs, strict=True)), 1),
        "rtt_us": round(statistics.median(took), 1),
        "kernel_rtt_us": round(statistics.median(theirs), 1),
    }


def others(scene: Scene, seconds: float) -> dict[str, float]:
    """One flow through each other way of joining two networks, in Gbit/s."""
    found: dict[str, float] = {}

    def note(name: str, gbit: float) -> None:
        found[name] = round(gbit, 2)
        say(f"{name}: {gbit:.2f} Gbit/s")

    with scene.kernel():
        note("kernel_gbit", scene.tcp(seconds))
    with scene.vtl(*TWO):
        scene.reach()
        note("full_duplex_gbit", scene.tcp(seconds))
    back = ("--iface", "eth0", "--iface", "vmnet1", "--half-duplex")
    with scene.vtl(*TWO, "--half-duplex"), scene.vtl(*back):
        scene.reach()
        note("half_duplex_pair_gbit", scene.tcp(seconds))
    with scene.vtl(*TWO, "--workers", "2"):
        scene.reach()
        note("workers2_tcp8_gbit", scene.tcp(seconds, 8))
    sock = scene.lab.dir / "link.sock"
    for kind in "channel", "qemu:unix":
        near = ("--iface", "vmnet1", "--iface", f"{kind}:{sock},server")
        far = ("--iface", f"{kind}:{sock}", "--iface", "eth0")
        with scene.vtl(*near), scene.vtl(*far):
            scene.reach()
            note(f"two_bridges_{kind.partition(':')[0]}_gbit", scene.tcp(seconds))
    with scene.vtl("--iface", "tap:tap0", "--iface", "eth0"):
        scene.middle.addr("tap0", "10.9.0.3/24")
        note("tap_gbit", scene.tcp(seconds, client=scene.middle))
    for name, start in ("vde_switch", vde), ("socat", socat):
        if shutil.which(name):
            note(f"{name}_gbit", start(scene, seconds))
    return found


def between_taps(scene: Scene, seconds: float, processes: "list[subprocess.Popen[bytes]]") -> float:
    """Measure between two taps of the middle host that processes join, moved to hosts of their own."""
    left, right = scene.lab.host("left", ipv6=False), scene.lab.host("right", ipv6=False)
    for host, tap, address in (left, "tapl", "10.9.0.1/24"), (right, "tapr", f"{SERVER}/24"):
        until = time.monotonic() + 10
        while scene.middle.run("ip", "link", "set", tap, "netns", host.netns, check=False).returncode:
            if time.monotonic() > until:
                raise SystemExit(f"bench: no {tap}")
            time.sleep(0.05)
        host.run("ip", "link", "set", tap, "up")
        host.addr(tap, address)
    quiet(right, "iperf3", "--server")
    try:
        time.sleep(0.3)
        return scene.tcp(seconds, client=left)
    finally:
        for process in processes:
            process.kill()


def vde(scene: Scene, seconds: float) -> float:
    where = scene.lab.dir / "vde"
    started = [quiet(scene.middle, "vde_switch", "-s", where, "-tap", "tapl", stdin=subprocess.PIPE)]
    time.sleep(0.3)
    started.append(quiet(scene.middle, "vde_plug2tap", "-s", where, "tapr", stdin=subprocess.PIPE))
    return between_taps(scene, seconds, started)


def socat(scene: Scene, seconds: float) -> float:
    ends = [f"TUN,tun-type=tap,iff-no-pi,tun-name={name}" for name in ("tapl", "tapr")]
    return between_taps(scene, seconds, [quiet(scene.middle, "socat", "-b", "65536", *ends)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the essential part, within a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    quick = options.quick
    with Lab() as lab:
        scene = Scene(lab)
        found = tcp(scene, 9 if quick else 7, 1 if quick else 4, 1)
        found |= tcp(scene, 3, 1 if quick else 4, 8)
        found |= frames(scene, 3, 1 if quick else 3)
        found |= rtt(scene, 3, 1000 if quick else 5000)
        if not quick:
            found |= others(scene, 4)
    if options.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
