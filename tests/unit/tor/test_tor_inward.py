"""Ways by which a guest would reach this host, or its network, from a proxy that is not Tor."""

from ipaddress import ip_address

import pytest

from tests.unit.tor.test_tor_hostile import GATEWAY_MAC, GUEST_MAC, Bench, query, syn
from vtl_tools.common.guest_net.dns import Mode, Resolver
from vtl_tools.common.guest_net.lookups import Lookup
from vtl_tools.common.packet import build
from vtl_tools.common.packet.address import ip
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import SYN
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.socks import Command, Resolved

GUEST6 = ip("fd76:746c:0:1::15")
NXDOMAIN, NOERROR = 3, 0

ADDRESSES = [
    "10.0.0.1", "10.0.2.2", "100.64.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.254", "192.168.0.1",
    "127.0.0.1", "127.1.2.3", "0.0.0.0", "0.0.0.1", "192.0.0.8", "192.88.99.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255", "198.18.7.7",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:192.168.0.1", "::ffff:9.9.9.9",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::0.0.0.0",
    "64:ff9b:1::7f00:1", "64:ff9b:1:2::10.0.0.1",
    "2002:7f00:1::", "2002:7f00:1::1", "2002:c0a8:1::1", "2002:a9fe:a9fe::1",
    "2001::1", "2001:0:7f00:1::", "2001:0:4136:e378:8000:63bf:80ff:fffe", "2001:10::1", "2001:2::1",
    "fc00::1", "fd00::1", "fd76:746c:0:1::1", "fd76:746c:0:2::77", "fe80::1", "fec0::1", "ff02::1", "100::1",
    "5f00::1", "4000::1", "e000::1",
]  # fmt: skip

NAMES = [
    "localhost", "a.localhost", "localhost.localdomain", "localhost6", "localhost6.localdomain6",
    "ip6-localhost", "ip6-loopback", "wpad", "wpad.local", "printer.local", "host.docker.internal",
    "metadata.google.internal", "router.home.arpa", "nas.lan", "nas.home", "dc.corp", "x.intranet",
    "x.private",
    "127.0.0.1", "127.1", "127", "0", "0x7f.1", "0x7f000001", "0177.0.0.1", "017700000001", "2130706433",
    "10.0.0.1", "1.2.3.0x4", "www.0x7f", "www.1", "a.test", "a.invalid", "a.alt", "site.exit",
    "site.noconnect",
    "1.0.0.127.in-addr.arpa", "[::1]", "::1", "fe80::1%eth0",
]  # fmt: skip


@pytest.fixture(params=["map", "resolve"])
def bench(request, tmp_path):
    bench = Bench(tmp_path, dns=request.param)
    yield bench
    bench.close()


def asked(bench):
    """What the proxy is asked for, once all that was said has been looked at."""
    for _ in range(5):
        bench.turn(0.01)
        for key, _ in bench.selector.select(0):
            key.data()
    found = [request.target for request in bench.proxy.asked]
    bench.proxy.asked.clear()
    return found


def question(name):
    """The message of a query."""
    return bytes(Packet.at(bytearray(bytes(VNET) + query(name))).udp.payload)


def call(dst, sport):
    if len(dst) == 4:
        return syn(sport, dst)
    return bytes(
        build.tcp(
            src_mac=GUEST_MAC, dst_mac=GATEWAY_MAC, src=GUEST6, dst=dst, sport=sport, dport=80, seq=1,
            flags=SYN,
        )[VNET:]
    )  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_this_host_or_its_network_by_an_address(bench, address):
    bench.push([call(ip(address), 4000)])
    assert asked(bench) == []
    assert not bench.stage.relay.flows


@pytest.mark.parametrize(
    "address", ["9.9.9.9", "203.0.113.80", "2620:fe::9", "64:ff9b::9.9.9.9", "2002:909:909::1", "2a00::1"]
)
def test_the_world_is_reached(bench, address):
    bench.push([call(ip(address), 4000)])
    assert asked(bench) == [address.replace("::9.9.9.9", "::909:909")]


@pytest.mark.parametrize("name", NAMES)
def test_this_host_or_its_network_by_a_name(bench, name):
    """The name gets no address that stands for it, and nobody is asked for it."""
    bench.push([query(name)])
    assert asked(bench) == []
    (answer,) = bench.answers()
    found, count = answer[3] & 15, int.from_bytes(answer[6:8], "big")
    if count:
        assert "localhost" in name
        assert answer[-4:] == bytes((127, 0, 0, 1)), "the guest's own"
    else:
        assert found in (NXDOMAIN, NOERROR)
    assert len(bench.stage.resolver.names) == 0


@pytest.mark.parametrize(
    "address", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fd00::1", "64:ff9b::7f00:1"]
)
def test_a_host_of_somebodys_network_by_a_name_in_the_world_that_resolves_to_it(address):
    """As in DNS rebinding."""
    resolver = Resolver(Mode.RESOLVE)
    octets = bytearray(question("www.evil.example"))
    if ":" in address:
        octets[-3] = 28
    asked = resolver.ask(bytes(octets), 1, 0.0)
    assert asked.lookups == (Lookup(Command.RESOLVE, "www.evil.example"),)
    ((_, reply),) = resolver.resolved(asked.lookups[0], Resolved(ip(address)), 0.0)
    assert reply[3] & 15 == NOERROR
    assert int.from_bytes(reply[6:8], "big") == 0


@pytest.mark.parametrize("text", ["64:ff9b::10.0.0.1", "2002:a00:1::1", "10.0.0.1", "fd00::1", "9.9.9.9"])
def test_the_name_of_a_host_of_somebodys_network(text):
    octets = bytearray(question(ip_address(text).reverse_pointer))
    octets[-3] = 12
    asked = Resolver(Mode.MAP).ask(bytes(octets), 1, 0.0)
    assert bool(asked.lookups) is (text == "9.9.9.9")


@pytest.mark.parametrize(("onions", "wanted"), [(True, 1), (False, 0)])
def test_an_onion_services_name_is_told_to_tor_only(tmp_path, onions, wanted):
    bench = Bench(tmp_path, dns="map", onions=onions)
    bench.push([query("a" * 56 + ".onion")])
    (answer,) = bench.answers()
    assert int.from_bytes(answer[6:8], "big") == wanted
    assert answer[3] & 15 == (NOERROR if wanted else NXDOMAIN)
    bench.close()
