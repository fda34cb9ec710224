"""Root in a real guest tries to get past vtl-fw: with frames of its own making, and with the firewall killed.

One guest serves all tests. What leaves by the uplink is recorded at its other end.
"""

import json
import re
import socket
import stat
import subprocess
from contextlib import contextmanager

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, IPv6
from scapy.layers.l2 import Ether

from lab.netns import Lab
from lab.wait import PATIENCE_S, until
from tests.running import BIN
from tests.vm.attacks import Attack, honest, marked, unmarked
from vtl_tools.common.runtime import control
from vtl_tools.common.selftest.packets import IP4 as ME
from vtl_tools.common.selftest.packets import IP6 as ME6
from vtl_tools.common.selftest.packets import MAC
from vtl_tools.services.fw.selftest.marked import mark
from vtl_tools.services.fw.selftest.packets import OPEN_PORT, PEER6, PREFIX, ROUTER_MAC
from vtl_tools.services.fw.selftest.packets import ROUTER4 as PEER
from vtl_tools.services.fw.selftest.packets import RULES as SELFTEST_RULES

pytestmark = [pytest.mark.vm]

MAC_OCTETS = bytes.fromhex(MAC.replace(":", ""))
ALL = "allow any vlan any\nallow any\n"
RULES = f"""
allow out udp port 67
allow in udp from {PEER} source port 67 port 68
allow out udp port {OPEN_PORT}
allow out tcp port 80, 5001, {OPEN_PORT}
allow out icmp, icmp6 type echo-request
reject out tcp port 81
reject out udp port 33434-33534
deny any log
"""


def router_advertisement(mac):
    """That the prefix is on the link, by who is no router for elsewhere, so that the guest stays as it is."""
    prefix = ICMPv6NDOptPrefixInfo(prefix=PREFIX, prefixlen=64, L=1, A=0)
    net = IPv6(src="fe80::2", dst="ff02::1", hlim=255)
    return bytes(Ether(src=mac, dst="33:33:00:00:00:01") / net / ICMPv6ND_RA(routerlifetime=0) / prefix)


class Scene:
    """guest - vmnet1 [host] eth0 - server, which leases addresses. Those of the self-test."""

    def __init__(self, lab):
        self.lab = lab
        self.host, self.server = lab.host("host"), lab.host("server")
        self.host.tap("vmnet1")
        lab.veth(self.host, "eth0", self.server, "eth0", right_mac=ROUTER_MAC)
        self.host.run("ethtool", "-K", "eth0", "tx", "off")  # as a card without: sums are made here
        self.server.addr("eth0", f"{PEER}/24", f"{PEER6}/64")
        self.guest = lab.guest("vm", on=self.host, tap="vmnet1", mac=MAC, wait=False)
        leases = lab.dir / "leases"
        leases.touch()
        conf = lab.dir / "udhcpd.conf"
        conf.write_text(
            f"start {ME}\nend {ME}\ninterface eth0\nlease_file {leases}\npidfile {lab.dir}/pid\n"
            f"option subnet 255.255.255.0\noption router {PEER}\noption lease 3600\n"
        )
        self.server.popen("busybox", "udhcpd", "-f", conf, stderr=subprocess.DEVNULL)
        self.wire = self.server.wire()
        self.guest.ready()

    @contextmanager
    def service(self, tool, *arguments):
        socket = self.lab.dir / "s.sock"
        links = ("--iface", "vmnet1", "--iface" if tool == "vtl-bridge" else "--uplink", "eth0")
        process = self.host.popen(
            BIN / tool, *links, *arguments, "--control", socket, "--json", stdout=subprocess.PIPE, text=True
        )
        process.socket = socket
        assert json.loads(process.stdout.readline())["event"] == "ready"
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_S)

    def firewall(self, text, *arguments):
        rules = self.lab.dir / "fw.rules"
        rules.write_text(text)
        return self.service("vtl-fw", "--rules", rules, *arguments)

    def learned(self):
        """A firewall that was told nothing of the guest."""
        return self.firewall(RULES, "--forget")

    def lease(self):
        """Let the guest get its addresses: by DHCP that of IPv4, by itself that of IPv6."""
        self.server.run("ip", "neigh", "flush", "dev", "eth0")  # what attacks came out has spoilt it
        self.wire.sock.send(router_advertisement(self.server.mac("eth0")))
        lease = self.guest.lease()
        script = "ip neigh flush dev eth0; ip addr replace {ME6}/64 dev eth0; ping6 -c1 -W9 {PEER6}"
        self.guest.sh(script.format(ME6=ME6, PEER6=PEER6), check=True)
        return lease

    def unguard(self):
        self.host.run(BIN / "vtl-guard", "clear", "vmnet1")

    def packets(self, firewall, rule: str) -> int:
        """How many a rule has judged, by what its text has in it."""
        rules = control.ask(firewall.socket, "status")["rules"]
        return sum(count["packets"] for count in rules.values() if rule in count["text"])

    def try_all(self, attacks: list[Attack]) -> set[str]:
        """Let the guest send them; the names of those that came out at the uplink."""
        sent = self.send_all([frame for attack in attacks for frame in attack.frames])
        self.last_seen = seen = [frame for frame in sent if b"t!" in frame]
        return {attack.name for attack in attacks if any(map(attack.shows_in, seen))}

    def send_all(self, frames: list[bytes]) -> set[bytes]:
        """Let the guest send frames, and then an honest one; return all that came out at the uplink."""
        self.wire.read()
        assert self.guest.inject([*frames, honest("last")]) == []
        return set(self.until_seen("last"))

    def until_seen(self, name: str) -> list[bytes]:
        """All that comes out, up to an honest datagram and with it."""
        seen: list[bytes] = []

        def arrived() -> bool:
            seen.extend(self.wire.read())
            return any(mark(name) in frame for frame in seen)

        until(arrived, "what is honest, and was sent last")
        return seen


