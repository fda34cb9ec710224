"""The paper's Figure 7 anew: goodput of one TCP connection of a guest, against the latency of its path.

usage: bench/figure7.py [--quick] [--json] [--only LINE...] [--ms MS...] [--loss PERCENT...]
                        [--add FILE] [--output FILE]      (needs root; --output needs matplotlib)

    client - [edge] - vtl-wan - [far] - server

The path is a vtl-wan: a bottleneck of 300 Mbit/s, half of the round trip as delay, and random loss, in each
direction. Its queue is drop-tail and holds two bandwidth-delay products (20 ms at least), so that the end of
slow start loses nothing and does not have to be waited for. Offloads are off at its ends. Lines:

cubic           plain TCP (CUBIC, buffers as the kernel tunes them): edge and far are kernel bridges
large_buffers   the same with socket buffers of 1.5 bandwidth-delay products, as in the paper
bbr             BBR with buffers of 3 bandwidth-delay products, since it keeps two in flight
udt, tcp, auto  cubic, with vtl-udt at edge and far, and this --transport
split           cubic, with vtl-split --uplink at edge
ack             cubic, with vtl-ack at edge; without loss only, since it is for paths that are reliable

Goodput is that of the application: octets that the server's process has read, in Mbit/s. A reading begins
when the connection has started: after 60 round trips (slow start from 10 segments to a product of 10,000
takes ten, and what it exceeds a lossy path by takes CUBIC some fifty to lose), and at once when the server
reads at nine tenths of the link. It lasts 30 round trips and 6 s at least. With --quick, the start is waited
for at most 8 s, and a reading lasts 8 round trips and 1.5 s. It is taken between moments near both ends at
which nothing is missing: a connection that waits for a lost segment delivers nothing, and then much at once.

--add FILE keeps readings in a file, so that lines and cells can be measured one by one; the figure is drawn
from all of them.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from figures import save, subplots
from scene import BIN, Service, say, services

from lab.netns import Host, Lab
from lab.wait import until
from vtl_tools.common.runtime import control

LINK_MBIT: Final = 300
CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
NEAR, FAR = "198.51.100.1", "198.51.100.2"
"""Addresses of the two modules of vtl-udt on the path."""
PLAIN: Final = "tx off rx off tso off gso off gro off"
QUICK = ([10, 100, 400], [0, 0.1])
FULL = ([1, 3, 10, 30, 100, 200, 400, 1000], [0, 0.1, 1])
FULL_SHARE: Final = 0.9
"""Share of the link at which a connection is not starting any more."""
PATIENCE_S: Final = 15.0

SINK = """
import socket, sys, time
port, buffer = map(int, sys.argv[1:])
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if buffer:
    s.setsockopt(socket.SOL_SOCKET, 33, buffer)  # SO_RCVBUFFORCE, before listen()
s.bind(("", port))
s.listen()
s.settimeout(15)
print("ready", flush=True)
c, _ = s.accept()
c.settimeout(0.05)
room, octets, told = bytearray(1 << 20), 0, 0.0
while True:
    try:
        n = c.recv_into(room)
    except TimeoutError:
        n = -1
    if n == 0:
        break
    octets += max(n, 0)
    if (now := time.monotonic()) - told > 0.05:
        told = now
        print(now, octets, flush=True)
"""
SOURCE = """
import socket, sys
host, port, congestion, buffer = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
s = socket.socket()
if buffer:
    s.setsockopt(socket.SOL_SOCKET, 32, buffer)  # SO_SNDBUFFORCE
s.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
s.connect((host, port))
data = bytes(1 << 18)
while True:
    s.sendall(data)
