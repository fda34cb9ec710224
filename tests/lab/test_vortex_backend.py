"""vortex-backend between real volunteers and real honeypots: two clients, nginx, sshd, and strangers."""

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.utils import RawPcapNgReader

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN, Bridge, bridge
from vtl_tools.common.device.pcapng import INBOUND, OUTBOUND
from vtl_tools.common.session.keys import key_id

pytestmark = pytest.mark.lab

ATTACKER4, ATTACKER6 = "203.0.113.9", "2001:db9::9"
VOLUNTEERS = {"alice": ("192.0.2.1", "2001:db8::1"), "bob": ("192.0.2.2", "2001:db8::2")}
BACKEND = "198.51.100.7"
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
WHERE = """
import socket
s = socket.create_server(("::", 23), family=socket.AF_INET6, dualstack_ipv6=True)
print("ready", flush=True)
while True:
    c, peer = s.accept()
    c.sendall(f"{peer[0]} {peer[1]} {c.getsockname()[0]}".encode())
    c.close()
"""

TRY_ALL = """
import socket, sys
for target in sys.argv[1:]:
    for source in "198.18.0.2", "198.19.0.1", "198.19.0.9":
        for kind in socket.SOCK_STREAM, socket.SOCK_DGRAM:
            s = socket.socket(socket.AF_INET, kind)
            s.setblocking(False)
            s.bind((source, 0))
            s.connect_ex((target, 80))
            if kind == socket.SOCK_DGRAM:
                s.send(b"hello")
"""


class Net(NamedTuple):
    """attacker, a router, volunteers by name, the host of the backend, and a honeypot behind that."""

    lab: Lab
    attacker: Host
    volunteers: dict[str, Host]
    backend: Host
    honeypot: Host
    keys: Path

    def start(self, host: Host, *words: str | Path) -> None:
        self.lab.defer(host.popen(*words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).kill)


@pytest.fixture
def net(lab: Lab) -> Net:
    attacker, router, backend, honeypot = map(lab.host, ("attacker", "router", "backend", "honeypot"))
    volunteers = {name: lab.host(name) for name in VOLUNTEERS}
    lab.veth(attacker, "eth0", router, "wan")
    lab.veth(backend, "eth0", router, "dc")
    lab.veth(backend, "honeypot0", honeypot, "eth0")
    for name, host in volunteers.items():
        lab.veth(host, "eth0", router, name)
    lab.bridge(router, "lan", list(volunteers))
    for host, interface, *addresses in (
        (attacker, "eth0", f"{ATTACKER4}/24", f"{ATTACKER6}/64"),
        (router, "wan", "203.0.113.1/24", "2001:db9::1/64"), (router, "dc", "198.51.100.1/24"),
        (router, "lan", "192.0.2.254/24", "2001:db8::fe/64"), (backend, "eth0", f"{BACKEND}/24"),
        (honeypot, "eth0", "198.18.0.2/24", "2001:2::2/64"),
        *((volunteers[name], "eth0", f"{v4}/24", f"{v6}/64") for name, (v4, v6) in VOLUNTEERS.items()),
    ):  # fmt: skip
        for address in addresses:
            host.addr(interface, address)
    for host, via4, via6 in (
        (attacker, "203.0.113.1", "2001:db9::1"), (backend, "198.51.100.1", ""),
        (honeypot, "198.18.0.1", "2001:2::1"),
        *((host, "192.0.2.254", "2001:db8::fe") for host in volunteers.values()),
    ):  # fmt: skip
        host.run("ip", "route", "add", "default", "via", via4)
        if via6:
            host.run("ip", "-6", "route", "add", "default", "via", via6)
    honeypot.run("ip", "route", "add", "local", "198.19.0.0/16", "dev", "lo")
    honeypot.run("ip", "-6", "route", "add", "local", "2001:2:0:1::/64", "dev", "lo")
    router.sysctl("net.ipv4.ip_forward", 1)
    router.sysctl("net.ipv6.conf.all.forwarding", 1)
    keys = lab.dir / "clients"
    for name in VOLUNTEERS:
        backend.run(BIN / "vortex-backend", "keygen", keys, name)
    return Net(lab, attacker, volunteers, backend, honeypot, keys)


