"""Real programs in a guest, a real kernel's TCP on its side, and real servers behind the relay."""

import hashlib
import inspect
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

import pytest

from lab.netns import Lab
from lab.wait import PATIENCE_S, until
from tests import sshd
from tests.cmd.tools import BIN
from vtl_tools.common.relay.flow import RELAYED
from vtl_tools.common.runtime import control

pytestmark = pytest.mark.lab

ROOT = Path(__file__).resolve().parents[2]
SERVERS = {4: "192.0.2.1", 6: "2001:db8::1"}
"""On the relay's own loopback, where its calls come out."""
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
GIBI = 1 << 30
FILE = Random(1).randbytes(5_000_000)


class World:
    """guest (10.0.0.2, fd00::2) - [vm relay], and servers on addresses that only the relay's host has.

    faults: options of a vtl-wan between the two.
    """

    def __init__(self, lab, guest_mtu=1500, faults=()):
        self.lab, self.dir = lab, lab.dir
        self.guest, self.host = lab.host("guest"), lab.host("relay")
        if faults:
            area = lab.host("area", ipv6=False)
            lab.veth(self.guest, "eth0", area, "west")
            lab.veth(area, "east", self.host, "vm")
            links = ("--iface", "west", "--iface", "east", "--seed", "1")
            self.start(area, BIN / "vtl-wan", *links, *faults, "--control", self.dir / "area.sock")
        else:
            lab.veth(self.guest, "eth0", self.host, "vm")
        if guest_mtu != 1500:
            self.guest.run("ip", "link", "set", "dev", "eth0", "mtu", str(guest_mtu))
        self.guest.addr("eth0", "10.0.0.2/24", "fd00::2/64")
        self.guest.run("ip", "route", "add", "default", "via", "10.0.0.1")
        self.guest.run("ip", "-6", "route", "add", "default", "via", "fd00::1")
        self.host.sysctl("net.ipv6.conf.vm.disable_ipv6", 1)  # the host's stack is no neighbour of the guest
        for address in f"{SERVERS[4]}/32", f"{SERVERS[6]}/128":
            self.host.run("ip", "addr", "add", address, "dev", "lo")
        self.control = self.dir / "relay.sock"
        command = [sys.executable, ROOT / "bench/plain_relay.py", "--iface", "vm", "--control", self.control]
        self.relay = self.start(self.host, *command)

    @staticmethod
    def start(host, *command):
        """Start a service, and return its process when it is ready."""
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = host.popen(*command, "--json", stdout=subprocess.PIPE, text=True, env=env)
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["event"] == "ready"
        return process

    def status(self):
        return control.ask(self.control, "status")

    def quiet(self):
        """Wait until nothing is left of any connection, in the relay's tables too."""

        def nothing():
            status = self.status()
            return not status["connections"] and status["held"] == 0

        until(nothing, f"the end of all connections: {self.status()}", PATIENCE_S)

    def end(self):
        self.relay.terminate()
        assert self.relay.wait(PATIENCE_S) == 0

    def listen(self, version=4, port=0, backlog=128):
        """Return a listening socket at the servers' address, and its port."""
        with self.host.enter():
            sock = socket.create_server((SERVERS[version], port), family=FAMILY[version], backlog=backlog)
        sock.settimeout(PATIENCE_S)
        return sock

    def call(self, port, version=4, timeout=PATIENCE_S):
        """Return a socket of the guest's that is connected to a server."""
        with self.guest.enter():
            return socket.create_connection((SERVERS[version], port), timeout)

    def joined(self, version=4):
        """Return both ends of a connection through the relay: the guest's, the server's."""
        with self.listen(version) as listener:
            near = self.call(listener.getsockname()[1], version)
            far, _ = listener.accept()
        far.settimeout(PATIENCE_S)
        return near, far

    @contextmanager
    def serving(self, version, serve, port=0):
        """Call serve(socket) in a thread for each connection that comes."""
        with self.listen(version, port, 1024) as listener:
            listener.settimeout(None)

            def accept():
                while True:
                    try:
                        sock, _ = listener.accept()
                    except OSError:
                        return
                    sock.settimeout(PATIENCE_S)
                    threading.Thread(target=run, args=(sock,), daemon=True).start()

            def run(sock):
                with sock:
                    serve(sock)

            accepting = threading.Thread(target=accept, daemon=True)
            accepting.start()
            yield listener.getsockname()[1]
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(PATIENCE_S)


