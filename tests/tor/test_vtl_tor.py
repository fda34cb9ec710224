"""vtl-tor between a guest's real network stack and real tor processes: what is carried, how, and by whom."""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import dns.message
import dns.query
import dns.rcode
import dns.reversename
import pytest

from lab.http import Server
from lab.netns import Host, Lab
from lab.tor import RELAYS, RELAYS_FOR_ONIONS, SITES, Tor, TorNetwork
from lab.wait import PATIENCE_S, until
from tests.running import BIN
from tests.schemas import validated
from tests.tor.torservice import Service, vtl_tor
from vtl_tools.common.guest_net.addresses import GATEWAY_MAC

pytestmark = [pytest.mark.tor, pytest.mark.lab, pytest.mark.slow]

PORT, OTHER_PORT, CLOSED_PORT = 80, 8080, 81
PUBLIC = "9.9.9.9"  # only names of public addresses are asked for; nobody connects to it here
NAMES = {"www.example": SITES, "six.example": (SITES[1],), "dns.example": (PUBLIC,)}
EXITS = {place for places in RELAYS.values() for place in places}
ONIONS_WAY = {"10.98.0.1"}  # how the world, where the onion service is, reaches the site
RESOLVER = "10.0.2.2"
PAIRS = "vmnet2"
MAPPED = ("198.18.", "198.19.")

SEEN = """
import http.server, json, socket, sys

class Seen(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"IP": self.client_address[0].removeprefix("::ffff:"), "IsTor": True}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

class Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

Server(("::", int(sys.argv[1])), Seen).serve_forever()
"""


@dataclass
class Scene:
    """guest: on the link of the service that most tests use. pair: both on the link for other services.

    client: a tor on their host.
    """

    lab: Lab
    net: TorNetwork
    host: Host
    guest: Host
    pair: tuple[Host, Host]
    client: Tor
    web: Server
    onion: str

    def socks(self) -> tuple[str, str]:
        return "--socks", f"unix:{self.client.socks}"


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    with Lab() as lab:
        net = TorNetwork(lab, lab.host("world"), names=NAMES, relays=RELAYS_FOR_ONIONS)
        web = lab.http(net.site, PORT, {"index.html": b"hello", "big": bytes(4 << 20)})
        net.site.popen("python3", "-c", SEEN, str(OTHER_PORT))
        host = lab.host("host", ipv6=False)
        guest, one, other = lab.host("guest"), lab.host("one"), lab.host("other")
        for number, (each, port) in enumerate(((guest, "vmnet1"), (one, "port1"), (other, "port2"))):
            lab.veth(each, "eth0", host, port)
            each.addr("eth0", f"10.0.2.{15 + number}/24")
            each.route("default", RESOLVER)
        lab.bridge(host, PAIRS, ["port1", "port2"])
        onion = net.onion(PORT, f"{SITES[0]}:{PORT}")
        yield Scene(lab, net, host, guest, (one, other), net.client(host), web, onion)


@pytest.fixture(scope="module")
def service(scene: Scene) -> Iterator[Service]:
    """The service as most run it."""
    with vtl_tor(scene.lab, scene.host, *scene.socks(), "--guard", "process") as service:
        has_router(scene.guest)
        yield service


@contextmanager
def serving_the_pair(scene: Scene, *options: str) -> Iterator[Service]:
    with vtl_tor(
        scene.lab, scene.host, *scene.socks(), "--guard", "process", *options, link=PAIRS
    ) as service:
        for guest in scene.pair:
            has_router(guest)
        yield service


def has_router(guest: Host) -> None:
    until(lambda: "default" in guest.run("ip", "-6", "route").stdout, "the router advertisement")


def connect(guest: Host, address: str, port: int = PORT) -> socket.socket:
    with guest.enter():
        return socket.create_connection((address, port), PATIENCE_S)


