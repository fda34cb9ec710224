"""The cost of a TCP relay in user space, beside the kernel's own path and other relays, in one run.

usage: bench/relay.py [--quick] [--json] [--only NAME ...] [--mtu OCTETS]      (needs root)

up_ratio, down_ratio                 throughput of one flow over the best peer's
cps1_ratio, cps64_ratio              connections a second, one and 64 at once, over the best peer's
up_direct_ratio, down_direct_ratio   throughput of one flow over the kernel's own path
cps64_p99_ms, cps64_p99_ratio        how long the slowest hundredth of the connections take, 64 at once; over
                                     the best peer's
idle_kib                             memory of the relay for an idle connection
startup_ms                           from the start of the relay to the first connection carried
split_up_ratio, split_down_ratio, split_cps64_ratio
                                     the same of vtl-split, over the better of pasta and slirp4netns
udp_ratio                            echoes a second of datagrams of 1,400 octets, 64 at once; likewise
udp1_ratio                           the same of 64 octets, one after the other

NAME_user_us, NAME_system_us of a contender: CPU time of the relay alone, for a connection (cps), for 64 KiB
(up, down), for an echo (udp). The sum is exact; the kernel's timer tick tells the two apart.

The guest's interface has the same MTU with each contender: 65,520, which users of pasta and slirp4netns give
for speed, or --mtu.

A connection is a connect, an echo of 64 octets and a close. Peers that ask a SOCKS server are compared with
our relay through the same SOCKS server, those that do not with our plain one; of both kinds' ratios the
smaller counts. A peer that is not installed, or fails, is left out and named.
"""

import argparse
import compileall
import hashlib
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from scene import BIN, ROOT, alternate, ratio, say

from lab.errors import LabError
from lab.netns import Host, Lab
from lab.wait import until

T = TypeVar("T")