@contextmanager
def running(*args):
    with Lab() as lab:
        world = World(lab, *args)
        yield world
        world.quiet()
        world.end()


@pytest.fixture(scope="module")
def world():
    """One relay for most of the tests, so that what one leaves behind is another's trouble."""
    with running() as world:
        yield world


@pytest.fixture
def own_world():
    """A relay and a guest to be configured."""
    with running() as world:
        yield world


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def version(request):
    return request.param


def url(version, port, path=""):
    host = SERVERS[version] if version == 4 else f"[{SERVERS[version]}]"
    return f"http://{host}:{port}/{path}"


def read_all(sock):
    got = bytearray()
    while data := sock.recv(1 << 20):
        got += data
    return bytes(got)


def exchange(near, far, data, back):
    """Send both ways at once; return what came to the far end and to the near one."""
    got = {}

    def send(sock, octets):
        sock.sendall(octets)
        sock.shutdown(socket.SHUT_WR)

    def receive(name, sock):
        got[name] = read_all(sock)

    work = [(send, near, data), (send, far, back), (receive, "far", far), (receive, "near", near)]
    threads = [threading.Thread(target=function, args=args) for function, *args in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return got["far"], got["near"]


# --- programs


def test_curl_and_wget_get_and_put_what_there_is(world, version):
    world.lab.http(world.host, 8000 + version, {"file": FILE, "empty": b""})
    out = world.dir / "out"
    for command in ["curl", "-gsSfo", out], ["wget", "-qO", out]:
        world.guest.run(*command, url(version, 8000 + version, "file"))
        assert out.read_bytes() == FILE
        world.guest.run(*command, url(version, 8000 + version, "empty"))
        assert out.read_bytes() == b""
    missing = world.guest.run("curl", "-gsSf", url(version, 8000 + version, "missing"), check=False)
    assert missing.returncode == 22
    got = []

    def take(sock):
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(65536)
        body = head.partition(b"\r\n\r\n")[2]
        while len(body) < len(FILE):
            body += sock.recv(1 << 20)
        got.append(body)
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    (world.dir / "in").write_bytes(FILE)
    with world.serving(version, take) as port:
        put = world.guest.run(
            "curl", "-gsSf", "-H", "Expect:", "-T", world.dir / "in", url(version, port, "x")
        )
    assert put.stdout == "ok"
    assert got == [FILE]


@pytest.fixture
def ssh(world, version):
    """What ssh is to be called with to reach a server."""
    port = 2220 + version
    return sshd.options(sshd.serve(world.lab, world.host, f"ssh-{version}", port), port)


def test_ssh_scp_and_rsync_carry_what_there_is(world, ssh, version):
    host = SERVERS[version]
    bracketed = host if version == 4 else f"[{host}]"
    said = world.guest.run(
        "ssh", *ssh, f"root@{host}", "cat; echo on the other side", input="from the guest, "
    )
    assert said.stdout == "from the guest, on the other side\n"
    directory = world.dir / f"files-{version}"
    source, target = directory / "source", directory / "target"
    source.mkdir(parents=True)
    (source / "big").write_bytes(FILE)
    for i in range(200):
        (source / f"small-{i}").write_bytes(Random(i).randbytes(i * 37))
    scp = ["-P" if word == "-p" else word for word in ssh]
    world.guest.run("scp", "-q", *scp, source / "big", f"root@{bracketed}:{directory}/there")
    assert (directory / "there").read_bytes() == FILE
    world.guest.run("scp", "-q", *scp, f"root@{bracketed}:{directory}/there", directory / "back")
    assert (directory / "back").read_bytes() == FILE
    rsh = " ".join(["ssh", *ssh])
    world.guest.run("rsync", "-a", "-e", rsh, f"{source}/", f"root@{bracketed}:{target}/")
    (source / "small-7").write_bytes(b"changed since")
    world.guest.run("rsync", "-a", "--checksum", "-e", rsh, f"root@{bracketed}:{source}/", f"{target}/")
    assert {path.name: path.read_bytes() for path in source.iterdir()} == {
        path.name: path.read_bytes() for path in target.iterdir()
    }


def test_git_clones_and_pushes(world, version):
    git = {**os.environ, "HOME": str(world.dir), "GIT_CONFIG_NOSYSTEM": "1"}
    for who in "AUTHOR", "COMMITTER":
        git |= {f"GIT_{who}_NAME": "guest", f"GIT_{who}_EMAIL": "guest@example.com"}
    directory, port = world.dir / f"git-{version}", 9400 + version
    bare, clone, dumb = (directory / name for name in ("bare.git", "clone", "dumb"))
    directory.mkdir()
    world.host.run("git", "init", "-q", "--bare", "-b", "trunk", bare, env=git)
    daemon = world.host.popen(
        "git", "daemon", "--export-all", "--enable=receive-pack", "--reuseaddr", f"--base-path={directory}",
        "--log-destination=none", "--listen=0.0.0.0", "--listen=::", f"--port={port}", env=git,
    )  # fmt: skip
    host = SERVERS[version] if version == 4 else f"[{SERVERS[version]}]"
    until(lambda: daemon.poll() or listens(world, SERVERS[version], port), "git daemon")
    world.guest.run("git", "clone", "-q", f"git://{host}:{port}/bare.git", clone, env=git)
    (clone / "file").write_bytes(FILE)
    for words in (
        ["checkout", "-qb", "trunk"],
        ["add", "."],
        ["commit", "-qm", "A file"],
        ["push", "-q", "origin", "trunk"],
    ):
        world.guest.run("git", "-C", clone, *words, env=git)
    world.host.run("git", "-C", bare, "update-server-info", env=git)
    files = world.lab.http(world.host, 8010 + version).files
    world.host.run("cp", "-r", bare, files / "bare.git")
    world.guest.run("git", "clone", "-q", url(version, 8010 + version, "bare.git"), dumb, env=git)
    assert (dumb / "file").read_bytes() == FILE


def listens(world, host, port):
    with world.host.enter(), socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as sock:
        return sock.connect_ex((host, port)) == 0


def test_netcat_half_closes(world, version):
    def answer(sock):
        asked = read_all(sock)
        time.sleep(0.2)
        sock.sendall(hashlib.sha256(asked).hexdigest().encode())

    with world.serving(version, answer) as port:
        said = world.guest.run("nc.openbsd", "-N", SERVERS[version], str(port), input=FILE.hex())
    assert said.stdout == hashlib.sha256(FILE.hex().encode()).hexdigest()


# --- much


SENDER = """
import hashlib, os, socket, sys
host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock, block, total = socket.create_connection((host, port)), os.urandom(1 << 20), hashlib.sha256()
for at in range(0, size, len(block)):
    data = at.to_bytes(8, "big") + block[8:]
    total.update(data[:64])
    sock.sendall(data)
sock.shutdown(socket.SHUT_WR)
print(sock.recv(64).decode() == total.hexdigest())
"""
"""Every mebibyte is told apart by its beginning, and a random rest is compared by the receiver."""


def check_blocks(sock, size):
    """Receive `size` octets as SENDER makes them; return the checksum, or what is wrong."""
    total, first, room, got = hashlib.sha256(), None, memoryview(bytearray(1 << 20)), 0
    while got < size:
        filled = 0
        while filled < len(room):
            count = sock.recv_into(room[filled:])
            if not count:
                return f"cut after {got + filled}"
            filled += count
        first = first or bytes(room[8:])
        if room[8:] != first or int.from_bytes(room[:8], "big") != got:
            return f"changed after {got}"
        total.update(room[:64])
        got += filled
    return total.hexdigest() if not sock.recv(1) else "more than was sent"


RECEIVER = (
    """
import hashlib, os, socket, sys
host, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock = socket.create_connection((host, port))
"""
    + "{check}"
    + """
print(check_blocks(sock, size))
"""
)


def test_a_gibibyte_goes_up(world, version):
    with world.serving(version, lambda sock: sock.sendall(check_blocks(sock, GIBI).encode())) as port:
        said = world.guest.run(sys.executable, "-c", SENDER, SERVERS[version], str(port), str(GIBI))
    assert said.stdout.strip() == "True"


def test_a_gibibyte_comes_down(world, version):
    block, sums = os.urandom(1 << 20), []

    def send(sock):
        total = hashlib.sha256()
        for at in range(0, GIBI, len(block)):
            data = at.to_bytes(8, "big") + block[8:]
            total.update(data[:64])
            sock.sendall(data)
        sums.append(total.hexdigest())

    code = RECEIVER.replace("{check}", inspect.getsource(check_blocks))
    with world.serving(version, send) as port:
        said = world.guest.run(sys.executable, "-c", code, SERVERS[version], str(port), str(GIBI))
    assert [said.stdout.strip()] == sums


DOWNLOADS = """
import asyncio, hashlib, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

async def get(i):
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(b"%d\\n" % i)
    data = await reader.read(-1)
    writer.close()
    return hashlib.sha256(data).hexdigest()

async def main():
    print(*await asyncio.gather(*(get(i) for i in range(count))))

asyncio.run(main())
"""


def piece(i):
    return Random(i).randbytes(20_000 + i)


def test_five_hundred_downloads_at_once(world, version):
    def serve(sock):
        with sock.makefile("rb") as asked:
            sock.sendall(piece(int(asked.readline())))

    with world.serving(version, serve) as port:
        said = world.guest.run(sys.executable, "-c", DOWNLOADS, SERVERS[version], str(port), "500")
    assert said.stdout.split() == [hashlib.sha256(piece(i)).hexdigest() for i in range(500)]


def test_a_storm_of_connections(world, version):
    """Two thousand, from sixteen ports in turn: each comes again while TIME-WAIT is left of it."""
    ports = range(20_000, 20_016)
    failed = world.status()["failed"]
    with world.serving(version, lambda sock: sock.sendall(sock.recv(100))) as port, world.guest.enter():
        for i in range(2000):
            with socket.socket(FAMILY[version]) as sock:
                sock.settimeout(PATIENCE_S)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("", ports[i % len(ports)]))
                sock.connect((SERVERS[version], port))
                sock.sendall(b"%d" % i)
                assert read_all(sock) == b"%d" % i
    assert world.status()["failed"] == failed


