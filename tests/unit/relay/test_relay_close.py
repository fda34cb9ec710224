"""Close and Error: each direction ends by itself, after its data; what breaks at one side breaks at both."""

import errno

import pytest

from vtl_tools.common.packet import tcp
from vtl_tools.common.relay.flow import FlowStage
from vtl_tools.common.tcp.state import Ended, State


@pytest.fixture
def guest_closed(established):
    """The guest has sent its FIN."""
    _, guest, stream = established
    guest.inject("F.", 1, ack=1)
    guest.expect(".", ack=2)
    assert stream.finished
    return established


@pytest.fixture
def stream_closed(established):
    """The stream has come to its end."""
    _, guest, stream = established
    stream.finish()
    guest.expect("F.", seq=1)
    guest.inject(".", 1, ack=2)
    guest.expect_nothing()
    return established


@pytest.fixture
def time_wait(stream_closed):
    """Both have closed, the stream first: our end waits."""
    _, guest, stream = stream_closed
    guest.inject("F.", 1, ack=2)
    guest.expect(".", seq=2, ack=2)
    assert stream.finished
    assert guest.flow.endpoint.state is State.TIME_WAIT
    return stream_closed


def test_the_guest_closes_first(guest_closed):
    scene, guest, stream = guest_closed
    assert guest.flow.stage is FlowStage.CLOSE
    stream.bring(b"still there")
    guest.expect(".", seq=1, data=b"still there", ack=2)
    guest.inject(".", 2, ack=12)
    stream.finish()
    guest.expect("F.", seq=12, ack=2)
    assert not stream.closed
    guest.inject(".", 2, ack=13)
    guest.expect_nothing()
    assert stream.closed
    assert not stream.linger
    assert guest.flow is None
    assert scene.ended[0].endpoint.ended is Ended.CLOSED


def test_the_stream_closes_first(stream_closed):
    scene, guest, stream = stream_closed
    assert guest.flow.stage is FlowStage.CLOSE
    guest.inject(".", 1, b"still there", ack=2)
    guest.expect(".", ack=12)
    assert stream.got == b"still there"
    assert not stream.finished
    guest.inject("F.", 12, ack=2)
    guest.expect(".", ack=13)
    assert stream.finished
    scene.pass_(2.0)
    guest.expect_nothing()
    assert stream.closed
    assert not stream.linger
    assert guest.flow is None


def test_both_close_at_once(established):
    scene, guest, stream = established
    stream.finish()
    guest.expect("F.", seq=1)
    guest.inject("F.", 1, ack=1)
    guest.expect(".", ack=2)
    guest.inject(".", 2, ack=2)
    scene.pass_(2.0)
    guest.expect_nothing()
    assert (stream.closed, stream.linger, stream.finished) == (True, False, True)
    assert guest.flow is None


def test_the_guests_end_waits_until_its_data_was_taken(established):
    _, guest, stream = established
    stream.room = 3
    guest.inject("F.", 1, b"hello", ack=1)
    guest.expect(".", ack=7)
    assert not stream.finished
    stream.drain()
    guest.expect_nothing()
    assert stream.got == b"hello"
    assert stream.finished


def test_a_fin_before_its_data_waits_for_it(established):
    _, guest, stream = established
    guest.inject("F.", 6, ack=1)
    guest.expect(".", ack=1)
    assert not stream.finished
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect(".", ack=7)
    assert stream.got == b"hello"
    assert stream.finished


def test_the_streams_end_comes_behind_its_data(established):
    _, guest, stream = established
    stream.bring(bytes(25_000))
    stream.finish()
    for _ in range(10):
        guest.expect(".", data=1000)
    guest.expect_nothing()
    guest.inject(".", 1, ack=10_001)
    for _ in range(10):
        guest.expect(".", data=1000)
    guest.inject(".", 1, ack=20_001)
    for _ in range(5):
        guest.expect(".", data=1000)
    guest.expect("F.", seq=25_001)
    guest.inject(".", 1, ack=25_002)
    guest.expect_nothing()
    assert guest.flow.endpoint.state is State.FIN_WAIT_2


def test_a_lost_fin_is_sent_again(established):
    scene, guest, stream = established
    stream.finish()
    guest.expect("F.", seq=1)
    scene.pass_(1.5)
    guest.expect("F.", seq=1)
    scene.said.clear()


def test_what_the_guest_sent_before_its_end_is_delivered_though_the_stream_is_slow(stream_closed):
    """The guest's end is through long before the stream has taken all."""
    scene, guest, stream = stream_closed
    stream.room = 0
    guest.inject("F.", 1, b"hello", ack=2)
    guest.expect(".", ack=7)
    scene.pass_(60.0)
    guest.expect_nothing()
    assert guest.flow is not None
    stream.drain()
    guest.expect_nothing()
    assert stream.got == b"hello"
    assert (stream.finished, stream.closed, stream.linger) == (True, True, False)
    assert guest.flow is None
    assert scene.relay.budget.buffered == 0


