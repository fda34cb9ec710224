"""Conversations of a guest with its neighbours, who are all us."""

from itertools import pairwise

import pytest

from tests.unit.guest_net.guest import IP, LINK_LOCAL, MAC, NOBODY4, NOBODY6, OTHER, Guest, said
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.neighbours import ADVERTISE_S, INITIAL_S, KNOWN_MAX, NeighbourResponder
from vtl_tools.common.packet import address, arp, build, nd
from vtl_tools.common.packet.packet import Packet

ANYBODY4 = pytest.mark.parametrize("whom", ["10.0.2.2", "10.0.2.99", "192.0.2.1"])
ANYBODY6 = pytest.mark.parametrize("whom", ["fe80::74:76ff:fe6c:1", "fd76:746c:0:1::1", "2001:db8::5"])


@pytest.fixture
def neighbours(network):
    return NeighbourResponder(network, 0.0)


@ANYBODY4
def test_any_neighbour_is_at_our_address(neighbours, guest, network, whom):
    reply = said(neighbours.answer(guest.arp(address.ip(whom)), 0.0))
    assert (reply.eth.src, reply.eth.dst) == (network.mac, MAC)
    assert (reply.arp.oper, reply.arp.sha, reply.arp.spa) == (arp.REPLY, network.mac, address.ip(whom))
    assert (reply.arp.tha, reply.arp.tpa) == (MAC, IP)


def test_our_address_is_one_stations_and_locally_administered(network):
    assert network.mac[0] & 3 == 2


def test_the_answer_is_behind_the_same_tags(neighbours, network):
    reply = said(neighbours.answer(Guest(network, vlan=(100, 7)).arp(network.gateway), 0.0))
    assert [tag.vid for tag in reply.vlans] == [100, 7]


def test_a_question_of_the_cache_to_us_alone_is_answered(neighbours, guest, network):
    assert neighbours.answer(guest.arp(network.gateway, dst=network.mac), 0.0)


def test_a_guest_keeps_its_ipv4_address(neighbours, guest, network):
    assert neighbours.answer(guest.arp(IP, sender=NOBODY4), 0.0) is None, "a probe (RFC 5227)"
    assert neighbours.answer(guest.arp(IP), 0.0) is None, "an announcement"
    assert neighbours.answer(guest.arp(network.gateway, sender=NOBODY4), 0.0) is None, "even for ours"
    second = Guest(network, OTHER)
    assert neighbours.answer(second.arp(IP, sender=address.ip("10.0.2.16")), 0.0) is None, "it answers itself"
    assert neighbours.mac_of(IP) == MAC


@pytest.mark.parametrize(
    "pkt",
    [
        lambda guest: guest.arp(address.ip("10.0.2.2"), oper=arp.REPLY),
        lambda guest: guest.arp(address.ip("10.0.2.2"), dst=OTHER),
        lambda guest: guest.arp(address.ip("10.0.2.2"), sha=OTHER),
        lambda guest: guest.arp(address.ip("224.0.0.1")),
        lambda guest: guest.arp(address.ip("0.0.0.0")),
        lambda guest: guest.arp(address.ip("127.0.0.1")),
        lambda guest: guest.arp(address.ip("255.255.255.255")),
        lambda guest: guest.solicit(address.ip("fe80::1"), src=NOBODY6),
        lambda guest: guest.solicit(address.ip("ff02::1"), dst=address.ip("fe80::1")),
        lambda guest: guest.solicit(address.ip("::1")),
    ],
    ids=["reply", "to-another", "not-its-own", "group", "zero", "loop", "all", "dad", "group6", "loop6"],
)  # fmt: skip
def test_what_calls_for_no_answer_gets_none(neighbours, guest, pkt):
    assert neighbours.answer(pkt(guest), 0.0) is None


def test_our_own_frames_come_back_and_are_not_answered(neighbours, network):
    assert neighbours.answer(Guest(network, network.mac).arp(network.gateway), 0.0) is None
    assert neighbours.answer(Guest(network, b"\x01\0\0\0\0\1").arp(network.gateway), 0.0) is None


@ANYBODY6
def test_any_ipv6_neighbour_is_at_our_address(neighbours, guest, network, whom):
    reply = said(neighbours.answer(guest.solicit(address.ip(whom)), 0.0))
    assert (reply.eth.src, reply.eth.dst) == (network.mac, MAC)
    assert (reply.ipv6.src, reply.ipv6.dst, reply.ipv6.hop_limit) == (address.ip(whom), LINK_LOCAL, 255)
    assert (reply.nd.target, reply.nd.target_lladdr) == (address.ip(whom), network.mac)
    assert (reply.nd.solicited, reply.nd.router) == (1, int(address.ip(whom) == network.link_local))


def test_a_guest_keeps_its_ipv6_address(neighbours, guest, network):
    assert neighbours.answer(guest.solicit(LINK_LOCAL, src=NOBODY6), 0.0) is None
    second = Guest(network, OTHER)
    asked = second.solicit(LINK_LOCAL, src=address.link_local(OTHER))
    assert neighbours.answer(asked, 0.0) is None, "it answers itself"
    assert neighbours.mac_of(LINK_LOCAL) == MAC


