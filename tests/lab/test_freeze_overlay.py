"""vtl-freeze anywhere on an overlay: a VM's state goes to a host that only has a VXLAN tunnel to its peer."""

import time

import pytest

from lab.netns import Host, Lab
from lab.wait import until
from tests.held import IMPATIENT, PATIENT, Flow, be
from tests.lab.test_freeze import GIVES_UP_S, VM4, cut, held, mend, vtl_freeze
from tests.running import bridge
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

PEER, HOME, AWAY = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def tunnel(host: Host, *others: str) -> None:
    """The kernel's VXLAN to others, which learns by which of them an Ethernet address is reached."""
    host.run("ip", "link", "add", "vx7", "type", "vxlan", "id", "7", "dstport", "4789", "dev", "eth0")
    for other in others:
        host.run("bridge", "fdb", "append", "00:00:00:00:00:00", "dev", "vx7", "dst", other)
    # A veth would pass super-segments within the tunnel, with sums that nobody completes.
    host.run("ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off")
    host.run("ip", "link", "set", "vx7", "up")


def test_a_vm_is_held_from_another_host_of_the_overlay(lab: Lab) -> None:
    lan = lab.host("lan", ipv6=False)
    vm, cable, home, away, peer = (lab.host(n, ipv6=False) for n in ("vm", "cable", "home", "away", "peer"))
    for host, address in (peer, PEER), (home, HOME), (away, AWAY):
        lab.veth(host, "eth0", lan, host.name)
        host.addr("eth0", f"{address}/24")
    lab.bridge(lan, "br0", ["peer", "home", "away"])
    lab.veth(vm, "eth0", cable, "left")
    lab.veth(home, "vnet0", cable, "right")
    lab.bridge(cable, "br0", ["left", "right"])
    tunnel(peer, HOME, AWAY)
    tunnel(home, PEER)
    lab.bridge(home, "br0", ["vnet0", "vx7"])
    vm.run("ip", "link", "set", "eth0", "mtu", "1450")
    vm.addr("eth0", f"{VM4}/24")
    peer.addr("vx7", "10.9.0.1/24")
    vm.run("ping", "-c1", "-q", "10.9.0.1")
    mac = vm.mac("eth0")

    def is_at(where: str) -> bool:
        """Whether the peer sends to a tunnel end what is for the VM."""
        return f"dst {where}" in peer.run("sh", "-c", f"bridge fdb show dev vx7 | grep {mac}").stdout

    download = Flow(vm, peer, VM4, download=True)
    lab.defer(download.close)
    until(lambda: len(download.got) > 100_000, "data")
    there, back = lab.dir / "there.json", lab.dir / "back.json"
    links = ("--iface", "vnet0", "--state", lab.dir / "home.state")
    with bridge(lab, home, *links, service="vtl-freeze") as running:
        until(lambda: held(running)["connections"], "the connection to be known")
        cut(cable)
        control.ask(running.socket, "start")
        until(lambda: held(running)["kept_octets"], "a segment to be kept")
        vtl_freeze(running, "export", there)
    home.run("ip", "link", "set", "vnet0", "nomaster")
    assert is_at(HOME)
    links = ("--iface", f"vxlan:{PEER}/7", "--mac", mac, "--state", lab.dir / "away.state")
    with bridge(lab, away, *links, service="vtl-freeze") as running:
        vtl_freeze(running, "import", there)
        until(lambda: is_at(AWAY), "the peer to learn where the VM is")
        be(peer, IMPATIENT)
        time.sleep(2 * GIVES_UP_S)  # nothing else tells that it would have given up
        (row,) = control.ask(running.socket, "report")["connections"]
        assert row["probes"] > 1
        be(peer, PATIENT)
        vtl_freeze(running, "export", back)
    assert download.error is None
    home.run("ip", "link", "set", "vnet0", "master", "br0")
    (lab.dir / "home.state").unlink()
    links = ("--iface", "vnet0", "--state", lab.dir / "home.state")
    with bridge(lab, home, *links, service="vtl-freeze") as running:
        vtl_freeze(running, "import", back)
        until(lambda: is_at(HOME), "the peer to learn that the VM is back")
        before = len(download.got)
        mend(cable)
        vtl_freeze(running, "stop")
        until(lambda: len(download.got) > before, "data to flow again")
        assert download.is_whole()
    assert download.error is None
