"""The gain and the cost of vtl-subnet in the scene of the paper's Figure 6, in one run.

usage: bench/subnet.py [--quick] [--json]      (needs root)

long_rtt_ms, short_rtt_ms    round trip of a ping by the far gateways and by the LAN, median
long_gbit, short_gbit        TCP goodput of one flow
fallback_ms                  for how long pings are lost when the LAN's switch forgets a cable
short_ratio                  the short way's over that of two vtl-bridges in the same places
default_ratio                the default way's over vtl-bridge's, between two interfaces
user_us_per_frame            user CPU of vtl-subnet for a 60-byte frame that takes the short way
cpu_us_per_frame             user and system CPU of the same
bridge_cpu_us_per_frame      of vtl-bridge for the same
default_user_us_per_frame    user CPU of vtl-subnet for one that takes the default way
default_cpu_us_per_frame     user and system CPU of the same
"""

import argparse
import json
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from scene import Scene, Service, alternate, quiet, ratio, say, services

from lab.errors import LabError
from lab.figure6 import Figure6
from lab.netns import Lab
from lab.wait import until
from vtl_tools.common.packet import address, build

FLOOD = Path(__file__).with_name("flood.py")
NEAR = {1: "10.9.0.1", 2: "10.9.0.2"}
"""Further addresses of the VMs, of one subnet, for what joins them directly."""
PORT = 9


def subnet(scene: Figure6) -> Any:
    allow = ("--allow", "10.0.0.0/8")
    return services(
        scene.lab, "vtl-subnet", *((scene[f"host{n}"], (*scene.links(n), *allow)) for n in (1, 2))
    )


def bridges(scene: Figure6) -> Any:
    joined = ((scene[f"host{n}"], ("--iface", f"vm{n}", "--iface", "lanlink")) for n in (1, 2))
    return services(scene.lab, "vtl-bridge", *joined)


def ping(scene: Figure6, count: int, far: str) -> tuple[set[int], float]:
    """Return what was left of the TTL, and the median round trip in milliseconds."""
    said = scene["vm1"].run("ping", f"-c{count}", "-i0.02", far, check=False).stdout
    took = [float(t) for t in re.findall(r"time=([\d.]+)", said)]
    return {int(t) for t in re.findall(r"ttl=(\d+)", said)}, statistics.median(took) if took else 0.0


def fallback(scene: Figure6, far: str) -> float:
    """Cut the LAN in the middle of pings; return for how many milliseconds none was answered."""
    every_s, count = 0.02, 150
    command = ("ping", "-n", f"-i{every_s}", f"-c{count}", "-W3", far)
    pinging = scene["vm1"].popen(*command, stdout=subprocess.PIPE, text=True)
    time.sleep(0.5)
    scene.unplug(2)
    said, _ = pinging.communicate(timeout=60)
    scene.plug(2)
    answered = set(re.findall(r"icmp_seq=(\d+)", said))
    return (count - len(answered)) * every_s * 1000


