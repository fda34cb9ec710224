"""The scene of the benchmarks of what joins links: a client and a server, and a host in the middle."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from lab.netns import Host, Lab  # noqa: E402 - after the path is set

CLIENT, SERVER = "10.9.0.1", "10.9.0.2"
BIN = Path(sys.executable).parent


def quiet(host: Host, *command: str | Path, **options: Any) -> "subprocess.Popen[Any]":
    """Start a process whose output nobody reads."""
    return host.popen(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Scene:
    """client (10.9.0.1, veth `vc`) - [vmnet1 middle eth0] - server (10.9.0.2, veth `vs`)."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.client, self.middle, self.server = (lab.host(n, ipv6=False) for n in ("client", "mid", "server"))
        lab.veth(self.client, "vc", self.middle, "vmnet1")
        lab.veth(self.server, "vs", self.middle, "eth0")
        self.client.addr("vc", CLIENT + "/24")
        self.server.addr("vs", SERVER + "/24")
        lab.bridge(self.middle, "br0", [])
        quiet(self.server, "iperf3", "--server")

    @contextmanager
    def kernel(self) -> Iterator[None]:
        """Join them by the kernel's bridge."""
        for port in "vmnet1", "eth0":
            self.middle.run("ip", "link", "set", "dev", port, "master", "br0")
        self.reach()
        try:
            yield
        finally:
            for port in "vmnet1", "eth0":
                self.middle.run("ip", "link", "set", "dev", port, "nomaster")

    @contextmanager
    def vtl(self, *arguments: str | Path, service: str = "vtl-bridge") -> Iterator["Service"]:
        """Join them by one of our services with these arguments."""
        with services(self.lab, service, (self.middle, arguments)) as running:
            yield running[0]

    def reach(self) -> None:
        """Wait until the client reaches the server."""
        until = time.monotonic() + 10
        while self.client.run("ping", "-c1", "-W1", "-q", SERVER, check=False).returncode:
            if time.monotonic() > until:
                raise SystemExit("bench: the client does not reach the server")

    def tcp(self, seconds: float, flows: int = 1, client: Host | None = None) -> float:
        """Return TCP goodput from the client to the server in Gbit/s."""
        command = ["iperf3", "--client", SERVER, "--json", "--time", str(seconds), "--parallel", str(flows)]
        for _ in range(20):
            ran = (client or self.client).run(*command, check=False)
            if ran.returncode == 0:
                return float(json.loads(ran.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e9
            time.sleep(0.1)  # the server is still busy with the last run
        raise SystemExit(f"bench: iperf3: {ran.stdout[-200:]}")

    def rtt(self, count: int) -> float:
        """Return the median round trip of a small UDP datagram in microseconds."""
        echo = quiet(self.server, sys.executable, __file__, "echo")
        ran = self.client.run(sys.executable, __file__, "rtt", str(count))
        echo.kill()
        return float(ran.stdout)


class Service:
    """One of our services that starts in a host. ready() waits until it runs."""

    def __init__(self, lab: Lab, host: Host, tool: str, *arguments: str | Path) -> None:
        self.tool, self.socket = tool, lab.dir / f"{tool}-{time.monotonic_ns()}.sock"
        command = [BIN / tool, *arguments, "--control", self.socket, "--json"]
        self.process = host.popen(*command, stdout=subprocess.PIPE, text=True)

    def ready(self) -> Self:
        assert self.process.stdout is not None
        if '"ready"' not in (line := self.process.stdout.readline()):
            raise SystemExit(f"bench: {self.tool} did not start: {line}")
        return self

    def status(self) -> dict[str, Any]:
        from vtl_tools.common.runtime import control

        return control.ask(self.socket, "status")

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(10)


@contextmanager
def services(lab: Lab, tool: str, *places: tuple[Host, tuple[str | Path, ...]]) -> Iterator[list[Service]]:
    """Run a service in each place: a host, and arguments."""
    started = [Service(lab, host, tool, *arguments) for host, arguments in places]
    try:
        yield [service.ready() for service in started]
    finally:
        for service in started:
            service.end()


def alternate(rounds: int, *measures: Callable[[], float]) -> list[list[float]]:
    """Measure each in turn, several rounds; return the readings of each. Neighbours in time compare best.

    Each second round goes backwards, so nobody always comes after the same one.
    """
    readings: list[list[float]] = [[] for _ in measures]
    turns = list(zip(readings, measures, strict=True))
    for number in range(rounds):
        for reading, measure in reversed(turns) if number % 2 else turns:
            reading.append(measure())
    return readings


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios of the rounds, which a machine that is slow for a while spares."""
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def _echo() -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("", 5300))
        while True:
            sock.sendto(*sock.recvfrom(64))


def _rtt(count: int, server: str = SERVER) -> None:
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((server, 5300))
        sock.settimeout(0.5)
        took = []
        while len(took) < count:
            start = time.perf_counter()
            try:
                sock.send(b"x" * 18)
                sock.recv(64)
            except (TimeoutError, ConnectionRefusedError):
                continue
            took.append(time.perf_counter() - start)
        print(statistics.median(took) * 1e6)


def _longest() -> None:
    """Print the longest round trip in seconds, one each 2 ms, until standard input ends."""
    import select
    import socket
    from contextlib import suppress

    longest = -1.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((SERVER, 5300))
        sock.settimeout(2)
        while not select.select([sys.stdin], [], [], 0.002)[0]:
            start = time.perf_counter()
            with suppress(TimeoutError, ConnectionRefusedError):  # what is lost took at least so long
                sock.send(b"x" * 18)
                sock.recv(64)
            if longest < 0:
                longest = 0.0  # the first one had to find the way
                print("ready", flush=True)
            else:
                longest = max(longest, time.perf_counter() - start)
    print(longest)


if __name__ == "__main__":
    {"echo": _echo, "rtt": lambda: _rtt(int(sys.argv[2]), *sys.argv[3:]), "longest": _longest}[sys.argv[1]]()
