"""vtl-vnet between real kernels: three daemons, one of them a proxy; services as links; links cut; keys."""

import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, slowness, until
from tests.cmd.tools import BIN
from tests.running import Bridge, bridge
from vtl_tools.common.device.pcapng import INBOUND, OUTBOUND

pytestmark = pytest.mark.lab

MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")


@dataclass
class Overlaid:
    """vm1 10.9.0.1 - [a] - [b] - vm2 10.9.0.2, and [c], a proxy - server 10.9.0.3 in a full mesh."""

    lab: Lab
    vms: list[Host]
    hosts: list[Host]
    server: Host
    daemons: list[Bridge]
    key: Path

    def reaches(self, source: Host, address: str) -> bool:
        return not source.run("ping", "-c1", "-W1", address, check=False).returncode

    def asks(self, daemon: int, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        asked = (*words, "--link", str(self.daemons[daemon].socket))
        return self.hosts[daemon].run(BIN / "vtl-vnet", *asked, check=check)


def make_key(lab: Lab, host: Host, name: str) -> Path:
    key = lab.dir / name
    host.run(BIN / "vtl-vnet", "keygen", str(key))
    return key


@pytest.fixture
def world(lab: Lab) -> Iterator[Overlaid]:
    switch = lab.host("underlay")
    hosts = [lab.host(name) for name in "abc"]
    vms, server = [lab.host("vm1"), lab.host("vm2")], lab.host("server")
    switch.run("ip", "link", "add", "br0", "type", "bridge")
    switch.run("ip", "link", "set", "br0", "up")
    for number, host in enumerate(hosts, 1):
        lab.veth(host, "wan", switch, f"p{number}")
        switch.run("ip", "link", "set", f"p{number}", "master", "br0")
        host.addr("wan", f"192.0.2.{number}/24")
    for number, (vm, host) in enumerate(zip(vms, hosts, strict=False), 1):
        lab.veth(vm, "eth0", host, "vmnet1")
        vm.run("ip", "link", "set", "eth0", "address", MACS[number - 1])
        vm.addr("eth0", f"10.9.0.{number}/24")
    lab.veth(server, "eth0", hosts[2], "eth1")
    server.addr("eth0", "10.9.0.3/24")
    key = make_key(lab, hosts[0], "vnet.key")
    config = lab.dir / "c.toml"
    config.write_text(
        f'uplink = "eth1"\nkey-file = "{key}"\n[links]\n'
        'a = "tcp:192.0.2.3:7001,server"\nb = "tcp:192.0.2.3:7002,server"\n'
    )
    links: list[list[str | Path]] = [
        ["--iface", "vmnet1", "--key-file", key, "--attach", "b=udp:192.0.2.2:7001", "--pcap", lab.dir / "a"],
        ["--iface", "vmnet1", "--key-file", key, "--attach", "a=udp:192.0.2.2:7001,server"],
        ["--config", config],
    ]
    links[0] += ["--attach", "c=tcp:192.0.2.3:7001"]
    links[1] += ["--attach", "c=tcp:192.0.2.3:7002"]
    with ExitStack() as stack:
        daemons = [
            stack.enter_context(bridge(lab, host, *words, service="vtl-vnet", name=f"vnet{i}"))
            for i, (host, words) in enumerate(zip(hosts, links, strict=True))
        ]
        found = Overlaid(lab, vms, hosts, server, daemons, key)
        for daemon in daemons:
            until(lambda daemon=daemon: all(x["up"] for x in daemon.status()["overlay"].values()), "links")
        yield found


def least_ms(source: Host, address: str) -> float:
    said = source.run("ping", "-c5", "-i0.02", "-W5", address).stdout
    return min(float(ms) for ms in re.findall(r"time=([\d.]+)", said))


def test_three_daemons_are_one_ethernet_and_hear_no_frame_twice(world: Overlaid) -> None:
    vm1, vm2 = world.vms
    for source, address in (vm1, "10.9.0.2"), (vm1, "10.9.0.3"), (world.server, "10.9.0.2"):
        until(lambda source=source, address=address: world.reaches(source, address), address)
    said = vm1.run("ping", "-c3", "-i0.2", "-b", "10.9.0.255", check=False).stdout
    assert "DUP" not in vm1.run("ping", "-c3", "-i0.2", "10.9.0.2").stdout + said
    stations = world.daemons[2].status()["stations"]
    assert (stations[MACS[0]]["link"], stations[MACS[1]]["link"]) == ("a", "b")
    content = bytes(range(256)) * 16384
    world.lab.http(vm2, 80, {"file": content})
    got = vm1.popen("curl", "-s", "http://10.9.0.2/file", stdout=subprocess.PIPE).communicate()[0]
    assert got == content
    overlay = world.daemons[0].status()["overlay"]
    assert overlay["b"]["octets_in"] > len(content)
    assert overlay["c"]["octets_in"] < len(content) / 4
    assert overlay["b"]["rtt_ms"] is not None


def test_a_service_is_put_under_a_running_connection_and_taken_away(world: Overlaid) -> None:
    vm1, vm2 = world.vms
    until(lambda: world.reaches(vm1, "10.9.0.2"), "the other VM")
    listener = vm2.call(socket.create_server, ("10.9.0.2", 7000))
    sender = vm1.call(socket.create_connection, ("10.9.0.2", 7000), PATIENCE_S)
    receiver, _ = listener.accept()
    receiver.settimeout(PATIENCE_S)

    def says(line: bytes) -> None:
        sender.sendall(line)
        assert receiver.recv(64) == line

    says(b"before\n")
    world.asks(0, "link", "add", "wan", "service:wan?delay=30ms")
    world.asks(0, "rule", "add", *f"from-mac {MACS[0]} via wan".split())
    until(lambda: world.reaches(vm1, "10.9.0.2"), "the way through the service")
    says(b"within\n")
    assert 60 <= least_ms(vm1, "10.9.0.2") < 60 + 30 * slowness()
    assert 60 <= least_ms(vm2, "10.9.0.1") < 60 + 30 * slowness()
    status = world.daemons[0].status()
    assert status["rules"][f"from-mac {MACS[0]} via wan"]["hits"] > 10
    assert status["stations"][MACS[0]]["through"] == "wan"
    pid = status["overlay"]["wan"]["pid"]
    refused = world.asks(0, "link", "remove", "wan", check=False)
    assert "names it; remove the rule first" in refused.stderr
    world.asks(0, "rule", "remove", *f"from-mac {MACS[0]} via wan".split())
    world.asks(0, "link", "remove", "wan")
    kill = ("kill", "-0", str(pid))
    until(lambda: world.hosts[0].run(*kill, check=False).returncode, "the end of the service")
    links = ("vmnet1", "b", "c", "wan.vm", "wan.net")
    expected = {(name, way) for name in links for way in (INBOUND, OUTBOUND)}
    until(lambda: _recorded(world.lab.dir / "a") >= expected - {("c", INBOUND)}, "frames of all links")
    says(b"after\n")
    assert least_ms(vm1, "10.9.0.2") < 30 + 30 * slowness()
    for sock in sender, receiver, listener:
        sock.close()


def _recorded(capture: Path) -> set[tuple[str, int]]:
    with RawPcapNgReader(str(capture)) as reader:
        return {(about.ifname.decode(), about.direction) for _, about in reader}


def test_a_firewall_as_a_link_judges_and_is_started_again_when_it_is_killed(world: Overlaid) -> None:
    vm1, _ = world.vms
    until(lambda: world.reaches(vm1, "10.9.0.2"), "the other VM")
    rules = world.lab.dir / "fw.rules"
    rules.write_text("allow out icmp to 10.9.0.3\ndeny any\n")
    world.asks(0, "link", "add", "fw", f"service:fw?rules={rules}&address=10.9.0.1")
    world.asks(0, "rule", "add", "on", "vmnet1", "via", "fw")
    until(lambda: world.reaches(vm1, "10.9.0.3"), "the server, through the firewall")
    assert not world.reaches(vm1, "10.9.0.2")
    assert not world.reaches(world.vms[1], "10.9.0.1")
    pid = world.daemons[0].status()["overlay"]["fw"]["pid"]
    world.hosts[0].run("kill", "-9", str(pid))
    world.daemons[0].wait_for("service-link", pid=0, exit=-9)
    until(lambda: world.reaches(vm1, "10.9.0.3"), "the server again")
    assert not world.reaches(vm1, "10.9.0.2")


def test_a_link_that_is_cut_comes_back(world: Overlaid) -> None:
    vm1, _ = world.vms
    until(lambda: world.reaches(vm1, "10.9.0.2"), "the other VM")
    world.hosts[1].run("ip", "link", "set", "wan", "down")
    world.daemons[0].wait_for("link", changed="b", up=False)
    assert not world.reaches(vm1, "10.9.0.2")
    assert world.reaches(vm1, "10.9.0.3")
    world.hosts[1].run("ip", "link", "set", "wan", "up")
    world.daemons[0].wait_for("link", changed="b", up=True)
    until(lambda: world.reaches(vm1, "10.9.0.2"), "the other VM again")
    assert world.daemons[0].status()["overlay"]["b"]["losses"] == 1


def test_a_daemon_with_another_key_is_refused(world: Overlaid) -> None:
    stranger, vm = world.lab.host("stranger"), world.lab.host("vm3")
    world.lab.veth(stranger, "wan", world.hosts[0], "x1")
    world.hosts[0].addr("x1", "198.51.100.1/24")
    stranger.addr("wan", "198.51.100.2/24")
    world.lab.veth(vm, "eth0", stranger, "vmnet1")
    vm.addr("eth0", "10.9.0.9/24")
    world.asks(0, "link", "add", "door", "tcp:198.51.100.1:7009,server")
    wrong = make_key(world.lab, stranger, "wrong.key")
    for key, is_let_in in (wrong, False), (world.key, True):
        words = ("--iface", "vmnet1", "--key-file", key, "--attach", "a=tcp:198.51.100.1:7009")
        with bridge(world.lab, stranger, *words, service="vtl-vnet", name="stranger") as running:
            if is_let_in:
                until(lambda: world.reaches(vm, "10.9.0.1"), "the VM")
                continue
            until(lambda: running.status()["overlay"]["a"]["why"] == "closed the connection", "a refusal")
            assert not world.reaches(vm, "10.9.0.1")
            assert not running.status()["overlay"]["a"]["up"]
