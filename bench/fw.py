"""The cost of a firewall in pure Python, beside a plain bridge and the kernel's firewall, in one run.

usage: bench/fw.py [--quick] [--json]      (needs root)

bridge_ratio         TCP goodput of one flow through vtl-fw over that through vtl-bridge
nft_ratio            the same over a kernel bridge with the same policy in nftables
user_us_per_frame    user CPU for a 67-byte frame of a known connection, by the number of rules
new_flow_user_us     user CPU for the first packet of a connection, by the number of rules
rules_cost_ratio     the former with 10,000 rules over 10; new_rules_cost_ratio: the latter
new_flows_per_s      connections that begin, a second, until there are 100,000
flow_bytes           memory for each of these 100,000, once they are open: the growth of the process
reload_ms            from `vtl-fw reload` to its end, with 10,000 rules and 10,000 connections
reload_pause_ms      the longest round trip of a frame meanwhile; resting_pause_ms: just before
parse_ms, compile_ms, judge_us      a rule file by itself, by the number of rules
"""

import argparse
import json
import resource
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from random import Random

from scene import BIN, CLIENT, Scene, Service, alternate, quiet, ratio, say

from lab.netns import Lab
from lab.wait import until
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import SLOTS, PackedBatch
from vtl_tools.common.packet import address, build, ether, ip, tcp
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rules.rule import OUT
from vtl_tools.services.fw.fields import Fields
from vtl_tools.services.fw.parser import parse
from vtl_tools.services.fw.policy import Policy

RULES = (10, 1000, 10_000)
FLOWS = 100_000
RELOAD_FLOWS = 10_000
CHUNK = 8192
"""Frames that are sent at once: so many small ones fit the buffer of a link."""
KNOWN = 16
"""Connections that a flood of known ones is of."""

NFT = """
table ip fw {
    chain forward {
        type filter hook forward priority filter; policy drop;
        ct state established,related accept
        ct state invalid drop
        ip daddr 10.9.0.2 tcp dport 5201 ct state new accept
        icmp type echo-request ct state new accept
    }
}
"""
LAST_RULES = """
allow out tcp to 10.9.0.2 port 5201
allow out udp to 10.9.0.2 port 5300
allow out icmp type echo-request
allow out tcp to 198.18.0.0/15 port 80
deny any
"""


def rule_file(rules: int, rng: Random) -> str:
    """Rules that each ask for another network and port, and last those that allow what comes."""
    last = LAST_RULES.split("\n")[1:-1]
    lines = [
        f"allow out tcp to {rng.randrange(1, 198)}.{rng.randrange(256)}.{rng.randrange(256)}.0/24"
        f" port {rng.randrange(1, 65536)}"
        for _ in range(rules - len(last))
    ]
    return "\n".join([*lines, *last, ""])


