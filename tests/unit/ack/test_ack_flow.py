"""vtl-ack between two endpoints, in virtual time: what each end sees, and that every octet arrives."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from ack_world import GUEST, PEER, SMALL, AckWorld

from vtl_tools.cmd.ack import main as command
from vtl_tools.common.model.base import LOCAL, REMOTE
from vtl_tools.common.packet import address, derive, icmp
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.state import Ended, State

BOTH = (LOCAL, REMOTE)
LARGE = Config(receive_buffer=1 << 22, send_buffer=1 << 22, no_delay=True)
NEAR_THE_WRAP = (2**32 - 7000, 2**32 - 90_000)


def content(octets, seed=1):
    return Random(seed).randbytes(octets)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("opener", [GUEST, PEER], ids=["guest-opens", "peer-opens"])
@pytest.mark.parametrize("taken", [(LOCAL,), (REMOTE,), BOTH], ids=["out", "in", "both"])
def test_every_octet_arrives_over_a_path_that_loses_reorders_and_doubles(taken, opener, version, seed):
    chances = {"loss": 0.03, "reorder": 0.1, "duplicate": 0.05, "local_loss": 0.01, "local_reorder": 0.05}
    world = AckWorld(taken=taken, seed=seed, version=version, iss=NEAR_THE_WRAP, **chances)
    world.open(opener)
    sent = content(150_000), content(100_000, 2)
    got = world.transfer(*sent)
    assert (got[PEER], got[GUEST]) == sent
    world.go(10)
    told = world.told
    assert (
        told["acknowledged_octets"]
        == told["delivered_octets"]
        == sum(len(sent[end is REMOTE]) for end in taken)
    )
    assert (told["held_octets"], told["lost_octets"], len(world.stage.register)) == (0, 0, 0)
    assert set(world.stage.drops) <= {"old-timestamp", "out-of-window"}


@pytest.mark.parametrize("taken", [(LOCAL,), (REMOTE,), BOTH], ids=["out", "in", "both"])
@pytest.mark.parametrize("option", ["timestamps", "sack", "window_scaling"])
def test_every_octet_arrives_without_an_option(taken, option):
    config = replace(SMALL, **{option: False})
    world = AckWorld(taken=taken, loss=0.02, configs=(config, SMALL))
    world.open()
    sent = content(200_000), content(200_000, 2)
    got = world.transfer(*sent)
    assert (got[PEER], got[GUEST]) == sent


@pytest.mark.parametrize(("end", "taken"), [(GUEST, LOCAL), (PEER, REMOTE)], ids=["out", "in"])
def test_a_window_of_64_kib_at_the_guest_does_not_limit_a_long_path(end, taken):
    """Four megabytes over 400 ms: 65 windows of the guest, which alone take 26 s."""
    world = AckWorld(taken=(taken,), buffer=1 << 23, memory=1 << 24, delay_s=0.2, configs=(SMALL, LARGE))
    world.open()
    sent = [b"", b""]
    sent[end] = content(1 << 22)
    began = world.now
    got = world.transfer(*sent)
    assert got[1 - end] == sent[end]
    assert world.done_at[1 - end] - began < 6.0


def test_the_guest_is_acknowledged_at_once_and_a_fin_by_its_receiver_only():
    world = AckWorld(delay_s=0.5)
    world.open()
    guest, peer = world.ends
    began = world.now
    guest.write(b"x" * 1000)
    guest.close()
    world.run(lambda: guest.snd.una == 1001)
    assert world.now - began < 0.01
    assert guest.state is State.FIN_WAIT_1
    world.run(lambda: guest.state is State.FIN_WAIT_2)
    assert world.now - began >= 1.0
    assert peer.at_eof or peer.readable


def test_a_half_closed_connection_carries_the_other_direction():
    world = AckWorld(taken=BOTH)
    world.open()
    guest, peer = world.ends
    guest.close()
    world.run(lambda: peer.at_eof)
    peer.write(b"y" * 5000)
    world.run(lambda: guest.readable == 5000)
    peer.close()
    world.run(lambda: guest.state is State.TIME_WAIT)


def test_a_receiver_that_stops_stops_the_sender_and_the_buffer_is_bounded():
    buffer = 200_000
    world = AckWorld(buffer=buffer, memory=1 << 20, configs=(LARGE, SMALL))
    world.open()
    guest, peer = world.ends
    sent = content(2_000_000)
    left = memoryview(sent)
    left = left[guest.write(left) :]
    world.go(120)  # probes of the closed window are answered all the while
    assert guest.state is peer.state is State.ESTABLISHED
    # a piece of memory costs more than the data of a segment
    assert 0 < world.told["held_octets"] <= world.told["held_octets_max"] < buffer * 1.25
    assert guest.snd.una <= 1 + buffer + SMALL.receive_buffer
    got = bytearray()

    def turn():
        while data := peer.read():
            got.extend(data)
        return len(got) == len(sent) - len(left)

    world.run(turn)
    assert sent.startswith(got)


def test_the_memory_of_all_connections_is_bounded():
    world = AckWorld(buffer=1 << 20, memory=1 << 20, configs=(LARGE, SMALL))
    world.open()
    world.stage.budget.memory = 100_000
    world.ends[GUEST].write(bytes(2_000_000))
    world.go(30)
    assert world.told["held_octets_max"] <= 110_000
    assert world.ends[GUEST].state is State.ESTABLISHED


def test_a_dead_peer_becomes_a_reset_to_the_guest_and_its_data_is_counted():
    world = AckWorld(give_up_s=20.0)
    world.open()
    guest, _ = world.ends
    for way in world.links[PEER]:
        way.cut = True
    guest.write(b"x" * 30_000)
    world.run(lambda: guest.ended is Ended.RESET)
    assert world.told["lost_octets"] == 30_000
    fields = {
        "guest": "10.0.0.1", "guest_port": 40000, "peer": "10.0.0.2", "peer_port": 5001, "sender": "guest",
        "octets": 30_000, "reason": "no-answer",
    }  # fmt: skip
    assert world.events == [("undelivered", {**fields, "cause": ("undelivered", "no-answer")})]
    for way in world.links[PEER]:
        way.cut = False
    world.ends[PEER].write(b"y")
    world.run(lambda: world.ends[PEER].ended is Ended.RESET)
    world.go(100)
    assert len(world.stage.register) == 0


@pytest.mark.parametrize("end", [GUEST, PEER], ids=["guest", "peer"])
@pytest.mark.parametrize("taken", [(LOCAL,), BOTH], ids=["out", "both"])
def test_a_reset_of_one_end_resets_the_other_though_data_was_on_its_way(end, taken):
    world = AckWorld(taken=taken)
    world.open()
    world.ends[GUEST].write(b"x" * 50_000)
    world.ends[PEER].write(b"y" * 50_000)
    world.run(lambda: world.told["held_octets"])
    world.ends[end].abort()
    world.run(lambda: world.ends[1 - end].ended is Ended.RESET)
    assert world.told["lost_octets"] > 0
    assert {name for name, _ in world.events} == {"undelivered"}
    world.go(100)
    assert (world.told["held_octets"], len(world.stage.register)) == (0, 0)


def test_a_keep_alive_asks_the_other_end():
    world = AckWorld(configs=(replace(SMALL, keep_alive_s=10.0, keep_alive_interval_s=2.0), SMALL))
    world.open()
    guest, _ = world.ends
    guest.write(b"x" * 3000)
    world.go(100)
    assert guest.state is State.ESTABLISHED
    for way in world.links[PEER]:
        way.cut = True
    world.run(lambda: guest.ended is Ended.TIMED_OUT)


def test_a_connection_that_is_not_chosen_passes_untouched():
    world = AckWorld(only=("port 80",))
    world.open()
    got = world.transfer(content(100_000), content(100_000, 2))
    assert got == (content(100_000, 2), content(100_000))
    assert (world.told["passed"], world.told["opened"], world.told["acknowledged_octets"]) == (1, 0, 0)


def test_a_connection_that_is_older_than_the_service_passes_untouched():
    world = AckWorld(only=("port 80",))
    world.open()
    world.arguments = ((LOCAL,), (), 1 << 20, 1 << 22)
    world.start()
    got = world.transfer(content(100_000), b"")
    assert got[PEER] == content(100_000)
    assert world.told["acknowledged_octets"] == 0


def test_super_segments_stay_whole():
    world = AckWorld(plain=False, configs=(LARGE, LARGE), taken=BOTH)
    world.open()
    world.transfer(content(500_000), content(500_000, 2))
    for end in GUEST, PEER:
        sizes = [Packet.at(frame).tcp_payload_len for frame in world.seen[end]]
        assert max(sizes) > 30_000


@pytest.mark.parametrize("ecn", ["classic", "accurate"])
def test_ecn_is_not_offered(ecn):
    asks = replace(SMALL, ecn=ecn)
    world = AckWorld(configs=(asks, asks))
    world.open()
    syn = next(Packet.at(frame) for frame in world.seen[PEER] if Packet.at(frame).is_syn)
    assert (syn.tcp.flags, syn.tcp.ae) == (SYN, 0)
    assert [end.info().ecn_mode for end in world.ends] == ["none", "none"]


def test_a_service_that_ends_resets_what_is_not_delivered():
    world = AckWorld()
    world.open()
    guest, peer = world.ends
    guest.write(b"x" * 50_000)
    world.run(lambda: world.told["held_octets"])
    world.stage.on_stop(world.now)
    assert world.events[0][1]["reason"] == "stopped"
    world.run(lambda: guest.ended is Ended.RESET and peer.ended is Ended.RESET)
    assert len(world.stage.register) == 0


def test_a_service_that_ends_leaves_a_connection_whose_data_is_delivered():
    world = AckWorld(iss=NEAR_THE_WRAP)
    world.open()
    guest, peer = world.ends
    guest.write(b"x" * 50_000)
    world.run(lambda: peer.readable == 50_000 and not world.told["held_octets"])
    world.go(1)
    world.stage.on_stop(world.now)
    assert world.events == []
    world.start()
    got = world.transfer(content(70_000), content(70_000, 2))
    assert got == (content(70_000, 2), b"x" * 50_000 + content(70_000))


@pytest.mark.parametrize("rounds", [1, 3])
def test_both_ends_of_a_connection_are_reset_after_the_service_was_killed(rounds):
    world = AckWorld()
    world.open()
    guest, peer = world.ends
    guest.write(b"x" * 60_000)
    world.run(lambda: guest.snd.una > 50_000 and peer.readable < 50_000)
    for _ in range(rounds):  # killed again before it has reached anybody
        world.start()
    assert world.told["inherited"] == 1
    world.run(lambda: guest.ended is Ended.RESET and peer.ended is Ended.RESET)
    assert peer.rcv.received < 60_000
    assert ("inherited", {"connections": 1}) in world.events
    world.go(700)
    assert len(world.stage.register) == 0


def test_a_new_connection_of_the_same_ports_replaces_one_that_a_killed_service_left():
    world = AckWorld()
    world.open()
    world.start()
    register = world.stage.register
    assert len(register) == 1
    fresh = AckWorld(register=world.memory)
    fresh.now = world.now
    fresh.open()
    got = fresh.transfer(content(10_000), b"")
    assert got[PEER] == content(10_000)


def test_segments_that_no_end_would_accept_go_no_further():
    world = AckWorld()
    world.open()
    guest, peer = world.ends
    world.run(lambda: not world.wire)
    model = next(iter(world.stage.flows.values())).wires[PEER].model
    before = len(world.seen[GUEST])
    for fields in (
        {"ack": (model.local.snd_nxt + 100_000) & 0xFFFF_FFFF},
        {"seq": (model.remote.snd_nxt + (1 << 30)) & 0xFFFF_FFFF},
        {"flags": RST, "seq": (model.remote.snd_nxt + 1000) & 0xFFFF_FFFF},
        {"flags": SYN | ACK},
        {"flags": FIN},
    ):
        world.pass_on(PEER, 0, model.create(from_=REMOTE, sync=False, **fields))
    world.go(0.2)
    assert len(world.seen[GUEST]) == before
    assert sum(world.stage.drops.values()) == 5
    assert guest.state is peer.state is State.ESTABLISHED


@pytest.mark.parametrize("taken", [(LOCAL,), (REMOTE,), BOTH], ids=["out", "in", "both"])
@pytest.mark.parametrize(("way", "which"), [(1, 1), (0, 1), (1, 2)], ids=["syn", "syn-ack", "ack"])
def test_a_handshake_of_which_any_segment_is_lost(way, which, taken):
    """The SYN that arrives has a newer timestamp than the one that was followed first."""
    world = AckWorld(taken=taken)
    put, count = world.pass_on, 0

    def lose_one(*frame):
        nonlocal count
        count += frame[:2] == (PEER, way)
        if frame[:2] != (PEER, way) or count != which:
            put(*frame)

    world.pass_on = lose_one
    world.open()
    got = world.transfer(content(30_000), content(30_000, 2))
    assert got == (content(30_000, 2), content(30_000))


def test_a_syn_that_was_sent_again_too_early_does_not_shorten_the_round_trip():
    """On a path of a second the guest asks twice, and the answer to the first comes just after the second."""
    world = AckWorld(delay_s=0.5, configs=(SMALL, LARGE))
    world.open()
    assert world.ends[GUEST].info().retransmits == 1
    got = world.transfer(content(300_000))
    assert got[PEER] == content(300_000)
    assert world.told["retransmits"] == 0


def test_what_is_delivered_is_spread_over_the_round_trip_by_default():
    """Where all of a round trip's data comes at once, a kernel's receive buffer may not grow (Linux 6.18)."""
    congestion = next(option.default for option in command.params if option.name == "congestion")
    world = AckWorld(
        delay_s=0.5, buffer=1 << 22, memory=1 << 23, congestion=congestion, configs=(LARGE, LARGE)
    )
    deliver, times = world.deliver, []

    def note(to, frame):
        if to == (PEER, 1) and len(frame) > 1000:
            times.append(world.now)
        deliver(to, frame)

    world.deliver = note
    world.open()
    world.transfer(content(1_000_000))
    first = times[:10]  # a window of ten segments, and 2.77 of them in a round trip
    assert max(b - a for a, b in pairwise(first)) < 0.1
    assert first[-1] - first[0] > 0.2


def test_frames_in_the_name_of_an_end_go_to_the_router_that_it_has_chosen():
    """A router of VRRP is reached at one Ethernet address, and sends from another."""
    world = AckWorld()
    put, virtual = world.pass_on, bytes.fromhex("00005e000101")

    def through_router(end, way, frame):
        if (end, way) == (GUEST, 0):
            frame[10:16] = virtual
        put(end, way, frame)

    world.pass_on = through_router
    world.open()
    got = world.transfer(content(50_000), content(50_000, 2))
    assert got == (content(50_000, 2), content(50_000))
    assert {bytes(frame[10:16]) for frame in world.seen[PEER]} == {virtual}
    assert virtual not in {bytes(frame[16:22]) for frame in world.seen[GUEST][:3]}


def test_a_packet_that_is_too_big_for_the_path_is_cut():
    world = AckWorld()
    world.open()
    guest, peer = world.ends
    put, refused = world.pass_on, []

    def narrow(end, way, frame):
        pieces = segment(frame) if (end, way) == (PEER, 1) else [frame]
        for piece in pieces:
            if (end, way) == (PEER, 1) and len(piece) - 24 > 1000:
                pkt = Packet.at(piece)
                refused.append(pkt.tcp.seq)
                error = derive.icmp_error(
                    pkt, icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, src=address.ip("10.0.0.9"), rest=1000
                )
                put(PEER, 0, error)
            else:
                put(end, way, piece)

    world.pass_on = narrow
    guest.write(content(30_000))
    world.run(lambda: peer.readable == 30_000)
    assert refused
    assert max(len(frame) - 24 for frame in world.seen[PEER]) <= 1000
    # an error about a segment that is not in flight changes nothing
    world.go(1)
    (flow,) = world.stage.flows.values()
    mss = flow.wires[PEER].deputy.snd.mss
    late = Packet.at(world.seen[PEER][-1])
    forged = derive.icmp_error(
        late, icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED, src=address.ip("10.0.0.9"), rest=600
    )
    put(PEER, 0, forged)
    world.go(1)
    assert flow.wires[PEER].deputy.snd.mss == mss
