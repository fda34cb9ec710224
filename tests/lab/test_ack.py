"""vtl-ack between real kernels, on a path that vtl-wan makes long."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, NamedTuple

import pytest

from lab.netns import Host, Lab
from lab.scenes import Line, line_of_three
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from tests.running import Bridge, bridge

pytestmark = pytest.mark.lab

SERVER = "10.9.0.2"
PLAIN = "tx off rx off tso off gso off gro off"
PROGRAM = """
import hashlib, socket, sys
role, host, port, sends, receives, buffer = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7])
family = socket.AF_INET6 if ":" in host else socket.AF_INET
s = socket.socket(family)
if buffer:
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer // 2)  # Linux doubles it
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer // 2)
def say(*words):
    print(*words, flush=True)
if role == "server":
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((host, port)); s.listen(); say("ready"); s, _ = s.accept()
else:
    s.connect((host, port))
say("open")
piece = bytes(range(256)) * 256
try:
    total = hashlib.sha256()
    for at in range(0, sends, len(piece)):
        data = piece[: sends - at]
        s.sendall(data); total.update(data)
    if sends:
        say("sent", total.hexdigest())
    if receives:
        if receives == 2:
            say("waits"); sys.stdin.readline()
        total, octets = hashlib.sha256(), 0
        while data := s.recv(1 << 20):
            if not octets:
                say("receives")
            octets += len(data); total.update(data)
        say("received", octets, total.hexdigest())
    if sends:
        s.shutdown(socket.SHUT_WR)
        say("closed", len(s.recv(1)))
    else:
        s.close()
except OSError as e:
    say("error", e.strerror)
"""


class Talker:
    """A program with one socket at a host: what it says, word by word."""

    def __init__(
        self, host: Host, role: str, address: str, port: int, *, sends: int = 0, receives: int = 0,
        buffer: int = 0,
    ) -> None:  # fmt: skip
        words = (role, address, str(port), str(sends), str(receives), str(buffer))
        self.process = host.popen(
            sys.executable, "-c", PROGRAM, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if role == "server":
            self.until("ready")

    def until(self, word: str) -> list[str]:
        """Return the rest of the line that begins with a word; an error ends the test."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            first, *rest = line.split()
            if first == word:
                return rest
            assert first != "error", line
        raise AssertionError(f"it ended before it said {word}")

    def go_on(self) -> None:
        stdin: IO[str] | None = self.process.stdin
        assert stdin is not None
        stdin.write("\n")
        stdin.flush()


class Path3(NamedTuple):
    """client - vmnet1 [middle: vtl-ack, vtl-wan] eth0 - server."""

    line: Line
    ack: Bridge
    wan: Bridge


@contextmanager
def long_line(lab: Lab, *wan: str) -> Iterator[tuple[Line, Bridge]]:
    """A line whose middle has a long path to the server, behind a channel."""
    line = line_of_three(lab)
    for host in line.middle, line.server:
        host.run("ethtool", "-K", "eth0", *PLAIN.split())
    links = ("--iface", f"channel:{lab.dir / 'path'},server", "--iface", "eth0", "--user", "root")
    with bridge(lab, line.middle, *links, *wan, name="wan", service="vtl-wan") as far:
        yield line, far


@contextmanager
def path(lab: Lab, *options: str, wan: tuple[str, ...] = ("--delay", "50ms")) -> Iterator[Path3]:
    """A long path with vtl-ack before it."""
    with (
        long_line(lab, *wan) as (line, far),
        bridge(lab, line.middle, *near(lab), *options, name="ack", service="vtl-ack") as ack,
    ):
        reach(line)
        yield Path3(line, ack, far)


def near(lab: Lab) -> tuple[str, ...]:
    return ("--iface", "vmnet1", "--uplink", f"channel:{lab.dir / 'path'}", "--user", "root")


def reach(line: Line) -> None:
    for address in SERVER, "fd09::2":
        until(
            lambda address=address: (
                not line.client.run(  # type: ignore[misc]
                    "ping", "-c1", "-W1", address, check=False
                ).returncode
            ),
            "the server",
        )


def told(running: Bridge) -> dict[str, int]:
    counters: dict[str, int] = running.status()["ack"]
    return counters


def in_flight(running: Bridge) -> int:
    octets: int = running.status()["wan"]["there"]["waiting_octets"]
    return octets