"""


class Cell(NamedTuple):
    """A point of the figure. ms: round-trip time. loss_percent: in each direction."""

    ms: float
    loss_percent: float

    @property
    def bdp(self) -> int:
        """The bandwidth-delay product in octets."""
        return int(LINK_MBIT * 1e6 / 8 * self.ms / 1e3)


class Sample(NamedTuple):
    """Octets that the server has read at a time, in seconds."""

    at: float
    octets: float


class Reading(NamedTuple):
    """How a reading is taken: round trips, and seconds at least and at most."""

    warm: int
    warm_s: float
    warm_most_s: float
    steady: int
    steady_s: float


READINGS = {True: Reading(60, 1.0, 8.0, 8, 1.5), False: Reading(60, 3.0, 30.0, 30, 6.0)}
"""By --quick."""


@dataclass(frozen=True)
class Line:
    """One line of the figure.

    products: of bandwidth and delay in each socket buffer; 0: the kernel tunes it.
    """

    name: str
    label: str
    colour: str
    at: Callable[["Scene7"], AbstractContextManager[object]]
    congestion: str = "cubic"
    products: float = 0.0
    with_loss: bool = True


class Scene7:
    """The hosts, and the path between them."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client, self.edge, self.wan, self.far, self.server = (
            lab.host(name, ipv6=False) for name in ("client", "edge", "wan", "far", "server")
        )
        lab.veth(self.client, "eth0", self.edge, "vmnet1")
        lab.veth(self.edge, "eth0", self.wan, "west")
        lab.veth(self.wan, "east", self.far, "eth0")
        lab.veth(self.far, "vmnet2", self.server, "eth0")
        for host, interface in (
            (self.edge, "eth0"),
            (self.wan, "west"),
            (self.wan, "east"),
            (self.far, "eth0"),
        ):
            host.run("ethtool", "-K", interface, *PLAIN.split())
        for host, address in (
            (self.client, CLIENT), (self.edge, NEAR), (self.far, FAR), (self.server, SERVER)
        ):  # fmt: skip
            host.addr("eth0", f"{address}/24")
            host.sysctl("net.ipv4.tcp_no_metrics_save", 1)  # else a connection knows of the one before
        for host, address, other in (
            (self.client, SERVER, self.server), (self.server, CLIENT, self.client)
        ):  # fmt: skip
            mac = other.mac("eth0")
            host.run("ip", "neigh", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "permanent")
        lab.bridge(self.edge, "br0", [])
        lab.bridge(self.far, "br0", [])
        self.key = lab.dir / "udt.key"
        self.port = 5000
        links = ("--iface", "west", "--iface", "east", "--seed", "7", "--memory", "1024")
        self.path = Service(lab, self.wan, "vtl-wan", *links).ready()

    def set(self, cell: Cell) -> None:
        """Make the path that of a cell."""
        changes = {
            "delay": f"{cell.ms / 2}ms",
            "loss": f"{cell.loss_percent}%",
            "rate": f"{LINK_MBIT}mbit",
            "queue": f"{2 * max(cell.ms, 10)}ms",
        }
        control.ask(self.path.socket, "set", changes=changes)

    def settle(self) -> None:
        """Wait until the path is empty."""

        def is_empty() -> bool:
            return not any(path["waiting_octets"] for path in self.path.status()["wan"].values())

        until(is_empty, "an empty path")

    def plain(self) -> AbstractContextManager[None]:
        """Kernel bridges at both ends."""
        return self.bridged(self.edge, self.far)

    @contextmanager
    def bridged(self, *hosts: Host) -> Iterator[None]:
        """Join the two links of hosts by the kernel."""
        links = [
            (host, link) for host in hosts for link in ("eth0", "vmnet1" if host is self.edge else "vmnet2")
        ]
        for host, link in links:
            host.run("ip", "link", "set", "dev", link, "master", "br0")
        try:
            yield
        finally:
            for host, link in links:
                host.run("ip", "link", "set", "dev", link, "nomaster")

    @contextmanager
    def at_edge(self, tool: str) -> Iterator[None]:
        """A service at the edge, with an uplink."""
        links = ("--iface", "vmnet1", "--uplink", "eth0")
        with self.bridged(self.far), services(self.lab, tool, (self.edge, links)):
            yield

    @contextmanager
    def at_both(self, transport: str) -> Iterator[None]:
        """vtl-udt at both ends."""
        if not self.key.exists():
            subprocess.run([BIN / "vtl-udt", "keygen", self.key], check=True, capture_output=True)
        secret = ("--key-file", self.key, "--transport", transport)
        near = (self.edge, ("--iface", "vmnet1", "--peer", f"{FAR}:7700", *secret))
        far = (self.far, ("--iface", "vmnet2", "--listen", f"{FAR}:7700", *secret))
        with services(self.lab, "vtl-udt", far, near):
            yield

    def goodput(self, line: Line, cell: Cell, reading: Reading) -> float | None:
        """Return Mbit/s of a connection from the client to the server; None: there is none."""
        self.port += 1
        buffer = int(max(line.products * cell.bdp, 1 << 18)) if line.products else 0
        with ExitStack() as stack:
            words = (sys.executable, "-c", SINK, str(self.port), str(buffer))
            sink = self.server.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            stack.callback(sink.kill)
            assert sink.stdout is not None
            sink.stdout.readline()
            words = (sys.executable, "-c", SOURCE, SERVER, str(self.port), line.congestion, str(buffer))
            source = self.client.popen(*words, stderr=subprocess.DEVNULL)
            stack.callback(source.kill)
            found = steady(sink.stdout, cell, reading)
        source.wait()
        self.settle()
        return found


