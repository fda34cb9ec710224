"""What a guest may cost: connections, calls, memory, time, and the relay's own timers."""

import gc
import weakref
from dataclasses import replace

import pytest
from carry import PROMPT, Call, Scene

from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.budget import BUFFER, RelayLimits
from vtl_tools.common.relay.flow import RELAYED
from vtl_tools.common.relay.syn_flood import SynFloodGuard
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.queue import PIECE

# --- connections


def test_there_are_so_many_connections_and_no_more(fresh):
    scene = fresh(connections=3)
    guests = [scene.guest(40000 + i) for i in range(4)]
    for guest in guests[:3]:
        guest.establish()
    guests[3].syn()
    scene.expect_nothing()
    assert scene.relay.drops == {"too-many-connections": 1}
    guests[0].inject("R", 1)
    guests[3].establish()
    guests[1].inject(".", 1, b"hello", ack=1)  # those that there are go on
    guests[1].expect(".", ack=6)


def crowd(scene, count, start=50000):
    """Calls that come to nothing, of as many ports."""
    for i in range(count):
        scene.calls.append(Call(None))
        scene.guest(start + i).syn()


def test_half_of_the_calls_may_be_anybodys(fresh):
    scene = fresh(half_open=8)
    crowd(scene, 4)
    scene.expect_nothing()
    assert len(scene.relay.flows) == 4
    guest = scene.guest()
    guest.syn()
    scene.expect_nothing()
    assert scene.relay.drops == {"half-open": 1}
    scene.pass_(1.0)
    guest.syn()  # who asks again is let in
    guest.expect("S.", seq=0, ack=1)


def test_a_flood_gets_no_more_than_half_of_the_calls(fresh):
    scene = fresh(half_open=8)
    crowd(scene, 100)
    assert len(scene.relay.flows) == 4
    assert scene.relay.drops == {"half-open": 96}


def test_who_asks_again_may_take_three_quarters_of_the_calls_and_is_challenged_then(fresh):
    scene = fresh(half_open=8)
    crowd(scene, 4)
    crowd(scene, 5, start=51000)
    scene.expect_nothing()
    scene.pass_(1.0)
    crowd(scene, 5, start=51000)
    assert len(scene.relay.flows) == 6
    assert len(scene.said) == 3
    scene.said.clear()


def test_who_asked_long_ago_is_not_remembered(fresh):
    scene = fresh(half_open=2)
    crowd(scene, 1)
    scene.guest().syn()
    scene.pass_(11.0)
    scene.guest().syn()
    scene.expect_nothing()
    assert scene.relay.drops == {"half-open": 2}


def test_the_memory_of_who_asked_is_bounded(fresh):
    scene = fresh(half_open=2)
    scene.relay.syn_guard = SynFloodGuard(b"secret", most=10)
    crowd(scene, 100)
    assert len(scene.relay.syn_guard._seen) <= 10


@pytest.mark.parametrize("how", ["established", "reset", "refused", "late"])
def test_a_place_is_free_again_when_a_call_has_ended(fresh, how):
    scene = fresh(half_open=2)
    call = Call(None)
    scene.calls.append(call)
    first = scene.guest(40001)
    first.syn()
    match how:
        case "established":
            call.comes_to(b"")
            first.expect("S.")
            first.inject(".", 1, ack=1)
        case "reset":
            first.inject("R", 1)
        case "refused":
            call.comes_to(Reason.REFUSED)
        case "late":
            scene.pass_(121.0)
    scene.turn()
    scene.said.clear()
    scene.guest(40002).syn()
    assert len(scene.said) == 1
    scene.said.clear()


# --- memory


def test_beyond_the_memory_each_has_what_it_has(fresh):
    scene = fresh(memory=20_600)
    busy, other = scene.guest(40000), scene.guest(40001)
    stream = busy.establish()
    stream.room = 0
    for i in range(21):
        busy.inject(".", 1 + 1000 * i, 1000, ack=1)
        busy.expect(".", ack=1001 + 1000 * i)
    busy.inject(".", 21_001, 1000, ack=1)
    scene.expect_nothing()
    assert scene.relay.drops == {"memory": 1}
    assert scene.relay.budget.buffered == 21_000 + 2 * PIECE
    other.establish()  # who holds nothing goes on
    other.inject(".", 1, b"hello", ack=1)
    other.expect(".", ack=6)
    scene.stream.bring(b"and back")
    other.expect(".", data=b"and back")
    other.inject(".", 6, ack=9)
    stream.drain()
    scene.turn()
    busy.inject(".", 21_001, 1000, ack=1)
    scene.turn()
    assert len(stream.got) == 22_000
    assert scene.relay.budget.buffered == 0
    scene.said.clear()


