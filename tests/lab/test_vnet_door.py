"""Doors of vtl-vnet: many daemons on one port, and strangers at it."""

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab.netns import Host, Lab
from lab.wait import PATIENCE_S, until
from tests.cmd.tools import BIN
from tests.running import Bridge, bridge
from vtl_tools.services.vnet.datagram_handshake import FIRST, NOISE

pytestmark = pytest.mark.lab
PORT = 7700
DOOR = "192.0.2.1"


@dataclass
class Star:
    """hub 192.0.2.1, site1 .2 with vm1 10.9.0.2, site2 .3 with vm2 10.9.0.3, in one underlay."""

    lab: Lab
    hosts: dict[str, Host]
    underlay: Host
    key: Path

    @contextmanager
    def hub(self, kind: str, *more: str) -> Iterator[Bridge]:
        door = f"door={kind}:0.0.0.0:{PORT},listen,transit"
        words = ("--iface", "vmnet1", "--key-file", self.key, "--attach", door, "--name", "hub", *more)
        with bridge(self.lab, self.hosts["hub"], *words, service="vtl-vnet", name="hub") as running:
            yield running

    @contextmanager
    def site(self, kind: str, number: int, *more: str) -> Iterator[Bridge]:
        name = f"site{number}"
        words = ("--iface", "vmnet1", "--key-file", self.key, "--attach", f"hub={kind}:{DOOR}:{PORT}")
        with bridge(
            self.lab, self.hosts[name], *words, "--name", name, *more, service="vtl-vnet", name=name
        ) as running:
            yield running

    def reaches(self, source: str, address: str) -> bool:
        return not self.hosts[source].run("ping", "-c1", "-W1", address, check=False).returncode


def connected_datagrams(address: tuple[str, int]) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(address)
    return sock


@pytest.fixture
def star(lab: Lab) -> Star:
    underlay = lab.host("underlay")
    names = "hub", "site1", "site2"
    hosts = {name: lab.host(name) for name in (*names, "vm0", "vm1", "vm2")}
    lab.bridge(underlay, "br0", [])
    for number, name in enumerate(names):
        lab.veth(hosts[name], "wan", underlay, f"p{number}")
        underlay.run("ip", "link", "set", f"p{number}", "master", "br0")
        hosts[name].addr("wan", f"192.0.2.{number + 1}/24")
        lab.veth(hosts[f"vm{number}"], "eth0", hosts[name], "vmnet1")
        hosts[f"vm{number}"].addr("eth0", f"10.9.0.{number + 1}/24")
    key = lab.dir / "vnet.key"
    hosts["hub"].run(BIN / "vtl-vnet", "keygen", str(key))
    return Star(lab, hosts, underlay, key)


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_door_serves_many_daemons_by_name_whatever_strangers_do(star: Star, kind: str) -> None:
    stranger = star.hosts["site2"]
    with ExitStack() as stack:
        hub = stack.enter_context(star.hub(kind))
        connect = socket.create_connection if kind == "tcp" else connected_datagrams
        held = [stranger.call(connect, (DOOR, PORT)) for _ in range(150)]
        for number, one in enumerate(held[::2]):
            one.sendall(bytes((1 + number % 4,)) + bytes(75 + number % 3))
        stack.enter_context(star.site(kind, 1))
        until(lambda: hub.status()["overlay"].get("site1", {}).get("up"), "the first daemon")
        stack.enter_context(star.site(kind, 2))
        for one in held:
            one.close()
        until(lambda: hub.status()["overlay"].get("site2", {}).get("up"), "the second daemon")
        until(lambda: star.reaches("vm1", "10.9.0.3"), "the VM behind the other daemon")
        until(lambda: star.reaches("vm0", "10.9.0.2"), "a daemon's VM from the hub's")
        overlay = hub.status()["overlay"]
        assert (overlay["site1"]["door"], overlay["site1"]["daemon"]) == ("door", "site1")


@pytest.mark.parametrize("kind", ["tcp", "udp"])
def test_a_daemon_that_starts_again_has_its_link_again(star: Star, kind: str) -> None:
    with star.hub(kind) as hub:
        for _ in range(2):
            with star.site(kind, 1):
                until(lambda: hub.status()["overlay"].get("site1", {}).get("up"), "the daemon")
                until(lambda: star.reaches("vm1", "10.9.0.1"), "the VM")
            until(lambda: not hub.status()["overlay"]["site1"]["up"], "its end")
        assert hub.status()["overlay"]["site1"]["losses"] == 2


