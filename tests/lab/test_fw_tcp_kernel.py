"""TCP of real kernels through vtl-fw at its edges: numbers that wrap, and both ends that open at once."""

import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S
from tests.running import Bridge, bridge
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

VM, PEER = "10.9.0.1", "10.9.0.2"
OCTETS = 200_000
_REPAIR, _REPAIR_QUEUE, _QUEUE_SEQ = 19, 20, 21  # linux/tcp.h
_SEND_QUEUE = 2
Scene = tuple[Host, Host, Bridge]


@pytest.fixture
def scene(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """client, the VM - vmnet1 [vtl-fw] eth0 - [a link that delays, by the parameter] - server."""
    client, server = lab.host("client"), lab.host("server")
    middle, far = (lab.host(name, ipv6=False) for name in ("middle", "far"))
    lab.veth(client, "eth0", middle, "vmnet1")
    lab.veth(middle, "eth0", far, "near")
    lab.veth(server, "eth0", far, "away")
    client.addr("eth0", f"{VM}/24")
    server.addr("eth0", f"{PEER}/24")
    rules = lab.dir / "fw.rules"
    rules.write_text("allow out tcp port 80\nallow in tcp port 22\ndeny any\n")
    area = ("--iface", "near", "--iface", "away", "--delay", request.param)
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules, "--address", VM)
    with (
        bridge(lab, far, *area, service="vtl-wan", name="area"),
        bridge(lab, middle, *links, service="vtl-fw") as running,
    ):
        yield client, server, running


def opener(host: Host, iss: int, port: int = 0) -> socket.socket:
    """A socket whose connection begins with a number of ours: the kernel takes one that is there."""
    with host.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    for option, value in (_REPAIR, 1), (_REPAIR_QUEUE, _SEND_QUEUE), (_QUEUE_SEQ, iss), (_REPAIR, 0):
        packed = value.to_bytes(4, sys.byteorder)
        sock.setsockopt(socket.IPPROTO_TCP, option, packed)
    sock.settimeout(PATIENCE_S)
    return sock


def exchange(near: socket.socket, far: socket.socket) -> None:
    """Send much both ways at once, and see that it arrives."""
    for sock in near, far:
        sock.settimeout(PATIENCE_S)
    data = bytes(i * 7 & 0xFF for i in range(OCTETS))
    senders = [threading.Thread(target=sock.sendall, args=(data,)) for sock in (near, far)]
    for thread in senders:
        thread.start()
    for sock in far, near:
        with sock.makefile("rb") as octets:
            assert octets.read(OCTETS) == data
    for thread in senders:
        thread.join()


def refused(running: Bridge) -> dict[str, int]:
    return {why: count for why, count in running.drops().items() if why.startswith("tcp-")}


@pytest.mark.parametrize("scene", ["2ms"], indirect=True, ids=["quick"])
@pytest.mark.parametrize("iss", [2**32 - 1, 2**32 - 2, 2**32 - 100_000, 2**31 - 1], ids=hex)
@pytest.mark.parametrize("who", ["vm", "stranger"])
def test_sequence_numbers_that_wrap_pass(scene: Scene, who: str, iss: int) -> None:
    client, server, running = scene
    host, other, where = (client, server, (PEER, 80)) if who == "vm" else (server, client, (VM, 22))
    with other.enter():
        listener = socket.create_server(("", where[1]))
    with listener, opener(host, iss) as near:
        near.connect(where)
        with listener.accept()[0] as far:
            exchange(near, far)
            near.shutdown(socket.SHUT_WR)
            assert far.recv(9) == b""
            far.sendall(b"behind the FIN")
            assert near.recv(64) == b"behind the FIN"
        assert near.recv(9) == b""
    assert refused(running) == {}


@pytest.mark.parametrize("scene", ["250ms"], indirect=True, ids=["slow"])  # so that the SYNs cross
@pytest.mark.parametrize(
    "numbers", [(1000, 5000), (2**32 - 1, 2**32 - 1), (2**32 - 50_000, 2**31 - 1)], ids=str
)
def test_two_kernels_that_open_at_once_get_one_connection(scene: Scene, numbers: tuple[int, int]) -> None:
    client, server, running = scene
    with opener(client, numbers[0], 4000) as near, opener(server, numbers[1], 80) as far:
        near.setblocking(False)
        far.setblocking(False)
        with pytest.raises(BlockingIOError):
            near.connect((PEER, 80))
        with pytest.raises(BlockingIOError):
            far.connect((VM, 4000))
        exchange(near, far)
        flows = control.ask(running.socket, "flows")["flows"]
        assert [(flow["flow"], flow["states"]) for flow in flows] == [
            (f"out tcp {VM}:4000 {PEER}:80", ["ESTABLISHED", "ESTABLISHED"])
        ]
        near.shutdown(socket.SHUT_WR)
        assert far.recv(9) == b""
    assert refused(running) == {}
