"""vortex-client beside a real kernel: an attacker, a volunteer with its services, a honeypot behind."""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge, bridge
from vtl_tools.common.packet import tcp
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.packet import Packet

pytestmark = pytest.mark.lab

V4, V6 = "192.0.2.1", "2001:db8::1"
A4, A6 = "203.0.113.9", "2001:db9::9"
LOGIN = """
import socket, sys
s = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    c, peer = s.accept()
    c.sendall(b"login: ")
    name = c.recv(100).strip()
    c.sendall(b"%s from %s: welcome to %s\\n" % (name, peer[0].encode(), sys.argv[2].encode()))
    c.close()
"""
ECHO = """
import socket, sys
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
s.bind(("::", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, peer = s.recvfrom(65536)
    s.sendto(data * int(sys.argv[2]), peer)
"""


class World(NamedTuple):
    attacker: Host
    router: Host
    volunteer: Host
    honeypot: Host
    neighbour: Host


def serve(host: Host, script: str, *arguments: object) -> subprocess.Popen[str]:
    process = host.popen("python3", "-c", script, *map(str, arguments), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.fixture
def world(lab: Lab) -> World:
    """The internet, a router, the volunteer in a network with a neighbour, and a honeypot on a link."""
    attacker, router, volunteer = lab.host("attacker"), lab.host("router"), lab.host("volunteer")
    honeypot, neighbour = lab.host("honeypot"), lab.host("neighbour")
    lab.veth(attacker, "eth0", router, "wan")
    lab.veth(volunteer, "eth0", router, "lan1")
    lab.veth(neighbour, "eth0", router, "lan2")
    lab.bridge(router, "lan", ["lan1", "lan2"])
    lab.veth(volunteer, "worm", honeypot, "eth0")
    for host, interface, *addresses in (
        (attacker, "eth0", f"{A4}/24", f"{A6}/64"), (router, "wan", "203.0.113.1/24", "2001:db9::1/64"),
        (router, "lan", "192.0.2.254/24", "2001:db8::fe/64"), (volunteer, "eth0", f"{V4}/24", f"{V6}/64"),
        (neighbour, "eth0", "192.0.2.2/24", "2001:db8::2/64"),
        (honeypot, "eth0", "198.18.0.2/24", "2001:2::2/64"),
    ):  # fmt: skip
        for address in addresses:
            host.addr(interface, address)
    for host, via4, via6 in (
        (attacker, "203.0.113.1", "2001:db9::1"), (volunteer, "192.0.2.254", "2001:db8::fe"),
        (neighbour, "192.0.2.254", "2001:db8::fe"), (honeypot, "198.18.0.1", "2001:2::1"),
    ):  # fmt: skip
        host.run("ip", "route", "add", "default", "via", via4)
        host.run("ip", "-6", "route", "add", "default", "via", via6)
    router.sysctl("net.ipv4.ip_forward", 1)
    router.sysctl("net.ipv6.conf.all.forwarding", 1)
    serve(honeypot, LOGIN, 23, "honeypot")
    serve(honeypot, LOGIN, 8080, "honeypot")
    serve(honeypot, ECHO, 69, 1)
    return World(attacker, router, volunteer, honeypot, neighbour)


@contextmanager
def vortex(lab: Lab, world: World, *options: str) -> Iterator[Bridge]:
    links = ("--iface", "eth0", "--backend", "worm")
    with bridge(lab, world.volunteer, *links, *options, service="vortex-client") as running:
        until(lambda: running.status()["vortex"]["backend"], "the backend")
        yield running


def login(host: Host, address: str, port: int) -> str:
    """The words of a service to a guest; the error of connect() if there is none."""

    def talk() -> str:
        try:
            with socket.create_connection((address, port), timeout=PATIENCE_S) as sock:
                said = sock.recv(100)
                sock.sendall(b"root\n")
                while more := sock.recv(100):
                    said += more
                return said.decode()
        except ConnectionRefusedError as e:
            return str(e.strerror)

    return host.call(talk)


def datagram(host: Host, address: str, port: int, data: bytes) -> bytes:
    def ask() -> bytes:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.connect((address, port))
            sock.settimeout(PATIENCE_S)
            sock.send(data)
            return sock.recv(65536)

    return host.call(ask)


@pytest.mark.parametrize(("address", "source"), [(V4, A4), (V6, A6)])
def test_an_attacker_logs_in_at_the_honeypot_and_the_volunteers_service_goes_on(
    lab: Lab, world: World, address: str, source: str
) -> None:
    serve(world.volunteer, LOGIN, 80, "volunteer")
    assert login(world.attacker, address, 23) == "Connection refused"
    with vortex(lab, world, "--echo") as running:
        mapped = source if ":" in source else f"::ffff:{source}"
        assert login(world.attacker, address, 23) == f"login: root from {mapped}: welcome to honeypot\n"
        assert login(world.attacker, address, 80).endswith("welcome to volunteer\n")
        assert login(world.attacker, address, 24) == "Connection refused"
        assert datagram(world.attacker, address, 69, b"read motd") == b"read motd"
        world.attacker.run("ping", "-c1", "-W30", address)
        told = world.volunteer.run(BIN / "vortex-client", "log", "--json", "--link", str(running.socket))
        flows = [json.loads(line) for line in told.stdout.splitlines()]
        assert {(flow["protocol"], flow["from"], flow["to"]) for flow in flows} >= {
            (protocol, source, address) for protocol in ("tcp", "udp", "icmp")
        }
        assert all(flow["frames_out"] for flow in flows)
        assert running.status()["vortex"]["in_use"] == ["tcp 80"]
    assert login(world.attacker, address, 23) == "Connection refused"


def test_a_service_that_starts_gets_the_very_next_connection_and_the_port_is_wormed_after_it(
    lab: Lab, world: World
) -> None:
    with vortex(lab, world) as running:
        for _ in range(5):
            assert login(world.attacker, V4, 8080).endswith("honeypot\n")
            own = serve(world.volunteer, LOGIN, 8080, "volunteer")
            assert login(world.attacker, V4, 8080).endswith("volunteer\n")
            own.kill()
            own.wait(PATIENCE_S)
            until(lambda: running.status()["vortex"]["in_use"] == [], "the end of its use")
        assert running.status()["vortex"]["given_back"] >= 5


def test_a_udp_socket_that_connect_bound_is_seen_by_what_it_sends(lab: Lab, world: World) -> None:
    world.volunteer.sysctl("net.ipv4.ip_local_port_range", "6000 6100")
    serve(world.attacker, ECHO, 53, 1)
    with vortex(lab, world, "--ports", "1-32767") as running:
        for address in A4, A6:
            assert datagram(world.volunteer, address, 53, b"name?") == b"name?"
        assert running.wait_for("given-back", protocol="udp")["port"] in range(6000, 6101)


def test_a_udp_socket_that_connect_bound_gets_the_first_datagram_alone(lab: Lab, world: World) -> None:
    def connected(host: Host, at: tuple[str, int], to: tuple[str, int]) -> socket.socket:
        def make() -> socket.socket:
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(at)
            sock.connect(to)
            sock.settimeout(PATIENCE_S)
            return sock

        return host.call(make)

    with vortex(lab, world) as running:
        own = world.volunteer.call(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        own.settimeout(PATIENCE_S)
        world.volunteer.sysctl("net.ipv4.ip_local_port_range", "6000 6100")
        own.connect((A4, 5353))
        theirs = connected(world.attacker, (A4, 5353), (V4, own.getsockname()[1]))
        theirs.send(b"answer")
        assert running.wait_for("given-back", protocol="udp")["port"] == own.getsockname()[1]
        assert own.recv(64) == b"answer"
        assert running.status()["vortex"]["opened"] == 0
        own.close()
        theirs.close()


def test_the_backend_reaches_neither_the_volunteer_nor_its_network_and_opens_no_flow(
    lab: Lab, world: World
) -> None:
    serve(world.volunteer, LOGIN, 80, "volunteer")
    serve(world.neighbour, LOGIN, 80, "neighbour")
    serve(world.attacker, LOGIN, 80, "attacker")
    with vortex(lab, world) as running:
        before = running.drops()
        for address in V4, "192.0.2.2", "192.0.2.254", A4, V6, "2001:db8::2", A6:
            said = world.honeypot.run(
                "python3", "-c",
                f"import socket; socket.create_connection(('{address}', 80), timeout=0.2)", check=False,
            )  # fmt: skip
            assert "TimeoutError" in said.stderr
        assert running.drops()["opens-flow"] >= 7 + before.get("opens-flow", 0)
        assert login(world.neighbour, V4, 23) == "Connection refused", "a neighbour is excluded"
        assert running.status()["vortex"]["opened"] == 0


def test_datagrams_of_an_unproven_source_are_not_amplified(lab: Lab, world: World) -> None:
    serve(world.honeypot, ECHO, 123, 20)
    with vortex(lab, world) as running:
        world.attacker.call(_send, b"monlist" * 10)
        until(lambda: running.drops().get("amplification"), "the limit")
        login(world.attacker, V4, 23)  # a handshake proves the address
        assert datagram(world.attacker, V4, 123, b"monlist" * 10) == b"monlist" * 200


def _send(data: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(data, (V4, 123))


@pytest.mark.parametrize("address", [V4, V6])
def test_fragments_and_a_closed_udp_port_are_as_of_the_volunteer(
    lab: Lab, world: World, address: str
) -> None:
    with vortex(lab, world):
        long = bytes(range(256)) * 12
        assert datagram(world.attacker, address, 69, long) == long
        with pytest.raises(ConnectionRefusedError):
            datagram(world.attacker, address, 70, b"anybody?")


SNIFF = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 0))
print("ready", flush=True)
while True:
    frame = s.recv(65536)
    at = {b"\\x08\\x00": 34, b"\\x86\\xdd": 54}.get(frame[12:14], 0)
    if at and len(frame) > at + 20 and frame[at + 13] == 0x12:
        print(frame.hex(), flush=True)
"""


def traits(frame: bytearray) -> tuple[object, ...]:
    """All of a SYN-ACK that a stack decides: but for checksums, ports, numbers, and the clock."""
    pkt = Packet.at(frame)
    net, segment = pkt.ip, pkt.tcp
    assert net is not None
    assert segment is not None
    header = (
        (net.ttl, net.identification, net.dont_fragment, net.tos) if isinstance(net, IPv4) else net.hop_limit
    )
    options = [(kind, len(data) if kind == tcp.TIMESTAMPS else data) for kind, data in segment.options()]
    padding = bytes(frame[segment.off + 20 : segment.payload_off]).count(tcp.NOP)
    return header, segment.window, options, segment.header_length, padding > 0, segment.flags


@pytest.mark.parametrize("address", [V4, V6])
def test_a_syn_ack_is_the_volunteers_whatever_stack_the_honeypot_has(
    lab: Lab, world: World, address: str
) -> None:
    for name, value in (
        ("ip_default_ttl", 128), ("tcp_rmem", "4096 87380 1048576"), ("tcp_ecn", 2),
    ):  # fmt: skip
        world.honeypot.sysctl(f"net.ipv4.{name}", value)
    world.honeypot.sysctl("net.ipv6.conf.eth0.hop_limit", 255)
    world.honeypot.run("ip", "link", "set", "eth0", "mtu", "1400")
    serve(world.volunteer, LOGIN, 80, "volunteer")
    sniffer = serve(world.attacker, SNIFF)
    assert sniffer.stdout is not None
    with vortex(lab, world):
        seen = []
        for port, who in (80, "volunteer"), (23, "honeypot"):
            assert login(world.attacker, address, port).endswith(f"{who}\n")
            seen.append(traits(bytearray(10) + bytes.fromhex(sniffer.stdout.readline())))
    assert seen[0] == seen[1]


def refused_datagram(host: Host, address: str) -> int:
    """Return the error that a closed port of UDP causes."""

    def ask() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PATIENCE_S)
            sock.connect((address, 24))
            sock.send(b"anybody?")
            try:
                sock.recv(64)
            except OSError as e:
                return e.errno
        return 0

    return host.call(ask)


def test_a_pause_and_a_kill_leave_the_host_as_it_was(lab: Lab, world: World) -> None:
    links = ("--iface", "eth0", "--backend", "worm", "--echo", "--pcap", lab.dir / "v.pcapng")
    before = refused_datagram(world.attacker, V4)
    command = [BIN / "vortex-client", *links, "--control", lab.dir / "v.sock", "--json"]
    process = world.volunteer.popen(*command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "ready" in process.stdout.readline()
    link = ("--link", str(lab.dir / "v.sock"))
    until(lambda: login(world.attacker, V4, 23).endswith("honeypot\n"), "the honeypot")
    world.volunteer.run(BIN / "vortex-client", "pause", *link)
    assert login(world.attacker, V4, 23) == "Connection refused"
    assert world.volunteer.run("nft", "list", "ruleset").stdout.count("vtl_vortex") == 0
    world.volunteer.run(BIN / "vortex-client", "resume", *link)
    assert login(world.attacker, V4, 23).endswith("honeypot\n")
    os.kill(process.pid, signal.SIGKILL)
    process.wait(PATIENCE_S)
    assert login(world.attacker, V4, 23) == "Connection refused"
    assert refused_datagram(world.attacker, V4) == before
    assert not world.attacker.run("ping", "-c1", "-W30", V4).returncode
    assert "vtl_vortex" not in world.volunteer.run("nft", "list", "ruleset").stdout


def test_a_listener_of_another_namespace_gives_nothing_back(lab: Lab, world: World) -> None:
    with vortex(lab, world) as running:
        for host in world.neighbour, world.honeypot:
            serve(host, LOGIN, 25, "another")
        own = serve(world.volunteer, LOGIN, 26, "volunteer")
        running.wait_for("given-back", port=26)
        own.kill()
        assert not [event for event in running.events if event.get("port") == 25]
