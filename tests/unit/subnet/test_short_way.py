"""The way that packets take, in memory: found, tried in both directions, used, lost, won back."""

import ipaddress
from random import Random

import pytest
from figure6 import ALLOW, DEFAULT, DIRECT, FROM_VM, SHORT_S, World

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.subnet.message import GROUP
from vtl_tools.services.subnet.peer import Timing

NET2, HOST2 = ipaddress.ip_network("10.2.0.0/24"), ipaddress.ip_network("10.2.0.5/32")


def only_then(ways, first, second):
    """Whether all of `first` come before all of `second`, and there are some of both."""
    return {first, second} == set(ways) and ways == "".join(sorted(ways, key=(first + second).index))


# --- found


def test_two_vms_that_talk_soon_do_it_by_the_lan(world):
    one, other = world
    for way in world.chat(3.0):
        assert only_then(way, "l", "s")
        assert way.count("s") > 30
    assert one.state(other) == other.state(one) == "up"
    changes = [(e["state"], e["was"], e["reason"]) for name, e in one.events]
    assert changes == [("probing", "candidate", "wanted"), ("up", "probing", "answered")]


def test_both_versions_of_ip_share_what_was_tried(world):
    one, other = world
    world.talk(v6=True)
    world.chat(2.0)
    assert world.chat(1.0, v6=True) == ("s" * 20, "s" * 20)
    assert one.state(other, v6=True) == "up"


def test_nothing_is_changed_in_what_goes_the_default_way(world):
    one, other = world
    one.long.clear()
    frames = [one.packet(other, bytes(n)) for n in range(5)]
    one.push(FROM_VM, *frames)
    assert one.long == [bytes(frame) for frame in frames]


def test_what_comes_the_short_way_looks_as_if_it_came_from_the_gateway(world):
    one, other = world
    world.chat(2.0)
    one.send(other)
    world.run(0.01)
    assert other.took() == [(63, one.ip, other.gateway)]


def test_nobody_is_asked_for_whom_nobody_sends(world):
    one, other = world
    world.run(60.0)
    assert one.state(other) == "candidate"
    assert {frame[10:16] for frame in one.direct} == {GROUP}
    assert 10 <= len(one.direct) <= 16  # every four to six seconds


def test_a_shortcut_that_nobody_uses_is_given_up_and_comes_back(world):
    one, other = world
    world.chat(2.0)
    world.run(40.0)
    assert one.state(other) == "candidate"
    assert [e["reason"] for _, e in one.events][-1] == "idle"
    assert only_then(world.chat(2.0)[0], "l", "s")


def test_a_vm_is_told_apart_by_what_its_network_delivers_to_it():
    world = World(2)
    one, other = world
    one.send(other)
    world.run(20.0)
    assert one.stage.vm.addresses == ()  # nothing came for it yet
    assert one.direct == []
    other.send(one)
    world.run(1.0)
    assert one.stage.vm.addresses == (one.ip,)


def test_a_vm_that_claims_anothers_address_is_not_announced_with_it(world):
    one, other = world
    world.chat(2.0)
    world.run(1.0)
    for _ in range(50):
        one.send(other, src=address.ip("10.9.0.9"))
        world.run(0.2)
    assert one.stage.vm.addresses == (one.ip,)
    assert address.ip("10.9.0.9") not in other.peers.table.shortcuts
    assert {ttl for ttl, src, _ in other.took() if src != one.ip} == {
        62
    }  # nor do its packets take the short way


def test_the_networks_word_is_asked_for_again_each_hour():
    world = World(2, timing=Timing(probe_s=2.0, lost_s=7.0, setup_s=20.0))
    one, other = world
    world.talk()
    world.chat(20.0, every=1.0)
    ways = "".join(world.chat(30.0, every=5.0)[0] for _ in range(125))  # more than an hour
    assert ways.count("l") > 0
    assert ways.count("s") > 700
    assert one.state(other) == "up"


def test_who_disputes_an_address_on_the_vms_network_ends_its_shortcut(world):
    one, other = world
    world.chat(2.0)
    thief = address.mac("52:54:00:00:00:99")
    claim = build.arp(src_mac=thief, dst_mac=b"\xff" * 6, oper=2, sha=thief, spa=one.ip, tpa=one.ip)
    one.push(DEFAULT, claim)
    assert one.stage.vm.addresses == ()
    one.send(other)
    world.run(0.1)
    assert other.ways() == "l"


def test_given_addresses_are_not_learned():
    world = World(1)
    (one,) = world
    one.restart(mac=one.mac, networks=[ipaddress.ip_network("10.1.0.0/24")])
    world.run(1.0)
    assert one.stage.vm.addresses == ()
    for last in 5, 6:
        one.push(FROM_VM, one.packet(one, src=address.ip(f"10.{last}.0.5"), dst=address.ip("10.7.0.1")))
        one.push(FROM_VM, one.packet(one, src=address.ip(f"10.1.0.{last}"), dst=address.ip("10.7.0.1")))
    assert one.stage.vm.addresses == (address.ip("10.1.0.5"), address.ip("10.1.0.6"))


