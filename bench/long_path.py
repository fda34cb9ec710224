"""A path that is as long, slow and lossy as one likes, what carries a connection over it, and its goodput."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from scene import BIN, Service, services

from lab.errors import LabError
from lab.netns import Host, Lab
from lab.wait import until
from vtl_tools.common.runtime import control

LINK_MBIT: Final = 300
CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
NEAR, FAR = "198.51.100.1", "198.51.100.2"
"""Addresses of the two modules of vtl-udt on the path."""
PLAIN: Final = "tx off rx off tso off gso off gro off"
FULL_SHARE: Final = 0.9
"""Share of the link at which a connection is not starting any more."""
PATIENCE_S: Final = 15.0
LONG_MS: Final = 200.0
"""Round-trip time from which on a connection starts while another one is read."""
SLOW_START_TRIPS: Final = 15
LIGHT_MS: Final = 100.0
"""Round-trip time from which on CUBIC with loss needs next to nothing of the machine."""
QUIET_TRIPS: Final = 7
"""Round trips for which a connection that starts needs little of the machine: 10 segments become 1,000."""

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


READINGS = {True: Reading(60, 1.0, 10.0, 6, 1.5), False: Reading(60, 3.0, 30.0, 30, 6.0)}
"""By --quick."""


@dataclass(frozen=True)
class Line:
    """One line of the figure.

    products: of bandwidth and delay in each socket buffer; 0: the kernel tunes it. is_slow: with loss, over a
    long path.
    """

    name: str
    label: str
    colour: str
    at: Callable[["LongPath"], AbstractContextManager[object]]
    congestion: str = "cubic"
    products: float = 0.0
    with_loss: bool = True
    is_slow: bool = False


class LongPath:
    """The hosts, and the path between them.

    products: of bandwidth and delay in the server's buffer at least; 0: as the line has it.
    """

    def __init__(self, lab: Lab, products: float = 0.0) -> None:
        self.lab, self.products = lab, products
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
        self.key = lab.dir / f"udt-{id(self)}.key"
        self.port = 5000
        links = ("--iface", "west", "--iface", "east", "--seed", "7", "--memory", "1024", "--realtime")
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
        """Wait until the path is empty, or a while: a service that is ending may still say so."""

        def is_empty() -> bool:
            return not any(path["waiting_octets"] for path in self.path.status()["wan"].values())

        with suppress(LabError):
            until(is_empty, "an empty path", PATIENCE_S)

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
        links: tuple[str, ...] = ("--iface", "vmnet1", "--uplink", "eth0", "--guard", "process")
        if tool == "vtl-split":
            links += ("--memory", "1024")  # so that a buffer grows to three products of a second's path
        with self.bridged(self.far), services(self.lab, tool, (self.edge, links)):
            yield

    @contextmanager
    def at_both(self, transport: str) -> Iterator[None]:
        """vtl-udt at both ends."""
        if not self.key.exists():
            subprocess.run([BIN / "vtl-udt", "keygen", self.key], check=True, capture_output=True)
        secret = ("--key-file", self.key, "--transport", transport, "--guard", "process")
        near = (self.edge, ("--iface", "vmnet1", "--peer", f"{FAR}:7700", *secret))
        far = (self.far, ("--iface", "vmnet2", "--listen", f"{FAR}:7700", *secret))
        with services(self.lab, "vtl-udt", far, near):
            yield

    def goodput(self, line: Line, cell: Cell, reading: Reading, turn: "Turn") -> float | None:
        """Return Mbit/s of a connection from the client to the server; None: there is none."""
        self.port += 1
        sends, reads = (
            int(max(each * cell.bdp, 1 << 18)) if each else 0
            for each in (line.products, max(line.products, self.products))
        )
        self.set(cell)
        turn.may_prepare(cell)
        with line.at(self), ExitStack() as stack:
            turn.may_start()
            words = (sys.executable, "-c", SINK, str(self.port), str(reads))
            sink = self.server.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            stack.callback(sink.kill)
            assert sink.stdout is not None
            sink.stdout.readline()
            words = (sys.executable, "-c", SOURCE, SERVER, str(self.port), line.congestion, str(sends))
            source = self.client.popen(*words, stderr=subprocess.DEVNULL)
            stack.callback(source.kill)
            found = steady(sink.stdout, cell, reading, turn.begins)
        self.settle()
        return found


class Turn:
    """When one measurement may disturb the one before: each path has its own, and the machine is shared."""

    def __init__(self, before: "Turn | None" = None) -> None:
        self._before = before
        self._read, self._done = threading.Event(), threading.Event()
        self._quiet_until = 0.0

    def may_prepare(self, cell: Cell) -> None:
        """Wait until services may start: on a short path, when the measurement before is over."""
        if self._before is not None and cell.ms < LONG_MS:
            self._before._done.wait()

    def may_start(self) -> None:
        """Wait until a connection may start: its first round trips disturb no reading."""
        if self._before is not None:
            self._before._read.wait()
            time.sleep(max(0.0, self._before._quiet_until - time.monotonic()))

    def begins(self, cell: Cell, seconds: float) -> None:
        """Note that a reading begins, and how long it lasts."""
        self._quiet_until = time.monotonic() + seconds - QUIET_TRIPS * cell.ms / 1e3
        self._read.set()

    def ends(self) -> None:
        """Note the end of the measurement."""
        self._read.set()
        self._done.set()


def steady(
    lines: Iterable[str], cell: Cell, reading: Reading, begins: Callable[[Cell, float], None]
) -> float | None:
    """Return Mbit/s of a connection that is not starting any more. lines: times, and octets until then."""
    lasts_s = max(reading.steady_s, reading.steady * cell.ms / 1e3)
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
            warm_s = min(max(reading.warm_s, reading.warm * rtt_s), reading.warm_most_s)
            is_over = now.at - seen[0].at >= max(warm_s, SLOW_START_TRIPS * rtt_s)
            if is_over or rate(seen, max(0.5, 2 * rtt_s)) >= FULL_SHARE * LINK_MBIT:
                start = now.at
                begins(cell, lasts_s)
        elif now.at - start >= lasts_s:
            return slope([one for one in seen if one.at >= start], 2.5 * rtt_s)
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