@contextmanager
def vortex(net: Net, *options: str | Path) -> Iterator[tuple[Bridge, dict[str, Bridge]]]:
    """Run a backend and its two clients."""
    with ExitStack() as stack:
        words = ("--iface", "honeypot0", "--listen", f"{BACKEND}:7701", "--keys", net.keys, *options)
        backend = stack.enter_context(
            bridge(net.lab, net.backend, *words, service="vortex-backend", name="end")
        )
        clients = {}
        for number, (name, host) in enumerate(net.volunteers.items(), 1):
            key = ("--key-file", net.keys / f"{number}-{name}")
            words = ("--iface", "eth0", "--backend", f"tcp:{BACKEND}:7701", *key, "--echo")
            clients[name] = stack.enter_context(
                bridge(net.lab, host, *words, service="vortex-client", name=name)
            )
        for client in clients.values():
            until(lambda client=client: client.status()["vortex"]["backend"], "the backend")
        until(lambda: backend.status()["wormholes"]["honeypot"], "the honeypot")
        yield backend, clients


def call(host: Host, address: str, port: int, source_port: int) -> str:
    def talk() -> str:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("", source_port))
            sock.settimeout(PATIENCE_S)
            sock.connect((address, port))
            said = b""
            while more := sock.recv(100):
                said += more
            return said.decode()

    return host.call(talk)


def test_two_clients_share_a_backend_and_a_honeypot_which_tells_them_apart(net: Net) -> None:
    net.start(net.honeypot, "python3", "-c", WHERE)
    until(lambda: ":23" in net.honeypot.run("ss", "-ltn").stdout, "the honeypot")
    capture = net.lab.dir / "all.pcapng"
    with vortex(net, "--pcap", capture) as (backend, clients):
        for number, addresses in enumerate(VOLUNTEERS.values(), 1):
            said = call(net.attacker, addresses[0], 23, 4000)  # one flow to the attacker, but for the host
            assert said == f"::ffff:{ATTACKER4} 4000 ::ffff:198.19.0.{number}"
            assert call(net.attacker, addresses[1], 23, 4000) == f"{ATTACKER6} 4000 2001:2:0:1::{number}"
            net.attacker.run("ping", "-c1", "-W30", addresses[0])
        told = net.backend.run(BIN / "vortex-backend", "log", "--json", "--link", backend.socket).stdout
        flows = [json.loads(line) for line in told.splitlines()]
        assert {(flow["client"], flow["protocol"], flow["from"]) for flow in flows} == {
            (name, protocol, source)
            for name in VOLUNTEERS
            for protocol, source in (("tcp", ATTACKER4), ("tcp", ATTACKER6), ("icmp", ATTACKER4))
        }
        assert {backend.wait_for("attack", client=name)["source"] for name in VOLUNTEERS} == {ATTACKER4}
        status = backend.status()["wormholes"]
        assert status["connected"] == 2
        assert all(one["frames_out"] for one in status["clients"].values())
        assert clients["alice"].status()["vortex"]["opened"] == 3
    with RawPcapNgReader(str(capture)) as reader:
        recorded = [(about.ifname.decode(), about.direction, frame) for frame, about in reader]
    assert {name for name, *_ in recorded} == {"honeypot0", *VOLUNTEERS}
    attackers = bytes(map(int, ATTACKER4.split(".")))
    for name in VOLUNTEERS:
        of_client = [(direction, frame) for of, direction, frame in recorded if of == name]
        assert any(direction == INBOUND and frame[26:30] == attackers for direction, frame in of_client)
        assert any(direction == OUTBOUND and frame[30:34] == attackers for direction, frame in of_client)


