"""The first firewall of the README, as it is, with a real guest and a real DHCP and DNS server."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.netns import Guest, Host, Lab
from lab.wait import until
from tests.running import BIN, Bridge, bridge

pytestmark = [pytest.mark.vm]

README = (Path(__file__).parents[2] / "README.md").read_text()
HELLO = "hello from the web\n"
MAC = "52:54:00:00:00:05"
RESOLVER, RESOLVER6 = "10.0.0.1", "2001:db8::1"
ANOTHER_RESOLVER, WEB, WEB6, ELSEWHERE = "10.0.0.66", "10.0.0.80", "2001:db8::80", "192.0.2.80"


def example() -> str:
    """The rules that the README shows first."""
    found = re.search(r"^# cat web\.rules\n(.*?)^# vtl-fw check web\.rules$", README, re.M | re.S)
    assert found is not None
    return found[1]


class Scene:
    """guest - vmnet1 [host] eth0 - server: dnsmasq, two web servers, and a resolver that nobody named."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.host, self.server = lab.host("host", ipv6=False), lab.host("server")
        self.host.tap("vmnet1")
        lab.veth(self.host, "eth0", self.server, "eth0")
        self.server.addr("eth0", f"{RESOLVER}/24", f"{ANOTHER_RESOLVER}/24", f"{WEB}/24", f"{ELSEWHERE}/32")
        self.server.addr("eth0", f"{RESOLVER6}/64", f"{WEB6}/64")
        lab.http(self.server, files={"index.html": HELLO.encode()})
        self.rules = lab.dir / "web.rules"
        self.rules.write_text(example())

    def serve(self) -> None:
        self.server.popen(
            "/usr/sbin/dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--interface=eth0", "--no-ping",
            "--user=root", "--no-hosts", "--no-resolv", "--dhcp-range=10.0.0.100,10.0.0.120,255.255.255.0,1h",
            f"--dhcp-option=option:dns-server,{RESOLVER}", f"--dhcp-option=option:router,{RESOLVER}",
            "--enable-ra", "--dhcp-range=2001:db8::,slaac,64,1h", f"--host-record=web.test,{WEB},{WEB6}",
            f"--dhcp-option=option6:dns-server,[{RESOLVER6}]", "--ra-param=eth0,4,60",
            f"--dhcp-leasefile={self.lab.dir / 'leases'}", "--pid-file=", stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: self.resolves(self.server, ANOTHER_RESOLVER), "dnsmasq")

    @staticmethod
    def resolves(host: Host, resolver: str) -> bool:
        return host.run("busybox", "nslookup", "web.test", resolver, check=False).returncode == 0


@pytest.fixture(scope="module")
def scene() -> Iterator[tuple[Scene, Guest, Bridge]]:
    with Lab() as lab:
        made = Scene(lab)
        made.serve()
        links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", made.rules)
        with bridge(lab, made.host, *links, service="vtl-fw") as running:
            guest = lab.guest("vm", on=made.host, tap="vmnet1", mac=MAC)
            yield made, guest, running


def shell(guest: Guest, script: str) -> bool:
    return guest.sh(script).status == 0


def test_the_guest_gets_a_lease_resolves_a_name_and_fetches_a_page(
    scene: tuple[Scene, Guest, Bridge],
) -> None:
    _, guest, running = scene
    lease = guest.lease()
    assert lease["dns"] == RESOLVER
    assert guest.sh("timeout 30 wget -qO- http://web.test/", check=True).out == HELLO
    assert lease["ip"] in running.status()["identity"]["addresses"]


def test_the_guest_has_an_ipv6_address_a_resolver_and_the_page_by_it(
    scene: tuple[Scene, Guest, Bridge],
) -> None:
    _, guest, running = scene
    shows = "ip -6 addr show dev eth0 scope global | grep -v tentative | grep -q 2001:db8:"
    until(lambda: shell(guest, shows), "an address by router advertisement")
    assert shell(guest, f"nslookup web.test {RESOLVER6}")
    assert guest.sh(f"timeout 30 wget -qO- http://[{WEB6}]/", check=True).out == HELLO
    assert RESOLVER6 in running.status()["identity"]["resolvers"]


def test_no_other_resolver_and_no_other_network_is_reached(scene: tuple[Scene, Guest, Bridge]) -> None:
    made, guest, running = scene
    own = guest.lease()["ip"]
    assert shell(guest, f"nslookup web.test {RESOLVER}")
    assert made.resolves(made.server, ANOTHER_RESOLVER)
    assert not shell(guest, f"timeout 3 nslookup web.test {ANOTHER_RESOLVER}")
    assert shell(guest, f"timeout 30 wget -qO- http://{WEB}/")
    assert guest.sh(f"timeout 3 wget -qO- http://{ELSEWHERE}/").status == 143
    assert running.drops()["rule"] > 0
    where = ("--link", str(running.socket))
    for resolver, status in (RESOLVER, 0), (ANOTHER_RESOLVER, 1):
        words = ("out", "udp", f"{own}:5353", f"{resolver}:53")
        ran = subprocess.run(
            [BIN / "vtl-fw", "explain", "--exit-code", *where, *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == status, ran.stdout + ran.stderr


def test_the_lease_is_renewed_at_its_server(scene: tuple[Scene, Guest, Bridge]) -> None:
    """As by a guest whose lease was given long ago, so that the firewall has forgotten that connection."""
    _, guest, running = scene
    guest.sh("rm -f /run/lease; udhcpc -i eth0 -f -t 5 -T 1 -p /run/pid >/dev/null 2>&1 &")
    until(lambda: shell(guest, "test -s /run/lease"), "the lease")
    lease = guest.sh("cat /run/lease").out
    known = f"in udp {RESOLVER}:67 {lease.split()[1]}:68"
    subprocess.run([BIN / "vtl-fw", "kill", "--link", running.socket, *known.split()], check=True)
    guest.sh("rm /run/lease; kill -USR1 $(cat /run/pid)", check=True)
    until(lambda: shell(guest, "test -s /run/lease"), "the renewed lease")
    guest.sh("kill $(cat /run/pid)", check=True)
    assert guest.sh("cat /run/lease").out == lease
    counts = running.status()["rules"]
    assert any("web.rules:1.2" in rule and row["packets"] for rule, row in counts.items()), "@dhcp-servers"
