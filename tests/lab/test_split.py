"""vtl-split between real kernels: a guest has a whole network through the sockets of its host."""

import errno
import os
import re
import select
import socket
import struct
from pathlib import Path
from random import Random

import pytest

from lab.dns import Names
from lab.netns import Lab
from lab.wait import until
from tests.split_world import GATEWAY, GUEST, HOST, ROUTER, SERVER, SplitWorld, exchange, receive_all
from vtl_tools.services.split import socket_errors

pytestmark = pytest.mark.lab

VERSIONS = pytest.mark.parametrize("version", [4, 6])
OCTETS = Random(12).randbytes(3_000_000)
RESET = struct.pack("ii", 1, 0)
UDP = socket.SOCK_DGRAM


# --- TCP


@VERSIONS
def test_a_stream_is_byte_exact_both_ways_and_each_half_closes_by_itself(lab: Lab, version: int) -> None:
    world = SplitWorld(lab)
    with world.split() as running:
        near, far = world.joined(version)
        with near, far:
            assert far.getpeername()[0] == HOST[version]
            exchange(near, far, OCTETS)
        until(lambda: not running.status()["connections"], "the end of the connection")
        carried = running.status()["carried"]
        assert (carried["octets_up"], carried["failed"]) == (len(OCTETS), 0)


@VERSIONS
def test_refusals_resets_and_missing_routes_reach_the_guest(lab: Lab, version: int) -> None:
    world = SplitWorld(lab)
    with world.split() as running:
        with pytest.raises(ConnectionRefusedError):
            world.connect(version, 9)
        near, far = world.joined(version)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        far.close()
        with near, pytest.raises(ConnectionResetError):
            near.recv(1)
        near, far = world.joined(version)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        near.close()
        with far, pytest.raises(ConnectionResetError):
            far.recv(1)
        world.host.run("ip", f"-{version}", "route", "del", "default")
        with pytest.raises(OSError) as error:
            world.connect(version, 9)
        assert error.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        assert running.status()["carried"]["failed"] == 2


def test_a_syn_is_answered_early_only_if_that_is_asked_for(lab: Lab) -> None:
    world = SplitWorld(lab)
    world.server.run("nft", "add table ip t; add chain ip t c { type filter hook input priority 0; };"
                     "add rule ip t c tcp dport 81 drop")  # fmt: skip
    listener = world.listen(world.server, SERVER[4], 82)
    with listener, world.split("--early-ack") as running:
        with world.connect(4, 81):  # nobody has answered there, and nobody will
            until(lambda: running.status()["connections"] == {"open": 1}, "the connection that opens")
        with pytest.raises((ConnectionRefusedError, ConnectionResetError)), world.connect(4, 9) as near:
            near.recv(1)
        near = world.connect(4, 82)
        with near:
            near.sendall(b"sent early")
            near.shutdown(socket.SHUT_WR)
            far, _ = listener.accept()
            with far:
                assert receive_all(far) == b"sent early"


def test_a_path_with_a_large_product_gets_large_buffers_which_a_budget_bounds(lab: Lab) -> None:
    world = SplitWorld(lab)
    world.host.sysctl("net.ipv4.tcp_wmem", "4096 16384 1000000")
    world.host.sysctl("net.ipv4.tcp_rmem", "4096 131072 1000000")

    def buffers() -> tuple[int, int]:
        told = world.host.run("ss", "-Htnm", "dst", SERVER[4]).stdout
        found = re.search(r"rb(\d+),t\d+,tb(\d+)", told)
        assert found is not None
        return int(found[1]), int(found[2])

    with world.split("--bandwidth", "1tbit", "--congestion", "bbr") as running:
        near, far = world.joined(4)
        with near, far:
            assert " bbr " in world.host.run("ss", "-Htni", "dst", SERVER[4]).stdout
            enlarged = running.status()["split"]["enlarged"]
            assert sum(buffers()) == enlarged > 2_000_000
            assert running.status()["split"]["congestion"] == "bbr"
        until(lambda: not running.status()["split"]["enlarged"], "the buffers' end")
    with world.split("--bandwidth", "1tbit", "--buffers", "1") as running:
        near, far = world.joined(4)
        with near, far:
            assert sum(buffers()) < 2_000_000
            assert running.status()["split"]["enlarged"] == 0


# --- UDP


@VERSIONS
def test_datagrams_of_all_sizes_come_back_also_in_fragments(lab: Lab, version: int) -> None:
    world = SplitWorld(lab)
    world.echo(world.server, SERVER[version])
    with world.split() as running, world.open(world.guest, version, UDP) as client:
        client.bind((GUEST[version], 0))
        for size in 0, 1, 1452, 1453, 1472, 1473, 9000, 65_000:
            sent = os.urandom(size)
            client.sendto(sent, (SERVER[version], 7))
            assert client.recv(65_536) == sent
        told = running.status()["datagrams"]
        assert (told["mappings"], told["datagrams_up"], told["unsent"]) == (1, 8, 0)


