"""vtl-udt between real kernels: a client and a server at two sites, and those who attack the far module."""

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from lab.netns import Host, Lab
from lab.scenes import Sites, two_sites
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from tests.running import Bridge, bridge
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.common.session.secure_channel import Role
from vtl_tools.services.udt.transport.session import Session, SessionConfig
from vtl_tools.services.udt.transport.window import WindowBudget

pytestmark = pytest.mark.lab

FAR = "198.51.100.2:7700"
RESET = struct.pack("ii", 1, 0)
SERVER = ("10.2.0.5", 80)
CONTENT = bytes(range(256)) * (1 << 14)
STRANGER = """
import udt4py
sock = udt4py.UDTSocket()
sock.connect(("198.51.100.2", 7700))
sock.send(b"let me in" * 20)
try:
    sock.recv(bytearray(100))
except udt4py.UDTException:
    pass
"""


class Service:
    """Two modules with one key, and what they join."""

    def __init__(self, lab: Lab, sites: Sites, near: Bridge, far: Bridge, key: Path) -> None:
        self.lab, self.sites, self.near, self.far, self.key = lab, sites, near, far, key
        self.client, self.server = sites.client, sites.server

    def connect(self, address: tuple[str, int] = SERVER) -> socket.socket:
        """Connect from the client."""
        with self.client.enter():
            return socket.create_connection(address, PATIENCE_S)


def keygen(lab: Lab, host: Host, name: str = "udt.key") -> Path:
    key = lab.dir / name
    host.run(BIN / "vtl-udt", "keygen", key)
    return key


def module(lab: Lab, host: Host, key: Path, *options: str, name: str) -> Any:
    return bridge(lab, host, "--key-file", key, *options, service="vtl-udt", name=name)


@contextmanager
def served(lab: Lab, *, near: tuple[str, ...] = (), far: tuple[str, ...] = ()) -> Iterator[Service]:
    """Two sites with a module each, which have reached each other."""
    sites = two_sites(lab)
    key = keygen(lab, sites.near)
    listen = ("--iface", "vmnet2", "--listen", FAR, *far)
    peer = ("--iface", "vmnet1", "--peer", FAR, *near)
    with (
        module(lab, sites.far, key, *listen, name="far") as there,
        module(lab, sites.near, key, *peer, name="near") as here,
    ):
        here.wait_for("peer-up")
        there.wait_for("peer-up")
        yield Service(lab, sites, here, there, key)


@pytest.fixture(scope="module")
def tcp() -> Iterator[Service]:
    with Lab() as lab, served(lab, near=("--transport", "tcp"), far=("--transport", "tcp")) as service:
        yield service


@contextmanager
def listening(service: Service, *address: Any) -> Iterator[socket.socket]:
    with service.server.enter():
        listener = socket.create_server(address or SERVER, family=socket.AF_INET)
    listener.settimeout(PATIENCE_S)
    with listener:
        yield listener


