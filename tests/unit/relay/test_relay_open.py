"""Open: the guest's SYN waits until the call stands, and a call that fails is told as the network would."""

import pytest
from carry import MACS, Call, Scene, batch_of

from vtl_tools.common.packet import address, build, icmp
from vtl_tools.common.relay.flow import FlowStage
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.socks import ANSWER, Reason


def test_the_syn_is_answered_once_the_call_stands(calling):
    _, guest, call = calling
    assert guest.flow.stage is FlowStage.OPEN
    call.comes_to(b"")
    guest.expect("S.", seq=0, ack=1)
    guest.inject(".", 1, ack=1)
    guest.expect_nothing()
    assert guest.flow.stage is FlowStage.ESTABLISHED


def test_a_call_that_stands_at_once_is_answered_at_once(scene, guest):
    guest.syn()
    guest.expect("S.", seq=0, ack=1)
    assert scene.relay.budget.opened == 1


def test_what_a_call_brings_is_the_beginning_of_the_stream(calling):
    _, guest, call = calling
    call.stream.bring(b" and more")
    call.comes_to(b"it came early")
    guest.expect("S.", seq=0, ack=1)
    guest.inject(".", 1, ack=1)
    guest.expect(".", seq=1, data=b"it came early")
    guest.inject(".", 1, ack=14)
    guest.expect(".", seq=14, data=b" and more")


def test_a_syn_that_comes_again_while_the_call_is_under_way_is_passed_over(calling):
    scene, guest, call = calling
    for _ in range(3):
        scene.pass_(1.0)
        scene.push(guest.syn_frame)
        guest.expect_nothing()
    assert len(scene.made) == 1
    call.comes_to(b"")
    guest.expect("S.", seq=0, ack=1)
    guest.expect_nothing()


def test_a_syn_that_comes_again_later_is_answered_again(scene, guest):
    guest.syn()
    guest.expect("S.", seq=0, ack=1)
    scene.push(guest.syn_frame)
    guest.expect("S.", seq=0, ack=1)
    assert scene.relay.budget.opened == 1


def test_an_unanswered_syn_ack_is_repeated_and_given_up(scene, guest):
    stream = guest.syn().stream
    guest.expect("S.")
    scene.pass_(1.5)
    guest.expect("S.")
    scene.pass_(40.0)
    scene.said.clear()
    assert guest.flow is None
    assert stream.was_reset
    assert scene.relay.budget.established == 0


@pytest.mark.parametrize("held", [True, False], ids=["later", "at once"])
@pytest.mark.parametrize("reason", Reason, ids=str)
def test_a_call_that_fails_is_told_by_its_reason(scene, guest, reason, held):
    call = Call(None) if held else Call(reason)
    scene.calls.append(call)
    guest.syn()
    if held:
        guest.expect_nothing()
        call.comes_to(reason)
    answer = ANSWER[reason]
    if answer is None:
        guest.expect("R.", ack=1)
    elif scene.version == 4:
        guest.expect_icmp(icmp.UNREACHABLE, answer.v4)
    else:
        guest.expect_icmp(icmp.V6_UNREACHABLE, answer.v6)
    guest.expect_nothing()
    assert guest.flow is None
    assert call.stream.closed
    assert not call.stream.linger
    assert (scene.relay.budget.failed, scene.relay.budget.established) == (1, 0)


def test_a_call_that_is_not_made_is_told_by_its_reason(scene, guest):
    scene.dial = scene.relay.dial = lambda path: Reason.PROHIBITED
    guest.syn()
    if scene.version == 4:
        guest.expect_icmp(icmp.UNREACHABLE, icmp.ADMIN_PROHIBITED)
    else:
        guest.expect_icmp(icmp.V6_UNREACHABLE, icmp.V6_ADMIN_PROHIBITED)
    assert not scene.relay.flows


def test_without_a_descriptor_the_guest_may_ask_again(scene, guest):
    scene.calls.append(OSError)
    guest.syn()
    guest.expect_nothing()
    assert scene.relay.drops == {"no-descriptor": 1}
    assert scene.dropped == [bytes(guest.syn_frame)]
    guest.syn()
    guest.expect("S.", seq=0, ack=1)


def test_a_call_that_takes_too_long_is_given_up(calling):
    scene, guest, call = calling
    scene.pass_(119.0)
    guest.expect_nothing()
    scene.pass_(2.0)
    if scene.version == 4:
        guest.expect_icmp(icmp.UNREACHABLE, icmp.HOST_UNREACHABLE)
    else:
        guest.expect_icmp(icmp.V6_UNREACHABLE, icmp.V6_ADDRESS_UNREACHABLE)
    assert call.stream.closed
    assert guest.flow is None