def test_beyond_the_memory_no_more_is_read_for_who_is_slow(fresh):
    scene = fresh(memory=BUFFER)
    guest = scene.guest()
    stream = guest.establish(win=60_000)
    octets = 10 * BUFFER
    stream.bring(bytes(octets))
    top = 0
    for _ in range(80):
        scene.turn()
        assert scene.relay.budget.buffered <= 3 * BUFFER
        top = max([top, *((pkt.tcp.seq + len(pkt.tcp.payload) - guest.iss) % 2**32 for pkt in scene.said)])
        scene.said.clear()
        guest.inject(".", 1, ack=top, win=60_000)
    scene.turn()
    assert top == 1 + octets
    assert scene.relay.budget.buffered == 0


def test_what_came_early_is_held_as_well(established):
    scene, guest, stream = established
    guest.inject(".", 1001, 3000, ack=1)
    guest.expect(".", ack=1)
    assert scene.relay.budget.buffered == 3000 + PIECE
    guest.inject(".", 1, 1000, ack=1)
    guest.expect(".", ack=4001)
    assert scene.relay.budget.buffered == 0
    assert len(stream.got) == 4000


def test_a_guest_that_sends_only_what_is_early_is_stopped(fresh):
    scene = fresh(memory=100_000)
    guests = [scene.guest(40000 + i) for i in range(10)]
    for guest in guests:
        guest.establish()
    for i in range(60):
        for guest in guests:
            guest.inject(".", 2 + 1000 * i, 1000, ack=1)
        scene.turn()
        scene.said.clear()
    assert scene.relay.budget.buffered <= 100_000 + 10 * 1000
    assert scene.relay.drops["memory"] > 100


def test_a_gap_is_filled_even_where_all_that_may_be_held_is_held_before_it(fresh):
    """Else who sends what is early could stop itself, and those that wait for room, for good."""
    scene = fresh(memory=3000)
    guest, other = scene.guest(40000), scene.guest(40001)
    stream = guest.establish()
    other.establish()
    for seq in (1001, 3001, 5001):
        guest.inject(".", seq, 1000, ack=1)
    guest.inject(".", 7001, 1000, ack=1)
    assert scene.relay.drops == {"memory": 1}
    for seq in (1, 2001, 4001):
        guest.inject(".", seq, 1000, ack=1)
    assert len(stream.got) == 6000
    assert scene.relay.budget.buffered == 0
    scene.said.clear()


def pinned(scene):
    """Octets of the buffers that the endpoints of a relay's flows refer to."""
    found = {}
    for flow in scene.relay.flows.values():
        for piece in (*flow.endpoint.snd.queue._pieces, *flow.endpoint.rcv.queue):
            whole = piece.obj if isinstance(piece, memoryview) else piece
            found[id(whole)] = len(whole)
    return sum(found.values())


def test_memory_beyond_the_limit_by_acknowledging_all_but_an_octet(fresh):
    """A buffer of 256 KiB stays until its last octet is acknowledged."""
    scene = fresh(memory=4 * BUFFER)
    for number in range(60):
        guest = scene.guest(40000 + number)
        guest.establish(win=60_000)
        scene.stream.bring(bytes(200_000))
        for ack in (*range(10_000, 200_000, 10_000), 200_000 - 1):
            guest.inject(".", 1, ack=1 + ack, win=60_000)
            scene.turn()
        scene.said.clear()
        assert pinned(scene) <= scene.relay.budget.buffered <= scene.relay.limits.most
    assert scene.relay.budget.evicted > 0


def test_memory_beyond_the_limit_by_one_octet_that_the_other_side_does_not_take(fresh):
    scene = fresh(memory=100_000)
    for number in range(120):
        guest = scene.guest(40000 + number)
        stream = guest.establish()
        stream.room = 59_999
        guest.inject(".", 1, 60_000, ack=1)
        scene.turn()
        guest.inject(".", 60_001, 60_000, ack=1)
        stream.drain(60_000)
        scene.turn()
        scene.said.clear()
        assert pinned(scene) <= scene.relay.budget.buffered <= scene.relay.limits.most


def test_memory_by_calls_that_carry_64_kib_each(fresh):
    scene = fresh()
    for number in range(100):
        scene.calls.append(Call(None))
        guest = scene.guest(40000 + number)
        guest.inject("S", 0, 60_000)
        assert len(guest.flow.syn) < 300
    scene.said.clear()


def test_a_call_that_carried_data_is_refused_like_any_other(fresh):
    scene = fresh()
    scene.calls.append(Call(Reason.HOST_UNREACHABLE))
    guest = scene.guest()
    guest.inject("S", 0, 1400)
    pkt = guest.hear()
    quoted = bytes(pkt.icmp.payload)
    assert len(quoted) in (40, 60)
    sent = Packet.at(guest.frame("S", 0, b""))
    assert quoted[-20:-4] == bytes(sent.buf[sent.tcp.off : sent.tcp.off + 16])