# --- both directions


@pytest.mark.parametrize("cut", [(1, 2), (2, 1)])
def test_a_link_that_carries_one_way_only_gets_no_shortcut(world, cut):
    world.cut.add(cut)
    assert set("".join(world.chat(20.0))) == {"l"}
    assert "up" not in {e["state"] for site in world for _, e in site.events}


def test_a_way_that_carries_no_large_packets_is_not_used(world):
    world.lan_mtu = 1400
    assert set("".join(world.chat(10.0))) == {"l"}


def test_a_slow_link_is_used_all_the_same(world):
    one, other = world
    carry = world.lan
    world.lan = lambda sender, frame: world.later(0.15, carry, sender, frame)
    assert only_then(world.chat(10.0)[0], "l", "s")
    assert one.state(other) == "up"
    assert one.peers.table.shortcuts[other.ip].peer.rtt_s == pytest.approx(0.3 + 2 * SHORT_S, rel=0.01)


# --- lost and won back


@pytest.mark.parametrize("cut", [{(1, 2), (2, 1)}, {(1, 2)}, {(2, 1)}], ids=["both", "there", "back"])
def test_a_silent_peer_is_left_within_a_second(world, cut):
    one, other = world
    world.chat(3.0)
    world.cut |= cut
    world.chat(0.9)
    assert "up" not in (one.state(other), other.state(one))
    assert set("".join(world.chat(5.0))) == {"l"}
    world.cut.clear()
    world.chat(10.0)
    assert set("".join(world.chat(1.0))) == {"s"}
    assert one.peers.table.shortcuts[other.ip].peer.losses == 1


def test_a_process_that_dies_is_left_within_a_second_and_found_again(world):
    one, other = world
    world.chat(3.0)
    other.crash()
    for _ in range(20):
        one.send(other)
        world.run(0.05)
    assert one.state(other) == "holding"
    assert one.events[-1][1]["reason"] == "silent"
    other.restart()
    world.talk()
    world.chat(12.0)
    assert one.state(other) == other.state(one) == "up"


def test_a_process_that_ends_says_so(world):
    one, other = world
    world.chat(3.0)
    other.stage.on_stop(world.now)
    other.crash()
    world.run(0.01)
    assert one.state(other) is None
    ends = {"address": "10.2.0.5", "peer": address.format_mac(other.mac)}
    assert [event for _, event in one.events[-2:]] == [
        {**ends, "state": "holding", "was": "up", "reason": "bye"},
        {**ends, "state": "candidate", "was": "holding", "reason": "given-up"},
    ]


def test_a_peer_that_gives_an_address_up_is_held_to_it(world):
    """Here by a restart so quick that nobody noticed: the new process does not know its VM's address yet."""
    one, other = world
    world.chat(3.0)
    other.restart()
    other.push(FROM_VM, other.packet(one))  # so that it knows its MAC address
    one.send(other)
    world.run(0.3)
    assert one.state(other) is None
    assert one.events[-1][1]["reason"] == "given-up"
    world.chat(8.0)
    assert one.state(other) == "up"


def test_a_link_that_goes_down_is_left_at_once(world):
    one, other = world
    world.chat(3.0)
    one.stage.on_link(DIRECT, False, world.now)
    one.send(other)
    world.run(0.1)
    assert other.ways() == "l"
    assert one.events[-1][1]["reason"] == "link-down"


def test_a_way_that_comes_and_goes_is_left_alone_for_longer_each_time(world):
    one, other = world
    world.chat(3.0)
    held = []
    for _ in range(8):
        world.cut |= {(1, 2), (2, 1)}
        while one.state(other) == "up":
            world.chat(0.05)
        lost = world.now
        world.cut.clear()
        while one.state(other) != "up":
            world.chat(0.05)
        held.append(world.now - lost)
    assert held[:7] == sorted(held[:7])
    assert held[0] < 2.5
    assert 30 < held[-1] < 35
    world.chat(40.0, every=0.2)  # now it holds
    world.cut |= {(1, 2), (2, 1)}
    world.chat(1.0)
    world.cut.clear()
    world.chat(2.5)
    assert one.state(other) == "up"


def test_a_service_that_is_held_up_does_not_take_its_peers_for_gone(world):
    one, other = world
    world.chat(3.0)
    world.now += 3.0  # nobody ran: the machine was suspended
    world.chat(1.0)
    assert one.state(other) == "up"
    assert one.peers.table.shortcuts[other.ip].peer.losses == 0


@pytest.mark.parametrize("seed", range(5))
def test_on_a_bad_link_no_packet_is_lost_twice_as_often(world, seed):
    """With one frame in ten lost, a shortcut stays or goes, and packets arrive one way or the other."""
    one, other = world
    rng, carry = Random(seed), world.lan
    world.lan = lambda sender, frame: carry(sender, frame) if rng.random() > 0.1 else None
    ways = world.chat(20.0)
    assert all(len(way) > 0.8 * 400 for way in ways)
    assert one.stage.drops == other.stage.drops == {}


# --- allowed


