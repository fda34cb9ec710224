"""The transports of vtl-udt between two hosts: real libudt, libsrt and kernel TCP, without a guest."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.host import Host
from lab.netns import Lab
from lab.wait import until

pytestmark = pytest.mark.lab

END = Path(__file__).resolve().parents[2] / "lab" / "transport_end.py"
KEY, OTHER_KEY = "17" * 32, "18" * 32
FAR = "10.7.0.1"
PORT = 7400
EVERY = pytest.mark.parametrize("transport", ["tcp", "udt", "srt"])
STRANGER = f"""
import udt4py
sock = udt4py.UDTSocket()
sock.connect(("{FAR}", {PORT}))
sock.send(b"let me in" * 20)
try:
    print("received", sock.recv(bytearray(100)))
except udt4py.UDTException:
    print("closed")
"""
LOSS = """
table netdev loss { chain lost { type filter hook ingress device "%s" priority 0;
    numgen random mod 100 < 1 drop; }; }
"""


class End:
    """One end that runs: the objects that it prints."""

    def __init__(self, host: Host, *arguments: object) -> None:
        words = [str(word) for word in arguments]
        self.process = host.popen(sys.executable, END, *words, stdout=subprocess.PIPE, text=True)
        self.seen: list[dict[str, Any]] = []

    def wait_for(self, event: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.seen.append(json.loads(line))
            if self.seen[-1]["event"] == event:
                return self.seen[-1]
        raise AssertionError(f"it ended without {event}: {self.seen}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


class Hosts:
    """Two hosts, and the ends that run in them."""

    def __init__(self, lab: Lab) -> None:
        self.near, self.far = lab.host("near"), lab.host("far")
        lab.veth(self.near, "n0", self.far, "f0")
        self.near.addr("n0", "10.7.0.2/24", "fd07::2/64")
        self.far.addr("f0", FAR + "/24", "fd07::1/64")

    def listen(self, transport: str, *, encrypt: bool = True, address: str = FAR) -> End:
        end = End(self.far, "far", transport, address, PORT, KEY, int(encrypt))
        end.wait_for("ready")
        return end

    def begin(
        self, transport: str, job: dict[str, Any], *, encrypt: bool = True, address: str = FAR, key: str = KEY
    ) -> End:
        return End(self.near, "near", transport, address, PORT, key, int(encrypt), 4, json.dumps(job))


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with Lab() as lab:
        yield Hosts(lab)


@EVERY
def test_octets_are_exact_over_a_lossy_path_and_each_half_ends_alone(hosts: Hosts, transport: str) -> None:
    hosts.near.run("nft", "-f", "-", input=LOSS % "n0")
    hosts.far.run("nft", "-f", "-", input=LOSS % "f0")
    hosts.listen(transport)
    done = hosts.begin(transport, {"port": 7, "flows": 3, "octets": 1_000_000}).wait_for("done")
    assert done["results"] == {"exact": 3}


@EVERY
def test_a_thousand_flows_at_once_are_exact(hosts: Hosts, transport: str) -> None:
    hosts.listen(transport)
    done = hosts.begin(transport, {"port": 7, "flows": 1000, "octets": 3000}).wait_for("done")
    assert done["results"] == {"exact": 1000}
    assert done["path"]["sessions"] <= 4


@pytest.mark.parametrize("transport", ["tcp", "udt"])
def test_a_session_without_encryption_carries_the_same(hosts: Hosts, transport: str) -> None:
    hosts.listen(transport, encrypt=False)
    job = {"port": 7, "octets": 1_000_000}
    assert hosts.begin(transport, job, encrypt=False).wait_for("done")["results"] == {"exact": 1}
    refused = hosts.begin(transport, {"port": 13}, encrypt=False).wait_for("done")
    assert refused["results"] == {"refused": 1}


def test_tcp_goes_over_ipv6_too(hosts: Hosts) -> None:
    hosts.listen("tcp", address="fd07::1")
    done = hosts.begin("tcp", {"port": 7, "octets": 100_000}, address="fd07::1").wait_for("done")
    assert done["results"] == {"exact": 1}


@EVERY
def test_a_path_that_is_cut_resets_the_flows_long_before_the_library_notices(
    hosts: Hosts, transport: str
) -> None:
    """libudt would take 48 seconds, and TCP minutes."""
    far = hosts.listen(transport)
    near = hosts.begin(transport, {"port": 9, "octets": 100_000_000, "then": {"port": 7, "octets": 1000}})
    near.wait_for("open")
    hosts.far.run("ip", "link", "set", "dev", "f0", "down")
    assert near.wait_for("peer-down")["why"] == "is silent: dead, or cut off"
    assert near.wait_for("done")["results"] == {"reset": 1}
    assert far.wait_for("peer-down")["why"] == "is silent: dead, or cut off"
    hosts.far.run("ip", "link", "set", "dev", "f0", "up")
    near.wait_for("peer-up")


@EVERY
def test_a_far_module_that_is_killed_and_started_again_is_found_again(hosts: Hosts, transport: str) -> None:
    far = hosts.listen(transport)
    near = hosts.begin(transport, {"port": 9, "octets": 100_000_000, "then": {"port": 7, "octets": 1000}})
    near.wait_for("open")
    far.kill()
    assert near.wait_for("done")["results"] == {"reset": 1}
    hosts.listen(transport)
    while near.wait_for("done")["results"] != {"exact": 1}:
        pass


@pytest.mark.parametrize("transport", ["tcp", "udt"])
def test_a_near_module_with_another_key_reaches_nothing(hosts: Hosts, transport: str) -> None:
    far = hosts.listen(transport)
    near = hosts.begin(transport, {"port": 7, "octets": 1000}, key=OTHER_KEY)
    assert near.wait_for("done")["results"] == {"host-unreachable": 1}
    assert far.wait_for("peer-refused")["why"] == "has another key, or is a stranger"


def test_a_client_of_a_strangers_udt_is_refused(hosts: Hosts) -> None:
    far = hosts.listen("udt")
    stranger = hosts.near.popen(sys.executable, "-c", STRANGER, stdout=subprocess.PIPE, text=True)
    assert far.wait_for("peer-refused")["why"] == "has another key, or is a stranger"
    assert stranger.communicate()[0].strip() == "closed"
    done = hosts.begin("udt", {"port": 7, "octets": 1000}).wait_for("done")
    assert done["results"] == {"exact": 1}


def test_a_library_that_dies_resets_its_flows_and_is_started_again(hosts: Hosts) -> None:
    hosts.listen("udt")
    near = hosts.begin("udt", {"port": 9, "octets": 100_000_000, "then": {"port": 7, "octets": 1000}})
    near.wait_for("open")
    (keeper,) = children(near.process.pid)
    (library,) = children(keeper)
    os.kill(library, signal.SIGKILL)
    assert near.wait_for("done")["results"] == {"reset": 1}
    while near.wait_for("done")["results"] != {"exact": 1}:
        pass


def test_no_process_of_a_transport_outlives_its_service(hosts: Hosts) -> None:
    far = hosts.listen("udt")
    (keeper,) = children(far.process.pid)
    (library,) = children(keeper)
    assert Path(f"/proc/{library}/comm").read_text() == "vtl-udt-udt\n"
    assert effective_rights(library) == 0
    far.kill()
    until(lambda: not is_running(library) and not is_running(keeper), "the processes end")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def effective_rights(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("CapEff:")[2].split()[0], 16)


def is_running(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