def test_what_the_guest_sent_waits_though_it_closed_first(established):
    scene, guest, stream = established
    stream.room = 0
    guest.inject("F.", 1, b"hello", ack=1)
    guest.expect(".", ack=7)
    stream.finish()
    guest.expect("F.", ack=7)
    guest.inject(".", 7, ack=2)
    scene.pass_(60.0)
    guest.expect_nothing()
    assert not stream.closed
    stream.drain()
    guest.expect_nothing()
    assert stream.got == b"hello"
    assert (stream.finished, stream.closed, stream.linger) == (True, True, False)
    assert guest.flow is None


def test_a_stream_that_takes_nothing_is_left_after_the_idle_time(established):
    scene, guest, stream = established
    stream.room = 0
    guest.inject("F.", 1, b"hello", ack=1)
    guest.expect(".", ack=7)
    stream.finish()
    guest.expect("F.", ack=7)
    guest.inject(".", 7, ack=2)
    scene.pass_(scene.relay.limits.idle_s + 1)
    guest.expect_nothing()
    assert stream.closed
    assert guest.flow is None
    assert scene.relay.budget.buffered == 0


@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.EPIPE])
def test_a_stream_that_breaks_when_the_guest_is_through_ends_the_flow(stream_closed, code):
    scene, guest, stream = stream_closed
    stream.room = 0
    guest.inject("F.", 1, b"hello", ack=2)
    guest.expect(".", ack=7)
    scene.pass_(10.0)
    stream.fail(code)
    guest.expect_nothing()
    assert guest.flow is None
    assert stream.closed
    assert scene.relay.budget.buffered == 0


# --- what breaks


def test_a_stream_that_is_reset_resets_the_guest(established):
    scene, guest, stream = established
    stream.fail()
    guest.expect("R.", seq=1, ack=1)
    guest.expect_nothing()
    assert stream.closed
    assert guest.flow is None
    assert scene.ended[0].stage is FlowStage.ERROR


def test_a_stream_that_breaks_on_sending_resets_the_guest(established):
    _, guest, stream = established
    stream.error = BrokenPipeError()
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect("R.", seq=1)
    guest.expect_nothing()
    assert stream.closed
    assert guest.flow is None


@pytest.mark.parametrize("code", [errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTUNREACH])
def test_what_came_before_a_reset_may_be_lost_but_not_changed(established, code):
    _, guest, stream = established
    stream.bring(b"hello")
    guest.expect(".", data=b"hello")
    stream.fail(code)
    guest.expect("R.", seq=6)
    assert guest.flow is None


def test_a_stream_that_is_reset_after_its_end_resets_the_guest(stream_closed):
    _, guest, stream = stream_closed
    stream.fail()
    guest.expect("R.", seq=2)
    guest.expect_nothing()
    assert guest.flow is None


def test_a_stream_that_breaks_when_the_guest_has_closed_ends_the_flow(guest_closed):
    _, guest, stream = guest_closed
    stream.fail()
    guest.expect("R.", seq=1, ack=2)
    guest.expect_nothing()
    assert guest.flow is None
    assert stream.closed


def test_a_guest_that_resets_resets_the_stream(established):
    scene, guest, stream = established
    guest.inject("R", 1)
    guest.expect_nothing()
    assert stream.was_reset
    assert guest.flow is None
    assert scene.relay.status(scene.now)["connections"] == {}


def test_a_guest_that_resets_after_its_end_resets_the_stream(guest_closed):
    _, guest, stream = guest_closed
    guest.inject("R", 2)
    guest.expect_nothing()
    assert stream.was_reset


def test_a_reset_with_a_doubtful_number_is_asked_about(established):
    _, guest, stream = established
    guest.inject("R", 5)
    guest.expect(".", seq=1, ack=1)
    assert not stream.closed
    assert guest.flow is not None


def test_a_guest_that_starts_anew_is_believed(established):
    """After a reboot its ports may be the same: it answers the challenge by a reset (RFC 5961 4.2)."""
    scene, guest, stream = established
    old = guest.irs
    guest.irs += 1_000_000
    guest.inject("S", 0)
    guest.expect(".", seq=1, ack=old + 1 - guest.irs + 2**32)
    guest.inject("R", old + 1 - guest.irs)
    guest.expect_nothing()
    assert stream.was_reset
    guest.syn()
    guest.expect("S.", seq=0, ack=1)
    assert len(scene.made) == 2


