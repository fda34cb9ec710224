"""A hostile guest behind vtl-fw, and a real DHCPv6 server: it is one client, and releases its own only."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.dhcp6 import (
    DUID_LL,
    DHCP6_Advertise,
    DHCP6_Release,
    DHCP6_Reply,
    DHCP6_Request,
    DHCP6_Solicit,
    DHCP6OptClientId,
    DHCP6OptElapsedTime,
    DHCP6OptIA_NA,
    DHCP6OptIAAddress,
    DHCP6OptServerId,
)
from scapy.layers.inet import UDP
from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lab.netns import Host, Lab
from lab.wait import until
from tests.running import Bridge, bridge
from vtl_tools.common.packet import address

pytestmark = [pytest.mark.lab]

MAC, VICTIM_MAC = "52:54:00:aa:00:01", "52:54:00:bb:00:02"
RULES = "allow guest-basics\ndeny any\n"


class Client:
    """A client of raw frames, with a DUID of whoever it likes."""

    def __init__(self, host: Host, mac: str) -> None:
        self.sock = host.wire().sock
        self.sock.settimeout(1.0)
        self.mac, self.trid = mac, 1
        self.local = address.format_ip(address.link_local(address.mac(mac)))

    def say(self, message: Packet, duid_mac: str, *options: Packet) -> None:
        self.trid += 1
        message.trid = self.trid
        told = message / DHCP6OptClientId(duid=DUID_LL(lladdr=duid_mac)) / DHCP6OptElapsedTime()
        for option in options:
            told /= option
        net = Ether(src=self.mac, dst="33:33:00:01:00:02") / IPv6(src=self.local, dst="ff02::1:2")
        self.sock.send(bytes(net / UDP(sport=546, dport=547) / told))

    def answer(self, kind: type[Packet]) -> Packet | None:
        try:
            while True:
                got = Ether(self.sock.recv(2048))
                if kind in got and got.dst == self.mac and got[kind].trid == self.trid:
                    return got
        except TimeoutError:
            return None

    def lease(self, duid_mac: str) -> tuple[str, Packet] | None:
        """Get the address of whoever has this DUID; the address and the server's identifier."""
        self.say(DHCP6_Solicit(), duid_mac, DHCP6OptIA_NA(iaid=7))
        offer = self.answer(DHCP6_Advertise)
        if offer is None:
            return None
        server = offer[DHCP6OptServerId].duid
        self.say(DHCP6_Request(), duid_mac, DHCP6OptServerId(duid=server), self.association(offer))
        got = self.answer(DHCP6_Reply)
        return None if got is None else (got[DHCP6OptIAAddress].addr, server)

    def release(self, duid_mac: str, lease: tuple[str, Packet]) -> None:
        given = DHCP6OptIA_NA(iaid=7, ianaopts=[DHCP6OptIAAddress(addr=lease[0])])
        self.say(DHCP6_Release(), duid_mac, DHCP6OptServerId(duid=lease[1]), given)

    @staticmethod
    def association(offer: Packet) -> Packet:
        return DHCP6OptIA_NA(iaid=7, ianaopts=[DHCP6OptIAAddress(addr=offer[DHCP6OptIAAddress].addr)])

    def claim(self) -> None:
        """Claim the link-local address."""
        group = address.solicited_node(address.ip(self.local))
        ether = Ether(src=self.mac, dst=address.format_mac(address.multicast_mac(group)))
        net = IPv6(src="::", dst=address.format_ip(group), hlim=255)
        self.sock.send(bytes(ether / net / ICMPv6ND_NS(tgt=self.local)))


class Scene:
    """vm - vmnet1 [middle] eth0 - [switch: dnsmasq on br0 at fd09::1] - victim."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        vm, self.middle = lab.host("vm", ipv6=False), lab.host("middle", ipv6=False)
        self.switch, victim = lab.host("switch"), lab.host("victim", ipv6=False)
        lab.veth(vm, "eth0", self.middle, "vmnet1", left_mac=MAC)
        lab.veth(self.middle, "eth0", self.switch, "p1")
        lab.veth(victim, "eth0", self.switch, "p2", left_mac=VICTIM_MAC)
        lab.bridge(self.switch, "br0", ["p1", "p2"])
        self.switch.addr("br0", "fd09::1/64")
        self.vm, self.victim = Client(vm, MAC), Client(victim, VICTIM_MAC)
        for client in self.vm, self.victim:  # as their stacks would tell
            self.switch.run("ip", "neigh", "replace", client.local, "lladdr", client.mac, "dev", "br0")
        self.leases = lab.dir / "leases"
        self.leases.touch()
        self.switch.popen(
            "/usr/sbin/dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--port=0",
            "--interface=br0", "--bind-interfaces", "--dhcp-authoritative", "--user=root", "--no-hosts",
            "--dhcp-range=fd09::50,fd09::5f,64,1h", f"--dhcp-leasefile={self.leases}", "--pid-file=",
        )  # fmt: skip

    def leased(self) -> set[str]:
        rows = [line.split() for line in self.leases.read_text().splitlines()]
        return {row[2] for row in rows if len(row) == 5}

    @contextmanager
    def firewall(self, *arguments: str) -> Iterator[Bridge]:
        rules = self.lab.dir / "fw.rules"
        rules.write_text(RULES)
        links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules, "--forget")
        with bridge(self.lab, self.middle, *links, *arguments, service="vtl-fw") as running:
            assert running.ready["event"] == "ready"
            yield running


def got(client: Client, duid_mac: str) -> tuple[str, Packet]:
    found = until(lambda: client.lease(duid_mac), "a lease")
    assert found is not None
    return found


def test_a_guest_takes_and_releases_no_lease_of_another(lab: Lab) -> None:
    scene = Scene(lab)
    victims = got(scene.victim, VICTIM_MAC)
    until(lambda: victims[0] in scene.leased(), "the lease to be written")
    with scene.firewall("--spoofing"):
        assert got(scene.vm, VICTIM_MAC)[0] == victims[0]
        scene.vm.release(VICTIM_MAC, victims)
        until(lambda: victims[0] not in scene.leased(), "the release")
    victims = got(scene.victim, VICTIM_MAC)
    with scene.firewall() as running:
        scene.vm.claim()
        until(lambda: scene.vm.local in running.status()["identity"]["addresses"], "its link-local address")
        own = got(scene.vm, MAC)
        before = running.drops().get("spoofed-dhcp", 0)
        scene.vm.release(VICTIM_MAC, victims)
        scene.vm.release(MAC, victims)
        assert scene.vm.lease(VICTIM_MAC) is None
        assert running.drops()["spoofed-dhcp"] == before + 3
        until(lambda: {victims[0], own[0]} <= scene.leased(), "both leases, as dnsmasq writes its file anew")
        scene.vm.release(MAC, own)
        until(lambda: scene.leased() == {victims[0]}, "the release of its own, and of nothing else")
