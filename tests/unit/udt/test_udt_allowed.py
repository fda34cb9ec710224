"""The connections that a far module makes, and those that it refuses."""

import errno
from ipaddress import ip_network

import pytest

from vtl_tools.common.packet.address import ip
from vtl_tools.services.udt.allowed import AllowList, Prefixes, Refusal, Route
from vtl_tools.services.udt.transport.base import FlowOpening

OWN = {ip("10.2.0.1"), ip("192.0.2.9"), ip("fd02::1")}


def opening(destination, client="10.1.0.5", port=80, client_port=40000):
    return FlowOpening(ip(client), client_port, ip(destination), port)


def allow(*routes, clients=()):
    made = [Route(ip_network(net), None if router is None else ip(router)) for net, router in routes]
    return AllowList(made, [ip_network(net) for net in clients], OWN)


def test_any_neighbour_is_allowed_without_a_list():
    assert allow().refusal(opening("10.2.0.5")) is None
    assert allow().refusal(opening("fd02::5", client="fd01::5")) is None
    assert allow().next_hop(ip("10.2.0.5")) == ip("10.2.0.5")


@pytest.mark.parametrize(
    "destination",
    ["127.0.0.1", "169.254.1.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "240.0.0.1"],
)
def test_special_destinations_are_refused(destination):
    assert allow().refusal(opening(destination)) is Refusal.SPECIAL


@pytest.mark.parametrize("destination", ["::1", "fe80::1", "ff02::1", "::", "::ffff:10.2.0.5", "::10.2.0.5"])
def test_special_destinations_of_ipv6_are_refused(destination):
    assert allow().refusal(opening(destination, client="fd01::5")) is Refusal.SPECIAL


def test_addresses_of_the_host_are_refused_even_if_the_list_has_them():
    allowed = allow(("0.0.0.0/0", None), ("::/0", None))
    assert allowed.refusal(opening("192.0.2.9")) is Refusal.OWN
    assert allowed.refusal(opening("fd02::1", client="fd01::5")) is Refusal.OWN
    assert allowed.refusal(opening("192.0.2.10")) is None


@pytest.mark.parametrize(
    "destination", ["64:ff9b::192.0.2.9", "2002:c000:209::1", "fd02::5efe:192.0.2.9", "64:ff9b:1::192.0.2.9"]
)
def test_an_address_of_the_host_is_refused_within_another_address(destination):
    assert allow().refusal(opening(destination, client="fd01::5")) is Refusal.OWN


def test_every_destination_is_refused_while_the_kernel_cannot_tell_the_hosts_own():
    class Silent:
        def __contains__(self, octets):
            raise OSError(errno.EMFILE, "no descriptor is left")

    assert AllowList([], [], Silent()).refusal(opening("10.2.0.5")) is Refusal.CLIENT


def test_only_the_list_is_allowed_and_a_router_leads_to_its_prefix():
    allowed = allow(("10.2.0.0/16", None), ("10.3.0.0/16", "10.2.0.254"), ("10.3.7.0/24", None))
    assert allowed.refusal(opening("10.4.0.1")) is Refusal.NOT_ALLOWED
    assert allowed.refusal(opening("fd02::5", client="fd01::5")) is Refusal.NOT_ALLOWED
    assert allowed.refusal(opening("10.3.0.1")) is None
    assert allowed.next_hop(ip("10.3.0.1")) == ip("10.2.0.254")
    assert allowed.next_hop(ip("10.3.7.1")) == ip("10.3.7.1")  # by the longer prefix
    assert allowed.next_hop(ip("10.2.0.1")) == ip("10.2.0.1")


@pytest.mark.parametrize("client", ["127.0.0.1", "10.2.0.1", "10.2.0.5", "224.0.0.9", "169.254.0.1"])
def test_a_client_that_is_no_host_or_the_host_itself_or_the_destination_is_refused(client):
    assert allow().refusal(opening("10.2.0.5", client=client)) is Refusal.CLIENT


def test_only_clients_of_the_list_are_served():
    allowed = allow(clients=["10.1.0.0/16"])
    assert allowed.refusal(opening("10.2.0.5")) is None
    assert allowed.refusal(opening("10.2.0.5", client="10.9.0.1")) is Refusal.CLIENT
    assert allowed.refusal(opening("fd02::5", client="fd01::5")) is Refusal.CLIENT


def test_no_port_and_two_families_are_malformed():
    assert allow().refusal(opening("10.2.0.5", port=0)) is Refusal.MALFORMED
    assert allow().refusal(opening("10.2.0.5", client_port=0)) is Refusal.MALFORMED
    assert allow().refusal(opening("10.2.0.5", client="fd01::5")) is Refusal.MALFORMED


def test_the_longest_prefix_decides():
    prefixes = Prefixes(
        (ip_network(net), net) for net in ["0.0.0.0/0", "10.2.0.0/16", "10.2.3.4/32", "fd00::/8"]
    )
    assert prefixes.find(ip("10.2.3.4")) == "10.2.3.4/32"
    assert prefixes.find(ip("10.2.3.5")) == "10.2.0.0/16"
    assert prefixes.find(ip("10.3.0.0")) == "0.0.0.0/0"
    assert prefixes.find(ip("fd12::1")) == "fd00::/8"
    assert prefixes.find(ip("fe80::1")) is None