def test_an_udp_link_follows_its_peer_to_another_address_and_answers_no_spoofed_caller_at_length(
    star: Star,
) -> None:
    with star.hub("udp") as hub, star.site("udp", 1):
        until(lambda: hub.status()["overlay"].get("site1", {}).get("up"), "the daemon")
        until(lambda: star.reaches("vm1", "10.9.0.1"), "the VM")
        site = star.hosts["site1"]
        site.addr("wan", "192.0.2.77/24")
        site.run("ip", "address", "del", "192.0.2.2/24", "dev", "wan")
        site.run("ip", "address", "replace", "192.0.2.77/24", "dev", "wan")
        until(lambda: star.reaches("vm1", "10.9.0.1"), "the VM, from another address")
        assert hub.status()["overlay"]["site1"]["losses"] == 0
        asks = star.hosts["site2"].call(connected_datagrams, (DOOR, PORT))
        asks.settimeout(PATIENCE_S)
        first = FIRST.pack(1, 7, bytes(16)) + bytes(NOISE)
        asks.send(first)
        answer = asks.recv(2000)
        assert (answer[0], len(answer) < len(first)) == (3, True)
        asks.close()


def test_a_door_at_all_addresses_answers_from_that_which_was_called(star: Star) -> None:
    for address in "192.0.2.9/24", "2001:db8::1/64", "2001:db8::9/64":
        star.hosts["hub"].addr("wan", address)
    star.hosts["site2"].addr("wan", "2001:db8::3/64")
    with star.hub("udp", "--attach", "six=udp:[::]:7701,listen"):
        for called in ("192.0.2.9", PORT), ("192.0.2.9", 7701), ("2001:db8::9", 7701), (DOOR, PORT):
            asks = star.hosts["site2"].call(connected_datagrams, called)  # as if behind NAT
            asks.settimeout(PATIENCE_S)
            asks.send(FIRST.pack(1, 7, bytes(16)) + bytes(NOISE))
            assert asks.recv(2000)[0] == 3
            asks.close()


def test_a_path_that_carries_less_is_found_and_large_frames_still_cross(star: Star) -> None:
    with star.hub("udp") as hub, star.site("udp", 1):
        until(lambda: star.reaches("vm1", "10.9.0.1"), "the VM")
        star.underlay.run("ip", "link", "set", "p0", "mtu", "1300")

        def large() -> bool:
            words = ("ping", "-c1", "-W1", "-s1472", "-Mdo", "10.9.0.1")
            return not star.hosts["vm1"].run(*words, check=False).returncode

        until(large, "a frame of 1514 octets", timeout=2 * PATIENCE_S)
        assert hub.status()["overlay"]["site1"]["losses"] == 0


def test_a_busy_pair_of_daemons_gets_a_direct_link_and_goes_back_when_it_is_cut(star: Star) -> None:
    vm1, underlay = star.hosts["vm1"], star.underlay
    with (
        star.hub("udp", "--adapt", "on") as hub,
        star.site("udp", 1, "--adapt", "on") as site1,
        star.site("udp", 2, "--adapt", "on") as site2,
    ):
        until(lambda: star.reaches("vm1", "10.9.0.3"), "the VM behind the other daemon")
        # A door that is added is told to the daemons that are connected.
        words = ("link", "add", "direct", "udp:0.0.0.0:7800,listen", "--link", str(site2.socket))
        star.hosts["site2"].run(BIN / "vtl-vnet", *words)
        pinging = vm1.popen("ping", "-q", "-i0.002", "-s1400", "10.9.0.3", stdout=subprocess.PIPE, text=True)
        hub.wait_for("adapt", action="introduce", changed="site1")
        site1.wait_for("adapt", action="make", changed="site2-direct")

        def octets(daemon: Bridge, link: str) -> int:
            return int(daemon.status()["overlay"].get(link, {}).get("octets_out", 0))

        until(lambda: octets(site1, "site2-direct") > 100_000, "frames on the direct link")
        until(lambda: octets(site2, "site1-direct") > 100_000, "frames back on it")
        before = octets(hub, "site2")
        now = octets(site1, "site2-direct")
        until(lambda: octets(site1, "site2-direct") > now + 200_000, "more of them")
        assert octets(hub, "site2") - before < 50_000, "the third daemon carries none of it"
        assert site1.status()["adapt"]["last"][-1]["action"] == "make"
        # Nothing passes between the two sites any more, except through the hub.
        rules = "add table bridge cut; add chain bridge cut f { type filter hook forward priority 0; }"
        underlay.run("nft", f"{rules}; add rule bridge cut f iifname p1 oifname p2 drop")
        site1.wait_for("link", changed="site2-direct", up=False)
        until(lambda: star.reaches("vm1", "10.9.0.3"), "the way through the hub again")
        pinging.send_signal(signal.SIGINT)
        assert "duplicates" not in pinging.communicate()[0]