def test_a_guest_that_vanished_is_noticed_when_there_is_something_to_send(established):
    scene, guest, stream = established
    stream.bring(b"anybody there?")
    scene.pass_(400.0)
    assert guest.flow is None
    assert stream.was_reset
    scene.said.clear()


def test_a_guest_that_vanished_is_noticed_when_there_is_nothing_to_send(established):
    scene, guest, stream = established
    scene.pass_(299.0)
    guest.expect_nothing()
    scene.pass_(200.0)
    assert guest.flow is None
    assert stream.was_reset
    assert [pkt.tcp.flags for pkt in scene.said] == [0x10] * 5 + [0x14]
    scene.said.clear()


def test_a_guest_that_vanished_is_noticed_though_the_stream_has_closed(stream_closed):
    scene, guest, stream = stream_closed
    scene.pass_(500.0)
    assert guest.flow is None
    assert stream.closed
    scene.said.clear()


def test_a_guest_that_vanished_is_noticed_though_our_fin_is_not_acknowledged(established):
    scene, guest, stream = established
    stream.finish()
    scene.pass_(400.0)
    assert guest.flow is None
    assert stream.closed
    scene.said.clear()


def test_a_guest_that_vanished_after_its_end_is_noticed(guest_closed):
    scene, guest, stream = guest_closed
    scene.pass_(500.0)
    assert guest.flow is None
    assert stream.was_reset
    scene.said.clear()


def test_a_half_closed_guest_that_is_there_may_wait_for_long(guest_closed):
    scene, guest, stream = guest_closed
    for _ in range(60):
        scene.pass_(60.0)
        scene.said.clear()
        guest.inject(".", 2, ack=1)  # alive
    stream.bring(b"at last")
    guest.expect(".", seq=1, data=b"at last", ack=2)


# --- TIME-WAIT


def test_time_wait_ends(time_wait):
    scene, guest, stream = time_wait
    guest.inject("F.", 1, ack=2)  # our acknowledgement was lost
    guest.expect(".", seq=2, ack=2)
    scene.pass_(1.5)
    assert guest.flow is None
    assert stream.closed
    assert not stream.linger


def test_a_new_call_ends_time_wait(time_wait):
    scene, guest, old = time_wait
    before = guest.flow.endpoint.snd
    guest.irs += 100
    new = guest.syn().stream
    assert new is not old
    guest.expect("S.", seq=0, ack=1)
    above = (guest.flow.endpoint.snd.iss - before.snd_nxt) % 2**32
    assert 0x1_0000 < above < 2**31, "RFC 9293 section 3.6.1, MAY-2"
    assert old.closed
    assert not old.linger, "what it has taken is on its way, and not to be thrown away"
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect(".", ack=6)
    assert (bytes(old.got), bytes(new.got)) == (b"", b"hello")
    assert len(scene.ended) == 1


@pytest.mark.parametrize("seconds", [0.1, 5.0], ids=["time-wait", "closed"])
def test_a_new_call_waits_until_the_old_stream_has_taken_all(stream_closed, seconds):
    scene, guest, old = stream_closed
    old.room = 0
    guest.inject("F.", 1, b"hello", ack=2)
    guest.expect(".", ack=7)
    scene.pass_(seconds)
    guest.irs += 100
    guest.syn()
    guest.expect_nothing()
    assert len(scene.made) == 1
    old.drain()
    guest.expect_nothing()
    assert old.got == b"hello"
    assert (old.finished, old.linger) == (True, False)
    guest.syn()  # as a guest does after a second
    guest.expect("S.", seq=0, ack=1)
    assert len(scene.made) == 2


def test_the_same_port_again_and_again(scene):
    guest = scene.guest()
    for _ in range(50):
        stream = guest.establish()
        guest.inject("P.", 1, b"?", ack=1)
        guest.expect(".", ack=2)
        stream.bring(b"!")
        stream.finish()
        guest.expect(".", seq=1, data=b"!")
        guest.expect("F.", seq=2)
        guest.inject("F.", 2, ack=3)
        guest.expect(".", seq=3, ack=3)
        guest.irs += 70_000
    assert [bytes(call.stream.got) for call in scene.made] == [b"?"] * 50
    assert not any(call.stream.linger for call in scene.made)
    scene.pass_(2.0)
    assert not scene.relay.flows
    assert all(call.stream.closed for call in scene.made)


def test_the_relays_end_resets_all(scene):
    one, two = scene.guest(40000), scene.guest(40001)
    one.establish()
    two.establish()
    scene.relay.on_stop(scene.now)
    assert sorted(pkt.tcp.dport for pkt in scene.said) == [40000, 40001]
    assert {pkt.tcp.flags for pkt in scene.said} == {0x14}
    assert all(call.stream.was_reset for call in scene.made)
    scene.relay.close()


