"""Data out by ARP and neighbour discovery, through a real router; and two guarded VMs on one switch."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    HBHOptUnknown,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
    IPv6ExtHdrDestOpt,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from lab.netns import Host, Lab
from lab.wait import until
from tests.running import Bridge, bridge

pytestmark = [pytest.mark.lab]

MACS = "52:54:00:aa:00:01", "52:54:00:aa:00:02"
VM, VM6, FAR6 = "10.9.0.5", "fd09::5", "fd0a::2"
SECRET = b"secret!!"


@contextmanager
def firewall(lab: Lab, middle: Host, name: str, text: str, *arguments: str) -> Iterator[Bridge]:
    rules = lab.dir / f"{name}.rules"
    rules.write_text(text)
    links = ("--iface", "vmnet1", "--uplink", "eth0", "--rules", rules, "--forget")
    with bridge(lab, middle, *links, *arguments, name=name, service="vtl-fw") as running:
        assert running.ready["event"] == "ready"
        yield running


def messages(src: str, router_mac: str) -> dict[str, Packet]:
    """Neighbour discovery and ARP with something to tell, each by its way out."""
    to_router = Ether(src=MACS[0], dst=router_mac)
    far = IPv6(src=src, dst=FAR6, hlim=255)
    odd = Raw(b"\xfd\2" + SECRET + bytes(6))
    long = Raw(b"\x0e\xa0" + (SECRET * 160)[: 8 * 160 - 2])
    return {
        "NS to the Internet": to_router / far / ICMPv6ND_NS(tgt=FAR6) / odd,
        "NS to the Internet, at length": to_router / far / ICMPv6ND_NS(tgt=FAR6) / long,
        "NS to the Internet, nonce": to_router / far / ICMPv6ND_NS(tgt=FAR6) / Raw(b"\x0e\1" + SECRET[:6]),
        "NA to the Internet": to_router / far / ICMPv6ND_NA(tgt=src) / odd,
        "RS to the Internet": to_router / far / ICMPv6ND_RS() / odd,
        "NS to the link, unknown option": to_router
        / IPv6(src=src, dst="ff02::1", hlim=255)
        / ICMPv6ND_NS(tgt=FAR6)
        / odd,
        "NS to the link, behind options": to_router
        / IPv6(src=src, dst="ff02::1", hlim=255)
        / IPv6ExtHdrDestOpt(options=[HBHOptUnknown(otype=0x1E, optdata=SECRET + bytes(2))])
        / ICMPv6ND_NS(tgt=FAR6),
        "NS to the link, behind its end": to_router
        / IPv6(src=src, dst="ff02::1", hlim=255, plen=24)
        / ICMPv6ND_NS(tgt=FAR6)
        / Raw(SECRET),
        "ARP with a tail": Ether(src=MACS[0], dst="ff:ff:ff:ff:ff:ff")
        / ARP(psrc=VM, hwsrc=MACS[0], pdst="10.9.0.1")
        / Raw(SECRET * 100),
        "ARP with its padding used": Ether(src=MACS[0], dst="ff:ff:ff:ff:ff:ff")
        / ARP(psrc=VM, hwsrc=MACS[0], pdst="10.9.0.1")
        / Raw(SECRET),
        "ARP in another VLAN": Ether(src=MACS[0], dst="ff:ff:ff:ff:ff:ff")
        / Dot1Q(vlan=7)
        / ARP(psrc=VM, hwsrc=MACS[0], pdst="10.9.0.1")
        / Raw(SECRET),
    }


def test_a_guest_gets_no_data_out_by_arp_and_neighbour_discovery(lab: Lab) -> None:
    """vm - vmnet1 [middle] eth0 - [router] - far, under `deny any`."""
    vm, middle = lab.host("vm", ipv6=False), lab.host("middle", ipv6=False)
    router, far = lab.host("router"), lab.host("far")
    lab.veth(vm, "eth0", middle, "vmnet1", left_mac=MACS[0])
    lab.veth(middle, "eth0", router, "eth0")
    lab.veth(router, "eth1", far, "eth0")
    router.addr("eth0", "10.9.0.1/24", "fd09::1/64")
    router.addr("eth1", "fd0a::1/64")
    far.addr("eth0", f"{FAR6}/64")
    router.sysctl("net.ipv6.conf.all.forwarding", 1)
    router.run("ip", "neigh", "replace", FAR6, "lladdr", far.mac("eth0"), "dev", "eth1")
    inside, link, outside = vm.wire(), router.wire(), far.wire()
    attacks = messages(VM6, router.mac("eth0"))
    own = ("--address", VM, "--address", VM6, "--address", "fe80::/10")

    def seen(text: str, *arguments: str) -> tuple[set[str], set[str]]:
        """The attacks whose secret came to the link, and those whose came to the far end."""
        on_link, afar = set(), set()
        with firewall(lab, middle, "f", text, *arguments):
            for name, frame in attacks.items():
                link.read(), outside.read()
                inside.send(frame)
                last = Ether(src=MACS[0], dst=router.mac("eth0")) / ARP(psrc=VM, hwsrc=MACS[0])
                last.pdst = "10.9.0.3"
                inside.send(last)  # what is in order and goes to the link
                frames: list[bytes] = []

                def arrived(frames: list[bytes] = frames) -> bool:
                    frames.extend(link.read())
                    return any(bytes((10, 9, 0, 3)) in frame for frame in frames)

                until(arrived, "the last")
                if any(SECRET[:6] in frame for frame in frames):
                    on_link.add(name)
                for _ in range(20 if name.endswith("Internet") else 1):
                    if any(SECRET[:6] in frame for frame in outside.read()):
                        afar.add(name)
                        break
                    time.sleep(0.01)
        return on_link, afar

    on_link, afar = seen("allow any\nallow any vlan any\n", "--spoofing")
    assert afar == {name for name in attacks if "Internet" in name}
    assert on_link >= {name for name in attacks if name.startswith("NS to the link, un")} | afar
    assert seen("deny any\n", *own) == (set(), set())
    assert seen("deny any\n", "--spoofing") == (set(), set())


def test_padding_of_what_is_allowed_carries_nothing(lab: Lab) -> None:
    vm, middle, server = lab.host("vm", ipv6=False), lab.host("middle", ipv6=False), lab.host("server")
    lab.veth(vm, "eth0", middle, "vmnet1", left_mac=MACS[0])
    lab.veth(middle, "eth0", server, "eth0")
    server.addr("eth0", "10.9.0.1/24")
    inside, link = vm.wire(), server.wire()
    for arguments in ("--address", VM), ("--spoofing",):
        with firewall(lab, middle, "p", "allow out udp port 9\ndeny any\n", *arguments):
            frame = Ether(src=MACS[0], dst=server.mac("eth0")) / IP(src=VM, dst="10.9.0.1")
            frame = frame / UDP(sport=5, dport=9) / Raw(b"in order")
            inside.send(bytes(frame) + SECRET * 20)
            found: list[bytes] = []

            def arrived(found: list[bytes] = found) -> bool:
                found.extend(frame for frame in link.read() if b"in order" in frame)
                return bool(found)

            until(arrived, "the datagram")
            assert SECRET not in found[0]


class Two:
    """Two VMs, each behind a vtl-fw, on one switch. The second is a real stack, the first what we make it."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.switch = lab.host("switch")
        self.vms, self.middles = [], []
        for number, mac in enumerate(MACS, 1):
            vm = lab.host(f"vm{number}", ipv6=number == 2)
            middle = lab.host(f"middle{number}", ipv6=False)
            lab.veth(middle, "eth0", self.switch, f"p{number}")
            self.vms.append(vm)
            self.middles.append(middle)
            if number == 2:
                vm.sysctl("net.ipv6.conf.default.accept_dad", 1)
                vm.sysctl("net.ipv6.conf.all.accept_dad", 1)
            lab.veth(vm, "eth0", middle, "vmnet1", left_mac=mac)
        lab.bridge(self.switch, "br0", ["p1", "p2"])
        self.switch.addr("br0", "fd09::1/64")
        self.hostile = self.vms[0].wire()
        self.wire = self.switch.wire("br0")

    def announce(self) -> None:
        """Tell all of the prefix, by who is no router for elsewhere."""
        prefix = ICMPv6NDOptPrefixInfo(prefix="fd09::", prefixlen=64, L=1, A=0)
        net = IPv6(src="fe80::2", dst="ff02::1", hlim=255)
        ether = Ether(src=self.switch.mac("br0"), dst="33:33:00:00:00:01")
        self.wire.send(ether / net / ICMPv6ND_RA(routerlifetime=0) / prefix)

    def solicit(self, target: str) -> Packet:
        """The hostile VM's DAD."""
        last = socket.inet_pton(socket.AF_INET6, target)[13:]
        group = socket.inet_ntop(
            socket.AF_INET6, socket.inet_pton(socket.AF_INET6, "ff02::1:ff00:0")[:13] + last
        )
        ether = Ether(src=MACS[0], dst="33:33:ff:" + last.hex(":"))
        return ether / IPv6(src="::", dst=group, hlim=255) / ICMPv6ND_NS(tgt=target)

    def advert(self, target: str) -> Packet:
        ether = Ether(src=MACS[0], dst="33:33:00:00:00:01")
        net = IPv6(src=target, dst="ff02::1", hlim=255)
        return ether / net / ICMPv6ND_NA(tgt=target, R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=MACS[0])

    def ask(self, target: str) -> Packet:
        ether = Ether(src=MACS[0], dst="33:33:00:00:00:01")
        net = IPv6(src=target, dst="ff02::1", hlim=255)
        return ether / net / ICMPv6ND_NS(tgt="fd09::1") / ICMPv6NDOptSrcLLAddr(lladdr=MACS[0])


