"""The cost of following a VM's connections, and the gain when the VM comes back.

usage: bench/freeze.py [--quick] [--long] [--json] [--connections N]      (needs root)

connection_bytes            memory of the service for each connection that it follows
start_ms                    from the command `vtl-freeze start` to the first answer, with all of them
answers_per_s               keep-alives answered a second, when more come than can be
stop_ms                     from `stop` to the end of it, with all of them held
resume_rtts                 from `stop` until new data flows from the peer, in round trips (of 0.1 s)
resume_unaided_s            the same where the service only falls silent, in seconds, after the same pause
tracking_user_us_per_frame  processor time of the service, outside the kernel, for a frame of a full stream
traffic_ratio               throughput while the service watches over that without

--quick takes about two minutes. The pause is ten seconds, with --long five minutes.
"""

import argparse
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from scene import BIN, CLIENT, SERVER, Scene, Service, alternate, quiet, ratio, say

from lab.netns import Host, Lab
from lab.wait import until
from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.runtime import control

DELAY_S = 0.05  # one way
OPENED_PER_S = 2000  # so few that none of their segments is passed over
EACH = 12_500
LOAD_S = 5.0
CUT = """
table netdev cut {
    chain in { type filter hook ingress device vc priority 0; policy drop; }
    chain out { type filter hook egress device vc priority 0; policy drop; }
}
"""


