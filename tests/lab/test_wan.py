"""vtl-wan between real kernels: what they see of its delay, loss and rate."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.scenes import line_of_three
from lab.user import NOBODY, as_user
from lab.wait import slowness, until
from tests.cmd.tools import BIN
from tests.running import bridge
from vtl_tools.common.errors import PermissionNeededError

pytestmark = pytest.mark.lab

TWO = ("--iface", "vmnet1", "--uplink", "eth0")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def round_trips_ms(client: Host, count: int = 20) -> list[float]:
    said = client.run("ping", f"-c{count}", "-i0.02", "-W5", "10.9.0.2", check=False).stdout
    return [float(ms) for ms in re.findall(r"time=([\d.]+)", said)]


def test_the_delay_is_that_of_both_directions_and_changes_while_it_runs(lab: Lab) -> None:
    client, middle, _ = line_of_three(lab)
    with bridge(lab, middle, *TWO, "--delay", "20ms/60ms", service="vtl-wan") as running:
        until(lambda: round_trips_ms(client, 1), "the server")
        least = min(round_trips_ms(client))
        assert 80 <= least < 80 + 20 * slowness()
        middle.run(BIN / "vtl-wan", "set", "--delay", "5ms", "--link", str(running.socket))
        least = min(round_trips_ms(client))
        assert 10 <= least < 10 + 20 * slowness()
        told = running.status()["wan"]
        assert (told["there"]["delay_s"], told["back"]["delay_s"]) == (0.005, 0.005)
        assert running.drops() == {}


def test_a_rate_and_losses_fall_on_real_segments_and_data_stays_whole(lab: Lab) -> None:
    client, middle, server = line_of_three(lab)
    content = bytes(range(256)) * 8192
    lab.http(server, 80, {"file": content})
    options = ("--rate", "40mbit", "--loss", "1%/0", "--loss", "0/1%", "--queue", "50ms", "--seed", "3")
    with bridge(lab, middle, *TWO, *options, service="vtl-wan") as running:
        got = client.popen("curl", "-s", "http://10.9.0.2/file", stdout=subprocess.PIPE).communicate()[0]
        assert got == content
        back = running.status()["wan"]["back"]
        assert back["cut"] > 0
        assert back["drops"]["lost"] > 0
        assert back["octets"] < back["passed"] * 1515


def test_an_outage_of_a_timeline(lab: Lab) -> None:
    client, middle, _ = line_of_three(lab)
    timeline = lab.dir / "timeline"
    timeline.write_text("at 0s outage 1h\n")
    with bridge(lab, middle, *TWO, "--timeline", timeline, service="vtl-wan") as running:
        assert running.event()["event"] == "outage"
        assert round_trips_ms(client, 2) == []
        assert running.drops()["outage"] >= 2


def test_a_realtime_priority_is_the_services_alone(lab: Lab) -> None:
    client, middle, _ = line_of_three(lab)
    with bridge(lab, middle, *TWO, "--delay", "20ms", "--realtime", service="vtl-wan") as running:
        until(lambda: round_trips_ms(client, 1), "the server")
        assert min(round_trips_ms(client)) >= 40
        policies = {
            os.sched_getscheduler(pid) & ~os.SCHED_RESET_ON_FORK
            for pid in (running.process.pid, *children(running.process.pid))
        }
        assert os.sched_getscheduler(running.process.pid) == os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
        assert policies == {os.SCHED_FIFO, os.SCHED_OTHER}


def test_a_realtime_priority_that_is_not_permitted_is_said(lab: Lab) -> None:
    host = lab.host("host")
    command = [*as_user(lab, host, "vtl-wan"), "--iface", "channel:a", "--iface", "channel:b", "--realtime"]
    ran = host.run(*command, check=False, user=NOBODY)
    assert ran.returncode == PermissionNeededError.exit_code
    assert "--realtime: Operation not permitted; run as root or with CAP_SYS_NICE" in ran.stderr


def test_verify_tells_what_it_measured_without_privileges() -> None:
    ran = subprocess.run(
        [
            *(BIN / "vtl-wan", "verify", "--delay", "5ms", "--loss", "2%"),
            *("--frames", "2000", "--per-second", "2000"),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = re.findall(r"^(\w+): (\w+): set ([\d.]+), seen ([\d.]+) .*kept$", ran.stdout, re.M | re.I)
    assert [(way, quantity) for way, quantity, _, _ in found] == [
        ("there", "delay"), ("there", "loss"), ("back", "delay"), ("back", "loss")
    ]  # fmt: skip
    for _, quantity, wanted, seen in found:
        if quantity == "loss":
            assert float(wanted) == 2
            assert 0.5 < float(seen) < 4
        else:
            assert float(seen) >= float(wanted) == 5