@pytest.mark.parametrize("field", ["hop_limit", "code", "checksum"])
def test_a_solicitation_that_was_forwarded_or_damaged_is_not_answered(neighbours, guest, network, field):
    for pkt in guest.solicit(network.link_local), guest.router_solicit():
        if field == "hop_limit":
            pkt.ipv6.hop_limit = 254
        elif field == "code":
            pkt.nd.code = 1
        else:
            pkt.nd.checksum ^= 1
        assert neighbours.answer(pkt, 0.0) is None


def test_a_router_solicitation_is_answered_to_its_sender(neighbours, guest, network):
    reply = said(neighbours.answer(guest.router_solicit(), 0.0))
    assert (reply.eth.src, reply.eth.dst) == (network.mac, MAC)
    assert (reply.ipv6.src, reply.ipv6.dst, reply.ipv6.hop_limit) == (network.link_local, LINK_LOCAL, 255)
    router = reply.nd
    assert isinstance(router, nd.RouterAdvert)
    assert (router.router_lifetime, router.cur_hop_limit, router.managed, router.other) == (1800, 64, 0, 0)
    assert router.mtu_option == 1500
    assert router.source_lladdr == network.mac
    assert router.prefixes == [(network.prefix.network_address.packed, 64, 0xC0, 86400, 14400)]
    assert router.option(nd.RDNSS) == bytes(2) + (1800).to_bytes(4, "big") + network.dns6


def test_a_router_tells_all_name_servers_and_the_search_list():
    network = GuestAddresses(name_servers=2, search=("lab.example",))
    router = said(NeighbourResponder(network, 0.0).answer(Guest(network).router_solicit(), 0.0)).nd
    lifetime = bytes(2) + (1800).to_bytes(4, "big")
    assert router.option(nd.RDNSS) == lifetime + b"".join(network.dns_servers6)
    assert router.option(nd.DNSSL) == lifetime + b"\3lab\7example\0" + bytes(3)  # RFC 8106 section 5.2


def test_who_has_no_address_yet_hears_the_router_with_all_others(neighbours, guest):
    reply = said(neighbours.answer(guest.router_solicit(src=NOBODY6), 0.0))
    assert (reply.eth.dst, reply.ipv6.dst) == (b"\x33\x33\0\0\0\1", address.ALL_NODES)
    told = build.nd_option(nd.SOURCE_LLADDR, MAC)
    assert neighbours.answer(guest.router_solicit(src=NOBODY6, options=told), 0.0) is None


def test_without_a_prefix_there_is_no_router(guest):
    neighbours = NeighbourResponder(GuestAddresses(prefix=None), 0.0)
    assert neighbours.answer(guest.router_solicit(), 0.0) is None
    assert neighbours.deadline() is None
    assert neighbours.wake(1e9) is None


def test_the_router_says_unasked_that_it_is_there_more_often_at_first(neighbours):
    heard, now = [], 0.0
    for _ in range(5):
        now = neighbours.deadline()
        assert neighbours.wake(now - 0.1) is None
        assert said(neighbours.wake(now)).ipv6.dst == address.ALL_NODES
        heard.append(now)
    steps = [later - earlier for earlier, later in pairwise(heard)]
    assert heard[0] == 0.0
    assert steps == [INITIAL_S, INITIAL_S, ADVERTISE_S, ADVERTISE_S]


def test_who_claims_our_address_takes_no_router_from_others(neighbours, guest, network):
    for ours in network.gateway, network.dns:
        assert neighbours.answer(guest.arp(ours, sender=ours), 0.0) is None
        assert neighbours.answer(guest.arp(ours), 0.0)
    assert neighbours.answer(guest.solicit(network.link_local, src=NOBODY6), 0.0) is None
    assert neighbours.answer(guest.solicit(network.link_local), 0.0)


def test_what_is_remembered_is_bounded_and_the_latest_stay(neighbours, guest):
    for number in range(2 * KNOWN_MAX):
        neighbours.answer(guest.arp(IP, sender=bytes((10, 1)) + number.to_bytes(2, "big")), 0.0)
    known = [n for n in range(2 * KNOWN_MAX) if neighbours.mac_of(bytes((10, 1)) + n.to_bytes(2, "big"))]
    assert known == list(range(KNOWN_MAX, 2 * KNOWN_MAX))


def test_a_broken_packet_is_malformed(neighbours, guest, network):
    with pytest.raises(Malformed):
        neighbours.answer(Packet.at(guest.arp(network.gateway).buf[:40]), 0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"mac": b"\x01\0\0\0\0\0"},
        {"mac": bytes(6)},
        {"gateway": address.ip("10.0.3.1")},
        {"dns": address.ip("10.0.2.255")},
        {"mtu": 1000},
    ],
    ids=str,
)
def test_a_network_that_does_not_belong_together_is_refused(wrong):
    with pytest.raises(ValueError):
        GuestAddresses(**wrong)
