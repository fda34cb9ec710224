"""A hostile guest behind vtl-fw, and a real DHCP server: whose leases it gets at.

Each attack is seen to succeed where the firewall does not look (--spoofing), and refused where it does.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.running import Bridge, bridge

pytestmark = [pytest.mark.lab]

SERVER = "10.9.0.1"
RULES = f"""
allow out udp port 67
allow in udp from {SERVER} source port 67 port 68
allow out udp port 53
deny any
"""
MAC, VICTIM_MAC = "52:54:00:aa:00:01", "52:54:00:bb:00:02"
VICTIM_ID = b"victim"
POOL = 6
SILENCE_S = 3.0
"""For an answer that must not come, and for one try of several."""


def octets(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


class Client:
    """A DHCP client of raw frames, which says whatever it is told to."""

    def __init__(self, host: Host, interface: str, mac: str) -> None:
        self.sock = host.wire(interface).sock
        self.mac, self.xid = mac, 1

    def say(self, kind: str, *options: Any, src: str = "0.0.0.0", dst: str = "255.255.255.255",
            ciaddr: str = "0.0.0.0", extra: tuple[Any, ...] = ()) -> None:  # fmt: skip
        """Send a message; one transaction goes on until the next discover."""
        if kind == "discover":
            self.xid += 1
        message = BOOTP(chaddr=octets(self.mac), xid=self.xid, ciaddr=ciaddr, flags=0x8000)
        dhcp = DHCP(options=[("message-type", kind), *options, *extra, "end"])
        frame = Ether(src=self.mac, dst="ff:ff:ff:ff:ff:ff") / IP(src=src, dst=dst)
        self.sock.send(bytes(frame / UDP(sport=68, dport=67) / message / dhcp))

    def answer(self, patience_s: float = PATIENCE_S) -> tuple[int, str] | None:
        """The next answer to the present transaction: its type and address. None: there is none."""
        self.sock.settimeout(patience_s)
        try:
            while True:
                got = Ether(self.sock.recv(2048))
                if DHCP not in got or got[BOOTP].op != 2 or got[BOOTP].chaddr[:6] != octets(self.mac):
                    continue
                if got[BOOTP].xid == self.xid:
                    kinds = [o[1] for o in got[DHCP].options if o[0] == "message-type"]
                    return kinds[0], got[BOOTP].yiaddr
        except TimeoutError:
            return None

    def lease(self, *options: Any, patience_s: float = PATIENCE_S) -> str | None:
        """Go through DISCOVER and REQUEST; the address, or None."""
        self.say("discover", *options)
        offered = self.answer(patience_s)
        if offered is None or offered[0] != 2:
            return None
        self.say("request", ("requested_addr", offered[1]), ("server_id", SERVER), *options)
        got = self.answer(patience_s)
        return got[1] if got is not None and got[0] == 5 else None


class Scene:
    """vm - vmnet1 [middle] eth0 - [switch: dnsmasq on br0 at 10.9.0.1] - victim."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.vm, self.middle = lab.host("vm", ipv6=False), lab.host("middle", ipv6=False)
        self.switch, self.victim_host = lab.host("switch"), lab.host("victim", ipv6=False)
        lab.veth(self.vm, "eth0", self.middle, "vmnet1", left_mac=MAC)
        lab.veth(self.middle, "eth0", self.switch, "p1")
        lab.veth(self.victim_host, "eth0", self.switch, "p2", left_mac=VICTIM_MAC)
        lab.bridge(self.switch, "br0", ["p1", "p2"])
        self.switch.addr("br0", f"{SERVER}/24")
        self.leases = lab.dir / "leases"
        self.vm_client = Client(self.vm, "eth0", MAC)
        self.victim = Client(self.victim_host, "eth0", VICTIM_MAC)
        self.server: subprocess.Popen[bytes] | None = None

    def serve(self) -> None:
        """Start dnsmasq anew, with all of its pool."""
        if self.server is not None:
            self.server.kill()
            self.server.wait(PATIENCE_S)
        self.leases.write_text("")
        self.server = self.switch.popen(
            "/usr/sbin/dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--interface=br0",
            "--bind-interfaces", "--dhcp-authoritative", "--no-ping", "--user=root", "--no-hosts",
            f"--dhcp-range=10.9.0.50,10.9.0.{49 + POOL},255.255.255.0,1h", f"--dhcp-leasefile={self.leases}",
            "--pid-file=", stderr=subprocess.DEVNULL,
        )  # fmt: skip
        until(lambda: ":0043 " in self.switch.run("cat", "/proc/net/udp").stdout, "dnsmasq")

    def leased(self) -> dict[str, str]:
        """The Ethernet address of who has it, by address."""
        rows = [line.split() for line in self.leases.read_text().splitlines()]
        return {row[2]: row[1] for row in rows if len(row) > 4}

    @contextmanager
    def firewall(self, *arguments: str, text: str = RULES) -> Iterator[Bridge]:
        rules = self.lab.dir / "fw.rules"
        rules.write_text(text)
        links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules, "--forget")
        with bridge(self.lab, self.middle, *links, *arguments, service="vtl-fw") as running:
            assert running.ready["event"] == "ready"
            yield running


@pytest.fixture
def scene(lab: Lab) -> Scene:
    return Scene(lab)


def victims_lease(scene: Scene) -> str:
    scene.serve()
    found: list[str | None] = []

    def leased() -> bool:
        found.append(scene.victim.lease(("client_id", VICTIM_ID), patience_s=SILENCE_S))
        return found[-1] is not None

    until(leased, "the victim's lease")
    assert found[-1] is not None
    assert scene.leased() == {found[-1]: VICTIM_MAC}
    return found[-1]


