"""vtl-vnet in a network of BGP EVPN: as a port of a kernel bridge beside FRR, and as a VTEP beside gobgpd."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.frr import Fabric, FabricHost, GobgpHost
from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge, bridge

pytestmark = pytest.mark.lab

VNI = 100


@dataclass
class Mobile:
    """A VM with a cable to each of several hosts, of which one is plugged in: number i is eth<i>, v<vm>."""

    host: Host
    number: int
    at: int = 0

    @property
    def address(self) -> str:
        return f"10.9.0.{self.number}"

    @property
    def mac(self) -> str:
        return f"02:00:00:00:00:{self.number:02x}"

    def move(self, to: int) -> None:
        """Come up at another host, with the same addresses; announce that as a hypervisor does."""
        run = self.host.run
        run("ip", "link", "set", f"eth{self.at}", "down")
        run("ip", "addr", "flush", "dev", f"eth{self.at}")
        self.at = to
        self.host.addr(f"eth{to}", f"{self.address}/24")
        self.speak()

    def speak(self) -> None:
        self.host.run("ping", "-c1", "-W0.05", "10.9.0.250", check=False)  # nobody; ARP asks all

    def reaches(self, other: "Mobile") -> bool:
        return not self.host.run("ping", "-c1", "-W1", other.address, check=False).returncode


def vm(lab: Lab, number: int, *hosts: FabricHost) -> Mobile:
    """A VM that may be at these hosts. It is at the first."""
    made = Mobile(lab.host(f"vm{number}", ipv6=False), number)
    for i, host in enumerate(hosts):
        lab.veth(made.host, f"eth{i}", host.host, f"v{number}", left_mac=made.mac, mtu=1450)
        if i:
            made.host.run("ip", "link", "set", f"eth{i}", "down")
    made.host.addr("eth0", f"{made.address}/24")
    return made


class Talk:
    """A TCP connection of two VMs."""

    def __init__(self, one: Mobile, other: Mobile) -> None:
        listener = one.host.call(socket.create_server, (one.address, 7000))
        self.ends = [other.host.call(socket.create_connection, (one.address, 7000), PATIENCE_S)]
        self.ends += [listener.accept()[0], listener]
        self.ends[1].settimeout(PATIENCE_S)

    def says(self, words: bytes) -> None:
        for here, there in (0, 1), (1, 0):
            self.ends[here].sendall(words)
            assert self.ends[there].recv(64) == words

    def close(self) -> None:
        for end in self.ends:
            end.close()


def test_a_vm_behind_a_port_of_a_bridge_moves_and_all_hosts_of_evpn_know(lab: Lab) -> None:
    fabric = Fabric(lab)
    one, two, three = (fabric.host(name) for name in ("one", "two", "three"))
    for host in one, two, three:
        host.overlay(VNI)
    moving, peer = vm(lab, 1, one, two), vm(lab, 2, three)
    three.plug("v2", VNI)
    fabric.ready(VNI)
    words = ("--iface", "v1", "--uplink", "tap:port")
    with (
        bridge(lab, one.host, *words, service="vtl-vnet", name="one"),
        bridge(lab, two.host, *words, service="vtl-vnet", name="two") as there,
    ):
        for host in one, two:
            host.plug("port", VNI)
        until(lambda: peer.reaches(moving), "the VM")
        until(lambda: two.reaches(VNI, moving.mac, one.address), "host two")
        talk = Talk(moving, peer)
        lab.defer(talk.close)
        talk.says(b"before")
        for number, host in (1, two), (0, one), (1, two):
            moving.move(number)
            others = {one, two, three} - {host}
            until(lambda o=others, h=host: all(x.reaches(VNI, moving.mac, h.address) for x in o), "the move")
            talk.says(b"after")
        assert there.status()["stations"][moving.mac]["link"] == "v1"


@pytest.fixture
def fabric(lab: Lab) -> tuple[Fabric, list[FabricHost], GobgpHost]:
    made = Fabric(lab)
    kernel = [made.host(name) for name in ("one", "two")]
    for host in kernel:
        host.overlay(VNI)
    own = made.gobgp("three")
    made.ready(VNI)
    return made, kernel, own


@contextmanager
def vtep(lab: Lab, own: GobgpHost, *more: str, hold: int = 60, name: str = "vtep") -> Iterator[Bridge]:
    spec = f"dc=evpn:{VNI},local={own.address},gobgp=unix:{own.api},hold={hold}"
    with bridge(lab, own.host, *more, "--attach", spec, service="vtl-vnet", name=name) as running:
        running.wait_for("control-plane", connected=True)
        yield running


def sends(host: FabricHost) -> int:
    """The frames that the kernel's VXLAN took from the underlay."""
    return int(host.host.call(Path(f"/sys/class/net/vx{VNI}/statistics/rx_packets").read_text))


