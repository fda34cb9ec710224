"""vtl-vnet's links between two daemons against kernel VXLAN, tinc and n2n, in one run.

usage: bench/vnet.py [--quick] [--json] [--loss PERCENT]   (needs root; tools/setup-bench installs tinc, n2n)

vxlan_gbit, tcp_gbit, udp_gbit, tinc_gbit, n2n_gbit    TCP goodput of one flow between two VMs, median
tcp_link_ratio, udp_link_ratio    our tcp: and udp: link over kernel VXLAN, which encrypts nothing
card_gbit, card_ratio             VXLAN whose segments the card cuts; our better link over it
tinc_ratio, n2n_ratio             our better link over theirs, both encrypted
vxlan_rtt_us, tcp_rtt_us, ...     median round trip of a small datagram
added_rtt_us                      what our quicker link adds to kernel VXLAN's

--loss drops a share of the packets between the hosts, each by itself, and the flow uses BBR.

The cable between the hosts is a card that segments TCP and UDP, but not what is in VXLAN, as with most
virtual machines. All guests have an MTU of 1400, which fits each tunnel. n2n does not carry the frames of a
bridge, so it runs between the two hosts themselves, which spares it a bridge and a cable.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shutil import which
from typing import Any

from scene import BIN, CLIENT, SERVER, quiet, ratio, say, services

from lab.netns import Host, Lab
from lab.wait import until

SCENE = Path(__file__).with_name("scene.py")
LEFT, RIGHT = "192.0.2.1", "192.0.2.2"
MTU = 1400
OURS = "tcp", "udp"
TUNNELS = "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"


class Overlays:
    """client (10.9.0.1) - [vmnet1 left wan] - [wan right vmnet1] - server (10.9.0.2)."""

    def __init__(self, lab: Lab, loss: float) -> None:
        self.lab, self.loss = lab, loss
        self.client, self.left, self.right, self.server = (
            lab.host(name, ipv6=False) for name in ("client", "left", "right", "server")
        )
        lab.veth(self.client, "vc", self.left, "vmnet1")
        lab.veth(self.server, "vs", self.right, "vmnet1")
        self.cable()
        for host, port, address in (
            (self.client, "vc", CLIENT), (self.server, "vs", SERVER),
            (self.left, "wan", LEFT), (self.right, "wan", RIGHT),
        ):  # fmt: skip
            host.addr(port, f"{address}/24")
        self.segment_tunnels("off")
        for host, port in (self.client, "vc"), (self.server, "vs"):
            host.run("ip", "link", "set", port, "mtu", str(MTU))
        self.ends = self.client, self.server
        self.key = lab.dir / "vnet.key"
        self.left.run(BIN / "vtl-vnet", "keygen", self.key)

    def cable(self) -> None:
        """Join the hosts: by a cable, or by a bridge that loses packets, which the card has segmented."""
        if not self.loss:
            self.lab.veth(self.left, "wan", self.right, "wan")
            return
        middle = self.lab.host("middle", ipv6=False)
        for name, host in ("l", self.left), ("r", self.right):
            self.lab.veth(host, "wan", middle, name)
            host.run("ethtool", "-K", "wan", "tx-udp-segmentation", "off", "tso", "off", "gro", "on")
        self.lab.bridge(middle, "br0", ["l", "r"])
        chain = "chain bridge t c { type filter hook forward priority 0; }"
        lose = f"rule bridge t c ip version 4 numgen random mod 100000 < {round(self.loss * 1000)} drop"
        middle.run("nft", f"add table bridge t; add {chain}; add {lose}")

    def segment_tunnels(self, state: str) -> None:
        for host in self.left, self.right:
            for feature in TUNNELS:
                host.run("ethtool", "-K", "wan", feature, state)

    # --- ways to join them

    @contextmanager
    def ours(self, kind: str) -> Iterator[None]:
        """Join them by two vtl-vnets with a link of this kind."""
        common = ("--iface", "vmnet1", "--key-file", self.key, "--attach")
        near, far = f"peer={kind}:{RIGHT}:7700", f"peer={kind}:{RIGHT}:7700,server"
        places = (self.left, (*common, near)), (self.right, (*common, far))
        with services(self.lab, "vtl-vnet", *places):
            yield

    @contextmanager
    def bridged(self, interface: str) -> Iterator[None]:
        """Join VMs and a tunnel's interfaces by the kernel's bridge."""
        for host in self.left, self.right:
            self.lab.bridge(host, "br0", ["vmnet1", interface])
        try:
            yield
        finally:
            for host in self.left, self.right:
                host.run("ip", "link", "del", "br0")

    @contextmanager
    def vxlan(self) -> Iterator[None]:
        for host, local, remote in (self.left, LEFT, RIGHT), (self.right, RIGHT, LEFT):
            vxlan = f"type vxlan id 7 local {local} remote {remote} dstport 4789 dev wan"
            host.run("ip", "link", "add", "vx", *vxlan.split())
            host.run("ip", "link", "set", "vx", "up")
        with self.bridged("vx"):
            yield
        for host in self.left, self.right:
            host.run("ip", "link", "del", "vx")

    @contextmanager
    def card(self) -> Iterator[None]:
        self.segment_tunnels("on")
        with self.vxlan():
            yield
        self.segment_tunnels("off")

    @contextmanager
    def tinc(self) -> Iterator[None]:
        names = ("left", self.left, LEFT), ("right", self.right, RIGHT)
        places = [self.lab.dir / f"tinc-{name}" for name, _, _ in names]
        keys = {}
        for (name, host, _), place in zip(names, places, strict=True):
            (place / "hosts").mkdir(parents=True, exist_ok=True)
            other = "" if name == "left" else "ConnectTo = left\n"
            (place / "tinc.conf").write_text(f"Name = {name}\nMode = switch\nInterface = tinc0\n{other}")
            if not (place / "rsa_key.priv").exists():
                host.run("tincd", "-c", place, "-K2048", input="\n\n")
            keys[name] = (place / "hosts" / name).read_text()
        for place in places:
            for name, _, address in names:
                (place / "hosts" / name).write_text(f"Address = {address}\n{keys[name]}")
        daemons = [
            quiet(host, "tincd", "-c", place, "-D", f"--pidfile={place}/pid")
            for (_, host, _), place in zip(names, places, strict=True)
        ]
        with self.tunnels("tinc0", daemons), self.bridged("tinc0"):
            yield

    @contextmanager
    def n2n(self) -> Iterator[None]:
        daemons = [quiet(self.right, "supernode", "-l", "7654")]
        for host, address in (self.left, "10.9.1.1"), (self.right, "10.9.1.2"):
            words = f"-d n2n0 -c bench -k secret -a {address} -s 255.255.255.0 -M {MTU} -l {RIGHT}:7654"
            daemons.append(quiet(host, "edge", *words.split()))
        try:
            with self.tunnels("n2n0", daemons):
                self.ends = self.left, self.right
                yield
        finally:
            self.ends = self.client, self.server

    @contextmanager
    def tunnels(self, interface: str, daemons: "list[subprocess.Popen[Any]]") -> Iterator[None]:
        """Wait until the daemons of a tunnel have made its interface; end them at last."""
        up = ("ip", "link", "set", interface, "up")
        for host in self.left, self.right:
            until(partial(self.succeeds, host, *up), interface)
        try:
            yield
        finally:
            for daemon in daemons:
                daemon.terminate()
                daemon.wait(10)

    def succeeds(self, host: Host, *command: str) -> bool:
        return not host.run(*command, check=False).returncode

    # --- measures

    @property
    def far(self) -> str:
        return SERVER if self.ends[0] is self.client else "10.9.1.2"

    def measure(self, join: Callable[[], Any], seconds: float, count: int) -> tuple[float, float]:
        """Return Gbit/s of one flow, and the median round trip in microseconds."""
        with join():
            client, server = self.ends
            until(partial(self.succeeds, client, "ping", "-c1", "-W1", self.far), self.far)
            time.sleep(0.3)
            processes = quiet(server, "iperf3", "--server"), quiet(server, sys.executable, SCENE, "echo")
            until(lambda: ":5201" in server.run("ss", "-ltn").stdout, "iperf3")
            words = ("iperf3", "--client", self.far, "--json", "--time", str(seconds))
            words += ("--congestion", "bbr") if self.loss else ()
            ran = client.run(*words, check=False, timeout=seconds + 60)
            rtt = client.run(sys.executable, SCENE, "rtt", str(count), self.far).stdout
            for process in processes:
                process.kill()
                process.wait()
        try:
            gbit = float(json.loads(ran.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
        except (KeyError, ValueError):
            raise SystemExit(f"bench: iperf3: {ran.stdout[-300:]}") from None
        return gbit, float(rtt)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--loss", type=float, default=0.0, metavar="PERCENT", help="of the packets, 0 to 100")
    parser.add_argument("--only", default="vxlan tcp udp tinc n2n card", help="the ways to measure")
    asked = parser.parse_args()
    rounds, seconds, count = (3, 2.0, 500) if asked.quick else (7, 5.0, 3000)
    with Lab() as lab:
        scene = Overlays(lab, asked.loss)
        ways: dict[str, Callable[[], Any]] = {
            "vxlan": scene.vxlan, "tcp": partial(scene.ours, "tcp"), "udp": partial(scene.ours, "udp"),
            "tinc": scene.tinc, "n2n": scene.n2n, "card": scene.card,
        }  # fmt: skip
        needs = {"tinc": "tincd", "n2n": "edge"}
        for name in list(ways):
            if name not in asked.only or not which(needs.get(name, "ip")):
                say(f"without {name}")
                del ways[name]
        gbit: dict[str, list[float]] = {name: [] for name in ways}
        rtt: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, join in ways.items():
                found = scene.measure(join, seconds, count)
                gbit[name].append(found[0])
                rtt[name].append(found[1])
                say(f"{name:6} {found[0]:6.2f} Gbit/s  {found[1]:7.0f} us")
    result = {f"{name}_gbit": round(statistics.median(found), 3) for name, found in gbit.items()}
    result |= {f"{name}_rtt_us": round(statistics.median(found)) for name, found in rtt.items()}
    ours = [name for name in OURS if name in ways]
    for name in ours:
        result[f"{name}_link_ratio"] = ratio(gbit[name], gbit["vxlan"])
    better = max(ours, key=lambda name: result[f"{name}_gbit"])
    for name in (*needs, "card"):
        if name in ways:
            result[f"{name}_ratio"] = ratio(gbit[better], gbit[name])
    result["added_rtt_us"] = min(result[f"{name}_rtt_us"] for name in ours) - result["vxlan_rtt_us"]
    print(json.dumps(result) if asked.json else "\n".join(f"{k:16} {v}" for k, v in result.items()))


if __name__ == "__main__":
    main()