def tcp(scene: Figure6, seconds: float, far: str) -> float:
    command = ["iperf3", "--client", far, "--json", "--time", str(seconds)]
    for _ in range(20):
        ran = scene["vm1"].run(*command, check=False, timeout=120.0)
        with suppress(ValueError, KeyError):
            return float(json.loads(ran.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
        time.sleep(0.1)  # the server is still busy with the last run
    raise SystemExit(f"bench: iperf3: {ran.stdout[-200:]}")


def reach(scene: Figure6, far: str, ttl: int) -> None:
    try:
        until(lambda: ping(scene, 1, far)[0] == {ttl}, f"{far} with {ttl} hops left", timeout=60.0)
    except LabError as e:
        raise SystemExit(f"bench: {e}") from None


class Cost:
    """CPU for each frame, of all floods together: the kernel tells the share of user time roughly."""

    def __init__(self) -> None:
        self.user_s = self.cpu_s = 0.0
        self.frames = 0

    @contextmanager
    def of(self, service: Service) -> Iterator[None]:
        before = service.status()
        yield
        after = service.status()
        user_s, system_s = (after["cpu_s"][kind] - before["cpu_s"][kind] for kind in ("user", "system"))
        self.user_s += user_s
        self.cpu_s += user_s + system_s
        self.frames += after["links"][0]["rx_frames"] - before["links"][0]["rx_frames"]

    @property
    def user_us(self) -> float:
        return self.user_s * 1e6 / self.frames

    @property
    def cpu_us(self) -> float:
        return self.cpu_s * 1e6 / self.frames


def flood(scene: Figure6, seconds: float, far: str, gateway: bytes) -> None:
    """Send 60-byte frames from VM1."""
    mac = address.mac(scene["vm1"].mac("eth0"))
    source = NEAR[1] if far == NEAR[2] else scene.address(1)
    frame = build.udp(
        src_mac=mac, dst_mac=gateway, src=address.ip(source), dst=address.ip(far), sport=PORT, dport=PORT,
        payload=bytes(18),
    )  # fmt: skip
    scene["vm1"].run(sys.executable, FLOOD, "eth0", str(seconds), frame[10:].hex())


def figure6(lab: Lab, rounds: int, seconds: float) -> dict[str, float]:
    scene = Figure6(lab)
    far = scene.address(2)
    for n in 1, 2:
        scene[f"vm{n}"].addr("eth0", f"{NEAR[n]}/24")
    quiet(scene["vm2"], "iperf3", "--server")
    sink = scene["vm2"].call(partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM))
    sink.bind(("", PORT))  # so that no ICMP errors come back
    found: dict[str, float] = {}
    with ExitStack() as stack:
        stack.enter_context(subnet(scene))
        for n in 1, 2:
            scene.unplug(n)
        reach(scene, far, 62)
        found["long_rtt_ms"] = ping(scene, 50, far)[1]
        found["long_gbit"] = statistics.median(tcp(scene, seconds, far) for _ in range(rounds))
        for n in 1, 2:
            scene.plug(n)
        reach(scene, far, 63)
        found["short_rtt_ms"] = ping(scene, 50, far)[1]
        found["fallback_ms"] = fallback(scene, far)

    ours_cost, bridge_cost = Cost(), Cost()

    def short() -> float:
        with subnet(scene) as started:
            reach(scene, far, 63)
            gbit = tcp(scene, seconds, far)
            gateway = scene["vm1"].run("ip", "neigh", "show", "10.1.0.1").stdout
            mac = re.search(r"lladdr (\S+)", gateway)
            assert mac is not None
            with ours_cost.of(started[0]):
                flood(scene, seconds, far, address.mac(mac[1]))
            return gbit

    def plain() -> float:
        with bridges(scene) as started:
            reach(scene, NEAR[2], 64)
            gbit = tcp(scene, seconds, NEAR[2])
            mac = address.mac(scene["vm2"].mac("eth0"))
            with bridge_cost.of(started[0]):
                flood(scene, seconds, NEAR[2], mac)
            return gbit

    theirs, ours = alternate(rounds, plain, short)
    say(f"TCP on the LAN: two vtl-bridges {theirs}, two vtl-subnets {ours} Gbit/s")
    return found | {
        "short_gbit": statistics.median(ours),
        "short_ratio": ratio(ours, theirs),
        "user_us_per_frame": ours_cost.user_us,
        "cpu_us_per_frame": ours_cost.cpu_us,
        "bridge_cpu_us_per_frame": bridge_cost.cpu_us,
    }


def default_way(lab: Lab, rounds: int, seconds: float) -> dict[str, float]:
    """Frames that take no shortcut: between two interfaces, beside a LAN that nobody is on."""
    scene = Scene(lab)
    lab.veth(scene.middle, "lan0", scene.middle, "lan1")
    cost = Cost()

    def through(tool: str, *arguments: str) -> Callable[[], float]:
        def measure() -> float:
            with services(lab, tool, (scene.middle, arguments)) as (service,):
                scene.reach()
                gbit = scene.tcp(seconds)
                if tool == "vtl-subnet":
                    with cost.of(service):
                        scene.client.run(sys.executable, FLOOD, "vc", str(seconds))
                return gbit

        return measure

    links = ("--iface", "vmnet1", "--default", "eth0", "--direct", "lan0", "--allow", "10.0.0.0/8")
    theirs, ours = alternate(
        rounds, through("vtl-bridge", "--iface", "vmnet1", "--iface", "eth0"), through("vtl-subnet", *links)
    )
    say(f"TCP the default way: vtl-bridge {theirs}, vtl-subnet {ours} Gbit/s")
    return {
        "default_ratio": ratio(ours, theirs),
        "default_user_us_per_frame": cost.user_us,
        "default_cpu_us_per_frame": cost.cpu_us,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    rounds, seconds = (3, 1.0) if options.quick else (7, 4.0)
    with Lab() as lab:
        found = figure6(lab, rounds, seconds)
    with Lab() as lab:
        found |= default_way(lab, rounds, seconds)
    found = {key: round(value, 3) for key, value in found.items()}
    if options.json:
        print(json.dumps(found))
    else:
        for key, value in found.items():
            print(f"{key:28} {value}")


if __name__ == "__main__":
    main()