def test_the_last_reset_carries_the_time_at_which_it_is_sent(scene, guest):
    """A guest discards a reset whose timestamp is older than those before (RFC 7323 section 5.2)."""
    guest.syn_frame = guest.frame("S", options={"mss": 1000, "timestamps": (1, 0)})
    scene.push(guest.syn_frame)
    opened = guest.expect("S.").timestamps[0]
    guest.inject(".", 1, ack=1, options={"timestamps": (2, opened)})
    scene.now += 5.0
    scene.relay.on_stop(scene.now)
    last = guest.expect("R.", seq=1).timestamps[0]
    assert (last - opened) % 2**32 == 5000


def test_what_nobody_waits_for_is_behind_what_somebody_does(established):
    """A FIN is put off until octets leave for a guest, and goes behind them."""
    scene, first, stream = established
    second = scene.guest(40001)
    second_stream = second.establish()
    scene.end(stream)
    assert not scene.said
    assert scene.relay.poll(scene.now), "or the runner would sleep"
    second_stream.bring(b"an answer")
    second_stream.tell(scene.now)
    scene.relay.settle(scene.now)
    assert [pkt.tcp.dport for pkt in scene.said] == [40001, 40000]
    second.expect(".", data=b"an answer")
    first.expect("F.", seq=1)


def test_what_is_put_off_is_done_though_others_are_busy(established):
    """Neither the end of a stream nor that of a connection waits for long."""
    scene, first, stream = established
    second = scene.guest(40001)
    second.establish()
    stream.finish()
    stream.tell(scene.now)
    for turn in range(100):
        scene.push(second.frame(".", 1 + turn, b"x", ack=1))
        if any(pkt.tcp.dport == 40000 for pkt in scene.said):
            break
    assert turn < 40
    scene.said.clear()
    scene.push(first.frame("F.", 1, ack=2))
    scene.pass_(2.0)
    assert stream.closed
    assert len(scene.relay.flows) == 1


def test_many_ends_are_not_put_off(scene):
    guests = [scene.guest(40000 + number) for number in range(20)]
    streams = [guest.establish() for guest in guests]
    for stream in streams:
        stream.finish()
        stream.tell(scene.now)
    scene.relay.settle(scene.now)
    assert len(scene.said) == 20


def test_the_limit_of_connections_counts_none_that_is_over(fresh):
    scene = fresh(connections=1)
    guest = scene.guest(40000)
    stream = guest.establish()
    scene.push(guest.frame("F.", 1, ack=1))
    scene.end(stream)
    for _ in range(50):
        scene.relay.settle(scene.now)
    scene.said.clear()
    scene.push(guest.frame(".", 2, ack=2))
    assert scene.relay.flows, "put off"
    scene.guest(40001).establish()


def test_nothing_is_put_off_when_the_runner_may_sleep(established):
    """After an alarm no turn follows; a stream of another stage tells of its end in such a one."""
    scene, guest, stream = established
    scene.relay.wake(scene.now)
    scene.end(stream)
    assert [pkt.tcp.flags & tcp.FIN for pkt in scene.said] == [tcp.FIN]
    scene.said.clear()
    scene.push(guest.frame("F.", 1, ack=1))
    scene.relay.wake(scene.now)
    scene.push(guest.frame(".", 2, ack=2))
    scene.relay.wake(scene.now + 5.0)
    scene.relay.settle(scene.now + 5.0)
    assert stream.closed


def test_a_guest_that_sends_on_after_the_streams_end_waits_for_no_ack(established):
    scene, guest, stream = established
    scene.end(stream)
    assert not scene.said, "put off"
    scene.push(guest.frame(".", 1, b"hello", ack=1))
    assert [pkt.tcp.flags for pkt in scene.said] == [tcp.FIN | tcp.ACK, tcp.ACK]
    scene.said.clear()
    scene.push(guest.frame(".", 6, b"hello", ack=2))
    assert len(scene.said) == 1
    guest.expect(".", ack=11)


def test_a_connection_is_not_begun_again_before_the_last_frames_of_the_old_one(established):
    scene, guest, stream = established
    scene.end(stream)
    assert not scene.said, "put off"
    scene.push(guest.frame("R", 1))
    assert stream.closed
    guest.irs += 5000
    scene.push(guest.frame("S", 0, options={"mss": 1000}))
    scene.turn()
    assert [pkt.tcp.flags for pkt in scene.said] == [tcp.FIN | tcp.ACK, tcp.SYN | tcp.ACK]
