"""What a greedy or hostile guest can take from vtl-tor, and what is left for others meanwhile."""

import contextlib
import json
import os
import re
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dns.message
import dns.query
import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, slowness, until
from tests.tor.torservice import Service, vtl_tor

pytestmark = [pytest.mark.lab, pytest.mark.slow]

SITE, RESOLVER = "203.0.113.80", "10.0.2.2"
ECHO, CHARGEN, DEAF = 7, 19, 99
IDLE_CONNECTIONS = int(os.environ.get("VTL_TEST_IDLE", "5000"))
FLOOD_PER_S = int(os.environ.get("VTL_TEST_FLOOD", "10000"))

PROXY = """
import asyncio, resource, sys

resource.setrlimit(resource.RLIMIT_NOFILE, [resource.getrlimit(resource.RLIMIT_NOFILE)[1]] * 2)

async def serve(reader, writer):
    try:
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        method = 2 if 2 in methods else 0
        writer.write(bytes((5, method)))
        if method:
            await reader.readexactly((await reader.readexactly(2))[1])
            await reader.readexactly((await reader.readexactly(1))[0])
            writer.write(bytes((1, 0)))
        _, command, _, kind = await reader.readexactly(4)
        size = {1: 4, 4: 16}.get(kind) or (await reader.readexactly(1))[0]
        target = await reader.readexactly(size)
        port = int.from_bytes(await reader.readexactly(2), "big")
        if target.endswith(b".onion"):
            writer.write(bytes((5, 0xF6, 0, 1)) + bytes(6))
            return writer.close()
        writer.write(bytes((5, 0, 0, 1)) + bytes(6))
        if port == 21:
            writer.write(target)
            return writer.close()
        if port == 20:
            writer.write(bytes(200_000))
        if port in (20, 99):
            await asyncio.sleep(3600)
        while port == 19:
            writer.write(bytes(65536))
            await writer.drain()
        while octets := await reader.read(65536):
            writer.write(octets)
            await writer.drain()
        writer.close()
    except (OSError, asyncio.IncompleteReadError):
        writer.close()

async def main():
    server = await asyncio.start_unix_server(serve, sys.argv[1], limit=4096, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

FLOOD = """
import random, socket, struct, sys, time
mac, per_s, seconds = bytes.fromhex(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
repeats = sys.argv[4] == "repeats"
rng = random.Random(1)

def total(octets):
    number = sum(struct.unpack(f"!{len(octets) // 2}H", octets))
    while number >> 16:
        number = (number & 0xFFFF) + (number >> 16)
    return ~number & 0xFFFF

frames = []
for _ in range(20000):
    src, dst = bytes((10, 0, rng.randrange(3, 250), rng.randrange(1, 255))), bytes((203, 0, 113, 80))
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, src, dst)
    head = head[:10] + total(head).to_bytes(2, "big") + head[12:]
    ports = rng.randrange(1024, 65536), 80
    tcp = struct.pack("!HHIIBBHHH", *ports, rng.getrandbits(32), 0, 0x50, 2, 1000, 0, 0)
    pseudo = src + dst + struct.pack("!HH", 6, 20)
    tcp = tcp[:16] + total(pseudo + tcp).to_bytes(2, "big") + tcp[18:]
    frames.append(bytearray(mac + bytes.fromhex("5254000000aa0800") + head + tcp))

def other_port(frame):
    # What repeats itself is told by that, so the next time it is another call.
    old, = struct.unpack_from("!H", frame, 34)
    new = 1024 + (old + 1) % 60000
    number = (~struct.unpack_from("!H", frame, 50)[0] & 0xFFFF) - old + new
    struct.pack_into("!H", frame, 34, new)
    struct.pack_into("!H", frame, 50, ~((number % 0xFFFF) or 0xFFFF) & 0xFFFF)

sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0x0800))
print("begun", flush=True)
began, sent = time.monotonic(), 0
while (passed := time.monotonic() - began) < seconds:
    while sent < passed * per_s:
        for _ in range(50):
            frame = frames[sent % len(frames)]
            try:
                sock.send(frame)
            except OSError:
                pass
            if not repeats:
                other_port(frame)
            sent += 1
        if time.monotonic() - began > seconds:
            break
    time.sleep(0.0005)
print(sent / (time.monotonic() - began), flush=True)
"""


HOARD = """
import socket, sys
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, SYN
from vtl_tools.common.packet.vnet import NONE, VNET

