"""What others on the direct link try: forged, recorded and broken messages, spoofed packets, floods."""

import ipaddress
from contextlib import suppress
from random import Random

import pytest
from figure6 import ALLOW, DEFAULT, DIRECT, FROM_VM, World
from hypothesis import given, settings
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build, nd, vnet
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.subnet.message import ADDRESSES_MAX, GROUP, MessageKind, SubnetMessage
from vtl_tools.services.subnet.path_cache import WAYS_MAX
from vtl_tools.services.subnet.peers import NEWCOMERS_PER_S, QUIET_S
from vtl_tools.services.subnet.table import PEERS_MAX

EVE = address.mac("52:54:00:00:00:ee")
KEY, OTHER_KEY = b"a key of the operator", b"a key of somebody else"


def announce(mac, *addresses, key=None, mtu=1500):
    return SubnetMessage(MessageKind.ANNOUNCE, mac, mtu, tuple(map(address.ip, addresses))).frame(GROUP, key)


@pytest.fixture
def up(world):
    """The world once the shortcut is up."""
    world.chat(3.0)
    return world


# --- messages as octets


@given(st.data())
def test_a_message_is_read_as_it_was_written(data):
    hosts = st.one_of(st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16)).filter(
        lambda octets: address.is_single_host(octets) and not address.is_link_local(octets)
    )
    kind, mtu = data.draw(st.sampled_from(MessageKind)), data.draw(st.integers(68, 65535))
    addresses = tuple(data.draw(st.lists(hosts, max_size=ADDRESSES_MAX)))
    nonce, accepts = data.draw(st.binary(min_size=8, max_size=8)), data.draw(st.integers(0, 65535))
    said = SubnetMessage(kind, EVE, mtu, addresses, nonce, accepts, data.draw(st.booleans()))
    key = data.draw(st.sampled_from([None, KEY]))
    packet = data.draw(st.integers(0, 2000))
    frame = said.frame(GROUP, key, packet)
    assert SubnetMessage.at(frame, key) == said
    assert len(frame) >= vnet.VNET + 14 + packet
    if key is not None:
        assert SubnetMessage.at(frame) == said  # who has no key believes all
        with pytest.raises(Malformed, match="tag"):
            SubnetMessage.at(frame, OTHER_KEY)


@settings(max_examples=500)
@given(st.binary(max_size=120), st.booleans(), st.sampled_from([None, KEY]))
def test_foreign_octets_are_a_message_or_malformed(octets, is_headed, key):
    head = bytes.fromhex("56544c5301") if is_headed else b""
    with suppress(Malformed):
        SubnetMessage.at(vnet.NONE + GROUP + EVE + b"\x88\xb5" + head + octets, key)


@given(st.integers(0, 200), st.integers(0, 7))
def test_no_bit_of_an_authenticated_message_can_be_changed(at, bit):
    frame = bytearray(announce(EVE, "10.2.0.5", "fd02::5", key=KEY))
    place = vnet.VNET + at % (len(frame) - vnet.VNET)
    frame[place] ^= 1 << bit
    with pytest.raises(Malformed):
        SubnetMessage.at(frame, KEY)


def test_no_cut_message_is_read():
    for key in None, KEY:
        frame = announce(EVE, "10.2.0.5", "fd02::5", key=key)
        for size in range(len(frame)):
            with pytest.raises(Malformed):
                SubnetMessage.at(frame[:size], key)


@pytest.mark.parametrize(
    "wrong", ["224.0.0.1", "127.0.0.1", "0.0.0.0", "169.254.1.1", "fe80::1", "::1", "ff02::1"]
)
def test_no_such_address_is_claimed(wrong):
    with pytest.raises(Malformed):
        SubnetMessage.at(announce(EVE, wrong))


def test_a_message_in_the_name_of_another_mac_is_malformed():
    frame = bytearray(announce(EVE, "10.2.0.5"))
    frame[vnet.VNET + 11] ^= 1
    with pytest.raises(Malformed, match="mac"):
        SubnetMessage.at(frame)


