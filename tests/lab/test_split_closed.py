"""The destinations that vtl-split keeps from a guest, which tries to reach them in every spelling."""

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain
from pathlib import Path

import pytest

from lab.netns import Lab
from lab.wait import until
from tests.running import Bridge
from tests.split_world import GATEWAY, GUEST, HOST, SERVER, SplitWorld
from vtl_tools.common.guest_net.addresses import GATEWAY_MAC
from vtl_tools.common.packet import build, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.selftest.raw_socket import open_raw_socket, receive_all

pytestmark = pytest.mark.lab

PORT = 8080
OWN = "203.0.113.1"
CLOSED = (
    # loopback, this network, own addresses, a local route; link-local, broadcast, multicast, reserved
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "0.0.0.7"),
    *(OWN, "192.0.2.77", "192.0.2.130", "169.254.10.1", "169.254.169.254"),
    *("203.0.113.255", "255.255.255.255", "224.0.0.1", "240.0.0.1", "10.0.2.255"),
    *("::1", "::", HOST[6], "2001:db8:77::1", "fe80::1", "ff02::1", "ff05::2"),
    # the same as IPv4 in IPv6: mapped, compatible, NAT64, 6to4, Teredo, ISATAP
    *("::ffff:127.0.0.1", f"::ffff:{OWN}", "::127.0.0.1", f"::{OWN}", f"::ffff:{SERVER[4]}"),
    *(f"64:ff9b::{OWN}", "64:ff9b::127.0.0.1", "64:ff9b::169.254.169.254"),
    *("2002:cb00:7101::1", "2002:7f00:1::1", "2001:0:1:2:3:4:34ff:8efe", f"2001:db8:9::5efe:{OWN}"),
    # the gateway, which is this service
    *GATEWAY.values(),
)


class Targets:
    """Servers on all addresses of the host, and what reached them."""

    def __init__(self, world: SplitWorld) -> None:
        self.world, host = world, world.host
        host.addr("lo", "192.0.2.77/32", "2001:db8:77::1/128")
        host.addr("eth0", "169.254.10.1/16", "fe80::1/64")
        host.run("ip", "route", "add", "local", "192.0.2.128/28", "dev", "lo")
        self.clients = []
        for address in "0.0.0.0", "::":
            self.clients.append(world.record(world.listen(host, address, PORT)))
            sock = world.open(host, 6 if address == "::" else 4, socket.SOCK_DGRAM)
            sock.bind((address, PORT))
            self.clients.append(world.record(sock))
        self.pings = self._pings()

    def _pings(self) -> int:
        def read() -> str:
            return (
                Path("/proc/thread-self/net/snmp").read_text()
                + Path("/proc/thread-self/net/snmp6").read_text()
            )

        told = self.world.host.call(read)
        names, numbers = (line.split() for line in told.splitlines() if line.startswith("Icmp: "))
        v6 = re.search(r"Icmp6InEchos\s+(\d+)", told)
        assert v6 is not None
        return int(numbers[names.index("InEchos")]) + int(v6[1])

    def reached(self) -> list[object]:
        return [*chain(*self.clients), *["ping"] * (self._pings() - self.pings)]


def frames_to(address: str) -> Iterator[bytes]:
    """A SYN, a datagram and an echo request of the guest to an address."""
    version = 6 if ":" in address else 4
    addresses = {
        "src_mac": bytes.fromhex("020000000015"), "dst_mac": GATEWAY_MAC,
        "src": ip_address(GUEST[version]).packed, "dst": ip_address(address).packed,
    }  # fmt: skip
    port = {"sport": 40_000 + sum(addresses["dst"]), "dport": PORT}
    yield bytes(build.tcp(**addresses, **port, seq=1, flags=tcp.SYN, window=4096))
    yield bytes(build.udp(**addresses, **port, payload=b"attack"))
    yield bytes(build.icmp_echo(**addresses, identifier=7, sequence=1, payload=b"attack"))


