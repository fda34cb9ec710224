"""Floods through a vtl-fw with a small table: they stop nobody but whoever sends them."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from itertools import count, cycle, islice
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import Bridge, bridge
from vtl_tools.common.packet import address, build, tcp
from vtl_tools.common.packet.vnet import VNET

pytestmark = pytest.mark.lab

RULES = "allow out tcp port 80\nallow out udp port 53\nallow in tcp port 22\nallow in udp port 53\ndeny any\n"
FLOWS = 256
AT_ONCE = 128
VM, PEER = "10.9.0.1", "10.9.0.2"
Scene = tuple[Host, Host, Bridge]


@pytest.fixture
def scene(lab: Lab) -> Iterator[Scene]:
    """client, the VM - vmnet1 [middle] eth0 - server, which also is whoever else it likes."""
    client, middle, server = lab.host("client"), lab.host("middle", ipv6=False), lab.host("server")
    lab.veth(client, "eth0", middle, "vmnet1")
    lab.veth(server, "eth0", middle, "eth0")
    client.addr("eth0", f"{VM}/24")
    server.addr("eth0", f"{PEER}/24")
    rules = lab.dir / "fw.rules"
    rules.write_text(RULES)
    links = (
        "--iface",
        "vmnet1",
        "--uplink",
        "eth0",
        "--rules",
        rules,
        "--flows",
        str(FLOWS),
        "--address",
        VM,
    )
    with bridge(lab, middle, *links, service="vtl-fw") as running:
        assert running.ready["event"] == "ready"
        yield client, server, running


def mac(host: Host) -> bytes:
    return address.mac(host.call(Path("/sys/class/net/eth0/address").read_text).strip())


@contextlib.contextmanager
def flood(host: Host, running: Bridge, frames: list[bytearray]) -> Iterator[None]:
    """Send frames again and again until the end, which begins when they have filled the table's part."""
    wire = host.wire()
    is_over = threading.Event()

    def is_taken(frames: int) -> bool:
        return is_over.is_set() or sum(link["rx_frames"] for link in running.status()["links"]) >= frames

    def send() -> None:
        waiting = cycle(frames)
        for sent in count(AT_ONCE, AT_ONCE):
            for frame in islice(waiting, AT_ONCE):
                wire.send(frame[VNET:])
            until(partial(is_taken, sent), "frames that are taken", 120)  # a full link is another matter
            if is_over.is_set():
                return

    thread = threading.Thread(target=send)
    thread.start()
    try:
        until(lambda: running.status()["policy"]["evicted"] > FLOWS, "a full table", 120)
        yield
    finally:
        is_over.set()
        thread.join()


def spoofed(client: Host, server: Host) -> list[bytearray]:
    """A SYN and a datagram of each of many sources."""
    to = {"src_mac": mac(server), "dst_mac": mac(client), "dst": address.ip(VM)}
    sources = [b"\xc6\x12" + number.to_bytes(2, "big") for number in range(8 * FLOWS)]
    syns = [build.tcp(**to, src=src, sport=1024, dport=22, flags=tcp.SYN, window=9000) for src in sources]
    return syns + [build.udp(**to, src=src, sport=1024, dport=53, payload=b"?") for src in sources]


def exchange(caller: Host, where: tuple[str, int], listener: socket.socket) -> None:
    with caller.call(partial(socket.create_connection, where, 30.0)) as near, listener.accept()[0] as far:
        talk(near, far)


def talk(near: socket.socket, far: socket.socket) -> None:
    for source, sink in (near, far), (far, near):
        source.sendall(b"still here")
        sink.settimeout(PATIENCE_S)
        assert sink.recv(64) == b"still here"


def test_a_spoofed_flood_neither_stops_the_vm_nor_ends_what_is_open(scene: Scene) -> None:
    client, server, running = scene
    web, ssh = (
        host.call(partial(socket.create_server, ("", port))) for host, port in ((server, 80), (client, 22))
    )
    with web, ssh:
        out = client.call(partial(socket.create_connection, (PEER, 80), 30.0)), web.accept()[0]
        come = server.call(partial(socket.create_connection, (VM, 22), 30.0)), ssh.accept()[0]
        for pair in out, come:
            talk(*pair)
        with flood(server, running, spoofed(client, server)):
            for _ in range(20):
                exchange(client, (PEER, 80), web)
            for pair in out, come:
                talk(*pair)
        for sock in (*out, *come):
            sock.close()


def test_questions_of_the_vm_are_answered_after_a_spoofed_flood(scene: Scene) -> None:
    client, server, running = scene
    datagrams = partial(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.ExitStack() as stack:
        resolver = stack.enter_context(server.call(datagrams))
        resolver.bind((PEER, 53))
        askers = [stack.enter_context(client.call(datagrams)) for _ in range(20)]
        for number, asker in enumerate(askers):
            asker.sendto(b"%d" % number, (PEER, 53))
        asked = [resolver.recvfrom(64) for _ in askers]
        with flood(server, running, spoofed(client, server)):
            for octets, asker in asked:
                resolver.sendto(octets, asker)
            for number, asker in enumerate(askers):
                asker.settimeout(PATIENCE_S)
                assert asker.recv(64) == b"%d" % number


def test_a_flood_of_the_vm_does_not_stop_who_may_come_in(scene: Scene) -> None:
    client, server, running = scene
    to = {"src_mac": mac(client), "dst_mac": mac(server), "src": address.ip(VM), "flags": tcp.SYN}
    syns = [
        build.tcp(**to, dst=b"\xc6\x12" + n.to_bytes(2, "big"), sport=1024 + n, dport=80, window=9000)
        for n in range(8 * FLOWS)
    ]
    with client.call(partial(socket.create_server, ("", 22))) as ssh:
        near = server.call(partial(socket.create_connection, (VM, 22), 30.0))
        with near, ssh.accept()[0] as far:
            with flood(client, running, syns):
                for _ in range(20):
                    exchange(server, (VM, 22), ssh)
                talk(near, far)
                assert running.status()["policy"]["flows"] <= FLOWS