# --- peers that are slow, silent or rude


def fill(sock):
    """Send until nothing is taken for a while; return how much was."""
    sock.settimeout(0.5)
    sent = 0
    with suppress(TimeoutError):
        while sent < GIBI:
            sent += sock.send(bytes(1 << 16))
    assert sent < GIBI
    return sent


def test_a_server_that_resets(world, version):
    near, far = world.joined(version)
    with near:
        near.sendall(b"hello")
        assert far.recv(10) == b"hello"
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        with pytest.raises(ConnectionResetError):
            near.recv(1)


def test_a_guest_that_resets(world, version):
    near, far = world.joined(version)
    with far:
        far.sendall(b"hello")
        assert near.recv(10) == b"hello"
        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        near.close()
        with pytest.raises(ConnectionResetError):
            far.recv(1)


def test_nobody_listens(world, version):
    with pytest.raises(ConnectionRefusedError):
        world.call(9, version)


def test_nobody_is_reached(world, version):
    where = "198.51.100.1" if version == 4 else "2001:db8:1::1"
    with world.guest.enter(), socket.socket(FAMILY[version]) as sock:
        sock.settimeout(PATIENCE_S)
        with pytest.raises(OSError, match="unreachable"):
            sock.connect((where, 80))


def test_a_server_that_says_everything_at_once_and_leaves(world, version):
    """It has closed before the relay looked."""
    with world.serving(version, lambda sock: sock.sendall(b"bye")) as port:
        for _ in range(200):
            with world.call(port, version) as sock:
                assert read_all(sock) == b"bye"