class Firewall:
    """A vtl-fw that runs in the middle, and frames of the VM's and the network's that reach no host."""

    def __init__(self, scene: Scene, service: Service) -> None:
        self.scene, self.service = scene, service
        vm = scene.client.call(Path("/sys/class/net/vc/address").read_text).strip()
        macs = {"src_mac": address.mac(vm), "dst_mac": b"\2\0\0\0\0\x99"}
        own, peer = bytes(map(int, CLIENT.split("."))), b"\xc6\x12\0\0"
        ends = {"src": own, "dst": peer, "sport": 0, "dport": 80, "window": 60000, "seq": 1}
        back = {"src": peer, "dst": own, "sport": 80, "dport": 0, "window": 60000, "seq": 7, "ack": 2}
        offer = partial(tcp.encode_options, mss=1460, sack_permitted=True, window_scale=7)  # as Linux has it
        stamps = tcp.encode_options(timestamps=(2, 1))
        self._syn = build.tcp(**macs, **ends, flags=tcp.SYN, options=offer(timestamps=(1, 0)))
        self._syn_ack = build.tcp(**macs, **back, flags=tcp.SYN | tcp.ACK, options=offer(timestamps=(1, 1)))
        known = {**macs, **ends, "seq": 2, "ack": 8, "flags": tcp.ACK, "options": stamps}
        self._ack = build.tcp(**known)
        self._data = build.tcp(**known, payload=b"x")

    def begin(self, numbers: Iterable[int]) -> float:
        """Begin connections of these numbers; return the seconds until all are known."""
        frames = _numbered(self._syn, numbers, out=True)
        known = self._flows()
        began = time.monotonic()
        self.send("vc", frames)
        until(lambda: self._flows() >= known + len(frames), "connections that are known", 60)
        return time.monotonic() - began

    def open(self, numbers: range) -> float:
        """Begin connections, a chunk at a time, and open them; return the seconds that beginning took."""
        took = 0.0
        for at in range(0, len(numbers), CHUNK):
            part = numbers[at : at + CHUNK]
            took += self.begin(part)
            self.send("vs", _numbered(self._syn_ack, part, out=False))
            self.send("vc", _numbered(self._ack, part, out=True))
        return took

    def flood(self, seconds: float) -> None:
        """Send frames of known connections for a while, as fast as it goes."""
        frames = _numbered(self._data, range(KNOWN), out=True) * (SLOTS // KNOWN)
        ends = time.monotonic() + seconds
        self.scene.client.call(partial(_send, "vc", frames, lambda: time.monotonic() < ends))

    def send(self, interface: str, frames: list[bytes]) -> None:
        """Send frames of the VM ("vc") or of the network ("vs"), and wait until all have been judged."""
        host, link = (self.scene.client, 0) if interface == "vc" else (self.scene.server, 1)
        seen = self._seen(link) + len(frames)
        host.call(partial(_send, interface, frames))
        until(lambda: self._seen(link) >= seen, "frames that were sent", 60)

    def user(self, action: Callable[[], object]) -> tuple[float, int]:
        """Return the seconds of user CPU, and the frames that came in, during an action."""
        before = self.service.status()
        action()
        after = self.service.status()
        frames = sum(
            b["rx_frames"] - a["rx_frames"] for a, b in zip(before["links"], after["links"], strict=True)
        )
        return after["cpu_s"]["user"] - before["cpu_s"]["user"], frames

    def resident(self) -> int:
        """Return the octets of memory that the service has."""
        pages = Path(f"/proc/{self.service.process.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    def _flows(self) -> int:
        return int(self.service.status()["policy"]["flows"])

    def _seen(self, link: int) -> int:
        return int(self.service.status()["links"][link]["rx_frames"])


def _numbered(frame: bytearray, numbers: Iterable[int], *, out: bool) -> list[bytes]:
    """Return a frame of each of several connections: the VM's port, and then the peer's address, differ."""
    l3 = VNET + 14
    there, port = (l3 + 16, l3 + 20) if out else (l3 + 12, l3 + 22)
    frames = []
    for number in numbers:
        struct.pack_into("!H", frame, there + 2, number >> 15)
        struct.pack_into("!H", frame, port, 1024 + (number & 0x7FFF))
        frames.append(bytes(frame))
    return frames


def _send(interface: str, frames: list[bytes], again: Callable[[], bool] = lambda: False) -> None:
    packed = PackedBatch()
    with PacketDevice(interface, receive=False) as device:
        while True:
            for at in range(0, len(frames), SLOTS):
                device.write(packed.pack([(frame,) for frame in frames[at : at + SLOTS]]))
            if not again():
                return


@contextmanager
def firewall(scene: Scene, rules: int) -> Iterator[Firewall]:
    """Join client and server by a vtl-fw with so many rules."""
    with scene.vtl(*arguments(scene, rules), service="vtl-fw") as service:
        yield Firewall(scene, service)


def arguments(scene: Scene, rules: int) -> tuple[str | Path, ...]:
    file = scene.lab.dir / f"{rules}.rules"
    if not file.exists():
        file.write_text(rule_file(rules, Random(rules)))
    return (
        "--iface",
        "vmnet1",
        "--uplink",
        "eth0",
        "--rules",
        file,
        "--address",
        CLIENT,
        "--guard",
        "process",
    )


@contextmanager
def nftables(scene: Scene) -> Iterator[None]:
    """Join them by the kernel's bridge, which asks the host's nftables and its table of connections."""
    scene.middle.run("nft", "-f", "-", input=NFT)
    scene.middle.sysctl("net.bridge.bridge-nf-call-iptables", 1)
    try:
        with scene.kernel():
            yield
    finally:
        scene.middle.sysctl("net.bridge.bridge-nf-call-iptables", 0)
        scene.middle.run("nft", "flush", "ruleset")


def throughput(scene: Scene, rounds: int, seconds: float) -> dict[str, object]:
    def through(join: Callable[[], AbstractContextManager[object]]) -> Callable[[], float]:
        def measure() -> float:
            with join():
                scene.reach()
                return scene.tcp(seconds)

        return measure

    bridge = through(lambda: scene.vtl("--iface", "vmnet1", "--iface", "eth0"))
    ours = through(lambda: firewall(scene, RULES[0]))
    plain, judged, kernel = alternate(rounds, bridge, ours, through(lambda: nftables(scene)))
    say(f"TCP, one flow: vtl-bridge {plain}, vtl-fw {judged}, nftables {kernel} Gbit/s")
    return {
        "bridge_ratio": ratio(judged, plain),
        "nft_ratio": ratio(judged, kernel),
        "tcp_gbit": round(statistics.median(judged), 2),
        "tcp_bridge_gbit": round(statistics.median(plain), 2),
        "tcp_nft_gbit": round(statistics.median(kernel), 2),
    }


def frames(scene: Scene, rounds: int, seconds: float) -> dict[str, object]:
    known: dict[int, list[tuple[float, int]]] = {rules: [] for rules in RULES}
    new: dict[int, list[tuple[float, int]]] = {rules: [] for rules in RULES}

    def judged(rules: int) -> None:
        with firewall(scene, rules) as fw:
            fw.open(range(KNOWN))
            for at in KNOWN, KNOWN + CHUNK:
                new[rules].append(fw.user(partial(fw.begin, range(at, at + CHUNK))))
            known[rules].append(fw.user(partial(fw.flood, seconds)))

    def each(readings: dict[int, list[tuple[float, int]]]) -> dict[int, float]:
        """Return microseconds for a frame of all readings: the kernel only samples who runs."""
        return {
            rules: round(sum(s for s, _ in of) / sum(n for _, n in of) * 1e6, 3)
            for rules, of in readings.items()
        }

    for _ in range(rounds):
        for rules in RULES:
            judged(rules)
    known_us, new_us = each(known), each(new)
    say(f"user CPU for a frame, by rules: known {known_us}, new {new_us} us")
    return {
        "user_us_per_frame": known_us,
        "new_flow_user_us": new_us,
        "rules_cost_ratio": round(known_us[RULES[-1]] / known_us[RULES[0]], 3),
        "new_rules_cost_ratio": round(new_us[RULES[-1]] / new_us[RULES[0]], 3),
    }


def connections(scene: Scene) -> dict[str, object]:
    with firewall(scene, RULES[0]) as fw:
        before = fw.resident()
        took = fw.open(range(FLOWS))
        used = fw.resident() - before
    say(f"{FLOWS} connections began in {took:.2f} s and take {used >> 20} MiB")
    return {"new_flows_per_s": round(FLOWS / took), "flow_bytes": round(used / FLOWS)}


def reload(scene: Scene, rounds: int) -> dict[str, object]:
    """Put 10,000 other rules in the place of as many, with connections that all of them allow."""
    other = scene.lab.dir / "other.rules"
    other.write_text(rule_file(RULES[-1], Random(1)))
    command = [BIN / "vtl-fw", "reload", "--rules", other, "--link"]
    rested: list[float] = []
    paused: list[float] = []
    took: list[int] = []
    echo = quiet(scene.server, sys.executable, Path(__file__).with_name("scene.py"), "echo")
    with firewall(scene, RULES[-1]) as fw:
        fw.open(range(RELOAD_FLOWS))
        for _ in range(rounds):
            rested.append(longest_rtt(scene, lambda: time.sleep(0.5)))
            began = time.monotonic()
            paused.append(longest_rtt(scene, lambda: scene.middle.run(*command, fw.service.socket)))
            took.append(round((time.monotonic() - began) * 1e3))
    echo.kill()
    say(f"reload: {took} ms, longest round trip {paused} ms, without a reload {rested} ms")
    return {
        "reload_ms": statistics.median(took),
        "reload_pause_ms": round(statistics.median(paused), 2),
        "resting_pause_ms": round(statistics.median(rested), 2),
    }


def longest_rtt(scene: Scene, action: Callable[[], object]) -> float:
    """Return the longest round trip of a datagram during an action, in milliseconds."""
    command = [sys.executable, Path(__file__).with_name("scene.py"), "longest"]
    asking = scene.client.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert asking.stdin is not None
    assert asking.stdout is not None
    asking.stdout.readline()
    action()
    asking.stdin.close()
    return round(float(asking.stdout.read()) * 1e3, 2)


def rules_alone(rounds: int) -> dict[str, object]:
    """Parse, compile and ask a policy, in this process."""
    found: dict[str, dict[int, float]] = {"parse_ms": {}, "compile_ms": {}, "judge_us": {}}

    def note(name: str, rules: int, began: float, times: float) -> float:
        """Note the least: the others were disturbed."""
        now = time.process_time()
        taken = round((now - began) * times, 2)
        found[name][rules] = min(taken, found[name].get(rules, taken))
        return time.process_time()

    for turn in range(rounds):
        rng = Random(turn)
        for rules in RULES:
            data = rule_file(rules, rng).encode()
            asked = [
                Fields(ether.IPV4, ip.TCP, b"\x0a\0\0\5", rng.randbytes(4), 40000, rng.randrange(65536))
                for _ in range(2000)
            ]
            began = time.process_time()
            ruleset = parse("bench.rules", lambda _, octets, data=data: data[:octets])
            began = note("parse_ms", rules, began, 1e3)
            policy = Policy(ruleset)
            began = note("compile_ms", rules, began, 1e3)
            for fields in asked:
                policy.judge(OUT, fields)
            note("judge_us", rules, began, 1e6 / len(asked))
    return dict(found)


def show(found: dict[str, object]) -> None:
    for key, value in found.items():
        shown = (
            "  ".join(f"{number:,}: {of}" for number, of in value.items())
            if isinstance(value, dict)
            else value
        )
        print(f"{key:24} {shown}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute or so")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    options = parser.parse_args()
    quick = options.quick
    found = rules_alone(1 if quick else 3)
    with Lab() as lab:
        scene = Scene(lab)
        found |= throughput(scene, 5 if quick else 9, 1 if quick else 4)
        found |= frames(scene, 4, 0.5 if quick else 2)
        found |= connections(scene)
        found |= reload(scene, 3 if quick else 9)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