def test_nginx_and_sshd_answer_as_the_volunteer(net: Net) -> None:
    place = net.lab.dir / "pot"
    place.mkdir()
    (place / "index.html").write_text("it works")
    (place / "nginx.conf").write_text(
        f"daemon off; pid {place}/pid; error_log {place}/error; events {{ }}\n"
        f"http {{ log_format who '$remote_addr $server_addr'; access_log {place}/access who;"
        + "".join(f" {kind}_temp_path {place}/{kind};" for kind in TEMPORARY)
        + f" server {{ listen 80; listen [::]:80; root {place}; }} }}\n"
    )  # fmt: skip
    place.chmod(0o755)
    net.lab.dir.chmod(0o755)
    net.honeypot.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / "hostkey")
    net.start(net.honeypot, "nginx", "-c", place / "nginx.conf", "-g", "user root;")
    Path("/run/sshd").mkdir(exist_ok=True)
    net.start(
        net.honeypot, "/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", place / "hostkey",
        "-o", f"PidFile={place}/sshd.pid",
    )  # fmt: skip
    until(lambda: all(f":{p}" in net.honeypot.run("ss", "-ltn").stdout for p in (22, 80)), "the honeypots")
    v4, v6 = VOLUNTEERS["bob"]
    with vortex(net):
        for host in v4, f"[{v6}]":
            assert net.attacker.run("curl", "-sS", "--max-time", "30", f"http://{host}/").stdout == "it works"
        key = (place / "hostkey.pub").read_text().split()[1]
        for host in v4, v6:
            assert key in net.attacker.run("ssh-keyscan", "-t", "ed25519", "-T", "30", host).stdout
    seen = (place / "access").read_text().splitlines()
    assert seen == [f"{ATTACKER4} 198.19.0.2", f"{ATTACKER6} 2001:2:0:1::2"]


def test_keys_are_read_again_without_a_break_for_the_clients_whose_key_stays(net: Net) -> None:
    with vortex(net) as (backend, _):
        for _ in VOLUNTEERS:
            backend.wait_for("client", up=True)
        alice = backend.status()["wormholes"]["clients"]["alice"]["remote"]
        net.backend.run(BIN / "vortex-backend", "keygen", net.keys, "carol")
        (net.keys / "2-bob").unlink()
        backend.process.send_signal(signal.SIGHUP)
        gone = backend.wait_for("client")
        assert (gone["name"], gone["up"], gone["why"]) == ("bob", False, "lost its key")
        link = ("--iface", "lo", "--backend", f"tcp:{BACKEND}:7701", "--key-file", net.keys / "3-carol")
        with bridge(net.lab, net.volunteers["bob"], *link, service="vortex-client", name="carol"):
            came = backend.wait_for("client", up=True)
        assert came["name"] == "carol"
        clients = backend.status()["wormholes"]["clients"]
        assert set(clients) == {"alice", "carol"}
        assert clients["alice"]["remote"] == alice


def test_a_stranger_and_a_client_with_anothers_name_are_refused(net: Net) -> None:
    forged = net.lab.dir / "forged"
    forged.write_text("0" * 64)
    forged.chmod(0o600)
    with vortex(net) as (backend, _):
        mallory = net.volunteers["bob"]
        words = ("--iface", "lo", "--backend", f"tcp:{BACKEND}:7701", "--key-file", forged)
        with bridge(net.lab, mallory, *words, service="vortex-client", name="mallory"):
            until(lambda: backend.status()["wormholes"]["refused"] >= 1, "the refusal")
        alice = key_id((net.keys / "1-alice").read_bytes().strip())
        for said in alice + bytes(999), alice[:3], b"":
            before = backend.status()["wormholes"]["refused"]
            net.attacker.call(partial(_say, said))
            until(lambda before=before: backend.status()["wormholes"]["refused"] > before, "the refusal")
        assert backend.status()["wormholes"]["connected"] == 2


def _say(octets: bytes) -> None:
    with socket.create_connection((BACKEND, 7701), PATIENCE_S) as sock:
        sock.sendall(octets)


def test_a_honeypot_that_was_taken_over_reaches_nobody(net: Net) -> None:
    with vortex(net) as (backend, clients):
        before = sum(client.status()["links"][0]["rx_frames"] for client in clients.values())
        targets = (ATTACKER4, VOLUNTEERS["alice"][0], BACKEND, "198.51.100.1")
        net.honeypot.run("python3", "-c", TRY_ALL, *targets)
        until(lambda: backend.drops().get("opens-flow", 0) >= 4, "connections of a client's address")
        until(lambda: backend.drops().get("no-flow", 0) >= 4, "datagrams of it")
        until(lambda: backend.drops().get("not-an-answer", 0) >= 16, "those of others")
        assert sum(client.status()["vortex"]["opened"] for client in clients.values()) == 0
        assert sum(client.status()["links"][0]["rx_frames"] for client in clients.values()) == before