def fetch(guest: Host, address: str, port: int = PORT, path: str = "index.html") -> bytes:
    with connect(guest, address, port) as sock, sock.makefile("rb") as stream:
        sock.sendall(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
        return stream.read().partition(b"\r\n\r\n")[2]


def ask(guest: Host, name: str, kind: str = "A", tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    with guest.enter():
        return (dns.query.tcp if tcp else dns.query.udp)(query, RESOLVER, timeout=PATIENCE_S)


def look_up(guest: Host, name: str, kind: str = "A") -> list[str]:
    return [item.to_text() for rrset in ask(guest, name, kind).answer for item in rrset]


def seen_by(scene: Scene, before: int) -> set[str]:
    return {line.split()[0] for line in scene.web.requests()[before:]}


@pytest.mark.parametrize("address", SITES)
def test_a_page_is_fetched_by_address_and_the_server_sees_an_exit(scene, service, address):
    before = len(scene.web.requests())
    assert fetch(scene.guest, address) == b"hello"
    seen = seen_by(scene, before)
    assert seen
    assert seen <= EXITS


@pytest.mark.parametrize(("name", "kind"), [("www.example", "A"), ("www.example", "AAAA"), ("onion", "A")])
def test_a_name_is_answered_at_once_and_carried_as_a_name(scene, service, name, kind):
    before, asked = len(scene.web.requests()), len(scene.net.names.asked)
    name = scene.onion if name == "onion" else name
    (address,) = look_up(scene.guest, name, kind)
    assert address.startswith(MAPPED if kind == "A" else "fd")
    assert scene.net.names.asked[asked:] == []
    assert fetch(scene.guest, address) == b"hello"
    assert seen_by(scene, before) <= EXITS | ONIONS_WAY
    assert ask(scene.guest, name, kind, tcp=True).answer[0][0].to_text() == address
    pointer = dns.reversename.from_address(address).to_text()
    assert look_up(scene.guest, pointer, "PTR") == [f"{name}."]


def test_what_is_long_comes_whole(scene, service):
    assert len(fetch(scene.guest, SITES[0], path="big")) == 4 << 20


def test_an_address_has_the_name_that_an_exit_finds(scene, service):
    assert look_up(scene.guest, dns.reversename.from_address(PUBLIC).to_text(), "PTR") == ["dns.example."]
    own = dns.reversename.from_address("192.168.1.1").to_text()
    asked = len(scene.net.names.asked)
    assert ask(scene.guest, own, "PTR").rcode() == dns.rcode.NXDOMAIN
    assert scene.net.names.asked[asked:] == []


def test_a_refusal_is_a_reset_or_an_icmp_error_and_no_timeout(scene, service):
    """This tor's exits do not always tell a refusal from other failures."""
    with pytest.raises(OSError, match=r"refused|No route to host"):
        connect(scene.guest, SITES[0], CLOSED_PORT)


def test_a_call_to_an_internal_address_is_refused_at_once_and_not_by_tor(scene, service):
    asked = scene.client.ask("GETINFO stream-status")
    began = time.monotonic()
    with pytest.raises(OSError, match=r"No route to host|unreachable"):
        connect(scene.guest, "10.98.0.2", PORT)
    assert time.monotonic() - began < 1
    assert scene.client.ask("GETINFO stream-status") == asked


def test_a_name_that_is_unknown_is_unreachable_in_the_end(scene, service):
    (address,) = look_up(scene.guest, "nosuch.example")
    with pytest.raises(OSError, match="No route to host"):
        connect(scene.guest, address)


def test_what_is_no_tcp_is_refused_by_an_icmp_error(scene, service):
    with scene.guest.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((SITES[0], 443))
        sock.send(b"quic?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(1)
    assert service.status()["drops"]["quic"] >= 1


UDHCPC = """#!/bin/sh
[ "$1" = bound ] || exit 0
echo "$ip/$mask by $router, $dns"
"""


def test_a_guest_that_knows_nothing_is_told_all_by_dhcp(scene):
    script = scene.lab.dir / "udhcpc"
    script.write_text(UDHCPC)
    script.chmod(0o755)
    with serving_the_pair(scene, "--dhcp"):
        got = scene.pair[0].run("busybox", "udhcpc", "-f", "-q", "-n", "-i", "eth0", "-s", script).stdout
    assert re.search(r"^10\.0\.2\.\d+/24 by 10\.0\.2\.2, 10\.0\.2\.2$", got, re.M)


def test_names_are_resolved_at_an_exit_where_that_is_asked_for(scene):
    guest, _ = scene.pair
    with serving_the_pair(scene, "--dns", "resolve"):
        assert look_up(guest, "www.example") == [SITES[0]]
        assert look_up(guest, "six.example", "AAAA") == [SITES[1]]
        assert ask(guest, "nosuch.example").rcode() == dns.rcode.NXDOMAIN
        assert ask(guest, scene.onion).rcode() == dns.rcode.NXDOMAIN
        assert look_up(guest, dns.reversename.from_address(PUBLIC).to_text(), "PTR") == ["dns.example."]
        assert fetch(guest, SITES[0]) == b"hello"


# --- circuits


def streams(scene: Scene) -> dict[str, str]:
    """The circuit of each stream, by the streams' numbers."""
    lines = "\n".join(scene.client.ask("GETINFO stream-status"))
    return dict(re.findall(r"^(?:stream-status=)?(\d+) SUCCEEDED (\d+) ", lines, re.M))


def circuit_of(scene: Scene, before: set[str]) -> str:
    """The circuit of the stream that was not there before; its number joins those that were."""
    found = streams(scene)
    (fresh,) = set(found) - before
    before.add(fresh)
    return found[fresh]


@contextmanager
def calls(scene: Scene) -> Iterator[list[str]]:
    """The circuits of five calls: twice the same, another address, another port, another guest."""
    known, circuits = set(streams(scene)), []
    (v4, v6), (one, other) = SITES, scene.pair
    with ExitStack() as stack:
        for guest, address, port in (
            (one, v4, PORT), (one, v4, PORT), (one, v6, PORT), (one, v4, OTHER_PORT), (other, v4, PORT),
        ):  # fmt: skip
            stack.enter_context(connect(guest, address, port))
            circuits.append(circuit_of(scene, known))
        yield circuits


SHARED = {  # by which of the five calls each shares its circuit with
    "none": [0, 0, 0, 0, 0],
    "guest": [0, 0, 0, 0, 4],
    "dest": [0, 0, 2, 0, 4],
    "port": [0, 0, 0, 3, 4],
    "conn": [0, 1, 2, 3, 4],
}


@pytest.mark.parametrize("mode", SHARED)
def test_circuits_are_shared_by_what_may_share_them_and_not_after_a_new_identity(scene, mode):
    with serving_the_pair(scene, "--isolate", mode) as service:
        with calls(scene) as first:
            assert [first.index(circuit) for circuit in first] == SHARED[mode]
            told = scene.host.run(BIN / "vtl-tor", "newnym", "--link", service.socket)
            assert told.stderr == "identity 1\n"
            with calls(scene) as second:
                assert [second.index(circuit) for circuit in second] == SHARED[mode]
        assert not set(first) & set(second)


def test_flows_lists_what_is_carried_by_name(scene, service):
    (address,) = look_up(scene.guest, "www.example")
    with connect(scene.guest, address):
        printed = scene.host.run(BIN / "vtl-tor", "flows", "--json", "--link", service.socket).stdout
        flows = [json.loads(line) for line in printed.splitlines()]
        assert ("www.example", PORT) in {(flow["name"], flow["to_port"]) for flow in flows}
        wide = {**os.environ, "COLUMNS": "200"}
        assert (
            "www.example 80"
            in scene.host.run(BIN / "vtl-tor", "flows", "--link", service.socket, env=wide).stdout
        )


# --- the command around it


def test_check_tells_whom_the_world_sees(scene):
    url = f"http://www.example:{OTHER_PORT}/"
    ran = scene.host.run(BIN / "vtl-tor", "check", *scene.socks(), "--url", url, "--json", timeout=90)
    (result,) = [validated(json.loads(line)) for line in ran.stdout.splitlines()]
    assert result["is_tor"] is True
    assert result["seen"]["IP"] in EXITS
    ran = scene.host.run(BIN / "vtl-tor", "check", *scene.socks(), "--url", url, timeout=90)
    is_tor, seen = ran.stdout.splitlines()
    assert is_tor == f"unix:{scene.client.socks}: is Tor"
    assert seen.removeprefix("the world sees ") in EXITS


def processes(host: Host, name: str) -> list[int]:
    """The PIDs of the processes of a name in a host's network."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                same = (entry / "ns/net").readlink() == Path(host.netns).readlink()
                if same and (entry / "comm").read_text().strip() == name:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module")
def own(scene: Scene) -> tuple[Host, Host, Path]:
    """A host that has no tor, its guest, and the torrc by which its own would join the network."""
    host, guest = scene.lab.host("own", ipv6=False), scene.lab.host("owns-guest")
    scene.lab.veth(guest, "eth0", host, "vmnet1")
    guest.addr("eth0", "10.0.2.15/24")
    guest.route("default", RESOLVER)
    scene.net.join(host)
    torrc = scene.lab.dir / "member.torrc"
    torrc.write_text(scene.net.torrc_client())
    return host, guest, torrc


def test_a_tor_of_our_own_is_started_watched_and_started_again(scene, own):
    host, guest, torrc = own
    url = f"http://www.example:{OTHER_PORT}/"
    options = ("--torrc", torrc, "--guard", "process", "--url", url)
    with vtl_tor(scene.lab, host, "--start-tor", *options) as service:
        service.wait_for("bootstrap", lambda event: event["percent"] == 100)
        service.wait_for("exit", lambda event: event["seen"]["IP"] in EXITS)
        percents = [event["percent"] for event in service.events if event["event"] == "bootstrap"]
        assert percents == sorted(percents)
        assert fetch(guest, SITES[0]) == b"hello"
        socks = Path(service.status()["tor"]["socks"])
        assert socks.is_socket()
        (tor,) = processes(host, "tor")
        os.kill(tor, signal.SIGKILL)
        service.wait_for("bootstrap", lambda event: "status -9" in event["step"])
        with pytest.raises(OSError, match="No route to host"):
            connect(guest, SITES[0])
        until(lambda: service.events[-1].get("percent") == 100, "the second tor", 60)
        assert fetch(guest, SITES[0]) == b"hello"
        status = service.status()["tor"]
        assert (Path(status["socks"]), status["restarts"]) == (socks, 1)
    until(lambda: not socks.parent.parent.exists(), "the directory to go")
    assert processes(host, "tor") == []


def test_tor_goes_when_we_are_killed(scene, own):
    host, _, torrc = own
    with vtl_tor(scene.lab, host, "--start-tor", "--torrc", torrc, "--guard", "process") as service:
        directory = Path(service.status()["tor"]["socks"]).parent.parent
        until(lambda: processes(host, "tor"), "tor")
        service.kill()
        until(lambda: not processes(host, "tor"), "tor to go")
        until(lambda: not directory.exists(), "its directory to go")


ETH_P_ALL, ETH_P_IP = 3, 0x0800
SO_RCVBUFFORCE = 33

PEST = """
import socket, sys, time
targets = [("203.0.113.80", 53), ("198.51.100.1", 9001), ("10.0.2.2", 443), ("10.99.1.1", 123)]
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 47)
print("begun", flush=True)
while True:
    for where, port in targets:
        for sock, octets in ((udp, b"out"), (raw, bytes(8))):
            try:
                sock.sendto(octets, (where, port))
            except OSError:
                pass
        tcp = socket.socket()
        tcp.setblocking(False)
        tcp.connect_ex((where, port))
        tcp.close()
    time.sleep(0.005)
"""


@contextmanager
def watched(host: Host, link: str) -> Iterator[list[tuple[str, str]]]:
    """Who sends IPv4 to whom on a link of a host, into and out of it."""
    with host.enter():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 32 << 20)
        sock.bind((link, ETH_P_ALL))
    sock.setblocking(False)
    seen: list[tuple[str, str]] = []
    with sock:
        yield seen
        while True:
            try:
                packet, (_, protocol, *_) = sock.recvfrom(2048)
            except BlockingIOError:
                return
            if protocol == ETH_P_IP:
                seen.append((socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])))


def test_tor_and_we_are_killed_while_a_guest_tries_all_it_can_and_the_host_sends_to_relays_only(scene, own):
    """The host has the gateway's addresses, routes everything to the world, and forwards."""
    host, guest, torrc = own
    host.run("ip", "link", "set", "dev", "vmnet1", "address", GATEWAY_MAC.hex(":"))
    host.addr("vmnet1", f"{RESOLVER}/24")
    route = host.run("ip", "route", "show", "198.51.100.0/24").stdout.split()
    host.run("ip", "route", "replace", "default", "via", route[2])
    host.sysctl("net.ipv4.ip_forward", 1)
    host.sysctl("net.ipv4.conf.vmnet1.rp_filter", 0)
    host.run(BIN / "vtl-guard", "raise", "vmnet1")
    with watched(host, "tor0") as seen:
        pest = guest.popen("python3", "-c", PEST, stdout=subprocess.PIPE)
        assert pest.stdout.readline() == b"begun\n"
        for when in 0.3, 0.8, None:  # before it is ready, while tor starts, in the middle of its work
            with vtl_tor(scene.lab, host, "--start-tor", "--torrc", torrc, ready=False) as service:
                if when is None:
                    service.wait_for("bootstrap", lambda event: event["percent"] == 100)
                    assert fetch(guest, SITES[0]) == b"hello"
                    for tor in processes(host, "tor"):
                        os.kill(tor, signal.SIGKILL)
                    service.wait_for("bootstrap", lambda event: "status -9" in event["step"])
                time.sleep(when or 0.3)
                service.kill()
            time.sleep(0.2)
    host.run(BIN / "vtl-guard", "clear", "vmnet1")
    relays = {v4 for v4, _ in RELAYS.values()}
    ours = next(src for src, dst in seen if dst in relays)
    assert {tuple(sorted(pair)) for pair in seen} <= {tuple(sorted((ours, relay))) for relay in relays}
    with watched(host, "tor0") as seen:  # as it does without the guard
        until(lambda: not processes(host, "tor"), "tor to go")
        time.sleep(0.3)
    assert any("10.0.2.15" in pair for pair in seen)
    pest.kill()
    host.sysctl("net.ipv4.ip_forward", 0)


def test_a_tor_that_cannot_start_says_why(scene, own, tmp_path):
    host, _, _ = own
    torrc = tmp_path / "torrc"
    torrc.write_text("NoSuchOption 1\n")
    ran = host.run(
        *(BIN / "vtl-tor", "--iface", "vmnet1", "--start-tor", "--torrc", torrc, "--guard", "process"),
        check=False,
    )
    assert ran.returncode == 1
    assert "NoSuchOption" in ran.stderr
    assert ran.stderr.count("\n") == 1


def test_without_tor_it_says_what_to_install(own, tmp_path):
    host, _, _ = own
    hidden = f'/bin/mount --bind {tmp_path} /usr/sbin; exec "$@"'
    ran = host.run(
        *("/usr/bin/unshare", "--mount", "/bin/sh", "-c", hidden, "sh"),
        *(BIN / "vtl-tor", "--iface", "vmnet1", "--start-tor", "--guard", "process"),
        check=False, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert ran.returncode == 1
    assert ran.stderr.startswith("vtl-tor: tor: not found; install it")


def test_the_server_never_saw_a_guest(scene, service):
    assert {line.split()[0] for line in scene.web.requests()} <= EXITS | ONIONS_WAY
