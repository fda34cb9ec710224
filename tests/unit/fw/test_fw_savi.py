"""Whose an IPv6 address is: of who uses it first, and is there (RFC 6620)."""

from dataclasses import dataclass, field

import pytest
from fw import PEER6, PEER_MAC, VM6, VM_MAC, policy
from fw_guest import LOCAL6, advert, announced, claims, neighbour, segment, settle, solicit

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet import address, nd
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.savi import (  # fmt: skip
    CLAIMS_MAX,
    OTHERS_MAX,
    OTHERS_S,
    PREFIXES_MAX,
    TENTATIVE_MAX,
    TESTED_S,
)
from vtl_tools.services.fw.stage import Firewall

STRANGER = address.mac("52:54:00:00:00:09")


@pytest.fixture
def guest():
    """A VM of which nothing is known."""
    return Identity()


@pytest.fixture
def routed(guest):
    """The same, where a router has announced its prefix."""
    guest.observe(announced(), 0.0)
    return guest


def has(vm, octets, now):
    return vm.refuse(segment(octets, PEER6), now) == ""


def test_ipv6_addresses_are_of_the_link_or_of_a_prefix_that_a_router_announced(guest):
    far = address.ip("2001:db8:bad::1")
    assert claims(guest, LOCAL6)
    assert not claims(guest, VM6)
    guest.observe(announced(), 0.0)
    assert claims(guest, VM6)
    assert not claims(guest, far)
    assert not claims(guest, VM6[:-1] + b"\7", 601.0)
    guest.observe(announced(valid=0xFFFFFFFF), 602.0)
    assert claims(guest, VM6[:-1] + b"\7", 1e9)
    guest.observe(announced(valid=0), 1e9)
    assert not claims(guest, VM6[:-1] + b"\x08", 1e9)
    assert has(guest, VM6, 1e9)  # what it had, it has


@pytest.mark.parametrize(
    "frame",
    [
        announced(bits=0), announced(bits=31), announced(bits=129), announced(flags=0x3F),
        announced(src=PEER6), announced(mac=VM_MAC), announced()[:-8],
    ],
    ids=["all", "most", "too long", "of no use here", "from afar", "the VM's own", "cut off"],
)  # fmt: skip
def test_what_announces_no_prefix_of_the_link_is_not_believed(guest, frame):
    guest.refuse(segment(VM6, PEER6), 0.0)
    guest.observe(frame, 0.0)
    assert guest.bindings.prefixes == {}


def test_prefixes_are_bounded(guest):
    for number in range(PREFIXES_MAX + 5):
        guest.observe(announced(f"2001:db8:{number:x}::"), 0.0)
    assert len(guest.bindings.prefixes) == PREFIXES_MAX


def test_an_address_is_the_vms_once_nobody_objects(routed):
    assert routed.refuse(solicit(VM6), 0.0) == ""
    assert not has(routed, VM6, 0.1)
    assert routed.refuse(advert(VM6), 0.1) == "spoofed-nd"
    sent = settle(routed, 0.0)
    assert has(routed, VM6, 1.0)
    assert len(sent) == 3
    for port, frame in sent:
        pkt = Packet.at(bytearray(frame))
        assert (port, pkt.eth.src, pkt.nd.type, pkt.nd.target) == (1, VM_MAC, nd.NEIGHBOR_SOLICIT, VM6)
        assert (pkt.ip.src, pkt.ip.dst) == (bytes(16), address.solicited_node(VM6))
        assert pkt.eth.dst == address.multicast_mac(pkt.ip.dst)
        assert pkt.verify()


def test_to_have_the_service_ask_what_the_rules_do_not_let_the_vm_ask():
    """The guest chooses the address that is asked for: octets of its choice would leave past the rules."""
    sent: list[bytes] = []
    stages = [
        Firewall(policy(rules), identity=Identity())
        for rules in ("deny icmp6 type 135\ndeny any", "deny any")
    ]
    asked = []
    for stage in stages:
        stage.out[1] = lambda batch, now: sent.extend(bytes(frame) for frame in batch)
        stage.out_pieces[1] = None
        stage.on_batch(0, Batch.of([solicit(LOCAL6)]), 0.0)
        stage.settle(0.0)
        asked.append(len(sent))
    assert asked[0] == 0 < asked[1]


def test_the_network_is_asked_whatever_the_vm_sends(routed):
    """A claim that only pretends to go to the network is none: its own question may be for nobody."""
    lost = neighbour(nd.NEIGHBOR_SOLICIT, bytes(16), VM6, None, dst=address.ALL_ROUTERS)
    assert routed.refuse(lost, 0.0) == ""
    routed.observe(advert(VM6, PEER_MAC), 0.1)
    settle(routed, 0.1)
    assert not has(routed, VM6, 1.0)