@pytest.fixture
def two(lab: Lab) -> Two:
    return Two(lab)


def owned(running: Bridge) -> list[str]:
    return list(running.status()["identity"]["addresses"])


def reach(host: Host, source: str) -> Callable[[], bool]:
    """Try whether a VM is answered at an address of its own."""
    ping = ("ping", "-c1", "-W1", "-q", "-I", source, "fd09::1")
    return lambda: host.run(*ping, check=False).returncode == 0


def test_a_guest_neither_takes_anothers_ipv6_address_nor_locks_it_out(lab: Lab, two: Two) -> None:
    text = "allow out icmp6 type echo-request\nallow in icmp6 type echo-request\ndeny any\n"
    vm2, address = two.vms[1], "fd09::77"
    with (
        firewall(lab, two.middles[0], "f1", text) as first,
        firewall(lab, two.middles[1], "f2", text) as second,
    ):
        until(lambda: (two.announce(), "fd09::/64" in second.status()["identity"].get("prefixes", ""))[1]
              and "fd09::/64" in first.status()["identity"].get("prefixes", ""), "the prefix")  # fmt: skip
        vm2.addr("eth0", f"{address}/64", detect=True)
        until(lambda: address in owned(second), "the second's claim")
        until(reach(vm2, address), "the network")
        for _ in range(3):  # it says that it has it, whatever others say
            for made in two.solicit, two.advert, two.ask:
                two.hostile.send(made(address))
            time.sleep(0.3)
        until(lambda: first.drops().get("spoofed-nd", 0) >= 6, "the refusals")
        time.sleep(2.0)  # a claim that nobody objects to is good after half of that
        two.hostile.send(two.advert(address))
        until(lambda: first.drops().get("spoofed-nd", 0) >= 7, "the refusal")
        assert address not in owned(first)
        assert address in owned(second)
        found = two.switch.run("ip", "-6", "neigh", "show", "dev", "br0").stdout
        assert [line for line in found.splitlines() if address in line and MACS[1] in line], found
        assert reach(vm2, address)()
        # One frame of an unguarded machine on the link does not lock the VM out either
        forged = Ether(src=two.switch.mac("br0"), dst="33:33:00:00:00:01")
        forged = forged / IPv6(src=address, dst="ff02::1", hlim=255) / ICMPv6ND_NA(tgt=address, O=1)
        two.wire.send(forged)
        time.sleep(2.5)
        assert address in owned(second)
        assert reach(vm2, address)()


