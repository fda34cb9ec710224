"""SIGHUP: no service ends by it; files of records are opened again, and vtl-fw reads its rules again."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.scenes import Line, line_of_three
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge, bridge
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

TWO = ("--iface", "vmnet1", "--iface", "eth0")
LINKS = ("--iface", "vmnet1", "--uplink", "eth0")


@pytest.fixture
def scene(lab: Lab) -> Line:
    """client (10.9.0.1) - vmnet1 [middle] eth0 - server (10.9.0.2)."""
    return line_of_three(lab)


def hang_up(running: Bridge) -> None:
    running.process.send_signal(signal.SIGHUP)


def passes(client: Host) -> bool:
    return client.run("ping", "-c1", "-W20", "-q", "10.9.0.2", check=False).returncode == 0


def frames_in(file: Path) -> int:
    shown = subprocess.run(["tcpdump", "-nr", file], capture_output=True, check=True)
    return shown.stdout.count(b"ICMP echo")


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_a_capture_and_a_log_that_were_renamed_are_created_again(
    lab: Lab, scene: Line, workers: tuple[str, ...]
) -> None:
    client, middle, _ = scene
    capture, log = lab.dir / "seen.pcapng", lab.dir / "log"
    with bridge(lab, middle, *TWO, *workers, "-v", "--pcap", capture, "--log", log) as running:
        assert passes(client)
        until(lambda: frames_in(capture) == 4, "the frames")
        capture.rename(lab.dir / "old.pcapng")
        log.rename(lab.dir / "old.log")
        hang_up(running)
        until(lambda: capture.exists() and log.exists(), "new files")
        assert passes(client)
        middle.run("ip", "link", "set", "eth0", "down")
        until(lambda: "eth0: down" in log.read_text(), "a line in the new log")
    assert frames_in(capture) == frames_in(lab.dir / "old.pcapng") == 4
    for file in capture, log, lab.dir / "old.pcapng", lab.dir / "old.log":
        assert file.stat().st_mode & 0o777 == 0o600
    assert log.read_text()[:2] == "20"  # a time stamp


def test_a_terminal_that_closes_ends_no_worker(lab: Lab, scene: Line) -> None:
    client, middle, _ = scene
    with bridge(lab, middle, *TWO, "--workers", "2") as running:
        os.killpg(running.process.pid, signal.SIGHUP)  # as the kernel does to all processes of the terminal
        assert running.status()["workers"] == 2
        assert passes(client)


def test_a_hang_up_during_the_start_ends_no_service(lab: Lab, scene: Line) -> None:
    middle = scene.middle
    rules = lab.dir / "rules"
    rules.write_text("allow any\n")
    direct = ("--direct", f"channel:{lab.dir}/x", "--allow", "10.1.0.0/16")
    for tool, options in {
        "vtl-bridge": TWO,
        "vtl-freeze": ("--iface", "eth0"),
        "vtl-fw": (*LINKS, "--spoofing", "--rules", rules),
        "vtl-subnet": ("--iface", "vmnet1", "--default", "eth0", *direct),
        "vtl-tor": ("--iface", "vmnet1", "--no-check"),
        "vtl-tor --start-tor": ("--iface", "vmnet1", "--start-tor"),
    }.items():  # fmt: skip
        where = lab.dir / f"{tool}.sock"
        process = middle.popen(BIN / tool.split()[0], *options, "--control", where)
        until(lambda: handles_hang_up(process) or process.poll() is not None, "the handler")  # noqa: B023
        while not where.exists() and process.poll() is None:
            process.send_signal(signal.SIGHUP)
            time.sleep(0.005)  # thousands would wait in a line, each with a reload of its own
        until(lambda: "pid" in status(where) or process.poll() is not None, "the service")  # noqa: B023
        for _ in range(3):
            process.send_signal(signal.SIGHUP)
            assert status(where)
        process.terminate()
        assert process.wait(PATIENCE_S) == 0, tool


def handles_hang_up(process: "subprocess.Popen[str]") -> bool:
    try:
        told = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return False
    caught = next(line for line in told.splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) & 1 << (signal.SIGHUP - 1))


def status(where: Path) -> dict[str, object]:
    try:
        return control.ask(where, "status")
    except Exception:
        return {}


def test_a_firewall_reads_the_rules_again_that_only_root_may_read(lab: Lab, scene: Line) -> None:
    client, middle, _ = scene
    secret = lab.dir / "secret"
    secret.mkdir(mode=0o700)
    rules, more = secret / "rules", secret / "more"
    rules.write_text('include "more"\n')
    more.write_text("deny any\n")
    with bridge(
        lab,
        middle,
        *LINKS,
        "--address",
        "10.9.0.1",
        "--rules",
        rules,
        "--log",
        lab.dir / "log",
        service="vtl-fw",
    ) as running:
        fresh = secret / "fresh"
        fresh.write_text("allow any\n")
        fresh.rename(more)
        hang_up(running)
        told = running.wait_for("reload")
        assert (told["rules"], told["file"]) == (1, str(rules))
        assert passes(client)

        more.write_text("allow nothing\n")
        hang_up(running)
        told = running.wait_for("reload")
        assert "more:1" in told["error"]
        until(lambda: "rules of before stay in force" in (lab.dir / "log").read_text(), "a warning")
        assert passes(client)

        more.unlink()
        hang_up(running)
        assert "more" in running.wait_for("reload")["error"]
        more.write_text("deny any\n")
        hang_up(running)
        assert running.wait_for("reload")["ended"] >= 1
        assert running.status()["policy"]["file"] == str(rules)


def test_rules_of_standard_input_stay_with_a_warning(lab: Lab, scene: Line) -> None:
    client, middle, _ = scene
    rules = lab.dir / "rules"
    rules.write_text("allow any\n")
    with rules.open() as given:
        process = middle.popen(
            BIN / "vtl-fw", *LINKS, "--spoofing", "--rules", "-", "--control", lab.dir / "fw.sock",
            stdin=given, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    until(lambda: status(lab.dir / "fw.sock"), "the service")
    process.send_signal(signal.SIGHUP)
    assert "<stdin>: cannot be read again; the rules of before stay in force" in process.stderr.readline()
    assert passes(client)
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