def test_an_address_in_use_before_the_service_was_there_is_soon_the_vms(routed):
    asked = neighbour(nd.NEIGHBOR_SOLICIT, VM6, PEER6)
    assert routed.refuse(asked, 0.0) == "spoofed-nd"
    assert not has(routed, VM6, 0.1)
    settle(routed, 0.0)
    assert routed.refuse(asked, 1.0) == ""
    assert has(routed, VM6, 1.0)


@pytest.mark.parametrize(
    "objection",
    [advert(VM6, PEER_MAC), solicit(VM6, PEER_MAC),
     neighbour(nd.NEIGHBOR_SOLICIT, VM6, PEER6, PEER_MAC, mac=PEER_MAC)],
    ids=["defends it", "claims it as well", "uses it"],
)  # fmt: skip
@pytest.mark.parametrize("early", [True, False])
def test_an_address_that_the_network_uses_is_not_the_vms(routed, objection, early):
    if early:
        routed.observe(objection, 0.0)
        assert routed.refuse(solicit(VM6), 0.1) == "spoofed-nd"
        assert routed.transmit() == []
    else:
        assert routed.refuse(solicit(VM6), 0.0) == ""
        routed.observe(objection, 0.1)
    settle(routed, 0.1)
    assert not has(routed, VM6, 1.0)
    assert claims(routed, VM6, OTHERS_S + 1)  # for good, if nobody says so again


def test_what_objects_badly_does_not_object(routed):
    afar, wrong = advert(VM6, PEER_MAC), advert(VM6, PEER_MAC)
    Packet.at(afar).ip.ttl = 254
    wrong[-1] ^= 1
    assert routed.refuse(solicit(VM6), 0.0) == ""
    for frame in afar, wrong, advert(VM6):
        routed.observe(frame, 0.1)
    settle(routed, 0.1)
    assert has(routed, VM6, 1.0)


def test_one_frame_of_a_stranger_locks_nobody_out(routed):
    assert claims(routed, VM6)
    routed.observe(advert(VM6, PEER_MAC), 10.0)
    assert has(routed, VM6, 10.0)
    ((port, frame),) = routed.transmit()
    asked = Packet.at(bytearray(frame))
    assert (port, asked.nd.target, asked.eth.src) == (0, VM6, PEER_MAC)
    assert routed.refuse(advert(VM6), 10.1) == ""
    settle(routed, 10.1, 5.0)
    assert has(routed, VM6, 20.0)


def test_an_address_that_the_vm_does_not_defend_is_the_networks(routed):
    assert claims(routed, VM6)
    routed.observe(solicit(VM6, PEER_MAC), 10.0)
    assert len(settle(routed, 10.0, 5.0)) == 3
    assert not has(routed, VM6, 20.0)
    assert routed.refuse(solicit(VM6), 12.0) == "spoofed-nd"


def test_a_vm_is_not_asked_for_each_frame_of_a_flood(routed):
    assert claims(routed, VM6)
    for _ in range(100):
        routed.observe(advert(VM6, PEER_MAC), 10.0)
    assert len(routed.transmit()) == 1
    assert routed.refuse(advert(VM6), 10.0) == ""
    routed.observe(advert(VM6, PEER_MAC), 10.0 + TESTED_S / 2)
    assert routed.transmit() == []
    routed.observe(advert(VM6, PEER_MAC), 10.0 + TESTED_S)
    assert len(routed.transmit()) == 1


def test_an_address_of_another_ethernet_address_is_anothers(guest):
    """It can be told before the other is there, and taken."""
    assert not claims(guest, address.link_local(PEER_MAC))
    assert claims(guest, LOCAL6)


def test_a_claim_in_a_vlan_is_asked_for_there_as_well(routed):
    tagged = bytearray(solicit(VM6))
    tagged[22:22] = b"\x81\0\0\x07"
    assert routed.refuse(tagged, 0.0) == ""
    tags = [[tag.tci for tag in Packet.at(bytearray(frame)).vlans] for _, frame in routed.transmit()]
    assert tags == [[], [7]]


def test_claims_are_bounded(routed):
    for number in range(CLAIMS_MAX + 1):
        assert claims(routed, VM6[:-1] + bytes((number,)), float(number))
    assert len(routed.bindings.valid) == CLAIMS_MAX
    assert not has(routed, VM6[:-1] + b"\0", 99.0)
    asked = [routed.refuse(solicit(VM6[:-1] + bytes((100 + n,))), 99.0) for n in range(TENTATIVE_MAX + 1)]
    assert asked == [""] * TENTATIVE_MAX + ["spoofed-nd"]
    for number in range(OTHERS_MAX + 100):
        routed.observe(advert(VM6[:-2] + number.to_bytes(2, "big"), PEER_MAC), 99.0)
    assert len(routed.bindings.others) == OTHERS_MAX


# --- two VMs, a service each, one switch


