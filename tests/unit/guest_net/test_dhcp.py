"""Conversations of DHCP clients with the server (RFC 2131)."""

from ipaddress import IPv4Network

import pytest

from tests.unit.guest_net.guest import IP, MAC, NOBODY4, OTHER, Guest, said
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dhcp_wire as wire
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.dhcp import LEASE_S, DHCPServer
from vtl_tools.common.guest_net.leases import DECLINE_S, OFFER_S
from vtl_tools.common.guest_net.neighbours import NeighbourResponder
from vtl_tools.common.packet import address

EVERYBODY = b"\xff" * 4
FOREIGN = address.ip("192.168.1.5")


@pytest.fixture
def server(network):
    return DHCPServer(network)


def reply(frame):
    """The message in an answer."""
    pkt = said(frame)
    assert (pkt.udp.sport, pkt.udp.dport) == (67, 68)
    message = wire.DHCPMessage.at(pkt.payload)
    assert message.op == wire.BOOTREPLY
    return message


def lease(server, guest, now=0.0):
    """The four messages; return the address."""
    offer = reply(server.answer(guest.dhcp(wire.DISCOVER), now))
    assert offer.kind == wire.OFFER
    chosen = guest.dhcp(wire.REQUEST, requested_address=offer.yiaddr, server_id=offer.options[wire.SERVER_ID])
    ack = reply(server.answer(chosen, now))
    assert (ack.kind, ack.yiaddr) == (wire.ACK, offer.yiaddr)
    return ack.yiaddr


def many(network, count):
    return [Guest(network, b"\x02\xff" + number.to_bytes(4, "big")) for number in range(count)]


@pytest.fixture
def crowded(network):
    """A server with a pool of four addresses, and that many guests in it."""
    ours = address.ip("10.0.9.1")
    server = DHCPServer(
        GuestAddresses(subnet=IPv4Network("10.0.9.0/29"), gateway=ours, dns=address.ip("10.0.9.6"))
    )
    guests = many(network, 4)
    for number, guest in enumerate(guests):
        lease(server, guest, float(number))
    return server, guests