@contextmanager
def joined(service: Service) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connection of the client, and its other end at the server."""
    with listening(service) as listener, service.connect() as near:
        far, (address, port, *_) = listener.accept()
        far.settimeout(PATIENCE_S)
        with far:
            assert (address, port) == ("10.1.0.5", near.getsockname()[1])
            yield near, far


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(partial(sock.recv, 1 << 16), b""))


def fetch(host: Host, url: str) -> bytes:
    out, _ = host.popen("curl", "-s", "-m", str(int(PATIENCE_S)), url, stdout=subprocess.PIPE).communicate()
    return out


# --- what a connection is


def test_content_crosses_octet_for_octet_and_the_server_sees_the_client(tcp: Service) -> None:
    web = tcp.lab.http(tcp.server, 8080, {"page": CONTENT})
    assert fetch(tcp.client, "http://10.2.0.5:8080/page") == CONTENT
    assert fetch(tcp.client, "http://[fd02::5]:8080/page") == CONTENT
    assert [line.split()[0] for line in web.requests()] == ["10.1.0.5", "fd01::5"]
    counters = tcp.near.status()["transports"][f"{FAR} tcp"]
    assert counters["octets_received"] > 2 * len(CONTENT)
    assert counters["rtt_ms"] > 0


def test_each_direction_closes_by_itself(tcp: Service) -> None:
    with joined(tcp) as (near, far):
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert read_all(far) == b"question"
        far.sendall(b"answer")
        far.close()
        assert read_all(near) == b"answer"


def test_a_reset_crosses_in_both_directions(tcp: Service) -> None:
    for first in (0, 1):
        with joined(tcp) as ends:
            ends[first].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            ends[first].close()
            with pytest.raises(ConnectionResetError):
                ends[1 - first].recv(1)


def test_a_refusal_is_one_for_the_client(tcp: Service) -> None:
    with pytest.raises(ConnectionRefusedError):
        tcp.connect(("10.2.0.5", 81))


def test_many_flows_at_once_each_get_their_own_octets(tcp: Service) -> None:
    count = 60
    with listening(tcp) as listener, ExitStack() as stack:

        def serve() -> None:
            for _ in range(count):
                threading.Thread(target=echo, args=(stack.enter_context(listener.accept()[0]),)).start()

        server = threading.Thread(target=serve)
        server.start()
        near = [stack.enter_context(tcp.connect()) for _ in range(count)]
        server.join(PATIENCE_S)
        for number, sock in enumerate(near):
            sock.sendall(number.to_bytes(4, "big") * 5000)
            sock.shutdown(socket.SHUT_WR)
        for number, sock in enumerate(near):
            assert read_all(sock) == number.to_bytes(4, "big") * 5000


def echo(sock: socket.socket) -> None:
    sock.settimeout(PATIENCE_S)
    sock.sendall(read_all(sock))
    sock.shutdown(socket.SHUT_WR)


def fill(sock: socket.socket) -> None:
    """Send until the socket takes no more."""
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(1 << 20))


def test_a_client_that_does_not_read_holds_up_nobody_else(tcp: Service) -> None:
    with joined(tcp) as (_, far):
        far.setblocking(False)
        fill(far)
        web = tcp.lab.http(tcp.server, 8081, {"page": CONTENT})
        assert fetch(tcp.client, "http://10.2.0.5:8081/page") == CONTENT
        assert len(web.requests()) == 1


# --- a module that ends


def test_a_far_module_that_is_killed_resets_the_client_and_is_used_again_when_it_is_back(lab: Lab) -> None:
    sites = two_sites(lab)
    key = keygen(lab, sites.near)
    far = ("--iface", "vmnet2", "--listen", FAR)
    killed = sites.far.popen(BIN / "vtl-udt", *far, "--key-file", key, "--control", lab.dir / "killed.sock")
    with module(lab, sites.near, key, "--iface", "vmnet1", "--peer", FAR, name="near") as running:
        running.wait_for("peer-up")
        service = Service(lab, sites, running, running, key)
        with joined(service) as (near, _):
            killed.kill()
            with pytest.raises(ConnectionResetError):
                near.recv(1)
        running.wait_for("peer-down")
        with pytest.raises(OSError, match="No route to host"):
            service.connect()
        killed.wait()
        with module(lab, sites.far, key, *far, name="far"):
            running.wait_for("peer-up")
            with joined(service) as (again, there):
                again.sendall(b"x")
                assert there.recv(1) == b"x"


# --- both directions, one subnet, other traffic


def test_two_guests_of_one_subnet_reach_each_other_and_their_uplinks_carry_the_rest(lab: Lab) -> None:
    sites = two_sites(lab)
    key = keygen(lab, sites.near)
    neighbour = lab.host("neighbour")
    lab.veth(neighbour, "eth0", sites.near, "lan")
    lab.veth(lab.host("nobody"), "eth0", sites.far, "lan")
    neighbour.addr("eth0", "10.0.0.7/24")
    sites.client.addr("eth0", "10.0.0.5/24")
    sites.server.addr("eth0", "10.0.0.6/24")
    both = ("--uplink", "lan", "--listen")
    here = (*both, "198.51.100.1:7700", "--peer", "10.0.0.6=198.51.100.2:7700")
    there = (*both, "198.51.100.2:7700", "--peer", "10.0.0.5=198.51.100.1:7700")
    with (
        module(lab, sites.near, key, "--iface", "vmnet1", *here, name="near") as one,
        module(lab, sites.far, key, "--iface", "vmnet2", *there, name="far") as other,
    ):
        one.wait_for("peer-up")
        other.wait_for("peer-up")
        for host, own, to in (sites.client, "10.0.0.5", "10.0.0.6"), (sites.server, "10.0.0.6", "10.0.0.5"):
            peer = sites.server if host is sites.client else sites.client
            web = lab.http(peer, 80, {"page": CONTENT})
            assert fetch(host, f"http://{to}/page") == CONTENT
            assert [line.split()[0] for line in web.requests()] == [own]
        sites.client.run("ping", "-c1", "-W9", "10.0.0.7")
        web = lab.http(neighbour, 80, {"page": CONTENT})
        assert fetch(sites.client, "http://10.0.0.7/page") == CONTENT
        assert fetch(neighbour, "http://10.0.0.5/page") == CONTENT
        assert one.drops() == {}


# --- those who attack the far module


def attack(host: Host, octets: bytes, port: int = 7700) -> bytes:
    """Send octets to the far module, and return all that it answers until it closes."""
    with host.enter(), socket.create_connection(("198.51.100.2", port), PATIENCE_S) as sock:
        sock.sendall(octets)
        try:
            return read_all(sock)
        except ConnectionResetError:
            return b""


def recorded(service: Service) -> bytes:
    """The octets that a near module sends until it is up, as one on the path sees it."""
    sent = bytearray()

    def pass_on(source: socket.socket, sink: socket.socket, note: bytearray) -> None:
        with suppress(OSError):  # an end has gone
            while octets := source.recv(1 << 16):
                note.extend(octets)
                sink.sendall(octets)
            sink.shutdown(socket.SHUT_WR)

    with ExitStack() as stack:
        with service.sites.near.enter():
            between = stack.enter_context(socket.create_server(("198.51.100.1", 7701)))
            far = stack.enter_context(socket.create_connection(("198.51.100.2", 7700), PATIENCE_S))
        peer = ("--iface", "tap:t0", "--peer", "198.51.100.1:7701", "--transport", "tcp")
        with module(service.lab, service.sites.near, service.key, *peer, name="recorded") as running:
            near = stack.enter_context(between.accept()[0])
            between.close()  # it has one session
            ways = [(near, far, sent), (far, near, bytearray())]
            threads = [threading.Thread(target=pass_on, args=way) for way in ways]
            for thread in threads:
                thread.start()
            running.wait_for("peer-up")
        for thread in threads:
            thread.join(PATIENCE_S)
    return bytes(sent)


def test_strangers_other_keys_and_replays_are_refused_and_reach_nothing(lab: Lab) -> None:
    log = lab.dir / "far.log"
    with served(lab, far=("--transport", "tcp", "--log", str(log))) as service:
        near, far, wire = service.sites.near, service.far, service.server.wire()
        handshake = recorded(service)
        assert len(handshake) > 100
        other = keygen(lab, near, "other.key")
        peer = ("--iface", "tap:t1", "--peer", FAR, "--transport", "tcp")
        with module(lab, near, other, *peer, name="other") as running:
            assert "another key" in far.wait_for("peer-refused")["why"]
            assert not running.status()["peers"][FAR]["up"]
        for octets in handshake, b"GET / HTTP/1.0\r\nHost: 10.2.0.5\r\n\r\n" + bytes(200), b"\xff" * 200:
            before = far.status()["listeners"]["tcp"]["refused"]
            attack(near, octets)
            until(lambda before=before: far.status()["listeners"]["tcp"]["refused"] > before, "a refusal")
        until(lambda: "replays another's handshake" in log.read_text(), "a line of the log")
        assert far.status()["far"]["opened"] == 0
        assert wire.read() == []


def peer_with_key(service: Service, sock: socket.socket) -> Session:
    """Complete a handshake on a socket, as a near module does."""
    key = service.key.read_bytes().strip()
    session = Session(
        Role.INITIATOR, SessionConfig(), WindowBudget(1 << 20), psk=key, ephemeral=os.urandom(32), now=0.0
    )
    while not session.is_up:
        flush(session, sock)
        session.receive(memoryview(sock.recv(1 << 16)), 0.0)
    flush(session, sock)
    return session


def flush(session: Session, sock: socket.socket) -> None:
    session.settle(0.0)
    sock.sendall(b"".join(session.outbox))
    session.transmitted(session.pending)


def test_a_peer_with_the_key_that_lies_about_lengths_is_cut_off_and_others_go_on(tcp: Service) -> None:
    opened = tcp.far.status()["far"]["opened"]
    for lie in b"\xff\xff\xff\xff", b"\0\0\0\1", b"\0\0\0\x40" + bytes(64):
        with tcp.sites.near.enter(), socket.create_connection(("198.51.100.2", 7700), PATIENCE_S) as sock:
            session = peer_with_key(tcp, sock)
            sock.sendall(lie)
            while octets := sock.recv(1 << 16):
                session.receive(memoryview(octets), 0.0)
    assert tcp.far.status()["far"]["opened"] == opened
    with joined(tcp) as (near, far):
        near.sendall(b"x")
        assert far.recv(1) == b"x"


def test_a_stranger_who_speaks_udt_reaches_nothing(lab: Lab) -> None:
    with served(lab, near=("--transport", "udt"), far=("--transport", "udt")) as service:
        wire = service.server.wire()
        service.sites.near.run(sys.executable, "-c", STRANGER)
        assert "stranger" in service.far.wait_for("peer-refused")["why"]
        assert wire.read() == []
        with joined(service) as (near, far):
            near.sendall(b"x")
            assert far.recv(1) == b"x"


def test_a_destination_that_is_not_allowed_is_refused_and_told_of(lab: Lab) -> None:
    allowed = ("--to", "10.2.0.5", "--to", "198.51.100.2", "--from", "10.1.0.0/16")
    with served(lab, far=allowed) as service:
        wire = service.server.wire()
        service.server.addr("eth0", "10.2.0.6/24")
        service.client.addr("eth0", "10.7.0.5/24")
        for address, reason in ("10.2.0.6", "not-allowed"), ("198.51.100.2", "own"):
            with pytest.raises(OSError, match="No route to host"):
                service.connect((address, 80))
            refused = service.far.wait_for("refused")
            assert (refused["destination"], refused["reason"]) == (f"{address} 80", reason)
        with service.client.enter(), socket.socket() as sock:
            sock.bind(("10.7.0.5", 0))
            sock.settimeout(PATIENCE_S)
            with pytest.raises(OSError, match="No route to host"):
                sock.connect(SERVER)
        assert service.far.wait_for("refused")["reason"] == "client"
        assert service.far.status()["far"]["refused"] == {"not-allowed": 1, "own": 1, "client": 1}
        assert not [frame for frame in wire.read() if Packet.at(bytearray(NONE + frame)).tcp is not None]
        with joined(service):
            pass
