"""The lab's hosts are machines apart, and leave nothing behind."""

import os
import select
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from lab.errors import CommandFailed
from lab.netns import Lab
from lab.wait import until

pytestmark = pytest.mark.lab
ROOT = Path(__file__).parents[2]


@pytest.fixture
def pair(lab):
    """Two hosts on one cable, as 10.0.0.1 and 10.0.0.2."""
    left, right = lab.host("left"), lab.host("right")
    lab.veth(left, "eth0", right, "eth0", left_mac="02:00:00:00:00:01", mtu=1400)
    left.addr("eth0", "10.0.0.1/24", "fd00::1/64")
    right.addr("eth0", "10.0.0.2/24", "fd00::2/64")
    return left, right


def test_two_hosts_ping_each_other(pair):
    left, right = pair
    assert "1 received" in left.run("ping", "-c1", "10.0.0.2").stdout
    assert "1 received" in right.run("ping", "-c1", "fd00::1").stdout


def test_a_cable_has_the_address_and_mtu_asked_for(pair):
    left, right = pair
    assert left.mac("eth0") == "02:00:00:00:00:01"
    assert "mtu 1400" in right.run("ip", "link", "show", "eth0").stdout


def test_a_failed_command_shows_its_output(lab):
    with pytest.raises(CommandFailed, match="sad"):
        lab.host("h").run("sh", "-c", "echo sad >&2; exit 3")


def test_python_opens_sockets_within_a_host_and_comes_back(pair):
    left, right = pair
    outside = namespace("/proc/thread-self/ns/net")
    with left.enter():
        server = socket.create_server(("10.0.0.1", 80))
    with right.enter():
        client = socket.create_connection(("10.0.0.1", 80))
    with server, client, server.accept()[0] as accepted:
        assert accepted.getpeername()[0] == "10.0.0.2"
    assert namespace("/proc/thread-self/ns/net") == outside


def test_kernel_variables_and_sysfs_are_the_hosts_own(pair):
    left, right = pair
    left.sysctl("net.ipv4.ip_forward", 1)
    assert left.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "1\n"
    assert right.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "0\n"
    left.tap("tap0", user=1000)
    assert left.run("ls", "/sys/class/net").stdout.split() == ["eth0", "lo", "tap0"]
    assert right.run("ls", "/sys/class/net").stdout.split() == ["eth0", "lo"]


def test_a_host_without_ipv6_says_nothing_unasked(lab):
    quiet, other = lab.host("quiet", ipv6=False), lab.host("other", ipv6=False)
    lab.veth(quiet, "eth0", other, "eth0")
    assert "inet6" not in quiet.run("ip", "addr").stdout


def test_a_bridge_forwards_at_once(lab):
    left, bridge, right = (lab.host(name) for name in ("left", "bridge", "right"))
    lab.veth(left, "eth0", bridge, "a")
    lab.veth(right, "eth0", bridge, "b")
    lab.bridge(bridge, "br0", ["a", "b"])
    left.addr("eth0", "10.0.0.1/24")
    right.addr("eth0", "10.0.0.2/24")
    left.run("ping", "-c1", "10.0.0.2")


@pytest.mark.parametrize("ipv6", [True, False])
def test_an_http_server_tells_who_called(lab, ipv6):
    client, server = lab.host("client", ipv6), lab.host("server", ipv6)
    lab.veth(client, "eth0", server, "eth0")
    client.addr("eth0", "10.0.0.1/24")
    server.addr("eth0", "10.0.0.2/24")
    http = lab.http(server, 8080, {"a/b": b"c"})
    with client.enter(), urllib.request.urlopen("http://10.0.0.2:8080/a/b") as answer:
        assert answer.read() == b"c"
    assert [line.split()[0] for line in http.requests()] == ["10.0.0.1"]


def test_commands_run_as_another_user(lab):
    assert lab.host("h").run("id", "-u", user="nobody", group="nogroup").stdout == "65534\n"


def test_labs_do_not_meet(lab):
    with Lab() as other:
        mine, theirs = lab.host("same"), other.host("same")
        assert namespace(mine.netns) != namespace(theirs.netns)
        assert lab.dir != other.dir
    assert not other.dir.exists()
    mine.run("true")


def test_the_end_of_a_lab_ends_daemons_that_changed_their_user():
    with Lab() as lab:
        host = lab.host("h")
        host.run("sh", "-c", "setsid sleep 86399 </dev/null >/dev/null 2>&1 &", user="nobody")
        until(lambda: processes("sleep 86399"), "the daemon")
    assert not processes("sleep 86399")


def test_kill_9_leaves_nothing(lab):
    """No process and no namespace stay; the directory goes with the next lab."""
    code = """
from lab.netns import Lab
from lab.wait import until
lab = Lab()
host = lab.host("h")
lab.veth(host, "a", host, "b")
host.popen("sleep", "86398")
host.run("sh", "-c", "setsid sleep 86398 </dev/null >/dev/null 2>&1 &", user="nobody")
(lab.dir / "file").touch()
print(lab.dir, flush=True)
input()
"""
    victim = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with victim:
        directory = Path(victim.stdout.readline().strip())
        assert directory.exists()
        running = until(lambda: len(found := processes("sleep 86398")) == 2 and found, "two processes")
        namespaces = {namespace(f"/proc/{pid}/ns/net") for pid in running}
        watches = [os.pidfd_open(pid) for pid in running]
        victim.kill()
        victim.wait()
        for watch in watches:
            assert select.select([watch], [], [], 30)[0], "a process outlived its lab"
            os.close(watch)
    assert not namespaces & network_namespaces()
    with Lab():
        assert not directory.exists()


def processes(command):
    """The PIDs of those that run `command`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text().split("\0")
        except OSError:
            continue  # it ended meanwhile
        if " ".join(words).strip() == command:
            found.append(int(path.name))
    return found


def namespace(path):
    return Path(path).readlink().name


def network_namespaces():
    """What every thread of every process lives in."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/task/*/ns/net"):
        try:
            found.add(namespace(path))
        except OSError:
            continue
    return found
