"""vtl-freeze between real kernels: a VM that is cut off loses its connections, and with it keeps them.

The VM is a host whose cable is cut on the way, so that nothing of it is heard and nothing gets to it. Its
peers give up after seconds, in the place of a quarter of an hour (tcp_retries2).
"""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge, bridge
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

VM4, VM6 = "10.9.0.2", "fd09::2"
GIVES_UP_S = 4.0
"""What tcp_retries2=3 comes to is about 3 s: 0.2, 0.4, 0.8 and 1.6 after a last transmission."""
PATIENT, IMPATIENT = 15, 3
"""tcp_retries2, read by the kernel at each timeout. A peer is impatient only while the service answers it,
and not while the service starts, which takes seconds on a busy machine."""
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


def be(host: Host, retries: int) -> None:
    """Make the peers on a host PATIENT or IMPATIENT, all at once."""
    host.sysctl("net.ipv4.tcp_retries2", retries)


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


class Flow:
    """A connection between a socket in the VM and one of its peer; octets from source to sink."""

    def __init__(self, vm: Host, host: Host, address: str, *, download: bool) -> None:
        with vm.call(partial(socket.create_server, (address, 0), family=_family(address))) as server:
            port = server.getsockname()[1]
            self.peer = host.call(partial(socket.create_connection, (address, port)))
            self.vm, _ = server.accept()
        self.source, self.sink = (self.peer, self.vm) if download else (self.vm, self.peer)
        self.data, self.got = os.urandom(1 << 16), bytearray()
        self.sent = 0
        self.error: OSError | None = None
        self.ends = threading.Event()
        self._threads = [threading.Thread(target=each) for each in (self._send, self._receive)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        try:
            while not self.ends.is_set():
                at = self.sent % len(self.data)
                self.sent += self.source.send(self.data[at : at + 20_000])
                time.sleep(0.001)
            self.source.shutdown(socket.SHUT_WR)
        except OSError as e:
            self.error = e

    def _receive(self) -> None:
        try:
            while octets := self.sink.recv(1 << 16):
                self.got += octets
        except OSError as e:
            self.error = e

    def is_whole(self) -> bool:
        """Come to the end, and tell whether all that was sent was received, once and in order."""
        self.ends.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        whole = self.data * (len(self.got) // len(self.data) + 1)
        return len(self.got) == self.sent and whole.startswith(self.got)

    def close(self) -> None:
        self.ends.set()
        for end in self.vm, self.peer:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(PATIENCE_S)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


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


def idle(vm: Host, host: Host) -> tuple[socket.socket, socket.socket]:
    """A connection without data, whose peer asks each second whether the VM is there."""
    with vm.call(partial(socket.create_server, (VM4, 0))) as server:
        peer = host.call(partial(socket.create_connection, server.getsockname()))
        end, _ = server.accept()
    for option, value in (
        (socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 100),
    ):  # fmt: skip
        peer.setsockopt(socket.IPPROTO_TCP, option, value)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return peer, end


def ask_five_times(peer: socket.socket) -> None:
    """Let an idle peer give up when five of its questions were not answered."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 5)


def state_of(peer: socket.socket) -> int:
    """The TCP state of a socket: 1 is ESTABLISHED."""
    return peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def held(running: Bridge) -> dict[str, object]:
    freeze: dict[str, object] = running.status()["freeze"]
    return freeze


def test_without_it_connections_end(scene: Scene, flows: list[Flow]) -> None:
    vm, cable, host = scene
    peer, end = idle(vm, host)
    with peer, end:
        cut(cable)
        be(host, IMPATIENT)
        ask_five_times(peer)
        until(lambda: all(flow.error for flow in flows if flow.source is flow.peer), "peers to give up")
        until(lambda: state_of(peer) != 1, "the keep-alives to end")
        mend(cable)


def test_with_it_they_go_on(lab: Lab, scene: Scene, flows: list[Flow]) -> None:
    vm, cable, host = scene
    peer, end = idle(vm, host)
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