def test_one_endpoint_of_the_guest_is_one_endpoint_for_all_and_only_those_it_sent_to_answer(lab: Lab) -> None:
    world = SplitWorld(lab)
    world.server.addr("eth0", "198.51.100.3/24", "198.51.100.4/24")
    first, second, stranger = (world.open(world.server, 4, UDP) for _ in range(3))
    for sock, host in (first, SERVER[4]), (second, "198.51.100.3"), (stranger, "198.51.100.4"):
        sock.bind((host, 4000))
    with world.split() as running, world.open(world.guest, 4, UDP) as client:
        client.sendto(b"one", (SERVER[4], 4000))
        client.sendto(b"two", ("198.51.100.3", 4000))
        (_, seen), (_, also) = first.recvfrom(9), second.recvfrom(9)
        assert seen == also
        assert seen[0] == HOST[4]
        stranger.sendto(b"uninvited", seen)
        with world.open(world.server, 4, UDP) as other_port:
            other_port.bind((SERVER[4], 4001))
            other_port.sendto(b"of the same host", seen)
        second.sendto(b"back", seen)
        came = sorted(client.recvfrom(99) for _ in range(2))
        assert came == [(b"back", ("198.51.100.3", 4000)), (b"of the same host", (SERVER[4], 4001))]
        until(lambda: running.status()["datagrams"]["uninvited"] == 1, "the stranger's datagram")
    for sock in first, second, stranger:
        sock.close()


@VERSIONS
def test_datagrams_that_the_guest_segments_and_those_that_come_in_a_burst_stay_whole(
    lab: Lab, version: int
) -> None:
    world = SplitWorld(lab)
    with world.split() as running, world.open(world.guest, version, UDP) as client:
        server = world.open(world.server, version, UDP)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        server.bind((SERVER[version], 7))
        sent = [bytes([number]) * 1000 for number in range(20)] + [b"last"]
        segmented = [b"".join(sent)], [(17, 103, struct.pack("=H", 1000))], 0  # UDP_SEGMENT
        client.sendmsg(*segmented, (SERVER[version], 7))
        got = [server.recvfrom(2000) for _ in sent]
        assert [octets for octets, _ in got] == sent
        for octets in sent:
            server.sendto(octets, got[0][1])
        assert [client.recv(2000) for _ in sent] == sent
        before = running.status()["links"][0]["tx_frames"]
        server.sendmsg(*segmented, got[0][1])
        assert [client.recv(2000) for _ in sent] == sent
        told = running.status()
        assert told["links"][0]["tx_frames"] - before < len(sent) // 2  # the kernel joins and cuts them
        assert told["datagrams"]["datagrams_down"] == 2 * len(sent)
        server.close()


# --- errors, and ping


def next_error(client: socket.socket) -> socket_errors.SocketError:
    poll = select.poll()
    poll.register(client, 0)
    assert poll.poll(60_000)
    found = socket_errors.receive(client)
    assert found is not None
    return found


def with_errors(world: SplitWorld, version: int) -> socket.socket:
    client = world.open(world.guest, version, UDP)
    if version == 4:
        client.setsockopt(socket.SOL_IP, socket_errors.IP_RECVERR, 1)
        client.setsockopt(socket.SOL_IP, 10, 2)  # IP_MTU_DISCOVER: always
    else:
        client.setsockopt(socket.IPPROTO_IPV6, socket_errors.IPV6_RECVERR, 1)
        client.setsockopt(socket.IPPROTO_IPV6, 23, 2)
    return client


