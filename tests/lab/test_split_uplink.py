"""vtl-split --uplink between real kernels: neither end sees anything of it, and all else passes."""

import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lab.netns import Host, Lab
from lab.scenes import line_of_three
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from tests.running import Bridge, bridge
from tests.schemas import validated

pytestmark = pytest.mark.lab

TWO = ("--iface", "vmnet1", "--uplink", "eth0")
HOSTS = {socket.AF_INET: ("10.9.0.1", "10.9.0.2"), socket.AF_INET6: ("fd09::1", "fd09::2")}
FAMILIES = list(HOSTS)
CONTENT = bytes(range(256)) * 16384
RESET = struct.pack("ii", 1, 0)
_MIN_RTT = struct.Struct("=148xI")  # tcpi_min_rtt of struct tcp_info, in microseconds


@contextmanager
def split(lab: Lab, middle: Host, *options: str, name: str = "split") -> Iterator[Bridge]:
    with bridge(lab, middle, *TWO, *options, name=name, service="vtl-split") as running:
        yield running


class Ends:
    """Sockets in hosts, which are closed at the end."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def keep(self, sock: socket.socket) -> socket.socket:
        sock.settimeout(PATIENCE_S)
        self.lab.defer(sock.close)
        return sock

    def listen(self, host: Host, address: str, port: int = 80) -> socket.socket:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with host.enter():
            return self.keep(socket.create_server((address, port), family=family))

    def connect(self, host: Host, address: str, port: int = 80) -> socket.socket:
        with host.enter():
            return self.keep(socket.create_connection((address, port), PATIENCE_S))

    def accept(self, listener: socket.socket) -> socket.socket:
        return self.keep(listener.accept()[0])

    def pair(self, one: Host, other: Host, address: str) -> tuple[socket.socket, socket.socket]:
        """Connect one host to an address of another; return both ends."""
        with self.listen(other, address) as listener:
            near = self.connect(one, address)
            return near, self.accept(listener)

    def udp(self, host: Host) -> socket.socket:
        with host.enter():
            return self.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


@pytest.fixture
def ends(lab: Lab) -> Ends:
    return Ends(lab)


def read_all(sock: socket.socket) -> bytes:
    got = bytearray()
    while octets := sock.recv(1 << 20):
        got += octets
    return bytes(got)


def exchange(near: socket.socket, far: socket.socket, content: bytes = CONTENT) -> None:
    """Send octets from one end to the other, and half as many back once they have ended."""

    def answer() -> None:
        assert read_all(far) == content
        far.sendall(content[: len(content) // 2])
        far.close()

    answering = threading.Thread(target=answer)
    answering.start()
    near.sendall(content)
    near.shutdown(socket.SHUT_WR)
    assert read_all(near) == content[: len(content) // 2]
    near.close()
    answering.join()


def listing(middle: Host, running: Bridge) -> list[str]:
    told = middle.run(BIN / "vtl-split", "flows", "--json", "--link", str(running.socket))
    return told.stdout.splitlines()


@pytest.mark.parametrize("family", FAMILIES)
def test_connections_of_both_directions_show_the_addresses_of_their_ends(
    lab: Lab, ends: Ends, family: socket.AddressFamily
) -> None:
    client, middle, server = line_of_three(lab)
    ours, theirs = HOSTS[family]
    with split(lab, middle) as running:
        for one, other, address, peer in (client, server, theirs, ours), (server, client, ours, theirs):
            near, far = ends.pair(one, other, address)
            assert (far.getpeername()[0], near.getpeername()[0]) == (peer, address)
            assert far.getpeername()[1] == near.getsockname()[1]
            listed = [json.loads(line) for line in listing(middle, running)]
            assert [(flow["from"], flow["to"]) for flow in map(validated, listed)][-1] == (peer, address)
            assert listed[-1]["far"]["state"] == "ESTABLISHED"
            exchange(near, far)
        command = ["ip", "neigh", "show", ours]
        assert client.mac("eth0") in server.run(*command).stdout
        status = running.status()
        for part in status, status["from_network"]:
            assert part["carried"]["opened"] == part["far"]["established"] == 1
            assert part["carried"]["octets_up"] == 2 * part["carried"]["octets_down"] == len(CONTENT)
        assert running.drops() == {}


def test_all_that_is_not_tcp_passes(lab: Lab, ends: Ends) -> None:
    client, middle, server = line_of_three(lab)
    with split(lab, middle):
        for address in "10.9.0.2", "fd09::2":  # with ARP and neighbour discovery before
            assert "1 received" in client.run("ping", "-c1", "-s3000", "-W60", address).stdout
        there, here, closed = ends.udp(server), ends.udp(client), ends.udp(client)
        there.bind(("10.9.0.2", 53))
        here.sendto(b"question", ("10.9.0.2", 53))
        octets, peer = there.recvfrom(100)
        assert (octets, peer[0]) == (b"question", "10.9.0.1")
        closed.connect(("10.9.0.2", 54))
        closed.send(b"anyone")
        with pytest.raises(ConnectionRefusedError):  # told by an ICMP error
            closed.recv(1)


def test_refusals_and_resets_cross(lab: Lab, ends: Ends) -> None:
    client, middle, server = line_of_three(lab)
    with split(lab, middle):
        with pytest.raises(ConnectionRefusedError):
            ends.connect(client, "10.9.0.2")
        for one, other, address in (client, server, "10.9.0.2"), (server, client, "10.9.0.1"):
            near, far = ends.pair(one, other, address)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            far.close()
            with pytest.raises(ConnectionResetError):
                near.recv(1)


def test_an_error_of_a_router_is_told_to_the_guest(lab: Lab, ends: Ends) -> None:
    client, middle, router = line_of_three(lab)
    router.sysctl("net.ipv4.ip_forward", 1)
    router.run("ip", "route", "add", "prohibit", "10.7.0.0/16")
    router.run("ip", "route", "add", "unreachable", "10.8.0.0/16")
    client.route("default", "10.9.0.2")
    with split(lab, middle) as running:
        for address in "10.7.0.1", "10.8.0.1":
            with pytest.raises(OSError, match="No route to host"):
                ends.connect(client, address)
        assert running.status()["far"]["failed"] == 2


def test_a_narrow_path_is_the_business_of_the_far_endpoint(lab: Lab, ends: Ends) -> None:
    client, middle, router = line_of_three(lab)
    server = lab.host("behind")
    lab.veth(router, "eth1", server, "eth0", mtu=1280)
    router.addr("eth1", "10.7.0.1/24")
    server.addr("eth0", "10.7.0.2/24")
    router.sysctl("net.ipv4.ip_forward", 1)
    client.route("default", "10.9.0.2")
    server.route("default", "10.7.0.1")
    for host, names in (client, ["eth0"]), (router, ["eth0", "eth1"]), (server, ["eth0"]):
        for name in names:
            host.run("ethtool", "-K", name, "tso", "off", "gso", "off", "gro", "off")
    with split(lab, middle) as running:
        exchange(*ends.pair(client, server, "10.7.0.2"))
        assert "mtu" not in client.run("ip", "route", "get", "10.7.0.2").stdout
        assert running.drops() == {}


def test_the_guest_is_acknowledged_here_and_not_at_the_end_of_a_long_path(lab: Lab, ends: Ends) -> None:
    client, middle, server = line_of_three(lab)
    world = lab.host("world")
    server.run("ip", "link", "set", "dev", "eth0", "netns", world.netns, "name", "w0")
    world.run("ip", "link", "set", "dev", "w0", "up")
    lab.veth(world, "w1", server, "eth0")
    server.addr("eth0", "10.9.0.2/24")
    path = ("--iface", "w0", "--iface", "w1", "--delay", "50ms", "--rate", "300mbit", "--loss", "0.1%")
    with bridge(lab, world, *path, "--seed", "3", name="wan", service="vtl-wan"), split(lab, middle):
        near, far = ends.pair(client, server, "10.9.0.2")
        near.sendall(CONTENT[:100_000])
        until(lambda: min_rtt_us(near) < 100_000, "an acknowledgement by vtl-split")
        assert min_rtt_us(far) >= 100_000
        near.shutdown(socket.SHUT_WR)
        assert read_all(far) == CONTENT[:100_000]


def min_rtt_us(sock: socket.socket) -> int:
    octets = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _MIN_RTT.size)
    found: int = _MIN_RTT.unpack(octets)[0]
    return found


def test_early_acknowledgements_do_not_wait_for_the_server(lab: Lab, ends: Ends) -> None:
    client, middle, server = line_of_three(lab)
    server.run("nft", "add table ip t; add chain ip t in { type filter hook input priority 0; };"
               "add rule ip t in tcp dport 80 drop")  # fmt: skip
    with split(lab, middle, "--early-ack"):
        sock = ends.connect(client, "10.9.0.2")
        sock.sendall(b"early")
        with ends.listen(server, "10.9.0.2") as listener:
            server.run("nft", "flush ruleset")
            assert ends.accept(listener).recv(100) == b"early"


def test_a_killed_service_lets_nothing_through_and_the_next_one_resets_the_rest(lab: Lab, ends: Ends) -> None:
    client, middle, server = line_of_three(lab)
    with bridge(lab, middle, *TWO, name="killed", service="vtl-split") as running:
        near, far = ends.pair(client, server, "10.9.0.2")
        near.sendall(b"before")
        assert far.recv(100) == b"before"
        wire = server.wire()
        running.process.kill()
        running.process.wait()
        wire.read()
        near.sendall(b"after")
        client.run("ping", "-c1", "-W1", "10.9.0.2", check=False)
        mac = bytes.fromhex(client.mac("eth0").replace(":", ""))
        assert not [frame for frame in wire.read() if frame[6:12] == mac]
        with split(lab, middle):
            with pytest.raises(ConnectionResetError):
                near.recv(1)
            far.sendall(b"is anyone there")
            with pytest.raises(ConnectionResetError):
                far.recv(1)
            exchange(*ends.pair(client, server, "10.9.0.2"), content=b"again")
        running.process.terminate = lambda: None  # type: ignore[method-assign] # it has ended already
        running.process.wait = lambda timeout=None: 0  # type: ignore[method-assign]


def test_a_service_that_ends_resets_both_ends(lab: Lab, ends: Ends) -> None:
    client, middle, server = line_of_three(lab)
    with split(lab, middle):
        near, far = ends.pair(client, server, "10.9.0.2")
    for end in near, far:
        with pytest.raises(ConnectionResetError):
            end.recv(1)


@pytest.mark.parametrize("option", [("--dns", "192.0.2.1"), ("--bandwidth", "1gbit"), ("--no-dhcp",)])
def test_options_of_sockets_are_refused(lab: Lab, option: tuple[str, ...]) -> None:
    host = lab.host("host")
    ran = host.run(BIN / "vtl-split", *TWO, *option, check=False)
    assert ran.returncode == 2
    assert "is for connections through sockets" in ran.stderr