def test_a_busy_proxy_is_asked_again(scene, guest):
    call = Call(BlockingIOError, BlockingIOError, BlockingIOError, None)
    scene.calls.append(call)
    guest.syn()
    guest.expect_nothing()
    assert call.tries == 1
    scene.pass_(0.1)
    assert call.tries == 4
    call.comes_to(b"")
    guest.expect("S.", seq=0, ack=1)


def test_a_proxy_that_stays_busy_is_given_up_in_time(scene, guest):
    scene.calls.append(Call(BlockingIOError))
    guest.syn()
    scene.pass_(119.0)
    assert not scene.said
    scene.pass_(2.0)
    assert len(scene.said) == 1
    assert scene.said[0].icmp is not None
    assert not scene.relay.flows


def test_a_guest_that_gives_up_ends_the_call(calling):
    scene, guest, call = calling
    guest.inject("R", 1)
    guest.expect_nothing()
    assert call.stream.closed
    assert guest.flow is None
    assert (scene.relay.budget.opened, scene.relay.budget.established) == (1, 0)


def test_a_guest_may_give_up_in_the_moment_in_which_the_call_stands(calling):
    scene, guest, call = calling
    scene.relay.on_batch(0, batch_of(guest.frame("R", 1)), scene.now)
    call.comes_to(b"hello")
    call.stream.tell(scene.now)
    scene.relay.settle(scene.now)
    guest.expect_nothing()
    assert call.stream.closed
    assert guest.flow is None


def test_a_guest_may_give_up_in_the_moment_in_which_the_call_fails(calling):
    scene, guest, call = calling
    scene.relay.on_batch(0, batch_of(guest.frame("R", 1)), scene.now)
    call.comes_to(Reason.GENERAL)
    call.stream.tell(scene.now)
    scene.relay.settle(scene.now)
    guest.expect_nothing()
    assert call.stream.closed
    assert guest.flow is None


def test_an_end_of_the_stream_that_is_told_with_the_call_is_not_missed(calling):
    _, guest, call = calling
    call.stream.bring(b"bye")
    call.stream.finish()
    call.comes_to(b"")
    guest.expect("S.", seq=0, ack=1)
    guest.inject(".", 1, ack=1)
    guest.expect(".", seq=1, data=b"bye")
    guest.expect("F.", seq=4)


def test_a_guest_that_asks_anew_with_another_number_is_not_confused(calling):
    _, guest, call = calling
    guest.irs += 50_000
    guest.inject("S", 0)
    guest.expect_nothing()
    call.comes_to(b"")
    guest.expect("S.", seq=0, ack=1 - 50_000 + 2**32)
    guest.inject("R", 1 - 50_000, ack=1)  # as RFC 9293 has SYN-SENT answer it
    guest.expect_nothing()
    assert guest.flow is None
    guest.syn()
    guest.expect("S.", seq=0, ack=1)


# --- strangers


@pytest.mark.parametrize("flags", [".", "F.", "S.", "P.", "", "F", "SF"])
def test_a_stray_segment_is_answered_by_a_reset(scene, guest, flags):
    guest.inject(flags, 7, ack=9)
    answer = guest.hear().tcp
    assert answer.flags & 0x04
    if "." in flags:
        assert (answer.flags, answer.seq) == (0x04, 9)
    else:
        length = ("F" in flags) + ("S" in flags)
        assert (answer.flags, answer.seq) == (0x14, 0)
        assert answer.ack == (guest.irs + 7 + length) % 2**32
    guest.expect_nothing()
    assert scene.relay.drops == {"no-connection": 1}
    assert not scene.relay.flows


@pytest.mark.parametrize("flags", ["R", "R."])
def test_a_stray_reset_is_not_answered(scene, guest, flags):
    guest.inject(flags, 7)
    guest.expect_nothing()
    assert scene.relay.drops == {"no-connection": 1}


@pytest.mark.parametrize("tags", [5, (5, 6)])
def test_a_tagged_call_is_dropped(scene, guest, tags):
    scene.push(guest.frame("S", vlan=tags))
    guest.expect_nothing()
    assert scene.relay.drops == {"vlan": 1}


GROUPS = {4: ["224.0.0.1", "255.255.255.255", "0.0.0.0"], 6: ["ff02::1", "::"]}


