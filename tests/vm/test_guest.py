"""A guest boots, obeys, is reached over taps and QEMU sockets, and leaves nothing behind."""

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lab.errors import CommandFailed, LabError
from lab.wait import PATIENCE_S, until

pytestmark = pytest.mark.vm
ROOT = Path(__file__).parents[2]
GUEST_MAC = "52:54:00:12:34:56"


@pytest.fixture
def host(lab):
    """A host with one tap, vmnet1, as 10.0.0.1."""
    host = lab.host("host")
    host.tap("vmnet1")
    host.addr("vmnet1", "10.0.0.1/24")
    return host


@pytest.fixture
def guest(lab, host):
    return lab.guest("vm", on=host, tap="vmnet1", address="10.0.0.2/24")


def test_a_guest_reaches_a_server_through_a_kernel_bridge(lab):
    host, server = lab.host("host"), lab.host("server")
    host.tap("vmnet1")
    lab.veth(host, "uplink", server, "eth0")
    lab.bridge(host, "br0", ["vmnet1", "uplink"])
    server.addr("eth0", "10.0.0.1/24", "fd00::1/64")
    http = lab.http(server, 80, {"file": b"from the server"})
    guest = lab.guest("vm", on=host, tap="vmnet1", address="10.0.0.2/24 fd00::2/64")
    assert guest.sh("wget -qO- http://10.0.0.1/file").out == "from the server"
    assert guest.sh("wget -qO- http://[fd00::1]/file").out == "from the server"
    assert [line.split()[0] for line in http.requests()] == ["10.0.0.2", "fd00::2"]


def test_a_command_gives_its_status_output_and_errors(guest):
    result = guest.sh("echo out; echo err >&2; exit 7")
    assert (result.status, result.out, result.err) == (7, "out\n", "err\n")
    with pytest.raises(CommandFailed, match="err"):
        guest.sh("echo err >&2; false", check=True)


def test_files_of_any_octets_go_in_and_out(guest):
    data = os.urandom(100_000) + bytes(range(256))
    guest.put("/tmp/a file", data)
    assert guest.get("/tmp/a file") == data
    guest.put("/tmp/empty", b"")
    assert guest.get("/tmp/empty") == b""


def test_a_command_that_takes_too_long_is_killed_and_the_next_one_runs(guest):
    with pytest.raises(LabError, match="killed"):
        guest.sh("sleep 1000", timeout=1)
    assert guest.sh("echo well").out == "well\n"


def test_servers_in_the_guest_go_on(guest, host):
    guest.sh("nc -l -p 5000 -e echo hello >/dev/null 2>&1 &")
    until(lambda: guest.sh("netstat -ltn | grep :5000").status == 0, "the server in the guest")
    with host.enter(), socket.create_connection(("10.0.0.2", 5000)) as client:
        assert client.makefile().read() == "hello\n"


def test_a_panic_is_shown(guest):
    with pytest.raises(LabError, match="sysrq triggered crash"):
        guest.sh("echo c >/proc/sysrq-trigger")


def test_a_guest_stops_goes_on_and_restarts(guest):
    guest.qmp("stop")
    assert guest.qmp("query-status")["running"] is False
    guest.qmp("cont")
    assert guest.qmp("query-status")["running"] is True
    with pytest.raises(LabError, match="no-such"):
        guest.qmp("no-such")
    guest.put("/tmp/file", b"gone after the restart")
    guest.restart()
    assert guest.sh("test -e /tmp/file").status == 1
    assert guest.sh("ping -c1 10.0.0.1").status == 0


def test_two_guests_boot_at_once_and_see_each_other(lab):
    host = lab.host("host")
    for tap in "vmnet1", "vmnet2":
        host.tap(tap)
    lab.bridge(host, "br0", ["vmnet1", "vmnet2"])
    one = lab.guest("one", on=host, tap="vmnet1", address="10.0.0.1/24", mtu=1400, wait=False)
    two = lab.guest("two", on=host, tap="vmnet2", address="10.0.0.2/24", mac=GUEST_MAC, wait=False)
    one.ready()
    two.ready()
    assert one.sh("ping -c1 10.0.0.2").status == 0
    assert GUEST_MAC in one.sh("ip neigh").out
    assert one.sh("cat /sys/class/net/eth0/mtu").out == "1400\n"


def test_programs_of_this_machine_run_in_the_guest(lab):
    guest = lab.guest("vm", on=lab.host("host"), extra=["/usr/bin/iperf3"], modules=["tcp_bbr"])
    assert "iperf 3" in guest.sh("iperf3 --version").out
    guest.sh("echo bbr >/proc/sys/net/ipv4/tcp_congestion_control", check=True)


@pytest.mark.parametrize("role", ["client", "server"])
def test_a_guest_of_an_unprivileged_user_answers_arp_over_a_stream(lab, role):
    """QEMU's -netdev stream, either way round: a 4-octet big-endian length, then the frame."""
    host = lab.host("host")
    directory = lab.dir / "frames"
    directory.mkdir()
    directory.chmod(0o777)
    path = directory / "sock"
    options = {"on": host, "mac": GUEST_MAC, "address": "10.0.0.2/24", "user": "nobody"}
    if role == "client":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
            path.chmod(0o777)
            listener.listen()
            guest = lab.guest("vm", qemu_socket=f"unix:{path}", **options)
            peer = listener.accept()[0]
    else:
        guest = lab.guest("vm", qemu_socket=f"unix:{path},server", **options)
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(path))
    uid = until(lambda: uids(guest), "QEMU")
    assert uid == {65534}
    with peer, peer.makefile("rb") as frames:
        peer.settimeout(PATIENCE_S)
        mine = bytes.fromhex("020000000001")
        request = struct.pack(
            "!HHBBH6s4s6s4s", 1, 0x0800, 6, 4, 1, mine, ip("10.0.0.1"), bytes(6), ip("10.0.0.2")
        )
        frame = b"\xff" * 6 + mine + b"\x08\x06" + request
        peer.sendall(struct.pack("!I", len(frame)) + frame)
        while True:  # the guest says this and that before
            answer = frames.read(*struct.unpack("!I", frames.read(4)))
            if answer[:6] == mine:
                break
    assert answer[12:14] == b"\x08\x06"
    assert answer[20:22] == b"\0\2"
    assert answer[22:32] == bytes.fromhex(GUEST_MAC.replace(":", "")) + ip("10.0.0.2")


def test_what_qemu_refuses_is_told(lab):
    with pytest.raises(LabError, match=r"(?s)nonsense"):
        lab.guest("vm", on=lab.host("host"), args=["-nonsense"])


def test_kill_9_takes_the_guest_along(lab):
    code = """
from lab.netns import Lab
lab = Lab()
host = lab.host("h")
host.tap("vmnet1")
guest = lab.guest("vm", on=host, tap="vmnet1", wait=False)
print(lab.dir, flush=True)
input()
"""
    victim = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with victim:
        directory = victim.stdout.readline().strip()
        until(lambda: qemus(directory), "QEMU")
        victim.kill()
        until(lambda: not qemus(directory), "QEMU's end")
    with type(lab)():
        assert not Path(directory).exists()


def ip(text):
    return socket.inet_aton(text)


def uids(guest):
    """The user ids of a guest's QEMU."""
    return {path.stat().st_uid for path in qemus(str(guest.dir))}


def qemus(directory):
    """The /proc entries of QEMUs that use a directory."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_text()
        except OSError:
            continue
        if words.startswith("qemu-system") and directory in words:
            found.append(path)
    return found
