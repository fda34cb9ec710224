"""Links that come back, and services that end by themselves, with the privileges that are left to them."""

import json
import subprocess

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from tests.running import own_fields

pytestmark = pytest.mark.lab

EMPTY_PCAP = bytes.fromhex("d4c3b2a1020004000000000000000000ffff000001000000")


def start(lab: Lab, host: Host, *arguments: str) -> "subprocess.Popen[str]":
    command = [BIN / "vtl-bridge", *arguments, "--json", "--control", lab.dir / "b.sock"]
    process: subprocess.Popen[str] = host.popen(*command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert '"ready"' in process.stdout.readline()
    return process


def test_a_tap_that_is_deleted_is_made_anew(lab: Lab) -> None:
    host = lab.host("host")
    process = start(lab, host, "--iface", "tap:t0", "--iface", "tap:t1", "--guard", "off")
    assert process.stdout is not None
    host.run("ip", "link", "del", "t0")
    for up in False, True:
        told = own_fields(json.loads(process.stdout.readline()))
        assert told == {"event": "link", "changed": "tap:t0", "up": up}
    until(lambda: host.run("ip", "link", "show", "t0", check=False).returncode == 0, "the tap")
    process.terminate()
    assert process.wait(PATIENCE_S) == 0


@pytest.mark.parametrize("recorded", [False, True], ids=["plain", "recorded"])
def test_a_half_duplex_replay_onto_an_interface_ends_with_its_file(lab: Lab, recorded: bool) -> None:
    host = lab.host("host")
    lab.veth(host, "e0", host, "e1")
    (lab.dir / "empty.pcap").write_bytes(EMPTY_PCAP)
    extra = ["--pcap", str(lab.dir / "seen.pcapng")] if recorded else []
    links = ["--iface", f"pcap:{lab.dir}/empty.pcap", "--iface", "e0"]
    assert start(lab, host, "--half-duplex", *links, *extra).wait(PATIENCE_S) == 0