@dataclass
class Station:
    """A VM that does as it likes, behind a service of its own."""

    mac: bytes
    stage: Firewall = field(default_factory=lambda: Firewall(policy("allow any"), identity=Identity()))
    heard: list[bytes] = field(default_factory=list)
    defends: set[bytes] = field(default_factory=set)


class Switch:
    """Stations, time, and a router that announces a prefix."""

    def __init__(self, *macs):
        self.now = 0.0
        self.stations = [Station(mac) for mac in macs]
        for station in self.stations:
            station.stage.out[0] = lambda batch, _, to=station: self.arrive(to, batch)
            station.stage.out[1] = lambda batch, _, by=station: self.flood(by, batch)
        self.say(None, announced(mac=STRANGER))

    def arrive(self, station, batch):
        """A stack answers what asks for an address that it has."""
        for frame in [bytearray(frame) for frame in batch]:
            station.heard.append(bytes(frame))
            message = Packet.at(frame).nd
            if isinstance(message, nd.NeighborSolicit) and message.target in station.defends:
                self.say(station, advert(message.target, station.mac))

    def flood(self, sender, batch):
        for frame in [bytes(frame) for frame in batch]:
            for station in self.stations:
                if station is not sender:
                    station.stage.on_batch(1, Batch.of([frame]), self.now)
        self.settle()

    def settle(self):
        for station in self.stations:
            station.stage.settle(self.now)

    def say(self, sender, *frames):
        """sender: a station; None: whoever else is at the switch."""
        for frame in frames:
            if sender is None:
                self.flood(None, Batch.of([frame]))
            else:
                sender.stage.on_batch(0, Batch.of([frame]), self.now)
                self.settle()

    def wait(self, seconds):
        end = self.now + seconds
        while (due := min(s.stage.deadline() or end for s in self.stations)) < end:
            self.now = max(self.now, due)
            for station in self.stations:
                station.stage.wake(self.now)
            self.settle()
        self.now = end

    def has(self, station, octets):
        """Say whether the others hear what comes from an address."""
        others = [other for other in self.stations if other is not station]
        frame = segment(octets, PEER6, src_mac=station.mac, dst_mac=others[0].mac)
        before = [other.heard.count(bytes(frame)) for other in others]
        self.say(station, frame)
        return [other.heard.count(bytes(frame)) for other in others] > before

    def begin(self, station, octets):
        """A stack begins to use an address."""
        self.say(station, solicit(octets, station.mac))
        station.defends.add(octets)
        self.wait(1.0)


@pytest.fixture
def switch():
    return Switch(VM_MAC, PEER_MAC)


def test_a_vm_does_not_take_anothers_address(switch):
    hostile, victim = switch.stations
    switch.begin(victim, VM6)
    assert switch.has(victim, VM6)
    for _ in range(50):
        switch.say(hostile, solicit(VM6), advert(VM6), neighbour(nd.NEIGHBOR_SOLICIT, VM6, PEER6))
        switch.wait(1.0)
        assert not switch.has(hostile, VM6)
        assert switch.has(victim, VM6)
    told = [frame for frame in victim.heard if frame[16:22] == VM_MAC and frame != bytes(solicit(VM6))]
    assert all(Packet.at(bytearray(frame)).nd.type == nd.NEIGHBOR_SOLICIT for frame in told)


def test_a_vm_locks_no_other_out_of_an_address(switch):
    """Neither by answering its detection of duplicates, nor by the same question."""
    hostile, victim = switch.stations
    switch.say(victim, solicit(VM6, victim.mac))
    before = len(victim.heard)
    switch.say(hostile, solicit(VM6), advert(VM6), neighbour(nd.NEIGHBOR_SOLICIT, VM6, PEER6), solicit(VM6))
    assert victim.heard[before:] == []
    victim.defends.add(VM6)
    switch.wait(1.0)
    assert switch.has(victim, VM6)
    assert not switch.has(hostile, VM6)


def test_who_comes_first_keeps_an_address(switch):
    first, second = switch.stations
    switch.begin(first, VM6)
    switch.say(second, solicit(VM6, second.mac))
    switch.wait(1.0)
    assert switch.has(first, VM6)
    assert not switch.has(second, VM6)


def test_an_address_that_is_left_is_free(switch):
    first, second = switch.stations
    switch.begin(first, VM6)
    first.defends.clear()
    switch.wait(OTHERS_S)
    switch.begin(second, VM6)
    switch.wait(5.0)
    assert switch.has(second, VM6)
    assert not switch.has(first, VM6)


def test_a_stranger_at_the_switch_locks_nobody_out_by_a_frame(switch):
    victim = switch.stations[1]
    switch.begin(victim, VM6)
    for made in advert, solicit:
        switch.say(None, made(VM6, STRANGER))
        switch.wait(6.0)
        assert switch.has(victim, VM6)