def test_a_server_that_never_reads(world, version):
    near, far = world.joined(version)
    with near, far:
        sent = fill(near)
        assert world.status()["held"] <= RELAYED.buffer_max
        got = 0
        while got < sent:
            got += len(far.recv(1 << 20))
        near.settimeout(PATIENCE_S)
        near.sendall(b"the end")
        assert far.recv(100) == b"the end"


def test_a_guest_that_never_reads(world, version):
    near, far = world.joined(version)
    with near, far:
        sent = fill(far)
        assert world.status()["held"] <= RELAYED.buffer_max
        got = 0
        while got < sent:
            got += len(near.recv(1 << 20))
        far.settimeout(PATIENCE_S)
        far.sendall(b"the end")
        assert near.recv(100) == b"the end"


def test_a_server_that_never_writes(world, version):
    with world.listen(version) as listener:
        where = url(version, listener.getsockname()[1])
        curl = world.guest.popen("curl", "-gsm", "1", where)
        far, _ = listener.accept()
        far.settimeout(PATIENCE_S)
        with far:
            assert far.recv(4) == b"GET "
            assert curl.wait(PATIENCE_S) == 28, "curl's own patience has ended"
            until(lambda: not far.recv(1000), "the end of the request", PATIENCE_S)


def test_those_that_wait_cost_no_time(world, version):
    """Idle, half-closed at either end, or full in either direction."""
    pairs = [world.joined(version) for _ in range(5)]
    (_, _), (near, _), (_, far), (full, _), (_, flood) = pairs
    near.shutdown(socket.SHUT_WR)
    far.shutdown(socket.SHUT_WR)
    fill(full)
    fill(flood)
    before, start = world.status()["cpu_s"], time.monotonic()
    time.sleep(1.5)
    after, seconds = world.status()["cpu_s"], time.monotonic() - start
    assert sum(after.values()) - sum(before.values()) < 0.1 * seconds
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_a_slow_reader_gets_every_octet(world, version):
    near, far = world.joined(version)
    data, got = FILE[:2_000_000], bytearray()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sending = threading.Thread(target=lambda: (far.sendall(data), far.shutdown(socket.SHUT_WR)))
        sending.start()
        while some := near.recv(20_000):
            got += some
            time.sleep(0.005)
        sending.join()
    assert got == data


