"""vtl-freeze between real kernels: a VM that is cut off loses its connections, and with it keeps them.

The VM is a host whose cable is cut on the way, so that nothing of it is heard and nothing gets to it. Its
peers give up after seconds, in the place of a quarter of an hour (tcp_retries2).
"""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.held import IMPATIENT, PATIENT, Flow, ask_five_times, be, idle, state_of
from tests.running import BIN, Bridge, bridge
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

VM4, VM6 = "10.9.0.2", "fd09::2"
GIVES_UP_S = 4.0
"""What tcp_retries2=3 comes to is about 3 s: 0.2, 0.4, 0.8 and 1.6 after a last transmission."""
CUT = """
table netdev cut {
  chain both { type filter hook ingress devices = { left, right } priority 0; policy drop; }
}
"""
Scene = tuple[Host, Host, Host]


@pytest.fixture
def scene(lab: Lab) -> Scene:
    """The VM (10.9.0.2) - left [a cable] right - vnet0 [host, where its peers are]."""
    vm, cable, host = lab.host("vm"), lab.host("cable", ipv6=False), lab.host("host")
    lab.veth(vm, "eth0", cable, "left")
    lab.veth(host, "vnet0", cable, "right")
    lab.bridge(cable, "both", ["left", "right"])
    vm.addr("eth0", f"{VM4}/24", f"{VM6}/64")
    host.addr("vnet0", "10.9.0.1/24", "fd09::1/64")
    for one in vm, host:
        one.run("ping", "-c1", "-q", "10.9.0.1")
    return vm, cable, host


@contextmanager
def freezing(lab: Lab, host: Host, *arguments: str) -> Iterator[Bridge]:
    links = ("--iface", "vnet0", "--state", lab.dir / "freeze.state")
    with bridge(lab, host, *links, *arguments, service="vtl-freeze") as running:
        assert running.ready["event"] == "ready"
        yield running


def cut(cable: Host) -> None:
    """What is sent is lost behind the sender, who does not see it: else Linux tries again at once."""
    cable.run("nft", "-f", "-", input=CUT)


def mend(cable: Host) -> None:
    cable.run("nft", "delete table netdev cut")


@pytest.fixture
def flows(scene: Scene) -> Iterator[list[Flow]]:
    """A download and an upload of the VM, over both versions of IP."""
    vm, _, host = scene
    with ExitStack() as stack:
        made = [Flow(vm, host, address, download=way) for address in (VM4, VM6) for way in (True, False)]
        for flow in made:
            stack.callback(flow.close)
            until(lambda flow=flow: len(flow.got) > 100_000, "data")  # type: ignore[misc]
        yield made


def held(running: Bridge) -> dict[str, object]:
    freeze: dict[str, object] = running.status()["freeze"]
    return freeze


def test_without_it_connections_end(scene: Scene, flows: list[Flow]) -> None:
    vm, cable, host = scene
    peer, end = idle(vm, host, VM4)
    with peer, end:
        cut(cable)
        be(host, IMPATIENT)
        ask_five_times(peer)
        until(lambda: all(flow.error for flow in flows if flow.source is flow.peer), "peers to give up")
        until(lambda: state_of(peer) != 1, "the keep-alives to end")
        mend(cable)


def test_with_it_they_go_on(lab: Lab, scene: Scene, flows: list[Flow]) -> None:
    vm, cable, host = scene
    peer, end = idle(vm, host, VM4)
    with peer, end, freezing(lab, host) as running:
        until(lambda: held(running)["connections"] == 5 or None, "the connections to be known")
        cut(cable)
        control.ask(running.socket, "start")
        be(host, IMPATIENT)
        ask_five_times(peer)
        time.sleep(2 * GIVES_UP_S)  # nothing else tells that they would have given up
        assert [flow.error for flow in flows] == [None] * 4
        rows = control.ask(running.socket, "report")["connections"]
        assert len([row for row in rows if row["probes"] > 1]) >= 3
        before = [len(flow.got) for flow in flows]
        mend(cable)
        told = control.ask(running.socket, "stop")
        assert told["ended"]
        until(lambda: all(len(f.got) > n for f, n in zip(flows, before, strict=True)), "data to flow again")
        assert all(flow.is_whole() for flow in flows)
        peer.sendall(b"still there")
        assert end.recv(99) == b"still there"


def vtl_freeze(running: Bridge, verb: str, *words: str | Path) -> str:
    """Run a verb; its standard output."""
    command = [BIN / "vtl-freeze", verb, *words, "--link", running.socket]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_what_is_frozen_outlasts_the_service_and_moves(lab: Lab, scene: Scene) -> None:
    vm, cable, host = scene
    exported, socket_path = lab.dir / "exported.json", lab.dir / "killed.sock"
    download = Flow(vm, host, VM4, download=True)
    lab.defer(download.close)
    until(lambda: len(download.got) > 100_000, "data")
    command = [BIN / "vtl-freeze", "--iface", "vnet0", "--state", lab.dir / "freeze.state", "--json"]
    killed = host.popen(*command, "--control", socket_path, stdout=subprocess.PIPE)
    assert killed.stdout is not None
    assert b"ready" in killed.stdout.readline()
    until(lambda: control.ask(socket_path, "status")["freeze"]["connections"], "the connection to be known")
    cut(cable)
    control.ask(socket_path, "start")
    until(lambda: control.ask(socket_path, "status")["freeze"]["kept_octets"], "a segment to be kept")
    control.ask(socket_path, "export")
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(PATIENCE_S)
    time.sleep(1.0)
    with freezing(lab, host) as running:
        assert held(running)["frozen"]
        assert held(running)["kept_octets"]
        be(host, IMPATIENT)
        time.sleep(GIVES_UP_S)
        be(host, PATIENT)
        vtl_freeze(running, "export", exported)
    (lab.dir / "freeze.state").unlink()  # as on another host
    with freezing(lab, host) as running:
        assert (held(running)["frozen"], held(running)["connections"]) == (False, 0)
        vtl_freeze(running, "import", exported)
        assert (held(running)["frozen"], held(running)["connections"]) == (True, 1)
        be(host, IMPATIENT)
        time.sleep(GIVES_UP_S)
        be(host, PATIENT)
        before = len(download.got)
        mend(cable)
        vtl_freeze(running, "stop")
        until(lambda: len(download.got) > before, "data to flow again")
        assert download.error is None
        assert download.is_whole()


def test_others_learn_where_the_vm_is_while_it_is_away(lab: Lab, scene: Scene) -> None:
    vm, cable, host = scene
    flow = Flow(vm, host, VM6, download=True)
    lab.defer(flow.close)
    other = Flow(vm, host, VM4, download=True)
    lab.defer(other.close)
    with freezing(lab, host) as running:
        until(lambda: held(running)["connections"] == 2, "the connections to be known")
        cut(cable)
        control.ask(running.socket, "start")
        mac = vm.mac("eth0")
        for address in VM4, VM6:
            host.run("ip", "neigh", "flush", "all")
            host.run("ping", "-c1", "-W1", "-q", address, check=False)  # asks, and gets no other answer
            shown = host.run("ip", "neigh", "show", address).stdout
            assert mac in shown, shown
        assert control.ask(running.socket, "announce")["announced"] == 3
        mend(cable)
        control.ask(running.socket, "stop")
        assert flow.is_whole()
        assert other.is_whole()