def in_octets(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


@VERSIONS
def test_the_guest_gets_the_errors_of_routers_and_of_the_server(lab: Lab, version: int) -> None:
    world = SplitWorld(lab)
    expired, refused = ((11, 0), (3, 3)) if version == 4 else ((3, 0), (1, 4))
    with world.split(), with_errors(world, version) as client:
        ttl = (
            (socket.SOL_IP, socket.IP_TTL)
            if version == 4
            else (socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS)
        )
        hops = []
        for number in 1, 2, 3:
            client.setsockopt(*ttl, number)
            client.sendto(b"which way?", (SERVER[version], 33434 + number))
            error = next_error(client)
            assert error.octets == b"which way?"
            assert error.peer == (SERVER[version], 33434 + number)
            assert error.offender is not None
            hops.append((error.offender, error.kind, error.code))
        gateway = in_octets(GATEWAY[4]) if version == 4 else hops[0][0]
        router, server = (in_octets(each[version]) for each in (ROUTER, SERVER))
        assert hops == [(gateway, *expired), (router, *expired), (server, *refused)]
        if version == 6:
            assert gateway[:2] == b"\xfe\x80"


@VERSIONS
def test_the_guest_learns_the_mtu_of_the_path(lab: Lab, version: int) -> None:
    world = SplitWorld(lab)
    for host, interface in (world.router, "eth1"), (world.server, "eth0"):
        host.run("ip", "link", "set", "dev", interface, "mtu", "1300")
    with world.split(), with_errors(world, version) as client:
        client.sendto(bytes(1400), (SERVER[version], 7))
        error = next_error(client)
        assert error.rest == 1300
        with pytest.raises(OSError, match="too long"):
            client.sendto(bytes(1400), (SERVER[version], 7))


@VERSIONS
def test_ping_of_any_size_by_ping_sockets(lab: Lab, version: int) -> None:
    world = SplitWorld(lab)
    with world.split() as running:
        for target in SERVER[version], GATEWAY[version]:
            for size in 56, 4000:
                world.guest.run("ping", "-c1", "-W60", f"-s{size}", "-p5a", target)
        told = world.guest.run("ping", "-c1", "-W60", "-t2", SERVER[version], check=False).stdout
        assert f"From {ROUTER[version]} icmp_seq=1 Time" in told
        assert running.status()["split"]["ping"] is True


def test_where_the_host_allows_no_ping_socket_the_guest_is_told_so(lab: Lab) -> None:
    world = SplitWorld(lab)
    world.host.sysctl("net.ipv4.ping_group_range", "1 0")
    with world.split() as running:
        told = world.guest.run("ping", "-c1", "-W60", SERVER[4], check=False).stdout
        assert "Packet filtered" in told
        assert running.status()["split"]["ping"] is False


# --- the guest's network

LEASE = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "$ip $router $mtu $domain $search $dns"
"""


def test_a_guest_that_knows_nothing_gets_addresses_names_and_the_world(lab: Lab) -> None:
    world = SplitWorld(lab, configured=False)
    world.server.addr("eth0", "198.51.100.53/24")
    names = Names(world.server, "198.51.100.53", {"www.example": (SERVER[4], SERVER[6])})
    lab.defer(names.close)
    script = lab.dir / "lease"
    script.write_text(LEASE)
    script.chmod(0o755)
    lab.http(world.server, 80, {"index.html": b"hello"})
    world.guest.sysctl("net.ipv6.conf.eth0.accept_ra", 2)
    servers = ("--dns", "198.51.100.53", "--dns", "198.51.100.54", "--search", "lab.example")
    with world.split(*servers) as running:
        ask = ("busybox", "udhcpc", "-i", "eth0", "-nq", "-t60", "-O", "search", "-s", script)
        address, *rest = world.guest.run(*ask).stdout.split()
        assert rest == ["10.0.2.2", "1500", "lab.example", "lab.example", "10.0.2.2", "10.0.2.3"]
        assert address.startswith("10.0.2.")
        for kind, expected in ("a", SERVER[4]), ("aaaa", SERVER[6]):
            told = world.guest.run("busybox", "nslookup", f"-type={kind}", "www.example", "10.0.2.2").stdout
            assert f"Address: {expected}" in told
        for url in f"http://{SERVER[4]}/", f"http://[{SERVER[6]}]/":
            until(lambda: "default" in world.guest.run("ip", "-6", "route").stdout, "a router")
            assert world.guest.run("curl", "-sS", url).stdout == "hello"
        prefix = world.guest.run("ip", "-6", "addr", "show", "scope", "global").stdout
        assert "fd76:746c:0:1:" in prefix
        until(lambda: running.status()["datagrams"]["mappings"] >= 1, "the mappings of name look-ups")


def test_queries_go_to_the_resolver_of_the_host_over_udp_and_tcp_and_follow_it(lab: Lab) -> None:
    world = SplitWorld(lab)
    resolv_conf = lab.dir / "resolv.conf"
    resolv_conf.write_text(f"nameserver {SERVER[4]}\nnameserver {SERVER[6]}\n")
    resolv_conf.chmod(0o644)
    world.host.run("mount", "--bind", resolv_conf, Path("/etc/resolv.conf").resolve())
    first, second = (world.echo(world.server, address, 53) for address in (SERVER[4], SERVER[6]))
    with world.split(), world.listen(world.server, SERVER[4], 53) as listener:
        with world.open(world.guest, 4, UDP) as client:
            client.sendto(b"over UDP", (GATEWAY[4], 53))
            assert client.recvfrom(99) == (b"over UDP", (GATEWAY[4], 53))
            with world.connect(4, 53, GATEWAY[4]), listener.accept()[0]:
                pass
            first.close()
            client.sendto(b"to the other one", ("10.0.2.3", 53))
            assert client.recvfrom(99) == (b"to the other one", ("10.0.2.3", 53))
            with resolv_conf.open("w") as file:
                file.write(f"nameserver {SERVER[6]}\n")
            until(lambda: asked(client) == b"again", "the other resolver")
    second.close()


def asked(client: socket.socket) -> bytes:
    client.settimeout(0.3)
    try:
        client.sendto(b"again", (GATEWAY[4], 53))
        return client.recv(99)
    except OSError:
        return b""


def test_a_subnet_of_ones_own_and_no_leases(lab: Lab) -> None:
    world = SplitWorld(lab, configured=False)
    with world.split("--subnet", "192.168.77.0/24", "--no-dhcp") as running:
        ran = world.guest.run(
            "busybox", "udhcpc", "-i", "eth0", "-nq", "-t1", "-T1", "-s/bin/true", check=False
        )
        assert ran.returncode
        assert running.drops()["dhcp"] == 1
        world.guest.addr("eth0", "192.168.77.9/24")
        world.guest.run("ping", "-c1", "-W60", "192.168.77.1")