@pytest.mark.parametrize("seed", range(10))
def test_damaged_traffic_raises_nothing(world, seed):
    one, other = world
    world.chat(1.0, every=0.1)
    samples = [*world.heard[-20:], bytes(one.packet(other)), bytes(one.packet(other, v6=True)), *one.long]
    rng = Random(seed)
    for _ in range(300):
        frame = bytearray(rng.choice(samples))
        for _ in range(rng.randrange(4)):
            frame[rng.randrange(vnet.VNET, min(len(frame), 100))] = rng.randrange(256)
        one.push(rng.choice((FROM_VM, DEFAULT, DIRECT)), bytes(frame[: rng.randrange(len(frame) + 1)]), frame)
        world.run(0.01)


# --- packets that are no peer's


def test_only_what_comes_from_a_peer_and_is_its_own_reaches_the_vm(up):
    one, other = up
    one.got.clear()
    before = dict(one.stage.drops)
    good = {"src_mac": other.mac, "dst_mac": one.mac, "src": other.ip, "dst": one.ip, "ttl": 63}
    for changed, why in (
        ({}, None),
        ({"src_mac": EVE}, "unknown-peer"),
        ({"src": address.ip("10.2.0.6")}, "unknown-peer"),
        ({"src": address.ip("192.0.2.1")}, "not-allowed"),
        ({"dst": address.ip("10.1.0.6")}, "not-vms-address"),
        ({"dst_mac": b"\xff" * 6}, "not-for-vm"),
        ({"dst_mac": EVE}, "not-for-vm"),
        ({"ttl": 255}, "no-hop"),
    ):
        one.push(DIRECT, build.udp(**{**good, **changed}, sport=1, dport=2))
        now = dict(one.stage.drops)
        assert {k: n - before.get(k, 0) for k, n in now.items() if n != before.get(k, 0)} == (
            {why: 1} if why else {}
        )
        before = now
    assert len(one.took()) == 1


def test_neighbour_discovery_and_arp_have_no_way_to_the_vm(up):
    one, other = up
    one.got.clear()
    advert = build.neighbor_advert(
        src_mac=other.mac, dst_mac=one.mac, src=other.ip6, dst=one.ip6, target=other.ip6, lladdr=EVE
    )
    request = build.arp(src_mac=other.mac, dst_mac=one.mac, sha=other.mac, spa=other.ip, tpa=one.ip)
    ends = {"src_mac": other.mac, "dst_mac": one.mac, "src": address.link_local(other.mac), "dst": one.ip6}
    router = build.nd_message(**ends, kind=nd.ROUTER_ADVERT, body=bytes(12))
    one.push(DIRECT, advert, request, router)
    assert one.got == one.told == []
    assert one.stage.drops["neighbours"] == 3


def test_a_peer_that_stopped_answering_is_no_peer(up):
    one, other = up
    other.crash()
    up.run(20.0)
    one.push(
        DIRECT, build.udp(src_mac=other.mac, dst_mac=one.mac, src=other.ip, dst=one.ip, sport=1, dport=2)
    )
    assert one.took() == []


@pytest.mark.parametrize("how", ["packet", "arp", "message"])
def test_who_speaks_in_the_vms_own_name_silences_us(up, how):
    one, other = up
    said = {
        "packet": build.udp(src_mac=one.mac, dst_mac=EVE, src=one.ip, dst=other.ip, sport=1, dport=2),
        "arp": build.arp(src_mac=one.mac, dst_mac=b"\xff" * 6, sha=one.mac, spa=one.ip, tpa=one.ip),
        "message": announce(one.mac, "10.3.0.5"),
    }
    one.push(DIRECT, said[how])
    assert one.state(other) == "holding"
    one.direct.clear()
    assert set("".join(up.chat(QUIET_S - 1.0, every=0.2))) <= {"l", "s"}
    assert one.direct == []
    up.chat(25.0, every=0.2)
    assert one.state(other) == "up"


# --- claims


def test_who_only_announces_gets_nothing(world):
    one, other = world
    other.crash()
    for _ in range(100):
        one.push(DIRECT, announce(EVE, "10.2.0.5"))
        one.send(other)
        world.run(0.1)
    assert {e["state"] for _, e in one.events} <= {"probing", "holding", "candidate"}
    assert all(frame[vnet.VNET + 12 : vnet.VNET + 14] == b"\x88\xb5" for frame in one.direct)


