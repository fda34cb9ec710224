"""Two real guests after each other on one tap, as sandboxes come and go: nobody has to tell vtl-fw."""

import json
import subprocess
from collections.abc import Iterator

import pytest

from lab.netns import Guest, Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN
from vtl_tools.common.runtime import control

pytestmark = [pytest.mark.vm]

FIRST, SECOND, MADE_UP = "52:54:00:aa:00:01", "52:54:00:aa:00:02", "52:54:00:aa:00:77"
SERVER = "10.9.0.1"
RULES = f"""
allow out udp port 67
allow in udp from {SERVER} source port 67 port 68
allow out icmp type echo-request
deny any
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


def network(lab: Lab) -> Host:
    """vmnet1 [host] eth0 - server, which leases addresses; return the host."""
    host, server = lab.host("host"), lab.host("server")
    host.tap("vmnet1")
    lab.veth(host, "eth0", server, "eth0")
    server.addr("eth0", f"{SERVER}/24")
    conf, leases = lab.dir / "udhcpd.conf", lab.dir / "leases"
    leases.touch()
    conf.write_text(
        f"start 10.9.0.50\nend 10.9.0.99\ninterface eth0\nlease_file {leases}\npidfile {lab.dir}/pid\n"
        "option subnet 255.255.255.0\noption lease 3600\n"
    )
    server.popen("busybox", "udhcpd", "-f", conf, stderr=subprocess.DEVNULL)
    return host


def reaches_the_server(guest: Guest) -> bool:
    return guest.sh(f"ping -c1 -W2 {SERVER}").status == 0


def test_a_guest_that_replaces_another_gets_through_without_anybody(lab: Lab) -> None:
    host = network(lab)
    rules, socket = lab.dir / "fw.rules", lab.dir / "s.sock"
    rules.write_text(RULES)
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules, "--vm", "reappearing")
    firewall = host.popen(
        BIN / "vtl-fw", *links, "--control", socket, "--json", stdout=subprocess.PIPE, text=True
    )
    assert json.loads(firewall.stdout.readline())["event"] == "ready"

    first = lab.guest("first", on=host, tap="vmnet1", mac=FIRST)
    leased = first.lease()["ip"]
    until(lambda: reaches_the_server(first), "the first guest's answer")
    known = control.ask(socket, "status")["identity"]
    assert (known["mac"], known["addresses"][0]) == (FIRST, leased)

    lie = f"ip link set eth0 down; ip link set eth0 address {MADE_UP}; ip link set eth0 up"
    first.sh(f"{lie}; ip addr replace {leased}/24 dev eth0", check=True)
    assert not reaches_the_server(first), "root in a guest makes it no other one"
    drops = control.ask(socket, "status")["refused"]
    assert (drops["last_cause"], drops["last_refused"]) == ("spoofed-mac", MADE_UP)
    first.kill()

    second = lab.guest("second", on=host, tap="vmnet1", mac=SECOND)
    assert second.lease()["ip"] != leased
    until(lambda: reaches_the_server(second), "the second guest's answer")
    assert control.ask(socket, "status")["identity"]["mac"] == SECOND
    firewall.terminate()
    assert firewall.wait(PATIENCE_S) == 0