def test_an_offer_says_all_that_a_guest_needs(server, guest, network):
    pkt = said(server.answer(guest.dhcp(wire.DISCOVER, xid=99), 0.0))
    assert (pkt.eth.src, pkt.eth.dst) == (network.mac, MAC)
    offer = wire.DHCPMessage.at(pkt.payload)
    assert pkt.ip.dst == offer.yiaddr
    assert pkt.ip.src == network.gateway
    assert (offer.xid, offer.chaddr, offer.ciaddr) == (99, MAC, NOBODY4)
    assert offer.options == {
        wire.MESSAGE_TYPE: bytes((wire.OFFER,)),
        wire.SERVER_ID: network.gateway,
        wire.LEASE_TIME: LEASE_S.to_bytes(4, "big"),
        wire.RENEWAL_TIME: (LEASE_S // 2).to_bytes(4, "big"),
        wire.REBINDING_TIME: (LEASE_S * 7 // 8).to_bytes(4, "big"),
        wire.SUBNET_MASK: address.ip("255.255.255.0"),
        wire.ROUTER: network.gateway,
        wire.DNS: network.dns,
        wire.INTERFACE_MTU: (1500).to_bytes(2, "big"),
    }
    assert len(pkt.payload) >= wire.SIZE_MIN


def test_a_guest_learns_all_name_servers_and_the_search_list():
    network = GuestAddresses(name_servers=3, search=("lab.example", "example.org"))
    offer = reply(DHCPServer(network).answer(Guest(network).dhcp(wire.DISCOVER), 0.0))
    assert offer.options[wire.DNS] == b"".join(map(address.ip, ("10.0.2.2", "10.0.2.3", "10.0.2.4")))
    assert offer.options[wire.DOMAIN_NAME] == b"lab.example"
    assert offer.options[wire.DOMAIN_SEARCH] == b"\3lab\7example\0\7example\3org\0"  # RFC 3397 section 2
    with pytest.raises(ValueError, match="no room for 9 name servers"):
        GuestAddresses.of_subnet(IPv4Network("10.0.9.0/29"), name_servers=9)


def test_who_cannot_take_unicast_hears_a_broadcast(server, guest):
    pkt = said(server.answer(guest.dhcp(wire.DISCOVER, flags=wire.BROADCAST), 0.0))
    assert (pkt.eth.dst, pkt.ip.dst) == (address.BROADCAST, EVERYBODY)
    assert wire.DHCPMessage.at(pkt.payload).flags == wire.BROADCAST


def test_a_guest_gets_the_same_address_again_and_another_one_another(server, guest, network):
    first = lease(server, guest)
    assert lease(server, Guest(network, OTHER)) != first
    assert lease(server, guest, 10.0) == first
    assert lease(server, guest, 1e6) == first, "long after it had expired"
    assert lease(DHCPServer(network), guest) == first, "after a restart"


def test_a_guest_gets_the_address_that_it_would_like(server, guest, network):
    wanted = address.ip("10.0.2.77")
    assert reply(server.answer(guest.dhcp(wire.DISCOVER, requested_address=wanted), 0.0)).yiaddr == wanted
    second = Guest(network, OTHER).dhcp(wire.DISCOVER, requested_address=wanted)
    assert reply(server.answer(second, 0.0)).yiaddr != wanted
    for never in network.gateway, network.dns, FOREIGN, address.ip("10.0.2.255"):
        third = Guest(network, b"\x02\0\0\0\0\x09").dhcp(wire.DISCOVER, requested_address=never)
        assert reply(server.answer(third, 0.0)).yiaddr != never


@pytest.mark.parametrize("unicast", [True, False], ids=["renewing", "rebinding"])
def test_a_lease_is_renewed(server, guest, network, unicast):
    mine = lease(server, guest)
    dst = network.gateway if unicast else EVERYBODY
    pkt = said(server.answer(guest.dhcp(wire.REQUEST, src=mine, ciaddr=mine, dst=dst), LEASE_S / 2))
    ack = reply(bytearray(pkt.buf))
    assert (ack.kind, ack.yiaddr, ack.ciaddr) == (wire.ACK, mine, mine)
    assert (pkt.ip.dst, pkt.eth.dst) == (mine, MAC)
    second = Guest(network, OTHER)
    taken = second.dhcp(wire.REQUEST, requested_address=mine)
    assert reply(server.answer(taken, LEASE_S * 1.4)).kind == wire.NAK, "renewed until 1.5 leases"
    assert reply(server.answer(taken, LEASE_S * 1.6)).kind == wire.ACK


def test_after_a_reboot_a_guest_gets_what_it_remembers(server, guest):
    ack = reply(server.answer(guest.dhcp(wire.REQUEST, requested_address=IP), 0.0))
    assert (ack.kind, ack.yiaddr) == (wire.ACK, IP)


def test_a_guest_from_another_network_is_told_so_by_broadcast(server, guest):
    for asked in (
        guest.dhcp(wire.REQUEST, requested_address=FOREIGN),
        guest.dhcp(wire.REQUEST, src=FOREIGN, ciaddr=FOREIGN, dst=address.ip("192.168.1.1")),
    ):
        pkt = said(server.answer(asked, 0.0))
        assert (pkt.eth.dst, pkt.ip.dst) == (address.BROADCAST, EVERYBODY)
        nak = wire.DHCPMessage.at(pkt.payload)
        assert (nak.kind, nak.yiaddr, nak.ciaddr) == (wire.NAK, NOBODY4, NOBODY4)
        assert set(nak.options) == {wire.MESSAGE_TYPE, wire.SERVER_ID, wire.MESSAGE}


def test_an_address_that_somebody_was_given_by_hand_is_not_offered(network, guest):
    neighbours = NeighbourResponder(network, 0.0)
    server = DHCPServer(network, mac_of=neighbours.mac_of)
    first = reply(server.answer(guest.dhcp(wire.DISCOVER), 0.0)).yiaddr
    server, by_hand = DHCPServer(network, mac_of=neighbours.mac_of), Guest(network, OTHER)
    neighbours.answer(by_hand.arp(first, sender=first), 0.0)
    for wanted in {}, {"requested_address": first}:
        assert reply(server.answer(guest.dhcp(wire.DISCOVER, **wanted), 0.0)).yiaddr != first
    asked = by_hand.dhcp(wire.DISCOVER, requested_address=first)
    assert reply(server.answer(asked, 0.0)).yiaddr == first, "it is its own"


def test_who_claims_all_addresses_keeps_nobody_from_getting_one(network, guest):
    server = DHCPServer(network, mac_of=lambda octets: OTHER)
    lease(server, guest)


def test_who_chose_another_server_frees_what_we_offered(server, guest, network):
    offered = reply(server.answer(guest.dhcp(wire.DISCOVER, requested_address=IP), 0.0)).yiaddr
    other = guest.dhcp(wire.REQUEST, requested_address=FOREIGN, server_id=address.ip("192.168.1.1"))
    assert server.answer(other, 0.0) is None
    second = Guest(network, OTHER).dhcp(wire.DISCOVER, requested_address=offered)
    assert reply(server.answer(second, 0.0)).yiaddr == offered


def test_a_released_address_is_free_and_still_ones_own_if_nobody_took_it(server, guest, network):
    mine = lease(server, guest)
    gone = guest.dhcp(wire.RELEASE, src=mine, ciaddr=mine, dst=network.gateway, server_id=network.gateway)
    assert server.answer(gone, 1.0) is None
    assert lease(server, guest, 2.0) == mine
    assert server.answer(gone, 3.0) is None
    second = Guest(network, OTHER).dhcp(wire.DISCOVER, requested_address=mine)
    assert reply(server.answer(second, 4.0)).yiaddr == mine
    assert lease(server, guest, 5.0) != mine


def test_nobody_releases_or_declines_anothers_address(server, guest, network):
    mine, second = lease(server, guest), Guest(network, OTHER)
    for kind in wire.RELEASE, wire.DECLINE:
        assert server.answer(second.dhcp(kind, ciaddr=mine, requested_address=mine), 1.0) is None
    assert reply(server.answer(second.dhcp(wire.REQUEST, requested_address=mine), 2.0)).kind == wire.NAK


def test_an_address_that_was_found_in_use_rests(server, guest, network):
    mine = lease(server, guest)
    declined = guest.dhcp(wire.DECLINE, requested_address=mine, server_id=network.gateway)
    assert server.answer(declined, 0.0) is None
    assert lease(server, guest, 1.0) != mine
    again = guest.dhcp(wire.REQUEST, requested_address=mine)
    assert reply(server.answer(again, DECLINE_S - 1)).kind == wire.NAK
    assert reply(server.answer(again, DECLINE_S + 1)).kind == wire.ACK


def test_a_guest_with_an_address_of_its_own_is_told_the_rest(server, guest, network):
    pkt = said(server.answer(guest.dhcp(wire.INFORM, src=IP, ciaddr=IP), 0.0))
    assert (pkt.ip.dst, pkt.eth.dst) == (IP, MAC)
    ack = wire.DHCPMessage.at(pkt.payload)
    assert (ack.kind, ack.yiaddr, ack.options[wire.DNS]) == (wire.ACK, NOBODY4, network.dns)
    assert wire.LEASE_TIME not in ack.options
    assert len(server.leases) == 0
    assert server.answer(guest.dhcp(wire.INFORM), 0.0) is None, "where should it go?"


def test_an_identifier_comes_back(server, guest):
    offer = reply(server.answer(guest.dhcp(wire.DISCOVER, client_id=b"\xffidentifier"), 0.0))
    assert offer.options[wire.CLIENT_ID] == b"\xffidentifier"


def test_a_crowd_finds_room_as_leases_end(crowded, network):
    server, guests = crowded
    late = Guest(network, OTHER)
    mine = [server.leases.address_of(guest.mac) for guest in guests]
    assert len(set(mine)) == 4
    assert lease(server, late, LEASE_S + 1.5) == mine[0], "the first expired"
    refused = guests[0].dhcp(wire.REQUEST, src=mine[0], ciaddr=mine[0])
    assert reply(server.answer(refused, LEASE_S + 1.6)).kind == wire.NAK


def test_a_million_stations_cost_no_memory_and_do_not_shut_the_real_one_out(crowded, network, guest):
    server, guests = crowded
    real = server.leases.address_of(guests[3].mac)
    for attacker in many(network, 3000)[10:]:
        server.answer(attacker.dhcp(wire.DISCOVER), 10.0)
    assert len(server.leases) == 4
    renewed = guests[3].dhcp(wire.REQUEST, src=real, ciaddr=real)
    assert reply(server.answer(renewed, 11.0)).kind == wire.ACK, "who has a lease keeps it"
    for attacker in many(network, 500)[10:]:
        lease(server, attacker, 12.0)
    assert len(server.leases) == 4
    lease(server, guest, 12.0)


def test_an_offer_is_taken_by_who_requests_it_first(server, guest, network):
    offered = reply(server.answer(guest.dhcp(wire.DISCOVER), 0.0)).yiaddr
    second = Guest(network, OTHER)
    assert reply(server.answer(second.dhcp(wire.REQUEST, requested_address=offered), 0.0)).kind == wire.ACK
    assert reply(server.answer(guest.dhcp(wire.REQUEST, requested_address=offered), 0.0)).kind == wire.NAK


def test_an_offer_that_nobody_takes_ends(server, guest, network):
    offered = reply(server.answer(guest.dhcp(wire.DISCOVER), 0.0)).yiaddr
    second = Guest(network, OTHER).dhcp(wire.DISCOVER, requested_address=offered)
    assert reply(server.answer(second, 1.0)).yiaddr != offered
    third = Guest(network, b"\x02\0\0\0\0\x09").dhcp(wire.DISCOVER, requested_address=offered)
    assert reply(server.answer(third, OFFER_S + 1)).yiaddr == offered


def test_the_answer_is_behind_the_same_tags(server, network):
    pkt = said(server.answer(Guest(network, vlan=9).dhcp(wire.DISCOVER), 0.0))
    assert [tag.vid for tag in pkt.vlans] == [9]


def test_what_is_not_for_a_server_is_not_answered(server, guest):
    for kind in 0, wire.OFFER, wire.ACK, wire.NAK, 9, 255:
        assert server.answer(guest.dhcp(kind), 0.0) is None
    assert server.answer(guest.dhcp(wire.REQUEST), 0.0) is None, "a request of nothing"
    ours = wire.DHCPMessage(wire.BOOTREPLY, 7, MAC, options={wire.MESSAGE_TYPE: b"\1"})
    assert server.answer(guest.datagram(ours.encode()), 0.0) is None
    damaged = guest.dhcp(wire.DISCOVER)
    damaged.udp.checksum ^= 1
    assert server.answer(damaged, 0.0) is None
    bootp = wire.DHCPMessage(wire.BOOTREQUEST, 7, MAC)
    assert server.answer(guest.datagram(bootp.encode()), 0.0) is None
    assert len(server.leases) == 0


def overloaded(which, file=b"", sname=b"", options=b""):
    head = wire.DHCPMessage(wire.BOOTREQUEST, 7, MAC).encode()[:44]
    return (
        head + sname.ljust(64, b"\0") + file.ljust(128, b"\0") + wire.COOKIE + bytes((52, 1, which)) + options
    )


def test_options_may_be_in_the_fields_for_names(server, guest):
    discover, wanted = b"\x35\1\1\xff", b"\x32\4" + IP + b"\xff"
    both = guest.datagram(overloaded(3, discover, wanted, b"\xff"))
    assert reply(server.answer(both, 0.0)).yiaddr == IP
    unread = guest.datagram(overloaded(2, discover, wanted, b"\xff"))
    assert server.answer(unread, 0.0) is None, "the type is where nobody looks"


def test_an_option_in_parts_is_put_together(server, guest):
    parts = b"\x35\1\1\x32\2" + IP[:2] + b"\0\0\x32\2" + IP[2:]
    assert reply(server.answer(guest.datagram(overloaded(0, options=parts)), 0.0)).yiaddr == IP


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        overloaded(0)[:239],
        overloaded(0).replace(wire.COOKIE, b"abcd"),
        overloaded(4, options=b"\x35\1\1"),
        overloaded(0, options=b"\x35\1\1\x52"),
        overloaded(0, options=b"\x35\1\1\x52\5abcd"),
        overloaded(1, file=b"\0" * 126 + b"\x52\1", options=b"\x35\1\1"),
        overloaded(0, options=b"\x35\1\1\x32\3abc"),
        b"\1\6" + overloaded(0)[2:],
        b"\1\1\7" + overloaded(0)[3:],
        overloaded(0)[:28] + b"\1" + overloaded(0)[29:],
        overloaded(0)[:28] + bytes(6) + overloaded(0)[34:],
    ],
    ids=[
        "empty", "short", "cookie", "overload", "no-length", "past-the-end", "past-the-field", "no-address",
        "not-ethernet", "hlen", "group", "no-mac",
    ],
)  # fmt: skip
def test_a_broken_message_is_malformed(server, guest, payload):
    with pytest.raises(Malformed):
        server.answer(guest.datagram(payload), 0.0)