class Bench:
    """The VM is the client, and its peer the server."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.scene = lab, Scene(lab)
        self.vm, self.peer, self.host = self.scene.client, self.scene.server, self.scene.middle
        for one in self.vm, self.peer:
            one.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
            one.sysctl("net.core.somaxconn", 4096)
        self.count = 0

    def run(self) -> Service:
        """Start the service, which knows nothing."""
        self.count += 1
        state = self.lab.dir / f"freeze-{self.count}.state"
        return Service(self.lab, self.host, "vtl-freeze", "--iface", "vmnet1", "--state", state).ready()

    @contextmanager
    def running(self) -> Iterator[Service]:
        service = self.run()
        try:
            yield service
        finally:
            if service.process.poll() is None:
                service.end()

    @contextmanager
    def slow(self) -> Iterator[float]:
        """Join the two by a way that takes time; yields its round trip in seconds."""
        host = self.host
        host.run("ip", "link", "add", "near", "type", "veth", "peer", "name", "far")
        for name in "near", "far":
            host.run("ip", "link", "set", "dev", name, "up")
        for name in "near", "vmnet1":
            host.run("ip", "link", "set", "dev", name, "master", "br0")
        links = ("--iface", "far", "--iface", "eth0")
        with self.scene.vtl(*links, "--delay", f"{DELAY_S}s", service="vtl-wan"):
            self.scene.reach()
            pings = self.vm.run("ping", "-q", "-c5", "-i0.3", SERVER).stdout
            yield float(pings.rpartition("= ")[2].split("/")[1]) / 1000
        host.run("ip", "link", "del", "near")

    def cut(self) -> None:
        self.vm.run("nft", "-f", "-", input=CUT)

    def mend(self) -> None:
        self.vm.run("nft", "delete", "table", "netdev", "cut")

    def listener(self, host: Host, where: str, port: int) -> socket.socket:
        with host.enter():
            return socket.create_server((where, port), backlog=4096)

    # --- what watching costs

    def traffic(self, rounds: int, seconds: float) -> dict[str, float]:
        costs = []

        def watched() -> float:
            with self.running() as service:
                before, frames = service.status()["cpu_s"]["user"], self._frames()
                speed = self.scene.tcp(seconds)
                costs.append((service.status()["cpu_s"]["user"] - before) / (self._frames() - frames) * 1e6)
            return speed

        with self.scene.kernel():
            self.scene.tcp(1.0)
            plain, ours = alternate(rounds, lambda: self.scene.tcp(seconds), watched)
        cost = round(statistics.median(costs), 3)
        return {"tracking_user_us_per_frame": cost, "traffic_ratio": ratio(ours, plain)}

    def _frames(self) -> int:
        directory = Path("/sys/class/net/vmnet1/statistics")
        texts = self.host.call(lambda: [(directory / f"{way}_packets").read_text() for way in ("rx", "tx")])
        return sum(map(int, texts))

    # --- what it gains

    def resume(self, pause_s: float) -> dict[str, float]:
        with self.slow() as rtt:
            say(f"a round trip takes {rtt * 1000:.1f} ms")
            aided = self._pause(pause_s, stop=True)
            unaided = self._pause(pause_s, stop=False)
        return {"resume_rtts": round(aided / rtt, 2), "resume_unaided_s": round(unaided, 2)}

    def _pause(self, pause_s: float, *, stop: bool) -> float:
        """Return after how many seconds data flows again, of a peer that sends 2 MB a second."""
        with self.running() as service, ExitStack() as stack:
            with self.listener(self.vm, CLIENT, 7000) as listener:
                with self.peer.enter():
                    source = stack.enter_context(socket.create_connection((CLIENT, 7000)))
                sink = stack.enter_context(listener.accept()[0])
            got, ends = [0], threading.Event()

            def send() -> None:
                while not ends.wait(0.01):
                    source.sendall(bytes(20_000))
                source.shutdown(socket.SHUT_WR)

            def receive() -> None:
                while octets := sink.recv(1 << 16):
                    got[0] += len(octets)

            threads = [threading.Thread(target=each) for each in (send, receive)]
            for thread in threads:
                thread.start()
            until(lambda: got[0] > 2_000_000, "data")
            self.cut()
            control.ask(service.socket, "start")
            time.sleep(pause_s)
            # What was kept comes from the service itself, and is no sign of the peer's.
            kept = service.status()["freeze"]["kept_octets"] if stop else 0
            before = got[0]
            self.mend()
            began = time.monotonic()
            if stop:
                control.ask(service.socket, "stop")
            else:
                service.process.kill()
            while got[0] <= before + kept:
                time.sleep(0.0005)
            took = time.monotonic() - began
            ends.set()
            for thread in threads:
                thread.join()
        return took

    # --- many

    def many(self, count: int) -> dict[str, float]:
        with self.scene.kernel(), self.running() as service, ExitStack() as stack:
            before = _resident(service)
            self._open(count)
            until(lambda: service.status()["freeze"]["connections"] == count, "all connections to be known")
            each = (_resident(service) - before) / count
            exported = json.loads(
                Path(control.ask(service.socket, "export", patience_s=60.0)["file"]).read_text()
            )
            assert len(exported["connections"]) == count
            frames = self._keep_alives(exported["connections"])
            self.cut()
            with self.peer.enter():
                wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300)  # ETH_P_ALL
            stack.enter_context(wire)
            wire.bind(("vs", 3))
            start = self._first_answer(service, wire, frames)
            answers = self._answers(service, wire, frames)
            self.mend()
            began = time.monotonic()
            control.ask(service.socket, "stop", patience_s=60.0)
            stop = time.monotonic() - began
            say(f"thawed: {service.status()['freeze']['opened']} windows")
        return {
            "connection_bytes": round(each),
            "start_ms": round(start * 1000, 1),
            "answers_per_s": round(answers),
            "stop_ms": round(stop * 1000, 1),
        }

    def _open(self, count: int) -> None:
        """The VM opens them. Processes hold them, so many each as may have so many files."""
        for i, done in enumerate(range(0, count, EACH)):
            for host, what in (self.peer, "accept"), (self.vm, "connect"):
                each = str(min(EACH, count - done))
                command = (sys.executable, __file__, what, str(9000 + i), each)
                holder = host.popen(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                assert holder.stdout is not None
                if holder.stdout.readline() != "ready\n":
                    raise SystemExit(f"bench: {what}: ended before all connections were open")

    def _keep_alives(self, rows: list[dict[str, Any]]) -> list[bytes]:
        """Return what the peer would send on each connection to see whether the VM is there."""
        macs = [address.mac(host.mac(name)) for host, name in ((self.peer, "vs"), (self.vm, "vc"))]
        ends = [address.ip(text) for text in (SERVER, CLIENT)]
        frames = []
        for row in rows:
            frame = build.tcp(
                src_mac=macs[0], dst_mac=macs[1], src=ends[0], dst=ends[1], sport=row["peer_port"],
                dport=row["vm_port"], seq=(row["vm_ack"] - 1) % 2**32, ack=row["vm_nxt"], flags=tcp.ACK,
                window=500, options=tcp.encode_options(timestamps=(row["peer_tsval"], row["vm_tsval"])),
            )  # fmt: skip
            frames.append(bytes(frame[VNET:]))
        return frames

    def _first_answer(self, service: Service, wire: socket.socket, frames: list[bytes]) -> float:
        own = address.mac(self.vm.mac("vc"))
        _drain(wire)
        began, at = time.monotonic(), 0
        command = quiet(self.host, BIN / "vtl-freeze", "start", "--link", service.socket)
        wire.settimeout(0.001)
        while True:
            wire.send(frames[at % len(frames)])
            at += 1
            try:
                while wire.recv(2048)[6:12] != own:
                    pass
            except TimeoutError:
                continue
            break
        took = time.monotonic() - began
        command.wait(10)
        return took

    def _answers(self, service: Service, wire: socket.socket, frames: list[bytes]) -> float:
        wire.settimeout(None)
        before, began, at = service.status()["freeze"]["answered"], time.monotonic(), 0
        while time.monotonic() < began + LOAD_S:
            for _ in range(100):
                wire.send(frames[at % len(frames)])
                at += 1
        took = time.monotonic() - began
        return float((service.status()["freeze"]["answered"] - before) / took)


def _drain(wire: socket.socket) -> None:
    wire.setblocking(False)
    try:
        while True:
            wire.recv(2048)
    except BlockingIOError:
        pass


def _resident(service: Service) -> int:
    """Return how many octets of memory a service has."""
    return int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _hold(what: str, port: int, count: int) -> None:
    """Be one end of some connections until standard input ends."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    held = []
    if what == "accept":
        listener = socket.create_server((SERVER, port), backlog=4096)
        print("ready", flush=True)
        held = [listener.accept()[0] for _ in range(count)]
    else:
        began = time.monotonic()
        for i in range(count):
            held.append(socket.create_connection((SERVER, port)))
            if i % 100 == 0:
                time.sleep(max(0.0, began + i / OPENED_PER_S - time.monotonic()))
        print("ready", flush=True)
    sys.stdin.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, within two minutes")
    parser.add_argument("--long", action="store_true", help="pause for five minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output")
    parser.add_argument("--connections", type=int, default=50_000, metavar="N")
    options = parser.parse_args()
    figures: dict[str, float] = {"connections": options.connections}
    for part in (
        lambda bench: bench.traffic(7 if options.quick else 15, 2.0),
        lambda bench: bench.resume(300.0 if options.long else 10.0),
        lambda bench: bench.many(options.connections),
    ):
        with Lab() as lab:
            found = part(Bench(lab))
        say(", ".join(f"{name} {value}" for name, value in found.items()))
        figures |= found
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    if sys.argv[1:2] in (["accept"], ["connect"]):
        _hold(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
