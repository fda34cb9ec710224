"""A real guest is stopped, and moved, for longer than its peers are patient; its connections go on.

One guest serves all tests, wherever the one before left it. How long is long enough is told by a witness:
a connection of the same peer to a host that has gone for good, which the peer gives up meanwhile.
"""

import json
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from lab.netns import Lab
from lab.wait import PATIENCE_S, until
from tests.vm.moving import FILE, GUEST, GUEST6, MAC, Work, World

pytestmark = [pytest.mark.vm]

BLOCK = 50_000
CUT = """
table netdev cut {
    chain in { type filter hook ingress device eth0 priority 0; policy drop; }
    chain out { type filter hook egress device eth0 priority 0; policy drop; }
}
"""
"""Makes a host as silent and deaf as a VM that is stopped."""


@pytest.fixture(scope="module")
def world():
    with Lab() as lab:
        yield World(lab)


def test_stopped_and_gone_on_though_the_service_is_killed_meanwhile(world):
    with world.here.vtl_freeze() as service, Work(world) as work:
        world.guest.qmp("stop")
        state = Path(service.status()["state"])
        until(lambda: json.loads(state.read_bytes())["frozen"], "the state to be written")
        service.service.kill()
        service.service.wait(PATIENCE_S)
        service.service.stdout.close()
        service.vtl_freeze()
        assert service.status()["frozen"]
        world.outlast()
        assert service.status()["answered"] > 3
        world.guest.qmp("cont")
        work.goes_on()
        assert not service.status()["frozen"]


def test_moved_while_stopped(world):
    world.await_guest()
    with world.here.vtl_freeze() as before, world.there.vtl_freeze() as after, Work(world) as work:
        world.guest.qmp("stop")
        until(lambda: before.status()["frozen"], "the service to answer for the guest")
        world.outlast()
        status, why = world.script("exec:head -c 100000 >/dev/null")
        assert (status, why.startswith("freeze-migrate: ")) == (1, True), why
        assert (before.status()["frozen"], before.status()["left"]) == (True, False)
        answered = before.status()["answered"]
        assert answered > 3
        world.migrate()
        assert after.status()["frozen"]
        assert f"{MAC} dev {after.name} " in world.lan.run("bridge", "fdb").stdout
        world.outlast()
        assert after.status()["answered"] > 3
        assert before.status()["answered"] < answered + 10
        world.guest.qmp("cont")
        work.goes_on()
        assert not after.status()["frozen"]


def test_moved_while_running(world):
    world.await_guest()
    with world.here.vtl_freeze(), world.there.vtl_freeze() as after, Work(world) as work:
        world.migrate()
        assert not after.status()["frozen"]
        work.goes_on()


def test_moved_without_the_service_all_is_lost(world):
    world.await_guest()
    with Work(world) as work:
        world.guest.qmp("stop")
        world.outlast()
        world.guest.qmp("migrate", uri=world.uri)
        until(lambda: world.guest.qmp("query-migrate")["status"] == "completed", "the migration")
        world.moved()
        world.guest.qmp("cont")
        work.is_lost()


def test_a_peer_that_does_not_believe_a_window_that_shrinks_to_nothing(world):
    """Linux 6.1 takes none from a segment that is no newer than the last. Here it is the guest that sends.

    A kernel of this machine's takes the place of the VM that stops. Whom nobody speaks for is given up.
    """
    guest, held, lost = world.guest, world.held, world.gone
    lost.run("ip", "link", "set", "dev", "eth0", "up")
    guest.put("/tmp/data", FILE)
    send = f"for at in $(seq {len(FILE) // BLOCK}); do dd bs={BLOCK} count=1; usleep 50000; done"
    for port in 5000, 5001:
        guest.sh(f"({send} </tmp/data 2>/dev/null | nc -l -p {port} 2>/tmp/{port}) >/dev/null &", check=True)
        until(lambda port=port: guest.sh(f"netstat -ltn | grep :{port}").status == 0, "a server in the guest")
    with world.one.vtl_freeze(tap="vm0") as service, ExitStack() as stack:
        downloads = []
        for host, address in (held, (GUEST6, 5000)), (lost, (GUEST, 5001)):
            with host.enter():
                sock = stack.enter_context(socket.create_connection(address, PATIENCE_S))
            downloads.append(sock)
        got = [bytearray(), bytearray()]
        for sock, some in zip(downloads, got, strict=True):
            while len(some) < 5 * BLOCK:
                some += sock.recv(1 << 16)
        lost.run("ip", "link", "set", "dev", "eth0", "down")
        held.run("nft", "-f", "-", input=CUT)
        service.command("vtl-freeze", "start", "--link", "vm0")
        guest.sh("echo 5 >/proc/sys/net/ipv4/tcp_retries2", check=True)  # impatient from now on
        until(lambda: b"timed out" in guest.get("/tmp/5001"), "the end of the other")
        held.run("nft", "delete", "table", "netdev", "cut")
        service.command("vtl-freeze", "stop", "--link", "vm0")
        sock, some = downloads[0], got[0]
        while len(some) < len(FILE) and (data := sock.recv(1 << 16)):
            some += data
        assert some == FILE