def test_an_address_that_is_in_use_is_not_taken_over(up):
    one, other = up
    for _ in range(50):
        one.push(DIRECT, announce(EVE, "10.2.0.5", "10.1.0.5"))
        up.chat(0.1)
    assert one.state(other) == "up"
    assert one.stage.status(up.now)["spared"]["conflicts"] == 50
    assert one.peers.table.shortcuts[other.ip].peer.mac == other.mac
    assert one.ip not in one.peers.table.shortcuts  # nor is our own


def test_when_the_first_falls_silent_another_may_claim(up):
    one, other = up
    other.crash()
    for _ in range(100):
        one.push(DIRECT, announce(EVE, "10.2.0.5"))
        one.send(other)
        up.run(0.2)
    assert one.peers.table.shortcuts[other.ip].peer.mac == EVE


def test_without_the_key_nobody_is_believed():
    world = World(2, key=KEY)
    world.talk()
    one, other = world
    for key in None, OTHER_KEY:
        one.push(DIRECT, announce(EVE, "10.2.0.5", key=key))
    assert one.stage.drops == {"unauthenticated": 2}
    world.chat(3.0)
    assert one.state(other) == "up"
    other.restart(key=OTHER_KEY)
    world.talk()
    world.chat(5.0)
    assert "up" not in (one.state(other), other.state(one))


@pytest.mark.parametrize("key", [None, KEY], ids=["no-key", "key"])
@pytest.mark.parametrize("given", [(), ("10.1.0.5/32",)], ids=["learned", "given"])
def test_to_have_anothers_address_announced_by_an_accomplice_on_the_vms_network(key, given):
    """The VM sends from the victim's address, and a second station delivers a packet to it that is for it."""
    world = World(2, key=key)
    one, other = world
    victims = address.ip("10.66.0.1"), address.ip("fd66::1")
    one.restart(key=key, networks=list(map(ipaddress.ip_network, given)))
    world.talk()
    for _ in range(3):
        for victim, v6 in zip(victims, (False, True), strict=True):
            one.send(other, v6=v6, src=victim)
            accomplice = {"src_mac": EVE, "dst_mac": one.mac, "dst": victim}
            one.push(DEFAULT, other.packet(one, v6=v6, **accomplice))
        world.run(3.0)
    announced = {octets for frame in one.direct if (said := read(frame)) for octets in said.addresses}
    if key is not None:
        assert one.ip in announced
        assert not announced & set(victims)
    else:  # nobody vouches for anything; what is given is kept to all the same
        assert (victims[0] in announced) is not bool(given)


def read(frame):
    with suppress(Malformed):
        return SubnetMessage.at(frame)


def test_to_have_the_vms_addresses_forgotten_by_deliveries_that_are_not_for_it(world):
    one, other = world
    for number in range(1000):
        dst = b"\x0a\x63" + number.to_bytes(2, "big")
        one.push(DEFAULT, other.packet(one, src_mac=EVE, dst_mac=one.mac, dst=dst))
    assert one.stage.vm.addresses == (one.ip,)


def test_to_send_the_vm_a_redirect_in_the_name_of_its_router(up):
    one, other = up
    one.got.clear()
    one.told.clear()
    ends = {"src_mac": other.mac, "dst_mac": one.mac, "src": other.ip, "dst": one.ip, "ttl": 63}
    packet = build.udp(**ends, sport=1, dport=2, payload=bytes(40))
    at = vnet.VNET + 14
    packet[at + 9], packet[at + 20], packet[at + 21] = 1, 5, 1
    pkt = Packet.at(packet)
    pkt.compute_ip_checksum()
    one.push(DIRECT, packet)
    assert one.got == one.told == []
    assert one.stage.drops["options"] == 1
    packet[at + 7] = 185  # what looks like one is data, 1,480 octets into a packet
    Packet.at(packet).compute_ip_checksum()
    one.push(DIRECT, packet)
    assert len(one.got) == 1