def test_a_guest_locks_no_other_out_of_an_address_that_it_begins_to_use(lab: Lab, two: Two) -> None:
    """The hostile VM answers each duplicate address detection of the other, as if it had it."""
    text = "allow out icmp6 type echo-request\ndeny any\n"
    vm2, address = two.vms[1], "fd09::78"
    with (
        firewall(lab, two.middles[0], "f1", text) as first,
        firewall(lab, two.middles[1], "f2", text) as second,
    ):
        until(lambda: (two.announce(), "fd09::/64" in second.status()["identity"].get("prefixes", ""))[1]
              and "fd09::/64" in first.status()["identity"].get("prefixes", ""), "the prefix")  # fmt: skip
        two.hostile.read()
        vm2.addr("eth0", f"{address}/64", detect=True)
        target = socket.inet_pton(socket.AF_INET6, address)
        until(lambda: any(target in frame for frame in two.hostile.read()), "what the hostile VM hears")
        for made in two.solicit, two.advert, two.solicit:
            two.hostile.send(made(address))
        until(lambda: first.drops().get("spoofed-nd", 0) >= 3, "the refusals")
        until(lambda: address in owned(second), "the second's claim")
        until(reach(vm2, address), "the network")
        assert "dadfailed" not in vm2.run("ip", "-6", "addr", "show", "dev", "eth0").stdout