@contextmanager
def attack(world: SplitWorld) -> Iterator[list[tuple[str, IPv4Address | IPv6Address]]]:
    """Send the frames for all closed addresses; give the IP packets that leave the host meanwhile."""
    left: list[tuple[str, IPv4Address | IPv6Address]] = []
    with world.guest.enter():
        sock = open_raw_socket("eth0")
    with world.router.enter():
        watch = open_raw_socket("eth0")
    with sock, watch:
        for address in CLOSED:
            for frame in frames_to(address):
                sock.send(frame[VNET:])
        world.guest.run("ping", "-c1", "-W60", GATEWAY[4])  # answered behind all of them
        for octets in receive_all(watch):
            pkt = Packet.at(bytearray(VNET) + octets)
            if pkt.ip is not None and (pkt.tcp or pkt.udp or (pkt.icmp and pkt.icmp.is_echo_request)):
                left.append((str(pkt.ip.protocol), ip_address(pkt.ip.dst)))
        yield left


def told(running: Bridge, *reasons: str) -> int:
    drops = running.drops()
    return sum(drops.get(reason, 0) for reason in reasons)


def test_no_closed_address_is_reached_in_any_spelling(lab: Lab) -> None:
    world = SplitWorld(lab)
    targets = Targets(world)
    with world.split() as running, attack(world) as left:
        assert targets.reached() == []
        assert left == []
        world.echo(world.server, SERVER[4])
        with world.open(world.guest, 4, socket.SOCK_DGRAM) as client:  # and the guest is not cut off
            client.sendto(b"alive", (SERVER[4], 7))
            assert client.recv(9) == b"alive"
        assert running.status()["datagrams"]["mappings"] == 1
        assert told(running, "prohibited", "refused", "not-unicast") > len(CLOSED)


def test_what_is_opened_is_reached_at_its_port_and_nothing_else(lab: Lab) -> None:
    world = SplitWorld(lab)
    targets = Targets(world)
    own = world.echo(world.host, OWN)
    inside = world.listen(world.host, "127.0.0.1", 8081)
    opened = ("--allow", f"{OWN}:7", "--allow", "127.0.0.1:8081", "--allow", f"[{HOST[6]}]:9")
    with world.split(*opened), attack(world) as left:
        assert targets.reached() == []
        assert left == []
        with world.open(world.guest, 4, socket.SOCK_DGRAM) as client:
            client.sendto(b"opened", (OWN, 7))
            assert client.recvfrom(9) == (b"opened", (OWN, 7))
        with world.connect(4, 8081, GATEWAY[4]) as near, inside.accept()[0] as far:
            assert far.getpeername()[0] == "127.0.0.1"
            near.sendall(b"by the gateway's address")
            assert far.recv(99) == b"by the gateway's address"
        with pytest.raises(OSError):
            world.connect(4, PORT, OWN)
        with pytest.raises(ConnectionRefusedError):
            world.connect(6, 8081, GATEWAY[6])
    for sock in own, inside:
        sock.close()


def test_an_address_that_becomes_the_hosts_own_is_closed_from_then_on(lab: Lab) -> None:
    world = SplitWorld(lab)
    targets = Targets(world)
    for version, moving in (4, "198.51.100.99"), (6, "2001:db8:2::99"):
        bits = 24 if version == 4 else 64
        world.server.addr("eth0", f"{moving}/{bits}")
        listener = world.listen(world.server, moving, PORT)
        echo = world.echo(world.server, moving, PORT)
        with world.split() as running, world.open(world.guest, version, socket.SOCK_DGRAM) as client:

            def works(client: socket.socket = client, moving: str = moving) -> bool:
                client.settimeout(0.3)
                try:
                    client.sendto(b"who?", (moving, PORT))
                    return client.recv(9) == b"who?"
                except OSError:
                    return False

            until(works, "the server")
            world.connect(version, PORT, moving).close()
            listener.accept()[0].close()
            world.host.addr("lo", f"{moving}/{32 if version == 4 else 128}")
            before = told(running, "prohibited")
            assert not works()
            with pytest.raises(OSError):
                world.connect(version, PORT, moving)
            assert told(running, "prohibited") > before
            assert targets.reached() == []
            world.host.run("ip", "addr", "del", f"{moving}/{32 if version == 4 else 128}", "dev", "lo")
            until(works, "the server again")
            world.connect(version, PORT, moving).close()
        listener.close()
        echo.close()