def steady(lines: Iterable[str], cell: Cell, reading: Reading) -> float | None:
    """Return Mbit/s of a connection that is not starting any more. lines: times, and octets until then."""
    rtt_s = cell.ms / 1e3
    seen: list[Sample] = []
    start = 0.0
    for line in lines:
        now = Sample(*map(float, line.split()))
        seen.append(now)
        if not now.octets:
            if now.at - seen[0].at > PATIENCE_S:
                return None
            seen = seen[:1]
        elif not start:
            is_over = now.at - seen[0].at >= min(
                max(reading.warm_s, reading.warm * rtt_s), reading.warm_most_s
            )
            if is_over or rate(seen, max(0.5, 2 * rtt_s)) >= FULL_SHARE * LINK_MBIT:
                start = now.at
        elif now.at - start >= max(reading.steady_s, reading.steady * rtt_s):
            return slope([one for one in seen if one.at >= start], 1.5 * rtt_s)
    return None


def slope(seen: list[Sample], hole_s: float) -> float:
    """Return Mbit/s between moments near both ends at which all that had arrived was read.

    While a lost segment is missing, a connection delivers nothing, and then much at once.
    """
    mean = (seen[-1].octets - seen[0].octets) / (seen[-1].at - seen[0].at)

    def highest(part: list[Sample]) -> Sample:
        return max(part, key=lambda one: one.octets - mean * one.at)

    first = highest([one for one in seen if one.at <= seen[0].at + hole_s])
    last = highest([one for one in seen if one.at >= seen[-1].at - hole_s])
    return (last.octets - first.octets) * 8 / (last.at - first.at) / 1e6


def rate(seen: list[Sample], window_s: float) -> float:
    """Return Mbit/s of the last seconds; 0 before there are so many."""
    now = seen[-1]
    earlier = next((one for one in reversed(seen) if one.at <= now.at - window_s), None)
    return 0.0 if earlier is None else (now.octets - earlier.octets) * 8 / (now.at - earlier.at) / 1e6