def test_a_vtep_in_user_space_is_told_of_stations_and_tells_of_its_own(
    lab: Lab, fabric: tuple[Fabric, list[FabricHost], GobgpHost]
) -> None:
    _, (one, two), own = fabric
    moving, near, far = vm(lab, 1, own, one, two), vm(lab, 2, own), vm(lab, 3, two)
    for host in one, two:
        host.plug("v1", VNI)
    two.plug("v3", VNI)
    with vtep(lab, own, "--iface", "v1", "--iface", "v2") as running:

        def place(of: Mobile) -> tuple[str, str]:
            found = running.status()["stations"].get(of.mac, {"link": "", "vtep": ""})
            return found["link"], found["vtep"]

        for host in one, two:
            until(lambda h=host: own.address in h.floods_to(VNI), "the VTEP to be told of")
        until(lambda: far.reaches(moving), "the VM")
        until(lambda: near.reaches(far), "the far VM")
        until(lambda: place(far) == ("dc", two.address), "the station")
        for host in one, two:
            until(lambda h=host: h.reaches(VNI, moving.mac, own.address), "the station")
        before = sends(one)
        moving.host.run("ping", "-c20", "-i0.01", far.address)
        assert sends(one) - before < 10, "a frame for one VTEP is sent to no other"
        talk = Talk(moving, far)
        lab.defer(talk.close)
        for number, here in (1, one), (0, own), (2, two), (0, own):
            moving.move(number)
            others = {one, two} - {here}
            until(lambda o=others, h=here: all(x.reaches(VNI, moving.mac, h.address) for x in o), "the move")
            if here is own:
                until(lambda: place(moving) == ("v1", ""), "the station to be here")
            else:
                until(lambda h=here: place(moving) == ("dc", h.address), "the station to be there")
            talk.says(b"still here")
        running.wait_for("station", mac=moving.mac, before="v1", at="dc")
        assert running.status()["overlay"]["dc"]["evpn"]["duplicates"] == 0
    for host in one, two:
        until(lambda h=host: own.address not in {vtep for _, vtep in h.forwarding(VNI)}, "the withdrawal")


def test_stations_outlive_the_control_plane_for_a_while_and_come_back_with_it(
    lab: Lab, fabric: tuple[Fabric, list[FabricHost], GobgpHost]
) -> None:
    _, (one, _), own = fabric
    near, far = vm(lab, 1, own), vm(lab, 2, one)
    one.plug("v2", VNI)
    with vtep(lab, own, "--iface", "v1", hold=2) as running:
        until(lambda: near.reaches(far), "the far VM")
        until(lambda: running.status()["stations"].get(far.mac, {}).get("vtep"), "the station")
        own.process.kill()
        own.process.wait()
        running.wait_for("control-plane", connected=False)
        status = running.status()["overlay"]["dc"]
        assert status["up"]
        assert "are kept for" in status["why"]
        assert not status["evpn"]["connected"]
        running.wait_for("link", changed="dc", up=False)
        assert far.mac not in running.status()["stations"]
        own.start_gobgpd()
        running.wait_for("control-plane", connected=True)
        until(lambda: near.reaches(far), "the far VM again")
        until(lambda: one.reaches(VNI, near.mac, own.address), "the own station again")