kind, count, each = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
port = {"acks": 20, "answers": 53}.get(kind, 99)
macs = {"src_mac": address.mac("52:54:00:00:00:77"), "dst_mac": address.mac("02:76:74:6c:00:01")}
hosts = {"src": address.ip("10.0.2.77"), "dst": address.ip("203.0.113.80")}
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.setsockopt(socket.SOL_SOCKET, 33, 32 << 20)  # SO_RCVBUFFORCE
sock.bind(("eth0", 0x0800))
sock.settimeout(0.5)
flows = {}

def say(sport, seq, flags, ack=0, window=65535, payload=b""):
    sock.send(build.tcp(**macs, **hosts, sport=sport, dport=port, seq=seq, ack=ack, flags=flags,
                        window=window, payload=payload)[VNET:])

def hear(take):
    while True:
        try:
            pkt = Packet.at(bytearray(NONE + sock.recv(65536)))
        except TimeoutError:
            return
        if pkt.tcp is not None and pkt.tcp.sport == port and pkt.ip.dst == hosts["src"]:
            take(pkt.tcp.dport, pkt.tcp)

def opened(sport, tcp):
    if tcp.flags & SYN:
        flows[sport] = [tcp.seq + 1, 0]
        say(sport, 1, ACK, tcp.seq + 1)

def acknowledged(sport, tcp):
    flow = flows[sport]
    if (tcp.seq - flow[0] - flow[1]) % 2**32 == 0:
        flow[1] += len(tcp.payload)
        if tcp.payload:
            say(sport, 1, ACK, (flow[0] + flow[1] - (flow[1] >= 200_000)) % 2**32)

for start in range(1024, 1024 + count, 100):
    for sport in range(start, start + 100):
        say(sport, 0, SYN)
    hear(lambda sport, tcp: (opened if tcp.flags & SYN else acknowledged)(sport, tcp))
name = b"\\x03www\\x07example\\x03com\\0"
query = b"\\0\\7\\1\\0\\0\\x10" + bytes(6) + (name + b"\\0\\1\\0\\1") * 16
framed = len(query).to_bytes(2, "big") + query
for i in range(each if kind != "acks" else 0):
    for sport, (iss, _) in flows.items():
        match kind:
            case "holes":
                say(sport, 2 + 2 * i, ACK, iss, payload=b"x")
            case "descending":
                say(sport, 60_000 - 2 * i, ACK, iss, payload=b"x")
            case "answers":
                say(sport, 1 + i * 2 * len(framed), ACK, iss, window=1, payload=framed * 2)