def test_idle_and_then_data(world, version):
    near, far = world.joined(version)
    with near, far:
        for i in range(5):
            time.sleep(0.5)
            near.sendall(b"%d?" % i)
            assert far.recv(10) == b"%d?" % i
            far.sendall(b"%d!" % i)
            assert near.recv(10) == b"%d!" % i


def test_a_guest_that_waits_half_closed(world, version):
    near, far = world.joined(version)
    with near, far:
        near.sendall(b"question")
        near.shutdown(socket.SHUT_WR)
        assert read_all(far) == b"question"
        time.sleep(2.0)
        sending = threading.Thread(target=lambda: (far.sendall(FILE), far.shutdown(socket.SHUT_WR)))
        sending.start()
        assert read_all(near) == FILE
        sending.join()


# --- other guests


PLAIN = ["timestamps", "sack", "window_scaling"]


@pytest.mark.parametrize("without", [*([name] for name in PLAIN), PLAIN], ids="-".join)
def test_a_guest_without_options(own_world, version, without):
    for name in without:
        own_world.guest.sysctl(f"net.ipv4.tcp_{name}", 0)
    near, far = own_world.joined(version)
    with near, far:
        assert exchange(near, far, FILE, FILE[::-1]) == (FILE, FILE[::-1])


@pytest.mark.parametrize("mtu", [1280, 9000])
def test_a_guest_of_another_mtu(version, mtu):
    with running(mtu) as world:
        near, far = world.joined(version)
        with near, far:
            assert exchange(near, far, FILE, FILE[::-1]) == (FILE, FILE[::-1])


def test_a_guest_without_offload(own_world, version):
    off = [word for name in ("tx", "rx", "sg", "tso", "gso", "gro") for word in (name, "off")]
    own_world.guest.run("/usr/sbin/ethtool", "-K", "eth0", *off)
    own_world.host.run("/usr/sbin/ethtool", "-K", "vm", *off)
    near, far = own_world.joined(version)
    with near, far:
        assert exchange(near, far, FILE, FILE[::-1]) == (FILE, FILE[::-1])


FAULTS = {
    "loss": ("--loss", "2%"),
    "reorder": ("--reorder", "5%", "--delay", "2ms"),
    "duplicate": ("--duplicate", "10%"),
    "corrupt": ("--corrupt", "2%"),
}
"""Faults of a vtl-wan, which fall on segments with a checksum each."""


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_a_guest_behind_a_bad_wire(version, faults):
    with running(1500, faults) as world:
        near, far = world.joined(version)
        data = FILE[:1_000_000]
        with near, far:
            assert exchange(near, far, data, data[::-1]) == (data, data[::-1])
