"""The guard: with it up, the host's own stack neither gets nor gives a frame on the interface."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.scenes import routed_guest
from lab.user import NOBODY, as_user
from lab.wait import until
from vtl_tools.common.host.guard import MARK

pytestmark = pytest.mark.lab

GUARD = Path(sys.executable).with_name("vtl-guard")
HOLD = """
import sys
from vtl_tools.common.host.guard import Guard
guard = Guard("vmnet1", sys.argv[1])
guard.up()
print("up", flush=True)
for line in sys.stdin:
    guard.check()
    print("checked", flush=True)
"""


@pytest.fixture
def scene(lab: Lab) -> tuple[Host, Host, Host]:
    """A guest behind a host-only interface of a host that routes to a network with a server."""
    guest, host, server = routed_guest(lab)
    assert reaches(guest, "10.1.0.1")
    assert reaches(guest, "fd01::1")
    assert reaches(guest, "10.2.0.2")
    assert reaches(server, "10.1.0.2")
    return guest, host, server


def reaches(host: Host, address: str) -> bool:
    return host.run("ping", "-c1", "-W1", "-q", address, check=False).returncode == 0


def hold(host: Host, form: str) -> subprocess.Popen[bytes]:
    """Raise a guard in a process of its own that stays."""
    pipe = subprocess.PIPE
    process = host.popen(sys.executable, "-c", HOLD, form, stdin=pipe, stdout=pipe)
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    return process


def listed(host: Host) -> list[dict[str, object]]:
    return [json.loads(line) for line in host.run(GUARD, "list", "--json").stdout.splitlines()]


@pytest.mark.parametrize("form", ["process", "kept"])
def test_the_host_answers_no_arp_and_no_ping_and_forwards_nothing(
    scene: tuple[Host, Host, Host], form: str
) -> None:
    guest, host, server = scene
    holder = hold(host, form)
    guest.run("ip", "neigh", "flush", "dev", "eth0")
    assert not reaches(guest, "10.1.0.1")
    neighbour = guest.run("ip", "neigh", "show", "10.1.0.1").stdout
    assert "lladdr" not in neighbour, "the host answered ARP"
    assert not reaches(guest, "fd01::1")
    mac = host.mac("vmnet1")
    guest.run("ip", "neigh", "replace", "10.1.0.1", "lladdr", mac, "dev", "eth0")
    assert not reaches(guest, "10.2.0.2"), "the host forwarded"
    assert not reaches(server, "10.1.0.2"), "the host forwarded to the guest"
    assert not reaches(host, "10.1.0.2"), "the host's own packets reached the guest"
    (found,) = listed(host)
    assert (found["name"], found["form"]) == ("vmnet1", form)
    assert int(str(found["kept_in"])) > 0
    assert int(str(found["kept_out"])) > 0
    holder.kill()


def test_the_process_form_ends_with_its_process_and_the_kept_form_outlives_kill_9(
    scene: tuple[Host, Host, Host],
) -> None:
    guest, host, _ = scene
    holder = hold(host, "process")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    until(lambda: not listed(host), "the guard to vanish")
    assert reaches(guest, "10.1.0.1")

    holder = hold(host, "kept")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not reaches(guest, "10.1.0.1")
    assert [g["form"] for g in listed(host)] == ["kept"]
    host.run(GUARD, "clear", "vmnet1")
    assert listed(host) == []
    assert reaches(guest, "10.1.0.1")


def test_what_carries_our_mark_goes_out_through_the_guard(scene: tuple[Host, Host, Host]) -> None:
    guest, host, _ = scene
    holder = hold(host, "process")
    guest.run("ip", "neigh", "replace", "10.1.0.1", "lladdr", host.mac("vmnet1"), "dev", "eth0")
    host.run("ip", "neigh", "replace", "10.1.0.2", "lladdr", guest.mac("eth0"), "dev", "vmnet1")
    received = "/sys/class/net/eth0/statistics/rx_packets"
    before = int(guest.call(Path(received).read_text))
    host.run("ping", "-c1", "-W1", "-m", str(MARK), "10.1.0.2", check=False)
    until(lambda: int(guest.call(Path(received).read_text)) > before, "the marked packet")
    holder.kill()


def test_a_guard_holds_when_its_interface_is_deleted_and_comes_back(
    lab: Lab, scene: tuple[Host, Host, Host]
) -> None:
    guest, host, _ = scene
    holder = hold(host, "process")
    assert holder.stdin is not None
    assert holder.stdout is not None
    host.run("ip", "link", "del", "vmnet1")
    lab.veth(guest, "eth0", host, "vmnet1")
    guest.addr("eth0", "10.1.0.2/24")
    host.addr("vmnet1", "10.1.0.1/24")
    holder.stdin.write(b"\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == b"checked\n"
    assert not reaches(guest, "10.1.0.1")
    holder.kill()


def test_vtl_guard_raises_a_guard_before_any_service_and_says_what_it_cannot_do(
    lab: Lab,
    scene: tuple[Host, Host, Host],
) -> None:
    guest, host, _ = scene
    host.run(GUARD, "raise", "vmnet1")
    assert not reaches(guest, "10.1.0.1")
    assert "vmnet1" in host.run(GUARD, "list").stdout
    host.run(GUARD, "clear", "vmnet1")
    nothing = host.run(GUARD, "clear", "vmnet1", check=False)
    assert nothing.returncode == 1
    assert nothing.stderr == "vtl-guard: vmnet1: no guard to lift; see 'vtl-guard list'\n"
    missing = host.run(GUARD, "raise", "eth9", check=False)
    assert missing.returncode == 3
    assert missing.stderr == "vtl-guard: eth9: no such network interface; list them with 'ip link'\n"
    denied = host.run(*as_user(lab, host, "vtl-guard"), "raise", "vmnet1", check=False, user=NOBODY)
    assert denied.returncode == 5
    assert denied.stderr.count("\n") == 1
    holder = hold(host, "process")
    owned = host.run(GUARD, "clear", "vmnet1", check=False)
    assert owned.returncode == 1
    assert "guarded by process" in owned.stderr
    holder.kill()


@pytest.mark.parametrize("name", ["br-1234.5", "veth@a", "é_-+", "pid1_x", "kept_"])
def test_any_interface_name_can_be_guarded_and_is_listed_as_it_is(lab: Lab, name: str) -> None:
    host = lab.host("host")
    host.run("ip", "link", "add", "name", name, "type", "veth", "peer", "name", "peer0")
    host.run(GUARD, "raise", name)
    assert [g["name"] for g in listed(host)] == [name]
    host.run(GUARD, "clear", name)
    assert listed(host) == []
