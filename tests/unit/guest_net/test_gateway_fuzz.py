"""Foreign frames, and messages in sound frames: nothing but Malformed, and answers that are sound and few."""

from contextlib import suppress
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.guest_net.guest import IP, LINK_LOCAL, NOBODY6, OTHER, Guest
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dhcp_wire as wire
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.dhcp import DHCPServer
from vtl_tools.common.guest_net.dns_stream import DNSFramer
from vtl_tools.common.guest_net.leases import LeaseTable
from vtl_tools.common.guest_net.neighbours import KNOWN_MAX, NeighbourResponder
from vtl_tools.common.packet import address, build, nd
from vtl_tools.common.packet.packet import Packet

CHUNK = 20_000
NETWORK = GuestAddresses()
EXAMPLES = settings(deadline=None, derandomize=True)
POOL = [bytes((10, 0, 2, n)) for n in range(3)]


def damage(rng, octets):
    """Change a few octets, or cut some off."""
    octets = bytearray(octets)
    for _ in range(rng.randrange(1, 5)):
        octets[rng.randrange(len(octets))] = rng.choice((0, 1, 4, 255, rng.randrange(256)))
    return octets[: rng.randrange(len(octets) + 1)] if rng.random() < 0.1 else octets


def frames():
    guest, told = Guest(NETWORK), build.nd_option(nd.SOURCE_LLADDR, OTHER)
    packets = [
        guest.arp(NETWORK.gateway),
        guest.solicit(NETWORK.link_local),
        guest.solicit(LINK_LOCAL, src=NOBODY6),
        guest.router_solicit(options=told),
        guest.dhcp(wire.DISCOVER, requested_address=IP, client_id=b"\1abc"),
        guest.dhcp(wire.REQUEST, ciaddr=IP, src=IP),
        guest.dhcp(wire.INFORM, ciaddr=IP, src=IP),
        guest.dhcp(wire.DECLINE, requested_address=IP),
    ]
    return [bytes(pkt.buf) for pkt in packets]


def check(answer):
    """One sound frame of ours at most, that fits the link."""
    if answer is not None:
        pkt = Packet.at(answer)
        assert pkt.eth.src == NETWORK.mac
        assert pkt.verify()
        assert len(answer) < 700


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_damaged_frames(seed):
    rng, seeds = Random(seed), frames()
    neighbours, server = NeighbourResponder(NETWORK, 0.0), DHCPServer(NETWORK)
    for turn in range(CHUNK):
        frame = damage(rng, rng.choice(seeds))
        with suppress(Malformed):
            pkt = Packet.at(frame)
            if rng.random() < 0.9:  # else nearly all would fail for their checksums
                pkt.compute_ip_checksum()
                pkt.compute_transport_checksum()
            check(neighbours.answer(pkt, float(turn)))
            check(server.answer(pkt, float(turn)))
    assert len(neighbours._known) <= KNOWN_MAX
    assert len(server.leases) <= 256


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_damaged_messages_in_sound_frames(seed):
    rng, guest, server = Random(seed), Guest(NETWORK), DHCPServer(NETWORK)
    seeds = [bytes(Packet.at(bytearray(frame)).payload) for frame in frames()[4:]]
    for turn in range(CHUNK):
        message = damage(rng, rng.choice(seeds))
        if rng.random() < 0.5:
            message = message[:240] + rng.randbytes(rng.randrange(20)) + message[240:]
        with suppress(Malformed):
            check(server.answer(guest.datagram(message), float(turn)))


@EXAMPLES
@given(st.binary(max_size=600))
def test_foreign_octets_are_a_message_or_malformed(data):
    for octets in data, b"\1\1\6".ljust(28, b"\0") + b"\x02" * 6 + bytes(202) + wire.COOKIE + data:
        with suppress(Malformed):
            message = wire.DHCPMessage.at(octets)
            for option in message.options:
                with suppress(Malformed):
                    assert len(message.address(option)) == 4


@EXAMPLES
@given(st.lists(st.binary(max_size=40)))
def test_a_stream_keeps_no_more_than_a_message(pieces):
    stream, fed, taken = DNSFramer(), 0, 0
    with suppress(Malformed):
        for piece in pieces:
            fed += len(piece)
            taken += sum(2 + len(message) for message in stream.receive(piece))
            assert fed - taken <= 4098


ACTIONS = st.tuples(
    st.sampled_from(["offer", "bind", "release", "decline"]),
    st.integers(0, 5),
    st.integers(0, 3),
    st.floats(0, 100),
)


@EXAMPLES
@given(st.lists(ACTIONS, max_size=60))
def test_no_address_is_two_clients(actions):
    """Whatever is asked: an address has one client, and no other while that is bound and one is left."""
    leases, now, bound = LeaseTable(POOL), 0.0, {}
    for action, client, number, later in actions:
        now += later
        mac, place = bytes((2, 0, 0, 0, 0, client)), (*POOL, address.ip("10.0.2.99"))[number]
        bound = {who: (where, until) for who, (where, until) in bound.items() if until > now}
        if action == "offer":
            full = len(bound.keys() - {mac}) == len(POOL)
            given_ = leases.offer(mac, place, now)
            assert given_ in POOL
            for who in [who for who, (where, _) in bound.items() if where == given_ and who != mac]:
                assert full
                del bound[who]
        elif action == "bind" and leases.bind(mac, place, now + 200, now):
            assert not [who for who, (where, _) in bound.items() if where == place and who != mac]
            bound[mac] = place, now + 200
        elif action == "release":
            leases.release(mac, place, now)
            if bound.get(mac, (None,))[0] == place:
                del bound[mac]
        elif action == "decline":
            leases.decline(mac, place, now)
            if bound.get(mac, (None,))[0] == place:
                del bound[mac]
        for who, (where, _) in bound.items():
            assert leases.address_of(who) == where
        assert len(leases) <= len(POOL)
