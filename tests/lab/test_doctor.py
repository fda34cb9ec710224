"""vtl-doctor on machines that lack something."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import kernel
from lab.netns import Host, Lab
from lab.user import NOBODY, as_user

pytestmark = pytest.mark.lab

DOCTOR = (Path(sys.executable).parent / "vtl-doctor", "--json")


def findings(run: "subprocess.CompletedProcess[str]") -> dict[str, dict[str, Any]]:
    told = [json.loads(line) for line in run.stdout.splitlines()]
    return {one["name"]: one for one in told if one["schema"] == "vtl-doctor.finding/1"}


def uses(run: "subprocess.CompletedProcess[str]") -> dict[tuple[str, str], dict[str, Any]]:
    told = [json.loads(line) for line in run.stdout.splitlines()]
    return {(one["tool"], one["use"]): one for one in told if one["schema"] == "vtl-doctor.use/1"}


def hide(host: Host, path: str) -> None:
    """Put an empty file over another, in this host only."""
    host.call(kernel.mount, "/dev/null", path, None, kernel.MS_BIND)


def test_a_machine_that_has_all_is_ready(lab: Lab) -> None:
    run = lab.host("host").run(*DOCTOR)
    assert all(finding["state"] == "ok" for finding in findings(run).values())
    assert all(use["state"] == "ok" for use in uses(run).values())


def test_without_libnftables_nothing_that_needs_a_guard_is_ready(lab: Lab) -> None:
    host = lab.host("host")
    for found in Path("/usr/lib").glob("*/libnftables.so.1"):
        hide(host, str(found.resolve()))
    run = host.run(*DOCTOR, check=False)
    assert run.returncode == 1
    guard = findings(run)["guard"]
    assert guard["state"] == "missing"
    assert "apt-get install nftables" in guard["remedy"]
    assert uses(run)["vtl-fw", "an interface by name"]["lacks"] == ["guard"]
    assert uses(run)["vtl-freeze", "an interface by name"]["state"] == "ok"


def test_a_container_without_the_tun_device(lab: Lab) -> None:
    host = lab.host("host")
    hide(host, "/dev/net/tun")
    run = host.run(*DOCTOR)
    assert findings(run)["tap"]["state"] == "missing"
    assert "/dev/net/tun" in findings(run)["tap"]["remedy"]
    assert uses(run)["vtl-bridge", "tap:"]["lacks"] == ["tap"]


def test_an_ordinary_user_is_told_what_works_without_root(lab: Lab) -> None:
    host = lab.host("host")
    process = host.popen(
        *as_user(lab, host, "vtl-doctor"), "--tool", "vtl-bridge",
        stdout=subprocess.PIPE, text=True, user=NOBODY,
    )  # fmt: skip
    text = process.communicate()[0]
    assert process.returncode == 1
    assert "vtl-bridge: ready with qemu:, dgram:, vxlan: and channel: links only\n" in text
    assert "CAP_NET_RAW: this process lacks it; run the tool as root" in text
