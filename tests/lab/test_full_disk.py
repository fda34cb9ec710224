"""Disks that are full or slow, and readers that stopped reading: frames pass, and records go on later."""

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.netns import Host, Lab
from lab.scenes import Line, line_of_three
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge, bridge
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

TWO = ("--iface", "vmnet1", "--iface", "eth0")
LINKS = ("--iface", "vmnet1", "--uplink", "eth0")
LOGGED = "deny udp log pcap\nallow any log\n"
PIPE = 1 << 20


@pytest.fixture
def scene(lab: Lab) -> Line:
    """client (10.9.0.1) - vmnet1 [middle] eth0 - server (10.9.0.2)."""
    return line_of_three(lab)


def passes(client: Host, count: int = 5, size: int = 1000) -> bool:
    """Whether all of some pings are answered."""
    sent = ("-c", str(count), "-i0.002", "-W5", "-q", "-s", str(size))
    return client.run("ping", *sent, "10.9.0.2", check=False).returncode == 0


class Disk:
    """A small file system that only the middle host sees."""

    def __init__(self, lab: Lab, host: Host, octets: int = 64 << 10) -> None:
        self.path, self.host = lab.dir / "disk", host
        self.path.mkdir()
        host.run("mount", "-t", "tmpfs", "-o", f"size={octets}", "disk", self.path)

    def fill(self) -> None:
        self.host.run("sh", "-c", f"cat /dev/zero > {self.path}/fill", check=False)
        assert self.host.run("sh", "-c", f"echo x > {self.path}/more", check=False).returncode

    def enlarge(self) -> None:
        self.host.run("mount", "-o", "remount,size=64m", self.path)

    def read(self, name: str) -> bytes:
        return self.host.call((self.path / name).read_bytes)


@contextmanager
def service(host: Host, where: Path, tool: str, *arguments: str | Path, **streams: Any) -> Iterator[Any]:
    """A service with streams of its own; yields its process when it answers."""
    process = host.popen(BIN / tool, *arguments, "--control", where, **streams)
    until(lambda: process.poll() is not None or answers(where), "the service to answer")
    yield process
    assert process.poll() is None, "the service has ended"
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


def answers(where: Path) -> bool:
    try:
        return bool(control.ask(where, "status"))
    except Exception:
        return False


def send_datagrams(host: Host, to: str, count: int = 300) -> None:
    """Send to closed ports: packets that the rules deny and log, each by itself."""
    sock = host.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with sock:
        for number in range(count):
            with suppress(ConnectionRefusedError):
                sock.sendto(b"x", (to, 1000 + number))


def recording(running: Bridge) -> Any:
    return running.status()["recordings"][0]


def frames_in(*files: Path) -> int:
    shown = [subprocess.run(["tcpdump", "-nr", file], capture_output=True, check=True) for file in files]
    return sum(one.stdout.count(b"ICMP echo") for one in shown)


# --- captures


def test_a_capture_on_a_full_disk_stops_by_itself_and_goes_on_when_there_is_room(
    lab: Lab, scene: Line
) -> None:
    client, middle, _ = scene
    disk = Disk(lab, middle)
    file = disk.path / "seen.pcapng"
    with bridge(lab, middle, *TWO, "--pcap", file) as running:
        assert passes(client, 100)
        told = running.wait_for("recording", what="stopped")
        assert (told["file"], told["reason"]) == (str(file), "No space left on device")
        assert recording(running)["recording"] is False
        assert passes(client)
        disk.enlarge()
        running.wait_for("recording", what="resumed")
        assert recording(running)["recording"] is True
        assert passes(client)
    middle.run("cp", file, lab.dir)
    copied = lab.dir / "seen.pcapng"
    assert frames_in(copied) == 4 * 110  # all: those of the time between had waited
    assert copied.stat().st_mode & 0o777 == 0o600


def test_a_capture_that_finds_no_room_at_all_is_no_reason_not_to_start(lab: Lab, scene: Line) -> None:
    client, middle, _ = scene
    disk = Disk(lab, middle)
    disk.fill()
    with bridge(lab, middle, *TWO, "--pcap", disk.path / "seen.pcapng") as running:
        assert passes(client)
        running.wait_for("recording", what="stopped")
        assert passes(client)