@pytest.mark.parametrize("which", [0, 1])
def test_both_sides_have_to_allow_it(which):
    world = World(2)
    site = list(world)[which]
    site.restart(allow=[ipaddress.ip_network("192.168.0.0/16")])
    world.talk()
    assert set("".join(world.chat(5.0))) == {"l"}
    assert site.stage.drops["not-allowed"] > 0
    assert "up" not in {e["state"] for site in world for _, e in site.events}


def test_an_address_of_a_peer_that_is_not_allowed_goes_the_default_way():
    world = World(2)
    one, other = world
    one.restart(allow=[ipaddress.ip_network("10.0.0.0/8")])
    world.talk()
    world.talk(v6=True)
    world.chat(3.0)
    assert set("".join(world.chat(1.0))) == {"s"}
    assert set("".join(world.chat(5.0, v6=True))) == {"l"}
    assert other.state(one) == "up"
    assert other.state(one, v6=True) == "candidate"


def test_a_named_peer_is_allowed_where_it_is_named_and_nowhere_else():
    world = World(3)
    one, other, third = world
    one.restart(allow=[], given={other.ip: other.mac})
    world.talk()
    world.chat(5.0)
    assert one.state(other) == "up"
    assert one.state(third) is None
    one.restart(allow=ALLOW, given={other.ip: third.mac})
    world.talk()
    world.chat(5.0)
    assert one.state(other) != "up"


def test_three_vms_find_each_other():
    world = World(3)
    world.talk()
    for _ in range(30):
        for one in world:
            for other in world:
                if one is not other:
                    one.send(other)
        world.run(0.1)
    assert all(one.state(other) == "up" for one in world for other in world if one is not other)
    assert [len(site.peers.table.peers) for site in world] == [2, 2, 2]


# --- the mismatch


def test_what_is_sent_to_the_peers_own_mac_is_no_matter_of_ours(world):
    one, other = world
    world.chat(3.0)
    one.long.clear()
    frame = one.packet(other, dst_mac=other.mac)
    one.push(FROM_VM, frame)
    assert one.long == [bytes(frame)]


def test_a_batch_is_split_in_order(world):
    one, other = world
    world.chat(3.0)
    one.long.clear()
    one.direct.clear()
    far = address.ip("192.0.2.1")
    frames = [one.packet(other, bytes([n]), dst=far if n % 3 else other.ip) for n in range(30)]
    one.push(FROM_VM, *frames)
    assert [frame[-1] for frame in one.long] == [n for n in range(30) if n % 3]
    assert [frame[-1] for frame in one.direct] == list(range(0, 30, 3))


@pytest.mark.parametrize(("peer_is_up", "port"), [(False, DEFAULT), (True, DIRECT)])
def test_a_batch_that_goes_one_way_goes_whole(world, peer_is_up, port):
    one, other = world
    if peer_is_up:
        world.chat(3.0)
    batch, passed = Batch.of([one.packet(other)] * 3), []
    one.stage.out[port] = lambda batch, now: passed.append(batch)
    one.stage.on_batch(FROM_VM, batch, world.now)
    assert passed == [batch]


def test_the_vm_itself_may_say_and_hear_nothing_of_the_protocol(world):
    one, _ = world
    said = bytes(one.direct[0])
    for port in FROM_VM, DEFAULT:
        before = len(one.long), len(one.got), len(one.direct)
        one.push(port, said)
        assert (len(one.long), len(one.got), len(one.direct)) == before
    assert one.stage.drops == {"protocol": 2}


def test_status_tells_what_was_spared(world):
    one, other = world
    world.chat(4.0)
    status = one.stage.status(world.now)
    row = status["shortcuts"]["10.2.0.5"]
    assert status["vm"] == {"mac": address.format_mac(one.mac), "addresses": ["10.1.0.5"]}
    assert (row["state"], row["found"], row["peer"]) == ("up", "announced", address.format_mac(other.mac))
    row = status["traffic"]["10.2.0.5"]
    frames = row["tx_frames"] + row["rx_frames"]
    octets = frames * (len(one.packet(other)) - 10)
    assert frames > 100
    assert status["spared"] == {
        "frames": frames,
        "octets": octets,
        "shortcuts_up": 1,
        "peers": 1,
        "conflicts": 0,
    }
    other.stage.on_stop(world.now)
    other.crash()
    world.run(0.1)
    gone = one.stage.status(world.now)
    assert gone["shortcuts"] == {}
    assert gone["spared"]["octets"] == octets  # also when it is no more


def test_times_are_the_owners_to_choose():
    world = World(2)
    for site in world:
        site.restart(timing=Timing(probe_s=0.02, lost_s=0.07))
    world.talk()
    world.chat(0.15, every=0.01)
    assert {site.state(peer) for site, peer in zip(world, reversed(list(world)), strict=True)} == {"up"}


def test_frames_of_vlans_go_the_default_way(world):
    one, other = world
    world.chat(3.0)
    one.long.clear()
    frame = one.packet(other, vlan=5)
    one.push(FROM_VM, frame)
    assert one.long == [bytes(frame)]
    assert Packet.at(frame).ip.ttl == 64
