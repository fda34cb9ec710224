"""A real guest is stopped, and moved, for longer than its peers are patient; its connections go on.

One guest serves all tests, wherever the one before left it. How long is long enough is told by a witness:
a connection of the same peer to a host that has gone for good, which the peer gives up meanwhile.
"""

import errno
import json
import os
import shlex
import socket
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from random import Random

import pytest

from lab.netns import Lab
from lab.wait import PATIENCE_S, until
from tests import sshd
from tests.running import BIN
from vtl_tools.common.runtime import control

pytestmark = [pytest.mark.vm]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FILE = Random(1).randbytes(3_000_000)
CHUNK, BLOCK = 10_000, 50_000
MAC = "52:54:00:f0:00:01"
PEER, PEER6, GUEST, GUEST6 = "10.0.0.1", "fd00::1", "10.0.0.2", "fd00::2"
GONE, HELD, HELD6 = "10.0.0.3", "10.0.0.4", "fd00::4"
IMPATIENT = {"tcp_retries2": 3, "tcp_keepalive_time": 2, "tcp_keepalive_intvl": 1, "tcp_keepalive_probes": 3}
"""A peer gives up after some six seconds, whether it sends or only looks whether somebody is there."""
PATIENT = IMPATIENT | {"tcp_retries2": 15, "tcp_keepalive_probes": 100}
"""Read by the kernel at each timeout. A peer is impatient only while the service answers it, and not while
services start and guests move, which takes seconds on a busy machine."""
GIVEN_UP = (errno.ETIMEDOUT, errno.EHOSTUNREACH)

QUICK = ("-o", "KexAlgorithms=curve25519-sha256")
"""An emulated processor takes four seconds for what ssh would rather do."""
REMOTE = """
(i=0; while :; do echo tick $i; i=$((i+1)); sleep 0.1; done) &
while read -r line; do echo "heard $line"; [ "$line" = bye ] && break; done
kill $!
"""
"""What ssh runs: it says something all the time, and answers."""


CUT = """
table netdev cut {
    chain in { type filter hook ingress device eth0 priority 0; policy drop; }
    chain out { type filter hook egress device eth0 priority 0; policy drop; }
}
"""
"""Makes a host as silent and deaf as a VM that is stopped."""