@pytest.mark.parametrize("how", ["R", "stream"])
def test_memory_by_flows_that_ended_and_whose_timers_are_still_there(fresh, how):
    scene = fresh()
    ended = []
    for number in range(20):
        guest = scene.guest(40000 + number)
        stream = guest.establish(win=60_000)
        stream.room = 0
        guest.inject(".", 1, 60_000, ack=1)
        guest.inject(".", 70_001, 60_000, ack=1)
        stream.bring(bytes(200_000))
        scene.turn()
        ended.append(guest.flow)
        if how == "R":
            guest.inject("R", 60_001)
        else:
            stream.fail()
            scene.turn()
        scene.said.clear()
    assert not scene.relay.flows
    for flow in ended:
        assert flow.endpoint.rcv.kept == flow.endpoint.snd.queue.kept == 0
        assert not flow.unacked
        assert not flow.syn


def test_the_loop_kept_by_connections_that_are_all_due_at_once(fresh, monkeypatch):
    """Each turn looks at so many; the rest is due still, and those that are due are all looked at."""
    scene = fresh(config=replace(PROMPT, keep_alive_s=None), idle_s=10.0)
    for number in range(300):
        scene.guest(40000 + number).establish()
    scene.now += 20.0
    turns = []
    while scene.relay.flows:
        assert scene.relay.deadline() <= scene.now
        before = len(scene.relay.flows)
        scene.relay.wake(scene.now)
        scene.relay.settle(scene.now)
        turns.append(before - len(scene.relay.flows))
    assert max(turns) <= 64
    scene.said.clear()


def test_the_loop_by_segments_of_32_octets(fresh):
    """A link without offload cuts each frame by itself."""
    scene = fresh()
    guest = scene.guest()
    guest.syn_frame = guest.frame("S", 0, win=60_000, options={"mss": 1})
    scene.push(guest.syn_frame)
    guest.expect("S.")
    guest.inject(".", 1, ack=1, win=60_000)
    scene.stream.bring(bytes(200_000))
    scene.relay.poll(scene.now)
    scene.stream.tell(scene.now)
    settle, most = scene.relay.settle, [0]

    def count(now):
        before = len(scene.said)
        settle(now)
        most[0] = max(most[0], len(scene.said) - before)

    scene.relay.settle = count
    for _ in range(100):
        scene.said.clear()
        guest.inject(".", 1, ack=guest.flow.endpoint.snd.nxt, win=60_000)
    scene.said.clear()
    assert 128 < most[0] <= 4 * 128


def test_held_is_given_back_when_flows_end(fresh):
    scene = fresh()
    for how in "R", "stream":
        guest = scene.guest()
        stream = guest.establish()
        stream.room = 0
        guest.inject(".", 1, 5000, ack=1)
        stream.bring(bytes(30_000))
        scene.turn()
        assert scene.relay.budget.buffered > 30_000
        if how == "R":
            guest.inject("R", 5001)
        else:
            stream.fail()
        scene.turn()
        scene.said.clear()
        assert scene.relay.budget.buffered == 0
        assert not scene.relay.flows


def test_spare_buffers_are_few(fresh, monkeypatch):
    monkeypatch.setattr("vtl_tools.common.relay.budget._POOL_MAX", 2)
    scene = fresh()
    guests = [scene.guest(40000 + i) for i in range(8)]
    for guest in guests:
        guest.establish(win=65_000)
    for call in scene.made:
        call.stream.bring(bytes(65_000))
    scene.turn()
    scene.said.clear()
    for _ in range(8):
        for guest in guests:
            flow = guest.flow
            guest.inject(".", 1, ack=flow.endpoint.snd.nxt, win=65_000)
        scene.turn()
        scene.said.clear()
    assert scene.relay.budget.buffered == 0
    assert len(scene.relay.budget.free_buffers) <= 2


# --- time


def test_an_idle_flow_is_reset(fresh):
    scene = fresh(config=replace(PROMPT, keep_alive_s=None), idle_s=1000.0)
    guest = scene.guest()
    stream = guest.establish()
    scene.pass_(900.0)
    guest.inject(".", 1, b"x", ack=1)
    guest.expect(".", ack=2)
    scene.pass_(900.0)
    stream.bring(b"y")
    guest.expect(".", data=b"y")
    guest.inject(".", 2, ack=2)
    scene.pass_(990.0)
    guest.expect_nothing()
    scene.pass_(20.0)
    guest.expect("R.")
    assert stream.was_reset
    assert not scene.relay.flows


