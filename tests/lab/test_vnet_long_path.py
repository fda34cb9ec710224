"""Adaptation of vtl-vnet to a long path: a vtl-udt for a busy pair, and its end."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.wait import until
from tests.cmd.tools import BIN
from tests.running import Bridge, bridge

pytestmark = pytest.mark.lab

SINK = """
import socket, sys, threading
def drain(connection):
    while connection.recv(1 << 18):
        pass
    connection.sendall(b"all")
listener = socket.create_server(("", 7000))
while True:
    threading.Thread(target=drain, args=(listener.accept()[0],), daemon=True).start()
"""
SOURCE = """
import socket, sys, time
host, mbit = sys.argv[1], float(sys.argv[2])
connection = socket.create_connection((host, 7000))
print("connected", flush=True)
octets, began, stop = 0, time.monotonic(), False
import threading
def wait():
    global stop
    sys.stdin.readline()
    stop = True
threading.Thread(target=wait, daemon=True).start()
while not stop:
    connection.sendall(bytes(4096))
    octets += 4096
    time.sleep(max(0.0, began + octets * 8e-6 / mbit - time.monotonic()))
connection.shutdown(socket.SHUT_WR)
print(connection.recv(8).decode(), flush=True)
"""


@dataclass
class LongWay:
    """vm1 10.9.0.1 - [site1] 192.0.2.1 - path - 192.0.2.2 [site2] - vm2 10.9.0.2."""

    lab: Lab
    vms: list[Host]
    sites: list[Host]
    path: Host
    key: Path

    @contextmanager
    def daemons(self, *more: str) -> Iterator[list[Bridge]]:
        wan = ("--iface", "west", "--iface", "east", "--delay", "30ms")
        with (
            bridge(self.lab, self.path, *wan, service="vtl-wan", name="wan"),
            self.daemon(1, "two=udp:192.0.2.2:7700", *more) as site1,
            self.daemon(2, "one=udp:0.0.0.0:7700,server", *more) as site2,
        ):
            until(lambda: site1.status()["overlay"]["two"]["up"], "the link")
            yield [site1, site2]

    def daemon(self, number: int, link: str, *more: str) -> AbstractContextManager[Bridge]:
        name = f"site{number}"
        words = (
            "--iface",
            "vmnet1",
            "--key-file",
            self.key,
            "--attach",
            link,
            "--name",
            name,
            "--adapt",
            "on",
        )
        return bridge(self.lab, self.sites[number - 1], *words, *more, service="vtl-vnet", name=name)

    def source(self, mbit: float) -> "subprocess.Popen[str]":
        """A connection from vm1 to vm2 that sends at a rate."""
        words = (sys.executable, "-c", SOURCE, "10.9.0.2", str(mbit))
        started = self.vms[0].popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert started.stdout is not None
        assert started.stdout.readline() == "connected\n"
        return started


@pytest.fixture
def way(lab: Lab) -> LongWay:
    vms, sites, path = [lab.host("vm1"), lab.host("vm2")], [lab.host("s1"), lab.host("s2")], lab.host("path")
    for n, (vm, site, port) in enumerate(zip(vms, sites, ("west", "east"), strict=True), 1):
        lab.veth(vm, "eth0", site, "vmnet1")
        vm.addr("eth0", f"10.9.0.{n}/24")
        lab.veth(site, "wan", path, port)
        site.addr("wan", f"192.0.2.{n}/24")
    key = lab.dir / "vnet.key"
    sites[0].run(BIN / "vtl-vnet", "keygen", str(key))
    return LongWay(lab, vms, sites, path, key)


def ends(source: "subprocess.Popen[str]") -> str:
    """End a connection; return what the other end says to it."""
    return source.communicate("\n")[0]


def test_a_busy_pair_gets_an_udt_link_for_new_connections_which_goes_when_it_did_not_pay(
    way: LongWay,
) -> None:
    way.vms[1].popen(sys.executable, "-c", SINK)
    with way.daemons() as (site1, site2):
        until(lambda: not way.vms[0].run("ping", "-c1", "-W1", "10.9.0.2", check=False).returncode, "vm2")
        before = way.source(8)
        made = site1.wait_for("adapt", action="make", changed="udt-0")
        assert "Mbit/s of TCP, round trip " in made["why"]

        def state(site: Bridge) -> str:
            return str(site.status()["adapt"]["carried"].get("udt-0", {}).get("state"))

        until(lambda: (state(site1), state(site2)) == ("carrying", "carrying"), "both ends")
        within = way.source(2)  # slower, whatever the machine does
        until(lambda: site1.status()["adapt"]["carried"]["udt-0"]["flows"] == 1, "a connection within")
        undone = site1.wait_for("adapt", action="undo", changed="udt-0")
        assert "did not pay" in undone["why"]
        assert state(site1) == "draining"
        after = way.source(2)
        carried = site1.status()["adapt"]["carried"]["udt-0"]
        assert carried["flows"] == 1, "the connection within goes on, and no new one begins there"
        assert carried["before_mbit"] > carried["after_mbit"] > 0
        assert [ends(one) for one in (within, before, after)] == ["all\n"] * 3
        for site in site1, site2:
            site.wait_for("adapt", action="gone", changed="udt-0")
            assert site.status()["rules"] == {}
            assert "udt-0" not in site.status()["overlay"]