print(len(flows), flush=True)
sys.stdin.read()
"""

PIPELINE = """
import socket, sys, time
octets = 9 << 20
sock = socket.create_connection(("10.0.2.2", 53))
name = b"\\x03www\\x07example\\x03com\\0"
query = b"\\0\\x1d" + b"\\0\\7\\1\\0\\0\\1" + bytes(6) + name + b"\\0\\1\\0\\1"
query = len(query[2:]).to_bytes(2, "big") + query[2:]
burst = memoryview(query * (octets // len(query)))
print("begun", flush=True)
sock.setblocking(False)
sent, end = 0, time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    try:
        sent += sock.send(burst[sent:] if sent < len(burst) else burst[: len(query)])
    except BlockingIOError:
        try:
            sock.recv(1 << 20)
        except BlockingIOError:
            time.sleep(0.001)
print(sent, flush=True)
"""

MEMORY = 4
FIXED = 24 << 20
"""Octets that vtl-tor may take beside --memory, in vtl-tor(1), but for 4 KiB a connection."""


@dataclass
class Scene:
    """open: the guest's sockets, which are closed however a test ends."""

    lab: Lab
    host: Host
    guest: Host
    socks: str
    open: list[socket.socket] = field(default_factory=list)

    @contextlib.contextmanager
    def service(self, *options: str) -> Iterator[Service]:
        with vtl_tor(
            self.lab, self.host, "--socks", f"unix:{self.socks}", "--guard", "process", *options
        ) as s:
            yield s

    def connect(self, port: int, timeout: float = 30.0) -> socket.socket:
        with self.guest.enter():
            self.open.append(socket.create_connection((SITE, port), timeout))
        return self.open[-1]

    def echoed(self, octets: bytes) -> float:
        """The seconds that a new connection takes from its beginning until it has its octets back."""
        began = time.monotonic()
        with self.connect(ECHO) as sock:
            sock.sendall(octets)
            got = b""
            while len(got) < len(octets):
                got += sock.recv(65536)
        return time.monotonic() - began

    def resolved(self, number: int) -> float:
        began = time.monotonic()
        query = dns.message.make_query(f"name{number}.example.com", "A")
        with self.guest.enter():
            answer = dns.query.udp(query, RESOLVER, timeout=PATIENCE_S)
        assert answer.answer
        return time.monotonic() - began


@pytest.fixture
def scene(lab: Lab) -> Iterator[Scene]:
    guest, host = lab.host("guest"), lab.host("host", ipv6=False)
    lab.veth(guest, "eth0", host, "vmnet1")
    guest.addr("eth0", "10.0.2.15/24")
    guest.route("default", RESOLVER)
    guest.sysctl("net.ipv4.ip_local_port_range", "1024 65535")
    socks = str(lab.dir / "socks")
    process = host.popen(sys.executable, "-c", PROXY, socks, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    scene = Scene(lab, host, guest, socks)
    yield scene
    for sock in scene.open:
        sock.close()


def rss(service: Service) -> int:
    """Octets of memory that the service has."""
    text = Path(f"/proc/{service.process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text)[1]) << 10


@pytest.mark.parametrize("kind", ["fresh", "repeats"])
def test_a_flood_of_syns_stops_neither_transfers_nor_new_connections_nor_dns(scene: Scene, kind: str) -> None:
    slow = slowness()  # beside other work the service takes fewer frames a second, and so it gets fewer
    with scene.service() as service, scene.connect(CHARGEN) as transfer:
        transfer.recv(1)
        flood = scene.guest.popen(
            *(sys.executable, "-c", FLOOD, "0276746c0001", str(round(FLOOD_PER_S / slow)), "6", kind),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert flood.stdout.readline() == "begun\n"
        time.sleep(0.5)
        began, octets, calls, names = time.monotonic(), 0, [], []
        while time.monotonic() - began < 5:
            calls.append(scene.echoed(b"hello"))
            names.append(scene.resolved(len(names)))
            until_s = time.monotonic() + 0.2
            while time.monotonic() < until_s:
                octets += len(transfer.recv(1 << 20))
        rate = float(flood.stdout.readline())
        status = service.status()
        print(
            f"{rate:,.0f} SYN/s; connections {len(calls)}, slowest {max(calls):.2f} s; names slowest"
            f" {max(names):.2f} s; {octets / 1e6:.0f} MB; {status['drops']}; {rss(service) >> 20} MiB"
        )
        assert octets > 1_000_000
        assert max(calls) < 10 * slow
        assert max(names) < 5 * slow
        assert status["drops"]["half-open"] > 1000 / slow


def test_idle_connections_do_not_stop_the_others(scene: Scene) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    scene.guest.sysctl("net.ipv4.tcp_max_syn_backlog", 65536)
    with scene.service() as service:
        before, began = rss(service), time.monotonic()
        idle = [scene.connect(ECHO) for _ in range(IDLE_CONNECTIONS)]
        opened_s = time.monotonic() - began
        assert service.status()["connections"]["established"] == IDLE_CONNECTIONS
        each = (rss(service) - before) / IDLE_CONNECTIONS
        took = min(scene.echoed(bytes(100_000)) for _ in range(20))  # the least, as others use the processors
        named = min(scene.resolved(number) for number in range(20))
        used = service.status()["cpu_s"]
        time.sleep(1)
        now = service.status()["cpu_s"]
        cpu = sum(now.values()) - sum(used.values())
        print(
            f"{IDLE_CONNECTIONS} idle, opened in {opened_s:.1f} s, {each:,.0f} octets each; a connection"
            f" {took * 1000:.0f} ms, a name {named * 1000:.0f} ms, idle CPU {cpu:.2f}"
        )
        assert took < 1
        assert named < 1
        assert each < 16_000
        for sock in idle:
            sock.close()
        until(lambda: not service.status()["connections"].get("established"), "all to end", 60)


@pytest.mark.parametrize("side", ["upstream", "guest"])
def test_what_waits_for_those_who_never_read_is_bounded(scene: Scene, side: str) -> None:
    with scene.service("--memory", "16") as service:
        before = rss(service)
        deaf = [scene.connect(DEAF if side == "upstream" else CHARGEN) for _ in range(200)]
        until_s = time.monotonic() + 3
        while time.monotonic() < until_s:
            for sock in deaf:
                sock.setblocking(False)
                if side == "upstream":
                    with contextlib.suppress(
                        BlockingIOError, ConnectionError
                    ):  # those that buffer most are reset
                        sock.send(bytes(1 << 17))
        held, grown = service.status()["carried"]["held"], rss(service) - before
        print(f"{side}: held {held / 2**20:.1f} MiB, memory grew by {grown / 2**20:.1f} MiB")
        assert held <= 2 * (16 << 20) + (4 << 20)  # and what one batch may bring
        assert grown < 96 << 20
        assert scene.echoed(b"hello" * 1000) < 2
        for sock in deaf:
            sock.close()


@pytest.mark.parametrize(
    ("kind", "count", "each"),
    [
        ("holes", 300, 1000),
        ("descending", 300, 1000),
        ("acks", 400, 0),
        ("answers", 300, 200),
    ],
)
def test_memory_beyond_the_limit(scene: Scene, kind: str, count: int, each: int) -> None:
    with scene.service("--memory", str(MEMORY)) as service:
        scene.echoed(b"hello")
        before = rss(service)
        hoard = scene.guest.popen(
            *(sys.executable, "-c", HOARD, kind, str(count), str(each)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        opened = int(hoard.stdout.readline())
        assert scene.echoed(b"hello" * 1000), "what was sent before has been looked at"
        grown, carried = rss(service) - before, service.status()["carried"]
        print(f"{kind}: {opened} connections, memory grew by {grown / 2**20:.1f} MiB; {carried}")
        assert opened > count * 0.9
        assert grown < (MEMORY + 4 << 20) * 9 / 8 + FIXED + count * 4096
        assert carried["held"] <= MEMORY + 4 << 20
        hoard.communicate("")


def test_the_loop_by_queries_that_are_pipelined_over_tcp(scene: Scene) -> None:
    with scene.service() as service:
        flood = scene.guest.popen(sys.executable, "-c", PIPELINE, "8", stdout=subprocess.PIPE, text=True)
        assert flood.stdout.readline() == "begun\n"
        time.sleep(0.5)
        asked, calls, names, began = [], [], [], time.monotonic()
        queries = service.status()["dns"]["queries"]
        while time.monotonic() - began < 6:
            before = time.monotonic()
            status = service.status()
            asked.append(time.monotonic() - before)
            calls.append(scene.echoed(b"hello" * 1000))
            names.append(scene.resolved(len(names)))
        sent = int(flood.stdout.readline())
        per_s = (status["dns"]["queries"] - queries) / 6
        print(
            f"{sent / 1e6:.1f} MB of queries, {per_s:,.0f} a second answered; slowest: status"
            f" {max(asked):.3f} s, a connection {max(calls):.3f} s, a name {max(names):.3f} s"
        )
        assert sent > 1e6
        assert len(calls) > 10


def called(scene: Scene, address: str) -> bytes:
    """What the proxy is asked for where the guest calls an address."""
    with scene.guest.enter(), socket.create_connection((address, 21), 30) as sock:
        return sock.recv(300)


def test_the_address_of_another_site_by_killing_the_service(scene: Scene) -> None:
    sites = [f"site{number}.example.com" for number in range(20)]

    def ask(name: str) -> str:
        with scene.guest.enter():
            answer = dns.query.udp(dns.message.make_query(name, "A"), RESOLVER, timeout=PATIENCE_S)
        return answer.answer[0][0].address

    state = ("--state", str(scene.lab.dir / "names"))
    with scene.service(*state) as service:
        cached = {name: ask(name) for name in sites}
        service.kill()
    with scene.service(*state):
        others = {ask(f"evil{number}.example.net") for number in range(200)}
        assert not others & set(cached.values())
        assert [called(scene, address) for address in cached.values()] == [each.encode() for each in sites]
        assert {name: ask(name) for name in sites} == cached


def test_no_more_connections_than_allowed_and_room_again_when_one_ends(scene: Scene) -> None:
    with scene.service("--connections", "10") as service:
        all_ = [scene.connect(ECHO) for _ in range(10)]
        with pytest.raises(TimeoutError):
            scene.connect(ECHO, timeout=1.5)
        assert service.status()["drops"]["too-many-connections"] >= 1
        all_.pop().close()
        assert scene.echoed(b"again") < 5
        for sock in all_:
            sock.close()


def test_a_silent_connection_is_reset_after_idle_seconds_and_one_that_talks_is_not(scene: Scene) -> None:
    with scene.service("--idle", "2"), scene.connect(ECHO) as silent, scene.connect(ECHO) as talking:
        for _ in range(8):
            talking.sendall(b"x")
            assert talking.recv(1) == b"x"
            time.sleep(0.4)
        with pytest.raises(ConnectionResetError):
            silent.recv(1)


def test_more_connections_than_descriptors_are_no_end(scene: Scene) -> None:
    limit = 400
    limited = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))}
    options = ("--socks", f"unix:{scene.socks}", "--guard", "process", "--dns", "resolve")
    with vtl_tor(scene.lab, scene.host, *options, **limited) as service:
        held = []
        for _ in range(limit):
            try:
                held.append(scene.connect(ECHO, timeout=2.0))
            except TimeoutError:
                break
        assert limit // 4 < len(held) < limit
        assert json.dumps(service.status())
        for sock in held:
            sock.close()
        until(lambda: scene.echoed(b"hello") < 1, "room", 10)