def answer_keep_alives(scene, guest, seconds, ack=1):
    """Let time pass while the guest answers, and says nothing else."""
    asked, end = 0, scene.now + seconds
    while scene.now < end and guest.flow is not None:
        scene.pass_(10.0)
        for pkt in scene.said:
            if pkt.tcp.flags == 0x10:
                asked += 1
                guest.inject(".", 1, ack=ack)
        scene.said.clear()
    return asked


def test_a_guest_that_only_answers_our_keep_alives_is_idle(established):
    """Else a stream whose other end has vanished would be kept for as long as the guest is there."""
    scene, guest, stream = established
    assert answer_keep_alives(scene, guest, 7400.0) >= 20
    assert guest.flow is not None
    answer_keep_alives(scene, guest, 100.0)
    assert guest.flow is None
    assert stream.was_reset


def test_a_guest_that_asks_whether_we_are_there_is_not_idle(established):
    scene, guest, stream = established
    for _ in range(3):
        answer_keep_alives(scene, guest, 7200.0)
        assert guest.flow is not None
        guest.inject(".", 0, ack=1)  # a keep-alive of its own: SEG.SEQ = SND.NXT-1
        guest.expect(".", seq=1, ack=1)
    assert not stream.closed


# --- timers


@pytest.mark.slow
def test_timers_are_few_however_long_a_flow_talks(established):
    scene, guest, stream = established
    seq = ack = 1
    for _ in range(2000):
        scene.pass_(0.05)
        guest.inject(".", seq, b"?", ack=ack)
        seq += 1
        guest.expect(".", ack=seq)
        stream.bring(b"!")
        guest.expect(".", data=b"!")
        ack += 1
        guest.inject(".", seq, ack=ack)
    assert len(scene.relay.timers) < 1000


@pytest.mark.slow
def test_timers_are_few_however_many_flows_there_were(scene):
    gone = []
    for i in range(2000):
        guest = scene.guest(1024 + i)
        gone.append(weakref.ref(guest.establish()))
        guest.inject("R", 1)
        scene.ended.clear()
        scene.made.clear()
    gc.collect()
    assert not scene.relay.flows
    assert len(scene.relay.timers) < 1000
    assert sum(each() is not None for each in gone) < 1000


@pytest.mark.slow
def test_many_flows_that_end_together_leave_few_timers(scene):
    guests = [scene.guest(1024 + i) for i in range(2000)]
    for guest in guests:
        guest.establish()
    for guest in guests:
        guest.inject("R", 1)
    assert not scene.relay.flows
    assert len(scene.relay.timers) < 1000


def test_a_call_under_way_does_not_wake_the_relay(calling):
    scene, guest, call = calling
    wakes = []
    wake = scene.relay.wake
    scene.relay.wake = lambda now: (wakes.append(now), wake(now))
    scene.pass_(100.0)
    guest.expect_nothing()
    assert call.tries == 1
    assert len(wakes) < 5


def test_an_idle_flow_does_not_wake_the_relay(established):
    scene, guest, _ = established
    wakes = []
    wake = scene.relay.wake
    scene.relay.wake = lambda now: (wakes.append(now), wake(now))
    scene.pass_(290.0)
    guest.expect_nothing()
    assert len(wakes) < 5


def test_waking_early_is_harmless(calling):
    scene, guest, call = calling
    for _ in range(10):
        scene.relay.wake(scene.now)
        scene.relay.settle(scene.now)
    guest.expect_nothing()
    assert call.tries == 1


def test_an_acknowledgement_that_is_put_off_is_sent_in_time():
    scene = Scene(4, RELAYED)
    guest = scene.guest()
    guest.establish()
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect_nothing()
    scene.pass_(0.08)
    guest.expect(".", ack=6)


def test_the_guests_fin_is_acknowledged_by_ours():
    scene = Scene(4, RELAYED)
    guest = scene.guest()
    stream = guest.establish()
    guest.inject("F.", 1, ack=1)
    stream.finish()
    guest.expect("F.", seq=1, ack=2)
    guest.expect_nothing()


def test_the_limits_are_those_of_the_standards():
    assert RelayLimits().idle_s >= 7440, "RFC 5382 REQ-5"


def test_beyond_twice_the_memory_who_holds_most_is_reset_and_the_others_are_not(fresh):
    scene = fresh(memory=0)
    light = scene.guest(40_000)
    light.establish().room = 0
    light.inject(".", 1, 100, ack=1)
    scene.turn()
    for port in range(40_001, 40_081):
        scene.said.clear()
        guest = scene.guest(port)
        guest.establish().room = 0
        guest.inject(".", 1, 60_000, ack=1)
        scene.turn()
        assert scene.relay.budget.buffered <= 4 << 20
    assert 0 < scene.relay.budget.evicted < 80
    assert len(scene.relay.flows) == 81 - scene.relay.budget.evicted
    assert light.flow.key in scene.relay.flows