def listening(host, port):
    with host.enter():
        listener = socket.create_server(("", port))
        listener.settimeout(PATIENCE_S)
        return listener


@pytest.fixture(scope="module")
def scene():
    with Lab() as lab:
        yield Scene(lab)


@pytest.fixture
def lab(scene):
    """So that what the guest printed is shown where a test fails."""
    return scene.lab


def test_nothing_that_root_in_the_guest_sends_gets_past(scene):
    attacks = marked()
    with scene.learned() as firewall:
        assert scene.lease()["ip"] == ME
        assert scene.try_all(attacks) == set()
        assert set(scene.last_seen) == {honest("last")[10:]}
        drops = control.ask(firewall.socket, "status")["drops"]
    assert drops.keys() >= {
        "spoofed-mac", "spoofed-address", "spoofed-arp", "spoofed-nd", "spoofed-dhcp", "rogue-dhcp",
        "rogue-router", "source-route", "fragment-tiny", "fragment-overlap", "fragment-nested",
        "fragment-neighbour", "fragment-malformed", "tcp-not-open", "malformed-ipv4", "malformed-ipv6",
        "rule",
    }  # fmt: skip


def test_what_it_tried_comes_out_where_nothing_forbids_it(scene):
    """Else the test above would prove nothing."""
    attacks = marked()
    with scene.firewall(ALL, "--spoofing"):
        scene.lease()
        assert scene.try_all(attacks) == {attack.name for attack in attacks if not attack.always}
    scene.unguard()
    with scene.service("vtl-bridge"):
        assert scene.try_all(attacks) == {attack.name for attack in attacks}


def test_no_kind_of_traffic_that_the_rules_deny_gets_past(scene):
    """Nor does the bridge in the firewall's place lose a frame of it, so that this proves something."""
    frames = unmarked()
    with scene.firewall(f"allow out icmp6 to {PEER6} type echo-request\n{SELFTEST_RULES}", "--forget"):
        scene.lease()
        assert scene.send_all(frames) & {frame[10:] for frame in frames} == set()
    scene.unguard()
    with scene.service("vtl-bridge"):
        assert {frame[10:] for frame in frames} - scene.send_all(frames) == set()