LINES = [
    Line("cubic", "TCP", "#999", Scene7.plain),
    Line(
        "large_buffers", "TCP, buffers of 1.5 BDP", "#555", Scene7.plain,
        products=1.5,
    ),
    Line(
        "bbr", "TCP, BBR", "#a73", Scene7.plain,
        congestion="bbr", products=3,
    ),
    Line("udt", "vtl-udt, UDT", "#37a", lambda scene: scene.at_both("udt")),
    Line("tcp", "vtl-udt, TCP", "#7bd", lambda scene: scene.at_both("tcp")),
    Line("auto", "vtl-udt, auto", "#3a7", lambda scene: scene.at_both("auto")),
    Line("split", "vtl-split", "#b4a", lambda scene: scene.at_edge("vtl-split")),
    Line("ack", "vtl-ack", "#c33", lambda scene: scene.at_edge("vtl-ack"), with_loss=False),
]  # fmt: skip


class Readings:
    """What was read: a cell's lines in Mbit/s. file: where it is kept; None: nowhere."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        kept = json.loads(file.read_text())["cells"] if file is not None and file.exists() else []
        self.cells = {Cell(one.pop("ms"), one.pop("loss_percent")): one for one in kept}

    def add(self, cell: Cell, line: Line, mbit: float | None) -> None:
        values = self.cells.setdefault(cell, {one.name: None for one in LINES})
        values[line.name] = None if mbit is None else round(mbit, 2)
        if self.file is not None:
            self.file.write_text(json.dumps(self.told(), indent=1) + "\n")

    def told(self) -> dict[str, Any]:
        cells = [{**cell._asdict(), **values} for cell, values in sorted(self.cells.items())]
        return {"link_mbit": LINK_MBIT, "cells": cells}

    def table(self) -> str:
        """Return a table in Markdown."""
        names = [line.name for line in LINES]
        rows = [["loss, %", "RTT, ms", *names], ["---"] * (len(names) + 2)]
        for cell, values in sorted(self.cells.items(), key=lambda item: item[0][::-1]):
            numbers = ["" if values[name] is None else f"{values[name]:.3g}" for name in names]
            rows.append([f"{cell.loss_percent:g}", f"{cell.ms:g}", *numbers])
        return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(found: Readings, output: Path) -> None:
    """Draw a panel for each loss, goodput over round-trip time."""
    losses = sorted({cell.loss_percent for cell in found.cells})
    figure, panels = subplots(len(losses), (4 * len(losses), 4.2))
    for panel, loss in zip(panels, losses, strict=True):
        for line in LINES:
            points = [
                (cell.ms, values[line.name])
                for cell, values in sorted(found.cells.items())
                if cell.loss_percent == loss and values[line.name]
            ]
            if points:
                panel.plot(
                    *zip(*points, strict=True), "o-", markersize=3, color=line.colour, label=line.label
                )
        panel.axhline(LINK_MBIT, color="#ccc", linestyle=":")
        panel.set(xscale="log", yscale="log", xlabel="round-trip time (ms)", title=f"{loss:g} % loss")
    panels[0].set_ylabel("TCP goodput, one flow (Mbit/s)")
    figure.suptitle("A guest's bandwidth over latency (paper, Figure 7)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    save(figure, output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", nargs="+", choices=[line.name for line in LINES])
    parser.add_argument("--ms", nargs="+", type=float)
    parser.add_argument("--loss", nargs="+", type=float)
    parser.add_argument("--add", type=Path)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    usual = QUICK if asked.quick else FULL
    found = Readings(asked.add)
    cells = [Cell(ms, loss) for ms in asked.ms or usual[0] for loss in asked.loss or usual[1]]
    with Lab() as lab:
        scene = Scene7(lab)
        for cell in cells:
            scene.set(cell)
            for line in LINES:
                if line.name not in (asked.only or line.name) or (cell.loss_percent and not line.with_loss):
                    continue
                with line.at(scene):
                    mbit = scene.goodput(line, cell, READINGS[asked.quick])
                found.add(cell, line, mbit)
                say(f"{cell.ms:g} ms, {cell.loss_percent:g} %: {line.name}: {mbit and round(mbit, 1)}")
    if asked.output is not None:
        draw(found, asked.output)
    print(json.dumps(found.told()) if asked.json else found.table())


if __name__ == "__main__":
    main()
