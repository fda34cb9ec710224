"""Which destinations are open, and the socket addresses of these."""

from ipaddress import ip_network

import pytest

from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.packet import address
from vtl_tools.common.socks import Reason
from vtl_tools.services.split.destinations import Destinations, OpenedNetwork, SocketAddress


class Own(set[bytes]):
    version = 0


OWN = Own(map(address.ip, ("192.0.2.1", "2001:db8::1", "10.1.2.3")))
RESOLVER = ("192.0.2.53", 53)


def find(text: str, port: int = 80, *opened: str) -> SocketAddress | Reason:
    openings = []
    for each in opened:
        network, _, number = each.rpartition("@")
        openings.append(OpenedNetwork(ip_network(network), int(number)))
    found = Destinations(GuestAddresses(), OWN, lambda _: RESOLVER, openings)
    return found.find(address.ip(text), port)


def test_other_hosts_are_open_private_ones_included() -> None:
    assert find("198.51.100.7", 443) == ("198.51.100.7", 443)
    assert find("192.168.1.1") == ("192.168.1.1", 80)
    assert find("2001:db8::7") == ("2001:db8::7", 80, 0, 0)
    assert find("64:ff9b::c633:6407") == ("64:ff9b::c633:6407", 80, 0, 0)


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "0.0.0.0", "169.254.169.254", "224.0.0.1", "255.255.255.255", "192.0.2.1",
             "10.1.2.3", "::", "::1", "fe80::1", "ff02::1", "2001:db8::1"],
)  # fmt: skip
def test_loopback_link_local_groups_and_own_addresses_are_closed(text: str) -> None:
    assert find(text) is Reason.PROHIBITED


@pytest.mark.parametrize(
    "text",
    [
        *("::ffff:198.51.100.7", "::198.51.100.7"),  # a socket would take it for IPv4
        *("64:ff9b::192.0.2.1", "64:ff9b::127.0.0.1", "2002:c000:201::5", "2002:7f00:1::"),
        *("2001:0:1:2:3:4:3fff:fdfe", "2001:db8:5::5efe:10.1.2.3", "fd00::200:5efe:192.0.2.1"),
        *("64:ff9b:1::192.0.2.1", "64:ff9b:1:c000:2:100::", "64:ff9b:1:2:7f:0:100:0", "::ffff:0:192.0.2.1"),
    ],
)
def test_an_ipv4_address_within_an_ipv6_one_is_judged_as_well(text: str) -> None:
    assert find(text) is Reason.PROHIBITED


def test_an_opening_is_for_a_network_and_a_port() -> None:
    assert find("192.0.2.1", 22, "192.0.2.0/24@22") == ("192.0.2.1", 22)
    assert find("192.0.2.1", 23, "192.0.2.0/24@22") is Reason.PROHIBITED
    assert find("10.1.2.3", 22, "192.0.2.0/24@22") is Reason.PROHIBITED
    assert find("2001:db8::1", 9, "2001:db8::1/128@0") == ("2001:db8::1", 9, 0, 0)
    assert find("::ffff:192.0.2.1", 22, "192.0.2.0/24@22", "::/0@0") is Reason.PROHIBITED
    assert find("64:ff9b::192.0.2.1", 22, "192.0.2.0/24@22") == ("64:ff9b::c000:201", 22, 0, 0)


def test_the_router_stands_for_the_loopback_address_as_far_as_that_is_open() -> None:
    assert find("10.0.2.2", 80) is Reason.REFUSED
    assert find("10.0.2.2", 80, "127.0.0.1/32@80") == ("127.0.0.1", 80)
    assert find("10.0.2.2", 81, "127.0.0.1/32@80") is Reason.REFUSED
    assert find("fd76:746c:0:1::1", 80, "127.0.0.0/8@0") is Reason.REFUSED
    assert find("fd76:746c:0:1::1", 80, "::1/128@0") == ("::1", 80, 0, 0)


def test_queries_to_the_router_go_to_the_resolver() -> None:
    assert find("10.0.2.2", 53) == RESOLVER
    assert find("fd76:746c:0:1::1", 53) == RESOLVER
    assert find("10.0.2.3", 53) is Reason.HOST_UNREACHABLE
    nobody = Destinations(GuestAddresses(), OWN, lambda _: None)
    assert nobody.find(address.ip("10.0.2.2"), 53) is Reason.REFUSED


def test_each_name_server_address_stands_for_a_server_of_its_own() -> None:
    servers = [("192.0.2.53", 53), ("2001:db8::53", 53, 0, 0)]
    network = GuestAddresses(name_servers=3)
    found = Destinations(network, OWN, lambda number: servers[number] if number < 2 else None)
    for number, expected in enumerate((*servers, Reason.REFUSED)):
        for each in network.dns_servers[number], network.dns_servers6[number]:
            assert found.find(each, 53) == expected
            assert found.find(each, 80) is Reason.REFUSED


@pytest.mark.parametrize("text", ["10.0.2.77", "10.0.2.255", "10.0.2.0", "fd76:746c:0:1::77"])
def test_the_guests_own_network_has_nobody_else(text: str) -> None:
    assert find(text, 80, "0.0.0.0/0@0", "::/0@0") is Reason.HOST_UNREACHABLE