def test_a_guest_is_known_by_its_lease(scene):
    scene.guest.sh(f"ip addr replace {ME}/24 dev eth0", check=True)
    with scene.learned() as firewall:
        early = honest("early")
        assert scene.guest.inject([early]) == []
        until(lambda: control.ask(firewall.socket, "status")["drops"].get("spoofed-address"), "its end")
        lease = scene.lease()
        assert (lease["ip"], lease["serverid"], lease["lease"]) == (ME, PEER, "3600")
        assert scene.guest.inject([honest("leased")]) == []
        assert early[10:] not in scene.until_seen("leased")
        assert scene.guest.sh(f"ping -c1 -W5 {PEER}").status == 0
        known = control.ask(firewall.socket, "status")["identity"]
        assert (known["mac"], known["addresses"][0]) == (MAC, ME)


def test_a_guest_is_told_that_it_was_rejected(scene):
    with scene.learned():
        scene.lease()
        for address, traceroute, prohibited in (PEER, "traceroute", "!A"), (PEER6, "traceroute6", "!S"):
            refused = scene.guest.sh(f"nc -w 9 {address} 81 </dev/null")
            assert "Connection refused" in refused.err
            shown = scene.guest.sh(f"{traceroute} -n -q1 -m1 -w9 {address}", check=True).out
            assert re.search(rf"^ 1  {address} .* {prohibited}$", shown, re.M)


def test_a_firewall_that_is_started_again_knows_the_guest_and_its_connections(scene):
    with listening(scene.server, 5001) as listener:
        with scene.learned() as firewall:
            scene.lease()
            scene.guest.sh(f"mkfifo /tmp/in; nc {PEER} 5001 </tmp/in >/tmp/out & sleep 1000 >/tmp/in &")
            connection = listener.accept()[0]
            state = firewall.socket.with_suffix(".state")
            until(lambda: "out tcp" in state.read_text(), "the connection to be kept")
            firewall.kill()
            firewall.wait(PATIENCE_S)
        with connection, scene.firewall(RULES) as firewall:
            assert stat.S_IMODE(state.stat().st_mode) == 0o600
            connection.sendall(
                b"first\n"
            )  # the guest has nothing to say: who made the connection is remembered
            until(lambda: scene.guest.sh("cat /tmp/out").out == "first\n", "what the server sends")
            scene.guest.sh("echo second >/tmp/in")
            assert connection.recv(99) == b"second\n"
            assert scene.guest.inject([honest("known")]) == []
            assert scene.until_seen("known")
            forged = [attack for attack in marked() if attack.name.startswith("TCP in the middle")]
            assert len(forged) > 5
            assert scene.try_all(forged) == set()
            status = control.ask(firewall.socket, "status")
            assert status["identity"]["addresses"][0] == ME


def test_kill_9_in_the_middle_lets_nothing_pass(scene):
    """On a host that would answer the guest, and forward for it."""
    scene.host.addr("vmnet1", "10.0.2.254/24")
    scene.host.sysctl("net.ipv4.ip_forward", 1)
    scene.lab.http(scene.server, 80, {"page": bytes(64 << 20)})
    inside = scene.host.wire("vmnet1")
    with scene.learned() as firewall:
        scene.lease()
        scene.guest.sh(f"wget -qO /dev/null http://{PEER}/page >/dev/null 2>&1 &")
        until(lambda: scene.packets(firewall, "port 80") > 50, "the download")
        firewall.kill()
        firewall.wait(PATIENCE_S)
    scene.wire.read()
    assert scene.guest.inject([honest("after the end")]) == []
    ping = "ping -c1 -W1 10.0.2.254"
    assert scene.guest.sh(ping).status == 1
    assert any(mark("after the end") in frame for frame in inside.read())
    assert [frame for frame in scene.wire.read() if frame[6:12] == MAC_OCTETS] == []
    scene.unguard()
    until(lambda: scene.guest.sh(ping).status == 0, "the host, where nothing keeps it from the guest")
