"""A real guest between two hosts, what goes on between it and its peers, and what makes it move."""

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

from lab.wait import PATIENCE_S, until
from tests import sshd
from tests.running import BIN
from vtl_tools.common.runtime import control

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
"""The program that ssh runs: it says something all the time, and answers."""


class Side:
    """A host with a tap for the guest, and a bridge or vtl-fw to the LAN. Its control sockets are its own."""

    def __init__(self, lab, lan, name, tap, *, rules=""):
        self.lab, self.name, self.tap = lab, name, tap
        self.host = lab.host(name, ipv6=not rules)
        self.host.tap(tap)
        lab.veth(self.host, "up", lan, name)
        self.run = lab.dir / f"run-{name}"
        self.run.mkdir(mode=0o700)
        self.env = {**os.environ, "VTL_RUN": str(self.run), "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.guest = None
        self.service = None
        if rules:
            self.vtl_fw(rules)
        else:
            lab.bridge(self.host, "br0", [tap, "up"])

    def vtl_fw(self, rules):
        """Start a firewall that learns the guest's IPv4 address."""
        file = self.run / "fw.rules"
        file.write_text(rules)
        links = ("--iface", self.tap, "--uplink", "up", "--rules", file)
        command = (BIN / "vtl-fw", *links, "--address", GUEST6, "--address", "fe80::/10", "--json")
        process = self.host.popen(*command, stdout=subprocess.PIPE, text=True, env=self.env)
        assert json.loads(process.stdout.readline())["event"] == "ready"

    def firewall(self):
        """Return the status of the firewall."""
        return control.ask(self.run / f"vtl-fw-{self.tap}.sock", "status")

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
    """guest - vmnet1 - [bridge of one] - [lan] - peer; and vmnet2 - [bridge of two] - [lan].

    rules: of a firewall that is in the place of each of the two bridges. The peer leases addresses then.
    """

    def __init__(self, lab, *, rules=""):
        self.lab, self.rules = lab, rules
        lan, self.peer = lab.host("lan", ipv6=False), lab.host("peer")
        self.lan = lan
        self.here, self.there = (
            Side(lab, lan, name, tap, rules=rules) for name, tap in (("one", "vmnet1"), ("two", "vmnet2"))
        )
        lab.veth(self.peer, "eth0", lan, "peer")
        self.gone = lab.host("gone")
        lab.veth(self.gone, "eth0", lan, "gone")
        lab.bridge(lan, "br0", ["one", "two", "peer", "gone"])
        if not rules:
            self.beside()
        self.peer.addr("eth0", f"{PEER}/24", f"{PEER6}/64")
        self.gone.addr("eth0", f"{GONE}/24")
        self.be(PATIENT)
        self.here.boot(address=f"{GUEST6}/64" if rules else f"{GUEST}/24 {GUEST6}/64")
        self.key = sshd.serve(lab, self.peer, "ssh", 22)
        (lab.dir / "remote.sh").write_text(REMOTE)
        self.here.guest.ready()
        if rules:
            self.lease()
        self.here.guest.put("/tmp/key", self.key.read_bytes())
        self.here.guest.sh("chmod 600 /tmp/key", check=True)

    def beside(self):
        """Add a host beside the guest's tap."""
        self.one, self.held = self.here, self.lab.host("held")
        self.lab.veth(self.held, "eth0", self.one.host, "vm0")
        self.one.host.run("ip", "link", "set", "dev", "vm0", "master", "br0")
        self.held.addr("eth0", f"{HELD}/24", f"{HELD6}/64")

    def lease(self):
        """Have the peer lease its address to the guest."""
        leases, conf = self.lab.dir / "leases", self.lab.dir / "udhcpd.conf"
        leases.touch()
        conf.write_text(
            f"start {GUEST}\nend {GUEST}\ninterface eth0\nlease_file {leases}\npidfile {self.lab.dir}/pid\n"
            "option subnet 255.255.255.0\noption lease 3600\n"
        )
        self.peer.popen("busybox", "udhcpd", "-f", conf, stderr=subprocess.DEVNULL)
        assert self.guest.lease()["ip"] == GUEST

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
        fw = ["--fw"] if self.rules else []
        way = ("env", f"VTL_RUN={there.run}", "nsenter", f"--net={there.host.netns}", "sh", "-c")
        ran = here.host.run(
            *(EXAMPLES / "freeze-migrate", *fw, "--iface", here.tap, "--qmp", here.operator, "--uri", uri),
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


class Work:
    """Traffic between the guest and its peer: a session, a download, and a connection that is idle."""

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