SERVER = "203.0.113.80"  # an address of the host, on lo
GUEST, GATEWAY = "10.0.0.2", "10.0.0.1"
SOCKS = "127.0.0.1:1080"
SOCKS_PORT = SOCKS.partition(":")[2]
MTU = 65_520
START_S = 15.0  # a relay that carries nothing by then has failed
SLACK_S = 10.0  # what a load may take longer than it was told to
LIMIT = min(65_536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
CHUNK = 1 << 16  # octets that CPU time is told for
CPUCLOCK_SCHED = 2  # of the clock of a process: what its threads have run, in ns
FEW, MANY = 1_000, min(10_000, (LIMIT - 500) // 2)  # a relay may need two descriptors for a connection

# What is ours, and how it is started.
PLAIN = (BIN / "python", ROOT / "bench/plain_relay.py", "--iface", "vmnet1", "--json")
SPLIT = (BIN / "vtl-split", "--iface", "vmnet1", "--subnet", "10.0.0.0/24", "--allow", SERVER, "--json")
SPLITS = ("pasta", "slirp4netns")
"""Peers of vtl-split, which like it are a guest's whole network through the host's sockets."""
OVER_SOCKS = (BIN / "vtl-tor", "--iface", "vmnet1", "--socks", SOCKS, "--isolate", "none", "--guard",
              "process", "--json")  # fmt: skip

TUNING: dict[str, object] = {
    "net.ipv4.ip_local_port_range": "1024 65535",
    "net.ipv4.tcp_tw_reuse": 1,  # or the search for a free port becomes the limit
    "net.core.somaxconn": 4096,
    "net.ipv4.tcp_max_syn_backlog": 4096,
}

REDSOCKS = f"""
base {{
    log_debug = off; log_info = off; log = stderr; daemon = off; redirector = iptables;
    rlimit_nofile = {LIMIT}; redsocks_conn_max = {MANY + 100};
}}
redsocks {{
    local_ip = 0.0.0.0; local_port = 12345; listenq = 1024;
    ip = 127.0.0.1; port = {SOCKS_PORT}; type = socks5;
}}
"""
REDIRECT = """
table ip redsocks {
    chain guest {
        type nat hook prerouting priority -100
        iifname "vmnet1" ip protocol tcp redirect to :12345
    }
}
"""
# Without pipeline it holds its first word back for 200 ms (MSG_MORE).
HEV = f"""
tunnel: {{name: tun0, mtu: MTU, ipv4: {GUEST}}}
socks5: {{address: 127.0.0.1, port: {SOCKS_PORT}, udp: udp, pipeline: true}}
misc: {{log-file: stderr, log-level: error, limit-nofile: {LIMIT}}}
"""


class Failed(Exception):  # noqa: N818 - it says what happened
    """A contender did not do its part."""


FAILURES = (Failed, LabError, OSError, subprocess.SubprocessError)


def build_load() -> Path:
    """Compile load.c unless that was done before."""
    source = Path(__file__).with_name("load.c")
    cache = Path(os.environ.get("VTL_CACHE") or ROOT / ".cache") / "bench"
    load = cache / f"load-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}"
    if not load.exists():
        cache.mkdir(parents=True, exist_ok=True)
        work = cache / f"load-{os.getpid()}"
        subprocess.run(["gcc", "-O2", "-o", work, source], check=True)
        work.rename(load)
    return load


class Site:
    """A guest, a host with a server in it, and between them the way that one contender offers.

    Each contender has a site of its own: its firewall and its connection tracking are in nobody's way.
    """

    def __init__(self, load: Path, mtu: int = MTU) -> None:
        self.load, self.mtu, self.via = load, mtu, ""
        self.relay: subprocess.Popen[Any] | None = None
        self.startup_ms = math.nan
        self.lab = Lab()
        self.errors, self.counter = self.lab.dir / "stderr", self.lab.dir / "counter"
        self.errors.touch()
        self.guest, self.host = (self.lab.host(name, ipv6=False) for name in ("guest", "host"))
        for host in self.guest, self.host:
            for variable, value in TUNING.items():
                host.sysctl(variable, value)
        self.host.addr("lo", SERVER + "/32")
        self._start(self.host, load, "server", SERVER, self.counter)

    def _start(self, host: Host, *command: str | Path, **options: Any) -> "subprocess.Popen[Any]":
        options.setdefault("stdout", subprocess.DEVNULL)
        options.setdefault("stderr", subprocess.DEVNULL)
        return host.popen(*command, **options)

    def complaint(self) -> str:
        """Return the last line that the relay wrote to standard error."""
        lines = self.errors.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"

    def cable(self, gateway: bool) -> None:
        """Join guest and host by a veth pair. gateway: the host's own stack is the guest's gateway."""
        self.lab.veth(self.guest, "eth0", self.host, "vmnet1", mtu=self.mtu)
        # A gateway that is not there yet is looked for again at once, not after a second.
        self.guest.sysctl("net/ipv4/neigh/eth0/retrans_time_ms", 20)
        self.guest.addr("eth0", GUEST + "/24")
        self.guest.route("default", GATEWAY)
        if gateway:
            self.host.addr("vmnet1", GATEWAY + "/24")

    def socks(self) -> None:
        self._start(self.host, self.load, "socks", SOCKS_PORT)

    def launch(self, *command: str | Path, then: Callable[[], object] = lambda: None) -> None:
        """Start the relay, do what `then` has to be done, and wait until a connection is carried."""
        answer = self.lab.dir / "first"
        with answer.open("wb") as out:
            first = self._start(self.guest, self.load, "first", SERVER, str(START_S), stdout=out)
        time.sleep(0.05)
        begin = time.monotonic()
        with self.errors.open("ab") as errors:
            self.relay = self._start(self.host, *command, stderr=errors)
        then()
        relay = self.relay
        until(lambda: first.poll() is not None or relay.poll() is not None, "first connection", START_S + 5)
        if first.poll() != 0:
            raise Failed(f"carries nothing: {self.complaint()}")
        self.startup_ms = (float(answer.read_text()) - begin) * 1e3

    def measure(self, mode: str, *arguments: object, seconds: float) -> dict[str, float]:
        """Run a load in the guest for so many seconds and return what it found. One failure is forgiven."""
        try:
            return self._measure(mode, *arguments, seconds=seconds)
        except Failed as error:
            say(f"once more, since {error}")
            return self._measure(mode, *arguments, seconds=seconds)

    def _measure(self, mode: str, *arguments: object, seconds: float) -> dict[str, float]:
        command = [str(word) for word in (self.load, mode, SERVER, *arguments, seconds)]
        environment = {**os.environ, "LOAD_SOCKS": self.via}
        spent = cpu_of(self.relay.pid) if self.relay else None
        try:
            ran = self.guest.run(*command, check=False, timeout=seconds + SLACK_S, env=environment)
        except subprocess.TimeoutExpired:
            raise Failed(f"{mode}: nothing comes to an end: {self.complaint()}") from None
        if ran.returncode:
            raise Failed(f"{mode}: {ran.stderr.strip()}: {self.complaint()}")
        found: dict[str, float] = json.loads(ran.stdout)
        if spent is not None and self.relay is not None:
            units = found["octets"] / CHUNK if "octets" in found else found["count"]
            total, user, system = (b - a for a, b in zip(spent, cpu_of(self.relay.pid), strict=True))
            share = user / max(user + system, 1)
            found |= {"user_us": total * share / units, "system_us": total * (1 - share) / units}
        return found

    def idle(self, count: int) -> float:
        """Return what the relay's memory grows by for each of so many idle connections, in KiB."""
        assert self.relay is not None
        before = resident_kib(self.relay.pid)
        answer = self.lab.dir / "held"
        with answer.open("wb") as out:
            holder = self._start(
                self.guest, self.load, "idle", SERVER, str(count), stdin=subprocess.PIPE, stdout=out,
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        until(lambda: answer.stat().st_size or holder.poll() is not None, "idle connections", 60)
        if holder.poll() is not None:
            assert holder.stderr is not None
            raise Failed(f"{count} idle connections: {holder.stderr.read().strip()}: {self.complaint()}")
        time.sleep(0.3)
        return (resident_kib(self.relay.pid) - before) / count


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def resident_kib(pid: int) -> float:
    """Return the resident memory of a process and its descendants."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024 + sum(resident_kib(child) for child in children_of(pid))


def cpu_of(pid: int) -> tuple[float, int, int]:
    """Return the CPU time of a process and its descendants: in us, and ticks of user and of system time."""
    total = time.clock_gettime(~pid << 3 | CPUCLOCK_SCHED) * 1e6
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(ticks[11]), int(ticks[12])  # proc_pid_stat(5): utime, stime
    for child in children_of(pid):
        below = cpu_of(child)
        total, user, system = total + below[0], user + below[1], system + below[2]
    return total, user, system


def direct(site: Site) -> None:
    site.cable(gateway=True)


def socks_alone(site: Site) -> None:
    site.cable(gateway=True)
    site.socks()
    site.via = f"{GATEWAY}:{SOCKS_PORT}"


def plain(site: Site) -> None:
    site.cable(gateway=False)
    # It carries TCP and nothing else, so nobody answers for the gateway's address.
    site.guest.run("ip", "neigh", "add", GATEWAY, "lladdr", "02:00:00:00:00:01", "dev", "eth0")
    site.launch(*PLAIN, "--control", site.lab.dir / "control")


def split(site: Site) -> None:
    site.cable(gateway=False)
    site.launch(*SPLIT, "--control", site.lab.dir / "control")


def over_socks(site: Site) -> None:
    site.cable(gateway=False)
    site.socks()
    site.launch(*OVER_SOCKS, "--control", site.lab.dir / "control")


def pasta(site: Site) -> None:
    # It takes after the interface of the default route, so there must be one.
    site.lab.veth(site.host, "out0", site.host, "out1")
    site.host.addr("out0", "198.51.100.2/24")
    site.host.route("default", "198.51.100.1")
    address = ("--address", GUEST, "--netmask", "24", "--gateway", GATEWAY)
    ports = ("--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none")
    # It gives up the privilege to look into another process before it opens the namespace.
    netns = site.lab.dir / "netns"
    netns.touch()
    site.host.run("mount", "--bind", site.guest.netns, netns)
    where = ("--ns-ifname", "tap0", "--netns-only", "--no-netns-quit", "--netns", netns)
    how = (
        "--runas",
        "0",
        "--foreground",
        "--stderr",
        "--quiet",
        "--ipv4-only",
        "--no-map-gw",
        "--config-net",
    )
    site.launch("pasta", *how, "--mtu", str(site.mtu), *address, *ports, *where)


def slirp4netns(site: Site) -> None:
    where = ("--netns-type", "path", site.guest.netns, "tap0")
    site.launch("slirp4netns", "--configure", "--mtu", str(site.mtu), *where)


def redsocks(site: Site) -> None:
    site.cable(gateway=True)
    site.socks()
    site.host.run("nft", "-f", "-", input=REDIRECT)
    for state in "time_wait", "close", "last_ack", "fin_wait":  # or the table of connections fills up
        site.host.sysctl(f"net.netfilter.nf_conntrack_tcp_timeout_{state}", 1)
    config = site.lab.dir / "redsocks.conf"
    config.write_text(REDSOCKS)
    site.launch("redsocks", "-c", config)


def hev(site: Site) -> None:
    site.socks()
    config = site.lab.dir / "hev.yml"
    config.write_text(HEV.replace("MTU", str(site.mtu)))

    def move() -> None:
        """Let the guest have the interface; the descriptor stays where the SOCKS server is."""
        device = Path("/sys/class/net/tun0")
        until(lambda: site.host.call(device.exists), "hev-socks5-tunnel: tun0", START_S)
        site.host.run("ip", "link", "set", "tun0", "netns", site.guest.netns)
        site.guest.addr("tun0", GUEST + "/32")
        site.guest.run("ip", "route", "add", "default", "dev", "tun0")

    site.launch("hev-socks5-tunnel", config, then=move)


@dataclass
class Contender:
    """A way from the guest to the server. kind: peers of which kind of ours it is, if any."""

    name: str
    kind: str
    start: Callable[[Site], None]
    needs: tuple[str | Path, ...] = ()
    site: Site | None = None
    failed: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    startups: list[float] = field(default_factory=list)

    def missing(self) -> str:
        for need in self.needs:
            if not shutil.which(need) and not Path(need).is_file():
                return f"{need} is not here"
        return ""

    def open(self, load: Path, mtu: int) -> Site:
        """Return a fresh site whose relay carries connections."""
        site = Site(load, mtu)
        try:
            self.start(site)
        except BaseException:
            site.lab.close()
            raise
        if site.relay:
            self.startups.append(site.startup_ms)
        return site

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Return what an action returns, or None if this one failed, now or before: then it is left out."""
        if self.failed:
            return None
        try:
            return action()
        except FAILURES as error:
            self.failed = str(error).strip().splitlines()[0]
            say(f"{self.name}: left out: {error}")
            return None


def contenders() -> list[Contender]:
    return [
        Contender("direct", "kernel", direct),
        Contender("vtl plain", "plain", plain, PLAIN[:2]),
        Contender("vtl split", "split", split, SPLIT[:1]),
        Contender("pasta", "plain", pasta, ("pasta",)),
        Contender("slirp4netns", "plain", slirp4netns, ("slirp4netns",)),
        Contender("socks alone", "kernel", socks_alone),
        Contender("vtl socks", "socks", over_socks, OVER_SOCKS[:1]),
        Contender("redsocks", "socks", redsocks, ("redsocks", "nft")),
        Contender("hev-socks5-tunnel", "socks", hev, ("hev-socks5-tunnel",)),
    ]


@dataclass(frozen=True)
class Metric:
    """The result of one load: keys of its answer by the names of our figures, the first of which decides.

    times: how many more rounds it takes than another. The 99th percentile of one reading is anything from
    1.1 to 2 medians, since a few moments of another process decide it.
    """

    mode: str
    arguments: tuple[object, ...]
    figures: dict[str, str]
    times: int = 1

    @property
    def name(self) -> str:
        return next(iter(self.figures))


def cpu(name: str) -> dict[str, str]:
    return {f"{name}_user_us": "user_us", f"{name}_system_us": "system_us"}


def streams(mode: str, flows: int, warm: float) -> Metric:
    name = mode if flows == 1 else f"{mode}{flows}"
    return Metric(mode, ("COUNTER", flows, warm), {f"{name}_gbit": "gbit"} | cpu(name))


def calls(at_once: int) -> Metric:
    name = f"cps{at_once}"
    figures = {
        name: "per_s",
        f"{name}_p50_us": "p50_us",
        f"{name}_p99_us": "p99_us",
        f"{name}_errors": "errors",
    }
    return Metric("cps", (at_once,), figures | cpu(name), times=4 if at_once > 1 else 1)


def datagrams(at_once: int, octets: int) -> Metric:
    name = "udp" if at_once > 1 else "udp1"
    figures = {name: "per_s", f"{name}_p50_us": "p50_us", f"{name}_errors": "errors"}
    return Metric("udp", (at_once, octets), figures | cpu(name))


def run_rounds(
    field_: list[Contender], metric: Metric, rounds: int, seconds: float
) -> dict[str, dict[str, list[float]]]:
    """Measure all in turn, note the medians, and return the readings of each contender by figure."""
    found: dict[str, list[dict[str, float]]] = {c.name: [] for c in field_}

    def take(contender: Contender) -> float:
        def measure() -> dict[str, float]:
            site = contender.site
            assert site is not None
            arguments = [site.counter if a == "COUNTER" else a for a in metric.arguments]
            return site.measure(metric.mode, *arguments, seconds=seconds)

        answer = contender.attempt(measure) or {}
        found[contender.name].append(answer)
        return answer.get(metric.figures[metric.name], math.nan)

    alternate(rounds * metric.times, *(partial(take, c) for c in field_))
    readings: dict[str, dict[str, list[float]]] = {figure: {} for figure in metric.figures}
    for contender in field_:
        if not contender.failed:
            answers = found[contender.name]
            for figure, key in metric.figures.items():
                if key in answers[0]:  # the kernel's own path has no process
                    values = readings[figure][contender.name] = [answer[key] for answer in answers]
                    contender.figures[figure] = statistics.median(values)
    name = metric.name
    say(f"{name}: " + ", ".join(f"{c.name} {c.figures[name]:.5g}" for c in field_ if not c.failed))
    return readings


def at_rest(contender: Contender, load: Path, mtu: int, name: str, count: int) -> None:
    """Note the memory of idle connections. A relay that cannot hold so many has no figure, and goes on."""
    if contender.failed:
        return
    try:
        site = contender.open(load, mtu)
        try:
            if site.relay:
                contender.figures[name] = round(site.idle(count), 3)
        finally:
            site.lab.close()
    except FAILURES as error:
        say(f"{contender.name}: no {name}: {error}")


def compare(
    readings: dict[str, list[float]],
    field_: list[Contender],
    worst: Callable[..., float | None] = min,
) -> float | None:
    """Return the worst ratio of one of ours to a peer of its kind; max: fewer is better."""
    ratios = [
        ratio(readings[f"vtl {c.kind}"], readings[c.name])
        for c in field_
        if c.name in readings and f"vtl {c.kind}" in readings and c.name != f"vtl {c.kind}"
    ]
    return worst(ratios, default=None)


def over(readings: dict[str, list[float]], ours: str, theirs: str) -> float | None:
    return ratio(readings[ours], readings[theirs]) if ours in readings and theirs in readings else None


def over_best(readings: dict[str, list[float]], ours: str, peers: Sequence[str]) -> float | None:
    return min((r for peer in peers if (r := over(readings, ours, peer)) is not None), default=None)


def run(field_: list[Contender], load: Path, mtu: int, quick: bool) -> dict[str, float | None]:
    """Measure everything; return the summary."""
    rounds, seconds, warm = (5, 0.3, 0.1) if quick else (5, 1.5, 0.3)
    essential = [streams("up", 1, warm), streams("down", 1, warm), calls(1), calls(64)]
    others = [streams("up", 8, warm), streams("down", 8, warm), Metric("rtt", (), {"rtt_us": "p50_us"})]
    echoes = [datagrams(1, 64), datagrams(64, 1400)]
    with_udp = [c for c in field_ if c.name in ("direct", "vtl split", *SPLITS)]
    readings: dict[str, dict[str, list[float]]] = {}
    try:
        for contender in field_:
            contender.site = contender.attempt(partial(contender.open, load, mtu))
        for metric in essential if quick else essential + others:
            readings |= run_rounds(field_, metric, rounds, seconds)
        for metric in echoes:
            readings |= run_rounds(with_udp, metric, rounds, seconds)
    finally:
        for contender in field_:
            if contender.site:
                contender.site.lab.close()
    for name, count in (("idle_1k_kib", FEW),) if quick else (("idle_1k_kib", FEW), ("idle_10k_kib", MANY)):
        for contender in field_:
            at_rest(contender, load, mtu, name, count)
    for contender in field_:
        if contender.startups and not contender.failed:
            contender.figures["startup_ms"] = round(statistics.median(contender.startups), 1)
    ours = next((c.figures for c in field_ if c.name == "vtl plain"), {})
    p99 = ours.get("cps64_p99_us")
    return {
        "up_ratio": compare(readings["up_gbit"], field_),
        "down_ratio": compare(readings["down_gbit"], field_),
        "cps1_ratio": compare(readings["cps1"], field_),
        "cps64_ratio": compare(readings["cps64"], field_),
        "cps64_p99_ms": None if p99 is None else round(p99 / 1e3, 3),
        "cps64_p99_ratio": compare(readings["cps64_p99_us"], field_, max),
        "up_direct_ratio": over(readings["up_gbit"], "vtl plain", "direct"),
        "down_direct_ratio": over(readings["down_gbit"], "vtl plain", "direct"),
        "idle_kib": ours.get("idle_10k_kib", ours.get("idle_1k_kib")),
        "startup_ms": ours.get("startup_ms"),
        **{
            f"split_{name}_ratio": over_best(readings[figure], "vtl split", SPLITS)
            for name, figure in (("up", "up_gbit"), ("down", "down_gbit"), ("cps64", "cps64"))
        },
        "udp_ratio": over_best(readings["udp"], "vtl split", SPLITS),
        "udp1_ratio": over_best(readings["udp1"], "vtl split", SPLITS),
    }


def show(summary: dict[str, float | None], field_: list[Contender]) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    columns = list(dict.fromkeys(figure for c in field_ for figure in c.figures))
    names = (c.name for c in field_ if not c.failed)
    table = Table(Column(min_width=max(map(len, columns), default=0)), *names)
    for figure in columns:
        cells = (c.figures.get(figure) for c in field_ if not c.failed)
        table.add_row(figure, *("" if cell is None else f"{cell:,.4g}" for cell in cells))
    console = Console()
    console.print(table)
    for name, value in summary.items():
        console.print(f"{name:20} {'not measured' if value is None else value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the essential part, within a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="just these contenders")
    parser.add_argument("--mtu", type=int, default=MTU, metavar="OCTETS", help="of the guest's interface")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    every = [c for c in contenders() if not options.only or c.name in options.only]
    left_out = {c.name: missing for c in every if (missing := c.missing())}
    for name, reason in left_out.items():
        say(f"{name}: left out: {reason}")
    field_ = [c for c in every if c.name not in left_out]
    compileall.compile_dir(ROOT / "vtl_tools", quiet=1)  # as pip and Debian's package do
    summary = run(field_, build_load(), options.mtu, options.quick)
    left_out |= {c.name: c.failed for c in field_ if c.failed}
    if options.json:
        figures = {c.name: {k: round(v, 3) for k, v in c.figures.items()} for c in field_ if not c.failed}
        idle = {"idle_1k": FEW, "idle_10k": MANY}
        print(json.dumps(summary | {"contenders": figures, "left_out": left_out, "idle_connections": idle}))
    else:
        show(summary, field_)


if __name__ == "__main__":
    main()