@pytest.mark.parametrize("which", ["src", "dst"])
def test_no_group_is_called_and_none_calls(scene, guest, which):
    groups = GROUPS[scene.version]
    for group in groups:
        scene.push(guest.frame("S", **{which: address.ip(group)}))
        scene.push(guest.frame(".", **{which: address.ip(group)}))
    guest.expect_nothing()
    assert scene.relay.drops == {"not-unicast": 2 * len(groups)}


def test_no_call_comes_by_a_broadcast_frame(scene, guest):
    scene.push(guest.frame("S", dst_mac=address.BROADCAST))
    scene.push(guest.frame("S", dst_mac=address.mac("01:00:5e:00:00:01")))
    guest.expect_nothing()
    assert scene.relay.drops == {"not-unicast": 2}


def test_a_broken_checksum_is_dropped(scene, guest):
    frame = guest.frame("S")
    frame[-1] ^= 1
    scene.push(frame)
    guest.expect_nothing()
    assert scene.relay.drops == {"checksum": 1}


def test_what_is_no_segment_goes_elsewhere(scene, guest):
    where = guest.where
    datagram = build.udp(**where, payload=b"hello")
    broken = guest.frame("S")
    del broken[-4:]
    scene.push(datagram, broken, b"", b"\0" * 9)
    guest.expect_nothing()
    assert scene.others == [bytes(datagram), bytes(broken), b"", b"\0" * 9]


def test_without_a_taker_a_frame_that_is_no_segment_is_dropped():
    dropped = []
    relay = Relay(lambda path: Reason.REFUSED, b"", on_drop=lambda frame, now: dropped.append(bytes(frame)))
    relay.on_batch(0, batch_of(b"\0" * 9), 0.0)
    assert relay.drops == {"not-tcp": 1}
    assert dropped == [b"\0" * 9]


def test_a_packet_in_fragments_is_no_segment():
    scene = Scene(4)
    frame = scene.guest().frame("S")
    frame[10 + 14 + 6] |= 0x20
    scene.push(frame)
    scene.expect_nothing()
    assert len(scene.others) == 1


def test_flows_are_told_apart_by_each_of_their_ends(scene):
    guests = [scene.guest(40000), scene.guest(40001), scene.guest(40000, dport=81)]
    for guest in guests:
        guest.establish()
    for n, guest in enumerate(guests):
        guest.inject(".", 1, f"from {n}".encode(), ack=1)
        guest.expect(".", seq=1, ack=7)
    assert [bytes(call.stream.got) for call in scene.made] == [b"from 0", b"from 1", b"from 2"]


def test_macs_are_those_of_the_syn(scene, guest):
    guest.establish()
    scene.stream.bring(b"x")
    pkt = guest.hear()
    assert (pkt.eth.src, pkt.eth.dst) == (MACS[0], MACS[1])


def test_a_stream_is_opened_behind_what_others_send(established):
    scene, first, stream = established
    sent = []

    class Watched(Call):
        def step(self, events):
            sent.append((bytes(stream.got), len(scene.said)))
            return super().step(events)

    scene.calls.append(Watched(None))
    second = scene.guest(40001)
    stream.bring(b"an answer")
    stream.tell(scene.now)
    scene.push(second.frame("S", options={"mss": 1000}), first.frame(".", 1, b"hello", ack=1))
    assert sent == [(b"hello", 1)]


def test_a_syn_that_comes_twice_at_once_opens_one_stream(scene, guest):
    syn = guest.frame("S", options={"mss": 1000})
    scene.push(syn, syn)
    assert len(scene.made) == len(scene.relay.flows) == 1
    guest.expect("S.", seq=0, ack=1)
    guest.expect_nothing()


def test_a_reset_right_behind_a_syn_ends_the_call(scene, guest):
    call = Call(None)
    scene.calls.append(call)
    scene.push(guest.frame("S", options={"mss": 1000}), guest.frame("R", 1))
    guest.expect_nothing()
    scene.pass_(1.0)
    assert call.stream.closed
    assert not scene.relay.flows
    assert not scene.relay.budget.half_open


def test_the_frame_that_asks_is_told(scene, guest):
    """A service may need of a SYN what is not in the path."""
    first = guest.frame("S", options={"mss": 1000})
    told = []
    scene.relay.dial = lambda path: told.append(bytes(scene.relay.syn)) or Call(b"")
    scene.push(first, scene.guest(40001).frame(".", 1, ack=1))
    assert told == [bytes(first)]
