"""vtl-vnet: a VM moves between hosts with its connections; services come and go under connections."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from tests.held import IMPATIENT, PATIENT, Flow, be, idle, state_of, witness
from tests.lab.test_tor_limits import PROXY
from tests.lab.test_vnet import MACS, Overlaid, make_key
from tests.running import bridge
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

VM, SERVER = "10.9.0.1", "10.9.0.3"
PUBLIC = "203.0.113.80"
"""Of the server as well: vtl-tor makes no connections to private addresses."""


@pytest.fixture(scope="module")
def world() -> Iterator[Overlaid]:
    """vm1 - [cable] - [a] or [b], and [c], a proxy - server: the daemons in a full mesh."""
    with Lab() as lab, ExitStack() as stack:
        switch, cable = lab.host("underlay"), lab.host("cable", ipv6=False)
        hosts = [lab.host(name) for name in "abc"]
        vm, server = lab.host("vm1"), lab.host("server")
        lab.bridge(switch, "br0", [])
        for number, host in enumerate(hosts, 1):
            lab.veth(host, "wan", switch, f"p{number}")
            switch.run("ip", "link", "set", f"p{number}", "master", "br0")
            host.addr("wan", f"192.0.2.{number}/24")
        lab.veth(vm, "eth0", cable, "vm")
        for host in hosts[:2]:
            lab.veth(host, "vmnet1", cable, host.name)
        lab.bridge(cable, "br0", ["vm", "a"])
        vm.run("ip", "link", "set", "eth0", "address", MACS[0])
        lab.veth(server, "eth0", hosts[2], "eth1")
        vm.addr("eth0", f"{VM}/24")
        server.addr("eth0", f"{SERVER}/24", f"{PUBLIC}/24")
        vm.run("ip", "route", "add", f"{PUBLIC}/32", "dev", "eth0")
        key = make_key(lab, hosts[0], "vnet.key")
        links = [
            ["--iface", "vmnet1", "--attach", "b=tcp:192.0.2.2:7001", "--attach", "c=udp:192.0.2.3:7001"],
            [
                "--iface",
                "vmnet1",
                "--attach",
                "a=tcp:192.0.2.2:7001,server",
                "--attach",
                "c=udp:192.0.2.3:7002",
            ],
            [
                *("--uplink", "eth1", "--attach", "a=udp:192.0.2.3:7001,server"),
                *("--attach", "b=udp:192.0.2.3:7002,server"),
            ],
        ]
        daemons = [
            stack.enter_context(
                bridge(lab, host, *words, "--key-file", key, service="vtl-vnet", name=f"vnet{host.name}")
            )
            for host, words in zip(hosts, links, strict=True)
        ]
        found = Overlaid(lab, [vm, cable], hosts, server, daemons, key)
        until(lambda: found.reaches(vm, SERVER), "the server")
        yield found


def put(world: Overlaid, daemon: int, name: str, spec: str, rule: str) -> Path:
    """Put a service under the frames of a rule; return its control socket."""
    world.asks(daemon, "link", "add", name, spec)
    until(lambda: world.daemons[daemon].status()["overlay"][name]["up"], "the service")
    world.asks(daemon, "rule", "add", *rule.split(), "via", name)
    return Path(world.daemons[daemon].status()["overlay"][name]["control"])


def take_away(world: Overlaid, daemon: int, name: str, rule: str) -> None:
    """Remove a rule without connections, and its service."""
    world.asks(daemon, "rule", "remove", *rule.split(), "via", name)
    world.asks(daemon, "link", "remove", name)


# --- services under connections


@dataclass
class Talks:
    """Connections of the VM, and their other ends."""

    vm: Host
    server: Host
    stack: ExitStack = field(default_factory=ExitStack)

    def listen(self, address: str, port: int) -> socket.socket:
        listener = self.stack.enter_context(self.server.call(socket.create_server, (address, port)))
        listener.settimeout(PATIENCE_S)
        return listener

    def connect(self, address: str, port: int, patience_s: float = PATIENCE_S) -> socket.socket:
        made = self.vm.call(partial(socket.create_connection, (address, port), patience_s))
        self.stack.enter_context(made)
        made.settimeout(PATIENCE_S)
        return made

    def accept(self, listener: socket.socket) -> socket.socket:
        far, _ = listener.accept()
        self.stack.enter_context(far)
        far.settimeout(PATIENCE_S)
        return far

    def join(self, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
        near = self.connect(*listener.getsockname())
        return near, self.accept(listener)


def says(one: socket.socket, other: socket.socket, text: bytes) -> None:
    """A connection carries octets in both directions."""
    for source, sink in (one, other), (other, one):
        source.sendall(text)
        assert sink.recv(64) == text


@pytest.fixture
def talks(world: Overlaid) -> Iterator[Talks]:
    found = Talks(world.vms[0], world.server)
    with found.stack:
        yield found


def forge(world: Overlaid, path: Path) -> str:
    """Send a frame in the server's name, which the firewall drops. Return where the server is now."""

    def dropped() -> int:
        return sum(control.ask(path, "status")["drops"].values())

    server = address.mac(world.server.mac("eth0"))
    hosts = address.ip(SERVER), address.ip("10.9.0.255")
    macs = {"src_mac": server, "dst_mac": address.BROADCAST}
    frame = build.udp(**macs, src=hosts[0], dst=hosts[1], sport=7, dport=7, payload=b"here I am")
    before = dropped()
    with world.vms[0].call(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        raw.send(frame[VNET:])
        until(lambda: dropped() > before, "the firewall to drop it")
    return str(world.daemons[0].status()["stations"][server.hex(":")]["link"])


def test_a_firewall_under_a_running_vm_keeps_old_connections_only_if_it_is_told_to(
    world: Overlaid, talks: Talks
) -> None:
    denied, allowed = talks.listen(SERVER, 7000), talks.listen(SERVER, 7001)
    old = talks.join(denied)
    rules = world.lab.dir / "fw.rules"
    rules.write_text(f"allow out tcp to {SERVER} port 7001\ndeny any\n")
    spec = f"service:fw?rules={rules}&address={VM}"
    put(world, 0, "fw", spec, "on vmnet1 keep-flows 60")
    says(*old, b"around")
    new = talks.join(allowed)
    with pytest.raises(OSError, match=r"timed out|refused"):
        talks.connect(SERVER, 7000, 1.0)
    (rule,) = world.daemons[0].status()["rules"].values()
    assert rule["kept"] == 1
    take_away(world, 0, "fw", "on vmnet1 keep-flows 60")
    for each in old, new, talks.join(denied):
        says(*each, b"after")

    path = put(world, 0, "fw", spec, "on vmnet1")
    assert forge(world, path) == "c"
    old[1].sendall(b"not heard")

    def refused() -> int:
        return sum(control.ask(path, "status")["drops"].values())

    until(refused, "the firewall to refuse what it did not see begin")
    old[0].settimeout(0.2)
    with pytest.raises(OSError, match=r"timed out|reset"):
        old[0].recv(64)
    take_away(world, 0, "fw", "on vmnet1")


@contextmanager
def socks(world: Overlaid) -> Iterator[Path]:
    """A proxy at daemon a that echoes what is for port 7."""
    path = world.lab.dir / "socks"
    process = world.hosts[0].popen("python3", "-c", PROXY, str(path), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    path.chmod(0o666)
    yield path
    process.kill()


def test_tor_under_a_running_vm_has_new_connections_until_they_end(world: Overlaid, talks: Talks) -> None:
    old = talks.join(talks.listen(PUBLIC, 7000))
    rule = f"from-mac {MACS[0]} protocol tcp keep-flows 60"
    with socks(world) as proxy:
        put(world, 0, "tor", f"service:tor?socks=unix:{proxy}&no-check", rule)
        says(*old, b"around")
        new = talks.connect(PUBLIC, 7)  # where the server has no service
        new.sendall(b"through")
        assert new.recv(64) == b"through"
        world.asks(0, "rule", "remove", *rule.split(), "via", "tor")
        refused = world.asks(0, "link", "remove", "tor", check=False)
        assert "1 connections still have it" in refused.stderr
        says(*old, b"still around")
        new.sendall(b"still through")
        assert new.recv(64) == b"still through"
        with pytest.raises(ConnectionRefusedError):
            talks.connect(PUBLIC, 7)
        new.shutdown(socket.SHUT_WR)
        assert new.recv(64) == b""
        new.close()
        assert world.daemons[0].wait_for("rule")["drained"]
        world.asks(0, "link", "remove", "tor")
        says(*old, b"after")


def test_udt_at_both_ends_under_a_running_vm_carries_new_connections_until_they_end(
    world: Overlaid, talks: Talks
) -> None:
    key = world.lab.dir / "udt.key"
    world.hosts[0].run(BIN / "vtl-udt", "keygen", key)
    listener = talks.listen(SERVER, 7000)
    old = talks.join(listener)
    mac = world.server.run("cat", "/sys/class/net/eth0/address").stdout.strip()
    # Else the far module asks for the server in the VM's name, and the server believes its address.
    stations = f"&station={VM}={MACS[0]}&station={SERVER}={mac}"
    common = f"&key-file={key}&transport=tcp{stations}"
    far = put(world, 2, "far", f"service:udt?listen=192.0.2.3:7700{common}", "on eth1")
    near = put(world, 0, "near", f"service:udt?peer={SERVER}/32=192.0.2.3:7700{common}", "on vmnet1")

    def carried(path: Path) -> int:
        status = control.ask(path, "status")
        return status["far"]["flows"] + sum(status["near"]["connections"].values())

    says(*old, b"past")
    until(lambda: all(one["up"] for one in control.ask(near, "status")["peers"].values()), "the far module")
    new = talks.join(listener)
    says(*new, b"through")
    assert (carried(near), carried(far)) == (1, 1)
    assert new[1].getpeername()[0] == VM
    says(*old, b"still past")
    world.asks(0, "rule", "remove", "on", "vmnet1", "via", "near")
    world.asks(2, "rule", "remove", "on", "eth1", "via", "far")
    newest = talks.join(listener)
    for each in old, new, newest:
        says(*each, b"drained")
    assert carried(near) == 1
    for one in new:
        one.close()
    for daemon, name in (0, "near"), (2, "far"):
        assert world.daemons[daemon].wait_for("rule")["drained"]
        world.asks(daemon, "link", "remove", name)
    for each in old, newest:
        says(*each, b"after")
    assert MACS[0] in world.server.run("ip", "neigh", "show", VM).stdout


# --- a VM that moves


def test_a_vm_moves_to_another_host_and_keeps_its_address_and_its_connections(world: Overlaid) -> None:
    (vm, cable), server, lab = world.vms, world.server, world.lab
    gone = lab.host("gone")
    lab.veth(gone, "eth0", server, "eth9")
    gone.addr("eth0", "10.8.0.2/24")
    server.addr("eth9", "10.8.0.1/24")
    with ExitStack() as stack:
        flow = Flow(vm, server, VM, download=True)
        stack.callback(flow.close)
        peer, end = (stack.enter_context(one) for one in idle(vm, server, VM))
        gives_up = stack.enter_context(witness(server, gone, "10.8.0.2"))
        until(lambda: len(flow.got) > 100_000, "data")
        path = put(world, 2, "freeze", f"service:freeze?mac={MACS[0]}", f"from-mac {MACS[0]}")

        def freezes() -> dict[str, Any]:
            return control.ask(path, "status")["freeze"]

        until(lambda: freezes()["connections"] == 2, "both connections to be known")
        cable.run("ip", "link", "set", "dev", "a", "nomaster")
        world.hosts[2].run(BIN / "vtl-freeze", "start", "--link", str(path))
        until(lambda: freezes()["kept_octets"], "a segment to be kept")
        be(server, IMPATIENT)
        gives_up()
        assert (state_of(flow.peer), state_of(peer)) == (1, 1), "the server gave up"
        be(server, PATIENT)
        cable.run("ip", "link", "set", "dev", "b", "master", "br0")
        # As a hypervisor announces a VM that resumes.
        vm.run("ping", "-c1", "-W1", "-b", "10.9.0.255", check=False)
        world.daemons[2].wait_for("station", mac=MACS[0], before="a", at="b")
        world.hosts[2].run(BIN / "vtl-freeze", "stop", "--link", str(path))
        take_away(world, 2, "freeze", f"from-mac {MACS[0]}")
        before = len(flow.got)
        until(lambda: len(flow.got) > before + 100_000, "data to flow again")
        assert flow.is_whole()
        peer.sendall(b"still there?")
        end.settimeout(PATIENCE_S)
        assert end.recv(64) == b"still there?"
        assert world.reaches(server, VM)
        for daemon, link in enumerate(("b", "vmnet1", "b")):
            assert world.daemons[daemon].status()["stations"][MACS[0]]["link"] == link
        assert not world.daemons[2].status()["rules"]