def test_recorded_messages_bring_nothing_up_and_nothing_down():
    world = World(2, key=KEY)
    world.talk()
    world.chat(3.0)
    one, other = world
    other.stage.on_stop(world.now)
    recorded = [frame for frame in other.direct if frame[vnet.VNET + 12 : vnet.VNET + 14] == b"\x88\xb5"]
    other.crash()
    world.run(30.0)
    assert one.state(other) is None
    one.events.clear()
    for frame in recorded * 3:
        one.push(DIRECT, frame)
        one.send(other)
        world.run(0.05)
    assert "up" not in {e["state"] for _, e in one.events}
    assert one.stage.drops["unasked-reply"] > 0
    other.restart(key=KEY)
    world.talk()
    world.chat(15.0)
    assert one.state(other) == "up"
    for frame in recorded:
        one.push(DIRECT, frame)
        world.chat(0.05)
    assert one.state(other) == "up"
    assert one.stage.drops["unasked-bye"] == 4


# --- floods


def test_a_flood_of_announcements_takes_no_place_from_peers(up):
    one, other = up
    rng = Random(1)
    for _ in range(300):
        for _ in range(10):
            mac = b"\x52" + rng.randbytes(5)
            one.push(
                DIRECT,
                announce(mac, *(f"10.{rng.randrange(3, 250)}.{n}.{rng.randrange(256)}" for n in range(16))),
            )
        up.chat(0.1)
    table = one.peers.table
    assert one.state(other) == "up"
    assert len(table.peers) <= PEERS_MAX
    assert len(table.shortcuts) <= PEERS_MAX * ADDRESSES_MAX
    assert one.stage.drops["too-many"] >= 3000 - 31 * NEWCOMERS_PER_S
    up.run(30.0)
    assert len(table.peers) <= 1
    assert len(table.shortcuts) <= 1


def test_a_table_that_is_full_forgets_who_is_silent_for_longest(world):
    one, _ = world
    for number in range(PEERS_MAX + 100):
        mac = b"\x52\x99\x00\x00" + number.to_bytes(2, "big")
        one.push(DIRECT, announce(mac, f"10.9.{number >> 8}.{number & 255 or 1}"))
        world.now += 0.01
    table = one.peers.table
    assert len(table.peers) == PEERS_MAX
    assert table.process_at(mac) is not None
    assert table.process_at(b"\x52\x99\x00\x00\x00\x00") is None


def test_a_peer_claims_sixteen_addresses_at_most(world):
    one, _ = world
    for number in range(40):
        one.push(DIRECT, announce(EVE, f"10.9.0.{number + 1}"))
    assert len(one.peers.table.process_at(EVE).addresses) == ADDRESSES_MAX


def test_a_flood_of_arp_makes_no_more_candidates_than_there_is_room(world):
    one, other = world
    rng = Random(2)
    for number in range(5000):
        mac = b"\x52" + rng.randbytes(5)
        said = build.arp(
            src_mac=mac, dst_mac=b"\xff" * 6, sha=mac, spa=b"\x0a" + rng.randbytes(3), tpa=one.ip
        )
        one.push(DIRECT, said)
        if not number % 50:
            world.run(0.05)
    assert len(one.peers.table.peers) <= PEERS_MAX
    world.chat(3.0)
    assert one.state(other) == "up"


def test_a_vm_that_sends_from_and_to_everywhere_costs_bounded_memory(world):
    one, other = world
    rng = Random(3)
    for _ in range(200):
        frames = [one.packet(other, src=b"\x0a" + rng.randbytes(3), dst=rng.randbytes(4)) for _ in range(64)]
        one.push(FROM_VM, *frames)
    assert all(len(known) <= WAYS_MAX for known in one.stage._ways.known)
    assert one.stage.vm.addresses == (one.ip,) or one.stage.vm.addresses == ()
    world.chat(3.0)
    assert one.state(other) == "up"


# --- peers without a process