def known(scene: Scene) -> str:
    """Let the VM get a lease of its own, as every VM does once."""
    got = scene.vm_client.lease()
    assert got is not None
    return got


def test_a_guest_takes_no_lease_of_another_by_its_client_identifier(scene: Scene) -> None:
    stolen = ("client_id", VICTIM_ID)
    victims = victims_lease(scene)
    with scene.firewall("--spoofing"):
        assert scene.vm_client.lease(stolen) == victims
        until(lambda: scene.leased() == {victims: MAC}, "the theft")
    victims = victims_lease(scene)
    with scene.firewall() as running:
        own = known(scene)
        assert scene.vm_client.lease(("client_id", b"first")) is not None
        assert scene.vm_client.lease(stolen, patience_s=SILENCE_S) is None
        assert scene.vm_client.lease(("client_id", b"\1" + octets(VICTIM_MAC)), patience_s=SILENCE_S) is None
        assert scene.leased()[victims] == VICTIM_MAC
        assert running.drops()["spoofed-dhcp"] >= 2
        scene.vm_client.say("discover", ("client_id", b"first"), extra=(("client_id", VICTIM_ID),))
        assert scene.vm_client.answer(SILENCE_S) is None
        assert own != victims


def test_a_guest_releases_no_lease_of_another(scene: Scene) -> None:
    def release(victims: str, src: str) -> None:
        options = ("client_id", VICTIM_ID), ("server_id", SERVER)
        scene.vm_client.say("release", *options, ciaddr=victims, src=src, dst=SERVER)

    victims = victims_lease(scene)
    with scene.firewall("--spoofing"):
        release(victims, "10.9.0.77")
        until(lambda: victims not in scene.leased(), "the release")
    victims = victims_lease(scene)
    with scene.firewall() as running:
        own = known(scene)
        release(victims, own)
        until(lambda: running.drops().get("spoofed-dhcp"), "the refusal")
        assert scene.leased()[victims] == VICTIM_MAC
        scene.vm_client.say("release", ("server_id", SERVER), ciaddr=own, src=own, dst=SERVER)
        until(lambda: own not in scene.leased(), "the release of its own")
        assert running.status()["identity"]["addresses"] == []


def test_a_guest_empties_no_pool(scene: Scene) -> None:
    def greedy() -> None:
        for number in range(2 * POOL):
            scene.vm_client.lease(("client_id", b"x%d" % number), patience_s=0.5)

    scene.serve()
    with scene.firewall("--spoofing"):
        until(lambda: scene.vm_client.lease(patience_s=SILENCE_S) is not None, "dnsmasq")
        until(lambda: greedy() or len(scene.leased()) == POOL, "the pool's end")
        assert scene.victim.lease(patience_s=SILENCE_S) is None
    scene.serve()
    with scene.firewall():
        until(lambda: scene.vm_client.lease(patience_s=SILENCE_S) is not None, "dnsmasq")
        greedy()
        assert len(scene.leased()) <= 2
        assert scene.victim.lease() is not None


def test_a_udp_peer_gives_the_guest_no_address(scene: Scene) -> None:
    """The victim is the peer, and says that it is a DHCP server, in the answer to what the VM sent."""
    peer = "10.9.0.30"
    scene.victim_host.addr("eth0", f"{peer}/24")
    scene.serve()
    rules = "allow out udp\nallow in udp from 10.9.0.1 source port 67 port 68\ndeny any\n"
    with scene.firewall(text=rules) as running:
        own = None
        while own is None:
            own = scene.vm_client.lease()
        assert running.status()["identity"]["addresses"] == [own]
        for sport in 67, 53:
            for yiaddr in "10.9.0.77", own:
                frame = Ether(src=MAC, dst=VICTIM_MAC) / IP(src=own, dst=peer)
                asked = BOOTP(chaddr=octets(MAC), xid=scene.vm_client.xid, ciaddr=own)
                request = DHCP(options=[("message-type", "request"), "end"])
                scene.vm_client.sock.send(bytes(frame / UDP(sport=68, dport=sport) / asked / request))
                told = BOOTP(op=2, chaddr=octets(MAC), xid=scene.vm_client.xid, yiaddr=yiaddr)
                ack = DHCP(
                    options=[("message-type", "ack"), ("lease_time", 99999), ("server_id", peer), "end"]
                )
                back = Ether(src=VICTIM_MAC, dst=MAC) / IP(src=peer, dst=own) / UDP(sport=sport, dport=68)
                scene.victim.sock.send(bytes(back / told / ack))
        other = Ether(src=MAC, dst=VICTIM_MAC) / IP(src="10.9.0.77", dst=peer)
        scene.vm_client.sock.send(bytes(other / UDP(sport=1, dport=53)))
        until(lambda: running.drops().get("spoofed-address"), "the refusal")
        assert running.status()["identity"]["addresses"] == [own]


def test_only_the_named_server_leases(scene: Scene) -> None:
    scene.serve()
    for listed, leases in (("10.9.0.9", False), (SERVER, True)):
        with scene.firewall("--dhcp-server", listed) as running:
            until(
                lambda: scene.vm_client.lease(patience_s=SILENCE_S) is not None, "dnsmasq"
            )  # the answer passes by the rules
            assert (running.status()["identity"]["addresses"] != []) == leases