def test_routes_go_with_a_vtl_vnet_that_was_killed_and_come_with_the_next(
    lab: Lab, fabric: tuple[Fabric, list[FabricHost], GobgpHost]
) -> None:
    _, (one, _), own = fabric
    near, far = vm(lab, 1, own), vm(lab, 2, one)
    one.plug("v2", VNI)
    spec = f"dc=evpn:{VNI},local={own.address},gobgp=unix:{own.api}"
    for turn in range(2):
        socket_ = lab.dir / f"killed{turn}.sock"
        command = (BIN / "vtl-vnet", "--iface", "v1", "--attach", spec, "--control", socket_, "--json")
        running = Bridge(lab, own.host.popen(*command, stdout=subprocess.PIPE, text=True), socket_)
        running.wait_for("control-plane", connected=True)
        until(lambda: near.reaches(far), "the far VM")
        until(lambda: one.reaches(VNI, near.mac, own.address), "the station")
        until(lambda: own.address in one.floods_to(VNI), "the VTEP")
        running.process.kill()
        running.process.wait()
    until(lambda: own.address not in {vtep for _, vtep in one.forwarding(VNI)}, "the withdrawal")


def test_a_daemon_for_each_network_of_a_host_over_ipv6(lab: Lab) -> None:
    made = Fabric(lab)
    hosts = [made.gobgp("one"), made.bare("two")]
    gobgp = hosts[0].api  # of both: FRR 8.4 would take no route by IPv6 to the other
    vms = [vm(lab, number, hosts[number // 3]) for number in (1, 2, 3, 4)]
    with ExitStack() as stack:
        daemons = []
        for number, own in enumerate(hosts):
            own.host.sysctl("net.ipv6.conf.all.disable_ipv6", 0)
            for name, vni, port in ("a", 100, 2 * number + 1), ("b", 200, 2 * number + 2):
                own.host.addr("eth0", f"fd00::{vni}:{number + 1}/64")
                spec = f"dc=evpn:{vni},local=fd00::{vni}:{number + 1},gobgp=unix:{gobgp}"
                words = ("--iface", f"v{port}", "--attach", spec)
                running = bridge(lab, own.host, *words, service="vtl-vnet", name=f"{own.host.name}{name}")
                daemons.append(stack.enter_context(running))
        for source, target in (0, 2), (1, 3), (3, 1):
            until(lambda s=source, t=target: vms[s].reaches(vms[t]), "a VM in the same network")
        for daemon in daemons:
            link = daemon.status()["overlay"]["dc"]
            assert link["evpn"]["vteps"] == 1
            assert link["octets_in"]
        stations = daemons[0].status()["stations"]
        assert stations[vms[2].mac]["vtep"] == "fd00::100:2"
        assert not {vms[1].mac, vms[3].mac} & set(stations)


def test_frames_of_a_host_that_evpn_does_not_name_are_dropped(
    lab: Lab, fabric: tuple[Fabric, list[FabricHost], GobgpHost]
) -> None:
    made, _, own = fabric
    near, stranger = vm(lab, 1, own), made.bare("stranger")
    guest = vm(lab, 2, stranger)
    stranger.overlay(VNI, "v2")
    stranger.host.run(*f"bridge fdb append 00:00:00:00:00:00 dev vx{VNI} dst {own.address}".split())
    with vtep(lab, own, "--iface", "v1") as running:
        guest.speak()
        until(lambda: running.status()["overlay"]["dc"]["dropped"], "the frame to be dropped")
        assert guest.mac not in running.status()["stations"]
        assert not guest.reaches(near)