class Station:
    """A machine on the LAN with a kernel, and no vtl-subnet: answers ARP and neighbour solicitations."""

    def __init__(self, world, site, ip, mac=EVE):
        self.world, self.site, self.ip, self.mac, self.got = world, site, ip, mac, []
        world.stations[mac] = self

    def __call__(self, frame):
        pkt = Packet.at(bytearray(frame))
        if pkt.eth.dst != self.mac:
            return
        if pkt.arp is not None and pkt.arp.tpa == self.ip:
            ends = {"src_mac": self.mac, "dst_mac": pkt.eth.src}
            said = build.arp(**ends, oper=2, sha=self.mac, spa=self.ip, tha=pkt.arp.sha, tpa=pkt.arp.spa)
        elif pkt.nd is not None and pkt.nd.target == self.ip:
            ends = {"src_mac": self.mac, "dst_mac": pkt.eth.src, "src": self.ip, "dst": pkt.ip.src}
            said = build.neighbor_advert(**ends, target=self.ip, lladdr=self.mac)
        else:
            self.got.append(frame)
            return
        self.world.later(0.0001, self.site.push, DIRECT, bytes(said))


@pytest.mark.parametrize("text", ["10.7.0.1", "fd07::1"])
@pytest.mark.parametrize("is_given", [True, False])
def test_a_station_is_tried_by_arp_or_neighbour_solicitations(text, is_given):
    world = World(2)
    one, other = world
    ip, v6 = address.ip(text), ":" in text
    one.restart(allow=[] if is_given else ALLOW, given={ip: EVE} if is_given else {})
    world.talk(v6=v6)
    station = Station(world, one, ip)
    if not is_given:  # it speaks of something, to somebody
        word = build.udp(src_mac=EVE, dst_mac=b"\xff" * 6, src=ip, dst=ip, sport=1, dport=2)
        one.push(DIRECT, word)
    for _ in range(40):
        one.send(other, v6=v6, dst=ip)
        world.run(0.05)
    assert one.peers.table.shortcuts[ip].state.value == "up"
    assert one.peers.table.shortcuts[ip].peer.found.value == ("given" if is_given else "heard")
    assert len(station.got) > 15
    del world.stations[EVE]
    for _ in range(20):
        one.send(other, v6=v6, dst=ip)
        world.run(0.05)
    assert one.peers.table.shortcuts[ip].state.value == "holding"


def test_the_word_of_a_process_goes_before_what_is_overheard(world):
    one, other = world
    other.crash()
    world.run(60.0)
    assert one.state(other) is None
    said = build.arp(src_mac=EVE, dst_mac=b"\xff" * 6, sha=EVE, spa=other.ip, tpa=one.ip)
    one.push(DIRECT, said)
    assert one.peers.table.shortcuts[other.ip].peer.mac == EVE
    other.restart()
    world.talk()
    world.chat(3.0)
    assert one.state(other) == "up"
    one.push(DIRECT, said)
    assert one.peers.table.shortcuts[other.ip].peer.mac == other.mac


def test_what_was_given_is_there_again_when_its_process_has_gone():
    world = World(2)
    one, other = world
    one.restart(allow=[], given={other.ip: other.mac})
    world.talk()
    assert one.state(other) == "candidate"
    world.chat(3.0)
    assert one.peers.table.shortcuts[other.ip].peer.found.value == "announced"
    other.stage.on_stop(world.now)
    other.crash()
    world.run(0.1)
    assert one.peers.table.shortcuts[other.ip].peer.found.value == "given"


def test_with_a_key_what_is_overheard_is_not_used():
    world = World(2, key=KEY)
    world.talk()
    one, _ = world
    ip = address.ip("10.7.0.1")
    one.push(DIRECT, build.arp(src_mac=EVE, dst_mac=b"\xff" * 6, sha=EVE, spa=ip, tpa=one.ip))
    assert ip not in one.peers.table.shortcuts


def test_an_overheard_address_may_move(world):
    one, _ = world
    ip = address.ip("10.7.0.1")
    for mac in EVE, address.mac("52:54:00:00:00:ef"):
        one.push(DIRECT, build.arp(src_mac=mac, dst_mac=b"\xff" * 6, sha=mac, spa=ip, tpa=one.ip))
        assert one.peers.table.shortcuts[ip].peer.mac == mac
    assert len(one.peers.table.peers) == 2


def test_prefixes_of_one_version_allow_nothing_of_the_other():
    world = World(1)
    (one,) = world
    one.restart(allow=[ipaddress.ip_network("0.0.0.0/0")])
    assert one.peers.table.is_allowed(address.ip("192.0.2.1"))
    assert not one.peers.table.is_allowed(address.ip("::1.2.3.4"))