def digest(octets: int) -> str:
    piece = bytes(range(256)) * 256
    data = piece * (octets // len(piece)) + piece[: octets % len(piece)]
    return hashlib.sha256(data).hexdigest()


def test_an_application_with_a_window_of_64_kib_fills_a_long_path(lab: Lab) -> None:
    octets = 12_000_000
    with path(lab, "--only", "dst port 5001", "--congestion", "newreno") as found:
        client, _, server = found.line
        receiver = Talker(server, "server", SERVER, 5001, receives=1)
        Talker(client, "client", SERVER, 5001, sends=octets, buffer=65536)
        until(lambda: in_flight(found.wan) > 5 * 65536, "more than its window in flight")
        assert receiver.until("received") == [str(octets), digest(octets)]
        until(lambda: told(found.ack)["delivered_octets"] == octets, "the last acknowledgement")
        # not chosen, so the window is the limit
        other = Talker(server, "server", "fd09::2", 5002, receives=1)
        Talker(client, "client", "fd09::2", 5002, sends=300_000, buffer=65536)
        assert other.until("received") == ["300000", digest(300_000)]
        assert told(found.ack)["acknowledged_octets"] == octets


def test_both_directions_of_a_guest_with_small_buffers_and_ipv6(lab: Lab) -> None:
    octets = 3_000_000
    with path(lab, "--direction", "both") as found:
        client, _, server = found.line
        for address in SERVER, "fd09::2":
            sender = Talker(server, "server", address, 5001, sends=octets)
            receiver = Talker(client, "client", address, 5001, receives=1, buffer=65536)
            assert receiver.until("received") == [str(octets), digest(octets)]
            assert sender.until("closed") == ["0"]
        assert told(found.ack)["delivered_octets"] == 2 * octets


def test_a_receiver_that_stops_stops_the_guest_and_the_buffer_is_bounded(lab: Lab) -> None:
    octets, buffer = 6_000_000, 1 << 20
    with path(lab, "--buffer", "1", wan=("--delay", "2ms")) as found:
        client, _, server = found.line
        receiver = Talker(server, "server", SERVER, 5001, receives=2, buffer=65536)
        sender = Talker(client, "client", SERVER, 5001, sends=octets, buffer=65536)
        receiver.until("waits")
        until(lambda: told(found.ack)["held_octets"] >= buffer, "a full buffer")
        receiver.go_on()
        assert receiver.until("received") == [str(octets), digest(octets)]
        assert sender.until("closed") == ["0"]
        counters = told(found.ack)
        # what one piece of memory takes beside the data, and the window of the peer's own SYN
        assert counters["held_octets_max"] < 1.3 * buffer
        assert counters["lost_octets"] == 0


def test_a_service_that_is_killed_resets_both_ends_when_it_is_back(lab: Lab) -> None:
    with long_line(lab, "--delay", "100ms", "--rate", "20mbit", "--queue", "10s") as (line, _):
        client, middle, server = line
        command = (
            BIN / "vtl-ack",
            *near(lab),
            "--guard",
            "keep",
            "--control",
            lab.dir / "run-None" / "ack.sock",
        )
        killed = middle.popen(*command)
        reach(line)
        receiver = Talker(server, "server", SERVER, 5001, receives=1)
        sender = Talker(client, "client", SERVER, 5001, sends=4_000_000)
        sender.until("sent")  # acknowledged, or in the guest's own buffer
        receiver.until("receives")
        killed.kill()
        killed.wait()
        with bridge(lab, middle, *near(lab), name="ack", service="vtl-ack") as again:
            assert again.wait_for("inherited")["connections"] == 1
            for talker in sender, receiver:
                assert talker.process.stdout is not None
                assert "error Connection reset by peer" in talker.process.stdout.read()
            server_two = Talker(server, "server", SERVER, 5002, receives=1)
            Talker(client, "client", SERVER, 5002, sends=1000)
            assert server_two.until("received") == ["1000", digest(1000)]


def test_a_dead_far_side_becomes_a_reset_to_the_guest(lab: Lab) -> None:
    with path(lab, "--give-up", "2", wan=("--delay", "10ms")) as found:
        client, _, server = found.line
        Talker(server, "server", SERVER, 5001, receives=2, buffer=4096)
        sender = Talker(client, "client", SERVER, 5001, sends=200_000)
        sender.until("sent")
        until(lambda: told(found.ack)["held_octets"], "data that waits")
        server.run("ip", "link", "set", "eth0", "down")
        event = found.ack.wait_for("undelivered")
        assert (event["guest"], event["peer_port"], event["sender"]) == ("10.9.0.1", 5001, "guest")
        assert event["reason"] == "no-answer"
        assert told(found.ack)["lost_octets"] == event["octets"] > 0
        assert sender.process.stdout is not None
        assert "error Connection reset by peer" in sender.process.stdout.read()


def test_connections_go_on_without_the_service_if_nothing_waits(lab: Lab) -> None:
    """It ends and another begins, both within one connection; of the second it is an older one."""
    line = line_of_three(lab)
    links = ("--iface", "vmnet1", "--uplink", "eth0")
    receiver_says: list[str] = []
    with bridge(lab, line.middle, *links, service="vtl-ack") as first:
        reach(line)
        receiver = Talker(line.server, "server", SERVER, 5001, sends=100_000, receives=2)
        sender = Talker(line.client, "client", SERVER, 5001, sends=100_000, receives=2)
        for talker in receiver, sender:
            talker.until("sent")
        until(lambda: told(first)["delivered_octets"] == 100_000, "the data")
        line.client.run("ping", "-c1", SERVER)
    with bridge(lab, line.middle, *links, service="vtl-ack") as second:
        for talker in receiver, sender:
            talker.until("waits")
        assert sender.process.poll() is None
        sender.process.kill()  # its kernel closes the connection: a FIN, or a reset as data was not read
        receiver.go_on()
        assert receiver.process.stdout is not None
        receiver_says += receiver.process.stdout.read().split("\n")
        assert any(says.startswith(("received 100000", "error Connection reset")) for says in receiver_says)
        assert told(second)["opened"] == 0


def test_a_bad_condition_is_one_line_before_anything_is_opened() -> None:
    ran = subprocess.run(
        [BIN / "vtl-ack", "--iface", "a", "--uplink", "b", "--only", "udp port 53", "--json"],
        capture_output=True, text=True, check=False, timeout=PATIENCE_S,
    )  # fmt: skip
    assert ran.returncode == 2
    assert "--only:1:1: expected 'tcp'" in json.loads(ran.stdout)["error"]
