"""vtl-split --forward between real kernels: ports of the host lead to the guest."""

import os
import socket
from random import Random

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN
from tests.split_world import GATEWAY, GUEST, HOST, SERVER, SplitWorld, exchange

pytestmark = pytest.mark.lab

VERSIONS = pytest.mark.parametrize("version", [4, 6])
OCTETS = Random(13).randbytes(2_000_000)
ANY = {4: "0.0.0.0", 6: "[::]"}
TARGET = {4: GUEST[4], 6: f"[{GUEST[6]}]"}


def call(host: Host, address: str, port: int) -> socket.socket:
    with host.enter():
        return socket.create_connection((address, port), PATIENCE_S)


@VERSIONS
def test_a_client_outside_reaches_the_guest_which_sees_it(lab: Lab, version: int) -> None:
    world = SplitWorld(lab)
    listener = world.listen(world.guest, GUEST[version], 80)
    with listener, world.split("--forward", f"tcp:{ANY[version]}:8080:{TARGET[version]}:80") as running:
        near = call(world.server, HOST[version], 8080)
        far, seen = listener.accept()
        with near, far:
            assert seen[:2] == (SERVER[version], near.getsockname()[1])
            exchange(near, far, OCTETS)
        until(lambda: not running.status()["forwarded"]["connections"], "the end of the connection")
        told = running.status()["forwarded"]
        assert (told["octets_down"], told["established"], told["failed"]) == (len(OCTETS), 1, 0)


def test_the_host_itself_is_the_router_to_the_guest_and_nobody_else_gets_in(lab: Lab) -> None:
    world = SplitWorld(lab)
    with world.listen(world.guest, GUEST[4], 80) as listener, world.split("--forward", "tcp:8080:80"):
        ports = set()
        for address in "127.0.0.1", "127.0.0.2":
            with world.host.enter():
                near = socket.socket()
                near.settimeout(PATIENCE_S)
                near.bind((address, 7777))
                near.connect(("127.0.0.1", 8080))
            far, seen = listener.accept()
            assert seen[0] == GATEWAY[4]
            ports.add(seen[1])
            far.sendall(b"hello")
            assert near.recv(9) == b"hello"
            lab.defer(near.close)
            lab.defer(far.close)
        assert len(ports) == 2  # the same port of two addresses is two ports of the router
        with pytest.raises(ConnectionRefusedError):
            call(world.server, HOST[4], 8080)


def test_refusals_and_resets_of_the_guest_reach_the_client(lab: Lab) -> None:
    world = SplitWorld(lab)
    forwards = ("--forward", "tcp:8080:80", "--forward", "tcp:8081:10.0.2.99:80")
    with world.split(*forwards) as running:
        for port in 8080, 8081:  # nobody listens; nobody is there
            with call(world.host, "127.0.0.1", port) as near, pytest.raises(ConnectionResetError):
                near.recv(1)
        with world.listen(world.guest, GUEST[4], 80) as listener:
            near = call(world.host, "127.0.0.1", 8080)
            far, _ = listener.accept()
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
            with near, pytest.raises(ConnectionResetError):
                near.recv(1)
        told = running.status()["forwarded"]
        assert (told["failed"], told["established"], told["held"]) == (2, 1, 0)


@VERSIONS
def test_datagrams_from_outside_and_their_answers(lab: Lab, version: int) -> None:
    world = SplitWorld(lab)
    with (
        world.split("--forward", f"udp:{ANY[version]}:5353:{TARGET[version]}:53") as running,
        world.open(world.guest, version, socket.SOCK_DGRAM) as server,
        world.open(world.server, version, socket.SOCK_DGRAM) as outside,
        world.open(world.host, version, socket.SOCK_DGRAM) as inside,
    ):
        server.bind((GUEST[version], 53))
        for client, target, expected in (
            (outside, HOST[version], SERVER[version]),
            (inside, "127.0.0.1" if version == 4 else "::1", GATEWAY[version]),
        ):
            for size in 0, 9, 1400, 9000:
                sent = os.urandom(size)
                client.sendto(sent, (target, 5353))
                octets, seen = server.recvfrom(65_536)
                assert (octets, seen[0]) == (sent, expected)
                server.sendto(octets[::-1], seen)
                assert client.recvfrom(65_536)[0] == sent[::-1]
        told = running.status()["forwarded"]["datagrams"]
        assert told == {"clients": 2, "to_guest": 8, "from_guest": 8}
        server.sendto(b"unasked", (SERVER[version], 9))  # from a socket of its own
        until(lambda: running.status()["datagrams"]["datagrams_up"] == 1, "the guest's own datagram")


def test_a_port_in_use_is_told_in_one_line(lab: Lab) -> None:
    world = SplitWorld(lab)
    with world.listen(world.host, "127.0.0.1", 8080):
        ran = world.host.run(BIN / "vtl-split", "--iface", "vmnet1", "--forward", "tcp:8080:80", check=False)
    assert (ran.returncode, ran.stderr) == (
        1, "vtl-split: --forward: tcp port 8080 of 127.0.0.1: address already in use; see 'ss -lnp' and "
        "'ip address'\n",
    )  # fmt: skip
