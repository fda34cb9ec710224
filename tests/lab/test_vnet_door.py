"""Doors of vtl-vnet: many daemons on one port, and strangers at it."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.wait import until
from tests.cmd.tools import BIN
from tests.running import Bridge, bridge

pytestmark = pytest.mark.lab
PORT = 7700
DOOR = "192.0.2.1"


@dataclass
class Star:
    """hub 192.0.2.1, site1 .2 with vm1 10.9.0.2, site2 .3 with vm2 10.9.0.3, in one underlay."""

    lab: Lab
    hosts: dict[str, Host]
    key: Path

    @contextmanager
    def hub(self, kind: str) -> Iterator[Bridge]:
        door = f"door={kind}:0.0.0.0:{PORT},listen,transit"
        words = ("--iface", "vmnet1", "--key-file", self.key, "--attach", door, "--name", "hub")
        with bridge(self.lab, self.hosts["hub"], *words, service="vtl-vnet", name="hub") as running:
            yield running

    @contextmanager
    def site(self, kind: str, number: int) -> Iterator[Bridge]:
        name = f"site{number}"
        words = ("--iface", "vmnet1", "--key-file", self.key, "--attach", f"hub={kind}:{DOOR}:{PORT}")
        with bridge(
            self.lab, self.hosts[name], *words, "--name", name, service="vtl-vnet", name=name
        ) as running:
            yield running

    def reaches(self, source: str, address: str) -> bool:
        return not self.hosts[source].run("ping", "-c1", "-W1", address, check=False).returncode


@pytest.fixture
def star(lab: Lab) -> Star:
    underlay = lab.host("underlay")
    names = "hub", "site1", "site2"
    hosts = {name: lab.host(name) for name in (*names, "vm0", "vm1", "vm2")}
    lab.bridge(underlay, "br0", [])
    for number, name in enumerate(names):
        lab.veth(hosts[name], "wan", underlay, f"p{number}")
        underlay.run("ip", "link", "set", f"p{number}", "master", "br0")
        hosts[name].addr("wan", f"192.0.2.{number + 1}/24")
        lab.veth(hosts[f"vm{number}"], "eth0", hosts[name], "vmnet1")
        hosts[f"vm{number}"].addr("eth0", f"10.9.0.{number + 1}/24")
    key = lab.dir / "vnet.key"
    hosts["hub"].run(BIN / "vtl-vnet", "keygen", str(key))
    return Star(lab, hosts, key)


def test_a_door_serves_many_daemons_by_name_whatever_strangers_do(star: Star) -> None:
    stranger = star.hosts["site2"]
    with ExitStack() as stack:
        hub = stack.enter_context(star.hub("tcp"))
        held = [stranger.call(socket.create_connection, (DOOR, PORT)) for _ in range(150)]
        for one in held[::2]:
            one.sendall(bytes(40))
        stack.enter_context(star.site("tcp", 1))
        until(lambda: hub.status()["overlay"].get("site1", {}).get("up"), "the first daemon")
        stack.enter_context(star.site("tcp", 2))
        for one in held:
            one.close()
        until(lambda: hub.status()["overlay"].get("site2", {}).get("up"), "the second daemon")
        until(lambda: star.reaches("vm1", "10.9.0.3"), "the VM behind the other daemon")
        until(lambda: star.reaches("vm0", "10.9.0.2"), "a daemon's VM from the hub's")
        overlay = hub.status()["overlay"]
        assert (overlay["site1"]["door"], overlay["site1"]["daemon"]) == ("door", "site1")


def test_a_daemon_that_starts_again_has_its_link_again(star: Star) -> None:
    with star.hub("tcp") as hub:
        for _ in range(2):
            with star.site("tcp", 1):
                until(lambda: hub.status()["overlay"].get("site1", {}).get("up"), "the daemon")
                until(lambda: star.reaches("vm1", "10.9.0.1"), "the VM")
            until(lambda: not hub.status()["overlay"]["site1"]["up"], "its end")
        assert hub.status()["overlay"]["site1"]["losses"] == 2