class Side:
    """A host with a bridge, and on it a tap for the guest. Its control sockets are its own."""

    def __init__(self, lab, lan, name, tap):
        self.lab, self.name, self.tap = lab, name, tap
        self.host = lab.host(name)
        self.host.tap(tap)
        lab.veth(self.host, "up", lan, name)
        lab.bridge(self.host, "br0", [tap, "up"])
        self.run = lab.dir / f"run-{name}"
        self.run.mkdir(mode=0o700)
        self.env = {**os.environ, "VTL_RUN": str(self.run), "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.guest = None
        self.service = None

    def boot(self, **machine):
        """Start a QEMU; a second monitor is the operator's."""
        self.operator = self.lab.dir / f"operator-{len(self.lab.guests)}"
        operator = ("-qmp", f"unix:{self.operator},server=on,wait=off")
        args = (*operator, *machine.pop("args", ()))
        extra = ("/usr/bin/ssh",)
        self.guest = self.lab.guest(
            "vm", on=self.host, tap=self.tap, mac=MAC, extra=extra, args=args, wait=False, **machine
        )

    def vtl_freeze(self, *arguments, tap=None):
        """Run the service; return it once it follows QEMU."""
        qmp = () if tap else ("--qmp", self.guest.qmp_socket)
        self.service = self.host.popen(
            *(BIN / "vtl-freeze", "--iface", tap or self.tap, "--json", *qmp, *arguments),
            stdout=subprocess.PIPE, text=True, env=self.env,
        )  # fmt: skip
        assert json.loads(self.service.stdout.readline())["event"] == "ready"
        self.control = self.run / f"vtl-freeze-{tap or self.tap}.sock"
        if qmp:
            until(lambda: self.status()["qmp"]["up"], "QEMU's monitor")
        return self

    def status(self):
        return control.ask(self.control, "status")["freeze"]

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        if self.service.poll() is None:
            self.service.terminate()
            assert self.service.wait(PATIENCE_S) == 0

    def command(self, *words):
        return self.host.run(*words, env=self.env, timeout=PATIENCE_S)


class World:
    """guest - vmnet1 - [bridge of one] - [lan] - peer; and vmnet2 - [bridge of two] - [lan]."""

    def __init__(self, lab):
        self.lab = lab
        lan, self.peer = lab.host("lan", ipv6=False), lab.host("peer")
        self.lan = lan
        self.here, self.there = Side(lab, lan, "one", "vmnet1"), Side(lab, lan, "two", "vmnet2")
        lab.veth(self.peer, "eth0", lan, "peer")
        self.gone = lab.host("gone")
        lab.veth(self.gone, "eth0", lan, "gone")
        self.one, self.held = self.here, lab.host("held")
        lab.veth(self.held, "eth0", self.one.host, "vm0")
        self.one.host.run("ip", "link", "set", "dev", "vm0", "master", "br0")
        lab.bridge(lan, "br0", ["one", "two", "peer", "gone"])
        self.held.addr("eth0", f"{HELD}/24", f"{HELD6}/64")
        self.peer.addr("eth0", f"{PEER}/24", f"{PEER6}/64")
        self.gone.addr("eth0", f"{GONE}/24")
        self.be(PATIENT)
        self.here.boot(address=f"{GUEST}/24 {GUEST6}/64")
        self.key = sshd.serve(lab, self.peer, "ssh", 22)
        (lab.dir / "remote.sh").write_text(REMOTE)
        self.here.guest.ready()
        self.here.guest.put("/tmp/key", self.key.read_bytes())
        self.here.guest.sh("chmod 600 /tmp/key", check=True)

    @property
    def guest(self):
        return self.here.guest

    def await_guest(self):
        """Start the QEMU that the guest can move to."""
        self.uri = f"unix:{self.lab.dir}/incoming-{len(self.lab.guests)}"
        self.there.boot(args=("-incoming", self.uri, "-S"))

    def script(self, uri):
        """Run the one that moves the guest, and its connections; return what went wrong."""
        here, there = self.here, self.there
        way = ("env", f"VTL_RUN={there.run}", "nsenter", f"--net={there.host.netns}", "sh", "-c")
        ran = here.host.run(
            *(EXAMPLES / "freeze-migrate", "--iface", here.tap, "--qmp", here.operator, "--uri", uri),
            *("--to", shlex.join(way), "--there-iface", there.tap, "--there-qmp", there.operator),
            env=here.env, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        return (ran.returncode, ran.stderr) if ran.returncode else None

    def migrate(self):
        """Move the guest."""
        assert self.script(self.uri) is None
        assert self.here.status()["left"]
        self.moved()

    def moved(self):
        self.here.guest.kill()
        self.here, self.there = self.there, self.here

    def listener(self, port, host=None, address=PEER):
        with (host or self.peer).enter():
            sock = socket.create_server((address, port))
        sock.settimeout(PATIENCE_S)
        return sock

    def be(self, patience):
        """Make the peer PATIENT or IMPATIENT."""
        for name, value in patience.items():
            self.peer.sysctl(f"net.ipv4.{name}", value)

    def outlast(self):
        """Wait until the peer, impatient now, has given up a host that is gone, which it sent to or asked."""
        self.be(IMPATIENT)
        self.gone.run("ip", "link", "set", "dev", "eth0", "up")
        with ExitStack() as stack:
            listener = stack.enter_context(self.listener(9, self.gone, GONE))
            sender, idler = [], []
            with self.peer.enter():
                for found in sender, idler:
                    found.append(stack.enter_context(socket.create_connection((GONE, 9), PATIENCE_S)))
                    stack.enter_context(listener.accept()[0])
            self.gone.run("ip", "link", "set", "dev", "eth0", "down")
            sender[0].sendall(b"?")
            idler[0].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for sock in (*sender, *idler):
                with pytest.raises(OSError, match=r"timed out|No route"):
                    sock.recv(1)
        self.be(PATIENT)


@pytest.fixture(scope="module")
def world():
    with Lab() as lab:
        yield World(lab)


class Work:
    """What goes on between the guest and its peer: a session, a download, and a connection that is idle."""

    def __init__(self, world):
        self.world = world
        self.hurry, self.server_error = threading.Event(), None
        ssh = shlex.join(["ssh", *sshd.options("/tmp/key", 22), *QUICK, f"root@{PEER6}"])
        with world.listener(80) as http, world.listener(7) as echo:
            world.guest.sh(
                f"""
                rm -rf /tmp/work; mkdir /tmp/work; cd /tmp/work; mkfifo typed said
                (exec 3<>typed; {ssh} sh {world.lab.dir}/remote.sh <&3 >session 2>&1; echo $? >session.end) &
                (exec 3<>said; nc {PEER} 7 <&3 >idle 2>&1; echo $? >idle.end) &
                (wget -qO- http://{PEER}/file >file; echo $? >file.end) &
                """,
                check=True,
            )
            self.idle = echo.accept()[0]
            self.idle.settimeout(PATIENCE_S)
            self.idle.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            download = http.accept()[0]
            download.settimeout(PATIENCE_S)
        self.serving = threading.Thread(target=self.serve, args=(download,))
        self.serving.start()
        self.flows()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.hurry.set()
        self.idle.close()
        self.world.be(PATIENT)

    def serve(self, sock):
        """Answer as a server that takes its time, until it is told to hurry."""
        with sock:
            try:
                sock.recv(65536)
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(FILE))
                for at in range(0, len(FILE), CHUNK):
                    sock.sendall(FILE[at : at + CHUNK])
                    self.hurry.wait(0.2)
            except OSError as e:
                self.server_error = e.errno

    def read(self, name):
        return self.world.guest.sh(f"cat /tmp/work/{name} 2>/dev/null").stdout

    def size(self, name):
        return int(self.world.guest.sh(f"wc -c </tmp/work/{name}").out)

    def flows(self):
        """Wait until both that send have sent more than there was."""
        for name in "session", "file":
            before = self.size(name)
            until(lambda name=name, before=before: self.size(name) > before, f"more of {name}")
        assert not self.hurry.is_set()
        assert self.size("file") < len(FILE)

    def goes_on(self):
        """All of it, octet for octet."""
        self.flows()
        self.hurry.set()
        self.idle.sendall(b"still there?")
        until(lambda: self.read("idle") == b"still there?", "the idle one")
        self.world.guest.sh("echo yes >/tmp/work/said; echo bye >/tmp/work/typed", check=True)
        assert self.idle.recv(10) == b"yes\n"
        self.idle.shutdown(socket.SHUT_WR)
        for name in "session", "file", "idle":
            until(lambda name=name: self.read(f"{name}.end"), f"the end of {name}")
            assert self.read(f"{name}.end") == b"0\n", self.read(name)
        assert self.read("file") == FILE
        *ticks, heard = self.read("session").decode().splitlines()
        assert heard == "heard bye"
        assert ticks == [f"tick {i}" for i in range(len(ticks))]
        self.serving.join()
        assert self.server_error is None

    def is_lost(self):
        """All of it."""
        self.world.be(IMPATIENT)
        self.serving.join()
        assert self.server_error in GIVEN_UP
        with pytest.raises(OSError, match=r"timed out|No route") as caught:
            self.idle.recv(1)
        assert caught.value.errno in GIVEN_UP
        self.world.guest.sh("echo still there? 1<>/tmp/work/typed", check=True)
        until(lambda: self.read("session.end"), "the end of the session")
        assert self.read("session.end") == b"255\n"
        self.world.guest.sh("killall wget nc", check=True)


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