def test_a_disk_that_takes_nothing_more_delays_no_frame(lab: Lab, scene: Line) -> None:
    client, middle, server = scene
    content = bytes(range(256)) * 100_000
    lab.http(server, 80, {"big": content})
    with bridge(lab, middle, *TWO, "--pcap", lab.dir / "seen.pcapng") as running:
        (writer,) = [pid for pid in children(running.process.pid) if name_of(pid) == "vtl-capture"]
        os.kill(writer, signal.SIGSTOP)  # as a write to a disk that is gone
        try:
            got = client.run("wget", "-qO", "/dev/null", "http://10.9.0.2/big", check=False)
            assert got.returncode == 0
            told = recording(running)
            assert told["recorded"] > 0
            assert told["unrecorded"] > 0
        finally:
            os.kill(writer, signal.SIGCONT)


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def test_captures_rotate_and_take_only_their_own_files_away(lab: Lab, scene: Line) -> None:
    client, middle, _ = scene
    directory = lab.dir / "captures"
    directory.mkdir(mode=0o700)
    (directory / "seen.3.pcapng").write_text("of another run")
    limits = ("--pcap-size", "1", "--pcap-files", "2")
    with bridge(lab, middle, *TWO, "--pcap", directory / "seen.pcapng", *limits) as running:
        for _ in range(4):
            assert passes(client, 100, 1400)
            assert passes(client, 100, 1400)
        until(lambda: recording(running)["file"] >= str(directory / "seen.4.pcapng"), "the next file")
    assert (directory / "seen.3.pcapng").read_text() == "of another run"
    files = sorted(set(directory.iterdir()) - {directory / "seen.3.pcapng"})
    assert len(files) == 2
    assert "seen.pcapng" not in [file.name for file in files]
    for file in files:
        assert file.stat().st_size <= 1 << 20
        assert file.stat().st_mode & 0o777 == 0o600
        assert frames_in(file)


def test_a_capture_that_is_there_already_is_not_overwritten_unasked(lab: Lab, scene: Line) -> None:
    client, middle, _ = scene
    file = lab.dir / "seen.pcapng"
    file.write_text("of last week")
    ran = middle.run(BIN / "vtl-bridge", *TWO, "--pcap", file, check=False)
    assert ran.returncode == 3
    assert ran.stderr == (
        f"vtl-bridge: --pcap: {file}: there is a file already; name another, or give --pcap-overwrite\n"
    )
    assert file.read_text() == "of last week"
    with bridge(lab, middle, *TWO, "--pcap", file, "--pcap-overwrite"):
        assert passes(client)
    assert frames_in(file) == 20


def test_several_workers_record_into_one_file(lab: Lab, scene: Line) -> None:
    client, middle, _ = scene
    file = lab.dir / "seen.pcapng"
    with bridge(lab, middle, *TWO, "--workers", "2", "--pcap", file) as running:
        for _ in range(5):
            assert passes(client)
        assert recording(running)["recorded"] >= 100
    assert frames_in(file) == 100


# --- messages, events and state


def test_a_denied_packet_takes_no_firewall_down_whose_log_and_state_are_on_a_full_disk(
    lab: Lab, scene: Line
) -> None:
    client, middle, _ = scene
    rules = lab.dir / "rules"
    rules.write_text(LOGGED)
    disk = Disk(lab, middle)
    where = disk.path / "fw.sock"
    given = (*LINKS, "--spoofing", "--rules", rules, "--pcap-rules", disk.path / "denied", "--pcap-overwrite")
    with (
        middle.call((disk.path / "log").open, "ab") as log,
        middle.call((disk.path / "out").open, "ab") as out,
    ):
        disk.fill()
        for extra, streams in ([], {"stderr": log}), (["--json"], {"stderr": log, "stdout": out}):
            process = middle.popen(BIN / "vtl-fw", *given, *extra, "--control", where, **streams)
            until(partial(is_up_or_gone, middle, where, process), "the service")
            send_datagrams(client, "10.9.0.2")
            assert passes(client)
            assert process.poll() is None
            process.terminate()
            assert process.wait(PATIENCE_S) == 0


def is_up_or_gone(host: Host, where: Path, process: Any) -> bool:
    return process.poll() is not None or host.call(answers, where)


def test_what_a_full_disk_kept_out_of_the_log_is_there_when_it_has_room(lab: Lab, scene: Line) -> None:
    client, middle, _ = scene
    rules = lab.dir / "rules"
    rules.write_text(LOGGED)
    disk = Disk(lab, middle)
    with middle.call((disk.path / "log").open, "ab") as log:
        disk.fill()
        given = (*LINKS, "--spoofing", "--rules", rules)
        with service(middle, lab.dir / "fw.sock", "vtl-fw", *given, stderr=log):
            send_datagrams(client, "10.9.0.2")
            assert passes(client)
            assert b"deny" not in disk.read("log")
            disk.enlarge()
            until(lambda: disk.read("log").count(b": deny") >= 50, "the lines that waited")


def test_a_reader_of_events_and_messages_that_hangs_holds_up_no_frame(lab: Lab, scene: Line) -> None:
    client, middle, server = scene
    rules = lab.dir / "rules"
    rules.write_text(LOGGED)
    for which, extra in ("stdout", ["--json"]), ("stderr", []):
        read, write = os.pipe()
        fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, PIPE)
        os.set_blocking(write, False)
        assert sum(fill(write)) >= PIPE
        given = (*LINKS, "--spoofing", "--rules", rules, *extra)
        with service(middle, lab.dir / f"{which}.sock", "vtl-fw", *given, **{which: write}):
            send_datagrams(client, "10.9.0.2")
            send_datagrams(server, "10.9.0.1")
            assert passes(client)
        os.close(read)
        os.close(write)


def fill(fd: int) -> Iterator[int]:
    while True:
        try:
            yield os.write(fd, b"." * 4096)
        except BlockingIOError:
            return
