"""The gateway before real clients: the kernel's ARP, ND and SLAAC, busybox's DHCP, glibc's resolver."""

import socket
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest

from lab import kernel
from lab.wait import PATIENCE_S
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.dhcp import DHCPServer
from vtl_tools.common.guest_net.dns import MAP4, MAP6, Mode, Resolver
from vtl_tools.common.guest_net.neighbours import NeighbourResponder
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.socks import Command, Failed, Reason, Resolved

pytestmark = pytest.mark.lab

GUEST_MAC = "52:54:00:00:00:01"
STRANGER = "10.0.2.99"

UDHCPC = """#!/bin/sh
case $1 in
bound|renew)
    ip addr replace $ip/$mask dev $interface
    ip link set dev $interface mtu $mtu
    ip route replace default via $router
    echo "$1 $ip/$mask $router $dns $mtu $lease"
    ;;
*) echo "$1" ;;
esac
"""

TOR = {
    (Command.RESOLVE, "www.example.com"): Resolved(address.ip("93.184.216.34")),
    (Command.RESOLVE_PTR, address.ip("8.8.4.4")): Resolved("dns.google"),
}


class Gateway:
    """The network of one guest, driven by polling."""

    def __init__(self, device, mode):
        now = time.monotonic()
        self.device, self.network = device, GuestAddresses(mtu=1400)
        self.neighbours = NeighbourResponder(self.network, now)
        self.server = DHCPServer(self.network, mac_of=self.neighbours.mac_of)
        self.resolver = Resolver(mode)
        self.asked = []

    def turn(self):
        now = time.monotonic()
        out = [self.neighbours.wake(now)]
        for frame in self.device.read():
            pkt = Packet.at(frame)
            if pkt.udp is not None and pkt.udp.dport == 67:
                out.append(self.server.answer(pkt, now))
            elif pkt.udp is not None and pkt.udp.dport == 53:
                out += self.resolve(pkt, now)
            else:
                out.append(self.neighbours.answer(pkt, now))
        for reply in filter(None, out):
            self.device.write(Batch.of([reply]))

    def resolve(self, pkt, now):
        source = (pkt.eth.src, pkt.ip.src, pkt.udp.sport, pkt.ip.dst)
        asked = self.resolver.ask(bytes(pkt.udp.payload), source, now)
        replies = [] if asked.reply is None else [(source, asked.reply)]
        for lookup in asked.lookups:
            self.asked.append(lookup)
            outcome = TOR.get(lookup, Failed(Reason.HOST_UNREACHABLE, 4))
            replies += self.resolver.resolved(lookup, outcome, now)
        return [self.datagram(*to, reply) for to, reply in replies]

    def datagram(self, mac, guest, port, name_server, payload):
        return build.udp(
            src_mac=self.network.mac, dst_mac=mac, src=name_server, dst=guest, sport=53, dport=port,
            payload=payload,
        )  # fmt: skip

    def until(self, condition, what):
        deadline = time.monotonic() + PATIENCE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what}: not in time"
            self.turn()
        return value

    def serve(self, guest, *command):
        """Run a command in the guest, to its end; return what it printed."""
        with guest.popen(*command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            self.until(lambda: process.poll() is not None, " ".join(map(str, command)))
            guest.processes.remove(process)
            return process.stdout.read()


@pytest.fixture
def guest(lab):
    host = lab.host("guest")
    host.sysctl("net.ipv6.conf.default.accept_dad", 1)
    return host


@pytest.fixture(params=[Mode.MAP])
def gateway(lab, guest, request):
    us = lab.host("us", ipv6=False)
    lab.veth(guest, "eth0", us, "vm", left_mac=GUEST_MAC)
    device = PacketDevice("vm")
    with us.enter():
        device.connect()
    yield Gateway(device, request.param)
    device.close()


RESOLVE = pytest.mark.parametrize("gateway", [Mode.RESOLVE], indirect=True)


def lease(lab, gateway, guest, *options):
    script = lab.dir / "udhcpc"
    script.write_text(UDHCPC)
    script.chmod(0o755)
    client = ("busybox", "udhcpc", "-f", "-q", "-n", "-i", "eth0", "-s", script, *options)
    return gateway.serve(guest, *client)


def addresses(guest, *options):
    """The addresses of eth0 that passed their duplicate detection."""
    found = guest.run(
        "ip", "-o", *options, "addr", "show", "dev", "eth0", "scope", "global", "-tentative"
    ).stdout
    return [line.split()[3] for line in found.splitlines()]


def name_server(lab, guest, *servers):
    """Let glibc in the guest ask these."""
    for name, text in (
        ("resolv.conf", "".join(f"nameserver {server}\n" for server in servers)),
        ("nsswitch.conf", "hosts: dns\n"),
    ):
        mine = lab.dir / name
        mine.write_text(text)
        guest.call(kernel.mount, str(mine), f"/etc/{name}", None, kernel.MS_BIND)


def test_busybox_gets_a_lease_and_configures_itself_by_it(lab, gateway, guest):
    printed = lease(lab, gateway, guest, "-O", "mtu")
    (mine,) = addresses(guest, "-4")
    assert f"bound {mine} 10.0.2.2 10.0.2.2 1400 3600" in printed
    assert "default via 10.0.2.2" in guest.run("ip", "route").stdout


def test_busybox_finds_that_nobody_has_its_address(lab, gateway, guest):
    """With -a it probes by ARP what it was offered, and declines it if somebody answers."""
    printed = lease(lab, gateway, guest, "-a1000", "-O", "mtu")
    assert "bound" in printed
    assert addresses(guest, "-4")


def test_busybox_gets_the_same_address_again(lab, gateway, guest):
    lease(lab, gateway, guest, "-O", "mtu")
    before = addresses(guest, "-4")
    guest.run("ip", "addr", "flush", "dev", "eth0")
    assert "bound" in lease(lab, gateway, guest, "-O", "mtu")
    assert addresses(guest, "-4") == before


def test_a_client_that_insists_on_a_foreign_address_gets_one_of_ours(lab, gateway, guest):
    assert "10.0.2." in lease(lab, gateway, guest, "-r", "192.168.1.5", "-O", "mtu")


@pytest.mark.parametrize("whom", [STRANGER, "10.0.2.2"])
def test_the_kernel_finds_any_neighbour_at_our_address(gateway, guest, whom):
    guest.addr("eth0", "10.0.2.15/24")
    with guest.enter(), socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.connect((whom, 9))
        sock.send(b"anybody there?")
        mine = address.format_mac(gateway.network.mac)
        gateway.until(lambda: mine in guest.run("ip", "neigh", "show", whom).stdout, "ARP")
        assert gateway.neighbours.mac_of(address.ip("10.0.2.15")) == address.mac(GUEST_MAC)


def test_the_kernel_configures_itself_by_our_advertisement(gateway, guest):
    mine = gateway.until(lambda: addresses(guest, "-6"), "SLAAC")
    assert [ip_address(each.partition("/")[0]) in gateway.network.prefix for each in mine] == [True]
    route = guest.run("ip", "-6", "route", "show", "default").stdout
    assert f"via {address.format_ip(gateway.network.link_local)}" in route
    assert "mtu 1400" in route
    assert "proto ra" in route


def test_the_kernel_finds_ipv6_neighbours_and_the_router_at_our_address(gateway, guest):
    gateway.until(lambda: addresses(guest, "-6"), "SLAAC")
    mine = address.format_mac(gateway.network.mac)
    stranger = str(gateway.network.prefix[0x99])
    with guest.enter(), socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        for whom in stranger, "2001:db8::1":
            sock.sendto(b"anybody there?", (whom, 9))

        def neighbours():
            return guest.run("ip", "-6", "neigh", "show", "nud", "reachable").stdout.splitlines()

        gateway.until(lambda: any(stranger in line for line in neighbours()), "ND")
        (router,) = (line for line in guest.run("ip", "-6", "neigh").stdout.splitlines() if "router" in line)
        assert address.format_ip(gateway.network.link_local) in router
        assert mine in router


def test_the_kernel_keeps_its_address_after_duplicate_detection(gateway, guest):
    guest.addr("eth0", "fd00::15/64", detect=True)
    gateway.until(lambda: "fd00::15/64" in addresses(guest, "-6"), "duplicate detection")
    assert "dadfailed" not in guest.run("ip", "-6", "addr").stdout


@pytest.mark.parametrize("version", [4, 6])
def test_glibc_resolves_names_through_the_map(lab, gateway, guest, version):
    if version == 4:
        lease(lab, gateway, guest, "-O", "mtu")
        name_server(lab, guest, "10.0.2.2")
    else:
        gateway.until(lambda: addresses(guest, "-6"), "SLAAC")
        name_server(lab, guest, address.format_ip(gateway.network.dns6))
    code = (
        "import socket, sys\n"
        "for family in socket.AF_INET, socket.AF_INET6:\n"
        "    print(socket.getaddrinfo(sys.argv[1], 80, family, socket.SOCK_STREAM)[0][4][0])\n"
    )
    ipv4, ipv6 = gateway.serve(guest, sys.executable, "-c", code, "WWW.Example.com").split()
    assert ip_address(ipv4) in MAP4
    assert ip_address(ipv6) in MAP6
    for found in ipv4, ipv6:
        assert gateway.resolver.name_of(address.ip(found)) == "www.example.com"
    assert gateway.serve(guest, "getent", "hosts", ipv4).split() == [ipv4, "www.example.com"]
    assert gateway.asked == []


@RESOLVE
def test_glibc_resolves_names_through_tor(lab, gateway, guest):
    lease(lab, gateway, guest, "-O", "mtu")
    name_server(lab, guest, "10.0.2.2")
    assert "93.184.216.34" in gateway.serve(guest, "getent", "ahosts", "www.example.com")
    assert gateway.serve(guest, "getent", "hosts", "8.8.4.4").split() == ["8.8.4.4", "dns.google"]
    assert gateway.serve(guest, "getent", "ahosts", "nobody.example.com") == ""
    assert gateway.serve(guest, "getent", "ahosts", "printer.local") == ""
    assert {lookup.target for lookup in gateway.asked} == {
        "www.example.com", address.ip("8.8.4.4"), "nobody.example.com"
    }  # fmt: skip


def test_busybox_looks_a_name_up(lab, gateway, guest):
    lease(lab, gateway, guest, "-O", "mtu")
    printed = gateway.serve(guest, "busybox", "nslookup", "www.example.com", "10.0.2.2")
    assert "Address: 198.1" in printed
    assert "Address: fd76:746c:0:2:" in printed
