"""Data both ways: windows, acknowledgements, retransmission, and the options."""

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from talk import ISS, PLAIN

from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import PSH
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.isn import initial_numbers
from vtl_tools.common.tcp.state import Ended, SegmentDrop, State
from vtl_tools.common.tcp.wire import Framer


def test_data_is_acknowledged_and_read_as_it_came(established):
    tcp, peer = established
    peer.inject(".", 1, b"hello", ack=1)
    peer.expect(".", seq=1, ack=6)
    assert bytes(tcp.read(2)) + bytes(tcp.read()) == b"hello"


def test_what_is_written_goes_out_with_psh(established):
    tcp, peer = established
    assert tcp.write(b"hello") == 5
    assert peer.expect(".", seq=1, data=b"hello").flags & 8


def test_data_out_of_order_waits_for_the_gap_and_is_acknowledged_at_once(established):
    tcp, peer = established
    peer.inject(".", 6, b"world", ack=1)
    peer.expect(".", ack=1)
    assert tcp.readable == 0
    peer.inject(".", 1, b"hello", ack=1)
    peer.expect(".", ack=11)
    assert b"".join(iter(tcp.read, b"")) == b"helloworld"


def test_data_that_overlaps_is_taken_once(established):
    tcp, peer = established
    for seq, data in (4, b"defg"), (2, b"bcde"), (6, b"fghi"), (1, b"abc"):
        peer.inject(".", seq, data, ack=1)
    assert b"".join(iter(tcp.read, b"")) == b"abcdefghi"


def test_data_behind_the_window_is_not_taken(make):
    tcp, peer = make(replace(PLAIN, receive_buffer=1000))
    peer.inject(".", 1, 1500, ack=1)
    peer.expect(".", ack=1001, win=0)
    assert tcp.readable == 1000


def test_acks_are_delayed_but_not_for_two_full_segments(make):
    _, peer = make(replace(PLAIN, delayed_ack_s=0.2, quick_acks=0))
    peer.inject(".", 1, 1000, ack=1)
    peer.expect_nothing()
    peer.inject(".", 1001, 1000, ack=1)
    peer.expect(".", ack=2001)
    peer.inject(".", 2001, 10, ack=1)
    peer.pass_(0.19)
    peer.expect_nothing()
    peer.pass_(0.02)
    peer.expect(".", ack=2011)


def test_the_window_shuts_when_nobody_reads_and_opens_by_a_segment_at_least(make):
    tcp, peer = make(replace(PLAIN, receive_buffer=4000))
    for seq in range(1, 4001, 1000):
        peer.inject(".", seq, 1000, ack=1)
        peer.expect(".", ack=seq + 1000, win=4000 - seq - 999)
    tcp.read(500)
    peer.expect_nothing()  # the receiver's silly window
    tcp.read(500)
    peer.expect(".", ack=4001, win=1000)


def test_a_probe_of_our_shut_window_is_answered(make):
    tcp, peer = make(replace(PLAIN, receive_buffer=1000))
    peer.inject(".", 1, 1000, ack=1)
    peer.expect(".", ack=1001, win=0)
    peer.inject(".", 1001, 1, ack=1)
    peer.expect(".", ack=1001, win=0)
    assert tcp.readable == 1000


def test_it_never_sends_beyond_the_window(make):
    tcp, peer = make(win=2500)
    tcp.write(bytes(10_000))
    peer.expect(".", seq=1, data=1000)
    peer.expect(".", seq=1001, data=1000)
    peer.expect_nothing()  # 500 would be silly
    peer.inject(".", 1, ack=2001, win=3000)
    for seq in 2001, 3001, 4001:
        peer.expect(".", seq=seq, data=1000)
    peer.expect_nothing()


def test_super_segments_that_leave_together_differ_in_what_they_carry(make):
    config = replace(
        PLAIN, super_segment=20_000, window_scaling=True, timestamps=True, no_delay=True, initial_window=99
    )
    tcp, peer = make(config, win=60_000)
    data = Random(1).randbytes(90_500)
    assert tcp.write(data) == len(data)
    peer.pump()  # which verifies checksums
    at = 0
    for heard in (pkt.tcp for pkt in peer.said):
        assert (heard.seq - ISS - 1) % 2**32 == at
        assert bytes(heard.payload) == data[at : at + len(heard.payload)]
        at += len(heard.payload)
        assert bool(heard.flags & PSH) == (at == len(data))
    assert at == len(data)
    assert tcp.info().segments_out == 1 + 5
    peer.said.clear()


def test_a_shut_window_is_probed_for_as_long_as_the_peer_answers(make):
    tcp, peer = make(replace(PLAIN, user_timeout_s=100.0))
    peer.inject(".", 1, ack=1, win=0)
    tcp.write(b"waiting")
    peer.expect_nothing()
    for _ in range(12):
        peer.pass_(60.1)
        assert peer.expect(".", seq=1, data=b"w")
        peer.said.clear()
        peer.inject(".", 1, ack=1, win=0)
    assert tcp.state is State.ESTABLISHED
    peer.inject(".", 1, ack=1, win=1000)
    peer.expect(".", seq=1, data=b"waiting")


def test_a_probe_that_was_taken_counts(make):
    tcp, peer = make()
    peer.inject(".", 1, ack=1, win=0)
    tcp.write(b"waiting")
    peer.pass_(3)
    peer.expect(".", seq=1, data=b"w")
    peer.said.clear()
    peer.inject(".", 1, ack=2, win=1000)
    peer.expect(".", seq=2, data=b"aiting")


def test_small_segments_wait_for_an_ack(established):
    tcp, peer = established
    tcp.write(b"a")
    peer.expect(".", seq=1, data=b"a")
    tcp.write(b"b")
    tcp.write(b"c")
    peer.expect_nothing()
    peer.inject(".", 1, ack=2)
    peer.expect(".", seq=2, data=b"bc")


def test_small_segments_do_not_wait_with_no_delay(make):
    tcp, peer = make(replace(PLAIN, no_delay=True))
    for seq, octet in (1, b"a"), (2, b"b"):
        tcp.write(octet)
        peer.expect(".", seq=seq, data=octet)


def test_what_is_not_acknowledged_is_sent_again_ever_more_rarely(established):
    tcp, peer = established
    tcp.write(b"lost")
    sent = [peer.now]
    peer.expect(".", seq=1, data=b"lost")
    for _ in range(4):
        while not peer.said:
            peer.pass_(tcp.deadline() - peer.now)
        sent.append(peer.now)
        peer.expect(".", seq=1, data=b"lost")
    gaps = [b - a for a, b in pairwise(sent)]
    assert all(later > 1.7 * earlier for earlier, later in pairwise(gaps))


def test_after_the_user_timeout_the_connection_ends(make):
    tcp, peer = make(replace(PLAIN, user_timeout_s=30.0))
    tcp.write(b"lost")
    peer.pass_(31)
    assert tcp.ended is Ended.TIMED_OUT
    assert tcp.deadline() is None


def test_three_duplicate_acks_bring_the_lost_segment_at_once(established):
    tcp, peer = established
    tcp.write(bytes(6000))
    for seq in range(1, 6001, 1000):
        peer.expect(".", seq=seq, data=1000)
    for _ in range(2):
        peer.inject(".", 1, ack=1)
        peer.expect_nothing()
    peer.inject(".", 1, ack=1)
    peer.expect(".", seq=1, data=1000)
    peer.expect_nothing()
    peer.inject(".", 1, ack=6001)
    peer.pass_(10)
    peer.expect_nothing()


def test_selective_acknowledgements_name_what_was_lost(make):
    tcp, peer = make(replace(PLAIN, sack=True))
    tcp.write(bytes(8000))
    for seq in range(1, 8001, 1000):
        peer.expect(".", seq=seq, data=1000)
    for block in (2001, 3001), (4001, 8001):
        peer.inject(".", 1, ack=1001, sack=[tuple((ISS + edge) % 2**32 for edge in block)])
    peer.expect(".", seq=1001, data=1000)
    peer.expect(".", seq=3001, data=1000)
    peer.expect_nothing()


def test_a_repetition_is_told_of_the_latest_segment_only(make):
    tcp, peer = make(replace(PLAIN, sack=True))
    for seq in 1, 1, 101:  # no acknowledgement is sent in between
        tcp.receive(peer.frame(".", seq, b"x" * 100, ack=1), peer.now)
    peer.expect(".", seq=1, ack=201, sack=[])


def test_we_tell_what_came_out_of_order_and_what_came_twice(make):
    _, peer = make(replace(PLAIN, sack=True))
    peer.inject(".", 11, b"later", ack=1)
    peer.expect(".", ack=1, sack=[(11, 16)])
    peer.inject(".", 21, b"again", ack=1)
    peer.expect(".", ack=1, sack=[(21, 26), (11, 16)])
    peer.inject(".", 1, b"0123456789", ack=1)
    peer.expect(".", ack=16, sack=[(21, 26)])
    peer.inject(".", 1, b"0123456789", ack=1)
    peer.expect(".", ack=16, sack=[(1, 11), (21, 26)])


def test_pieces_out_of_order_are_bounded(make):
    tcp, peer = make(replace(PLAIN, reassembly_segments=3))
    for seq in range(10, 60, 10):
        peer.inject(".", seq, b"x", ack=1)
    assert tcp.info().out_of_order == 3
    assert tcp.info().drops == {SegmentDrop.FULL: 2}


def test_an_ack_of_what_was_never_sent_is_challenged(established):
    tcp, peer = established
    peer.inject(".", 1, b"data", ack=99)
    peer.expect(".", seq=1, ack=1)
    assert tcp.readable == 0


def test_an_old_timestamp_is_refused_and_acknowledged(make):
    tcp, peer = make(replace(PLAIN, timestamps=True))
    peer.inject(".", 1, b"new", ack=1, timestamps=(600, 0))
    assert peer.expect(".", ack=4).timestamps[1] == 600
    peer.inject(".", 4, b"old", ack=1, timestamps=(400, 0))
    peer.expect(".", ack=4)
    assert tcp.readable == 3
    assert tcp.info().drops == {SegmentDrop.OLD_TIMESTAMP: 1}


def test_keep_alives_ask_and_then_give_up(make):
    config = replace(PLAIN, keep_alive_s=100.0, keep_alive_interval_s=10.0, keep_alive_probes=2)
    tcp, peer = make(config)
    peer.pass_(101)
    peer.expect(".", seq=0, ack=1)
    peer.inject(".", 1, ack=1)
    peer.pass_(99)
    peer.expect_nothing()
    peer.pass_(12)
    peer.expect(".", seq=0)
    peer.expect(".", seq=0)
    peer.pass_(10)
    peer.expect("R.", seq=1)
    assert tcp.ended is Ended.TIMED_OUT


def test_without_being_told_to_nobody_is_asked(established):
    assert established[0].deadline() is None


def test_a_keep_alive_of_the_peer_is_answered(established):
    established[1].inject(".", 0, b"x", ack=1)
    established[1].expect(".", seq=1, ack=1)


def test_a_tail_is_probed_before_the_timeout(make):
    tcp, peer = make(replace(PLAIN, sack=True))
    tcp.write(bytes(3000))
    for seq in 1, 1001, 2001:
        peer.expect(".", seq=seq, data=1000)
    peer.pass_(0.05)
    peer.expect(".", seq=2001, data=1000)


def test_without_an_mss_option_segments_are_the_least_that_all_take(fresh):
    peer = fresh(replace(PLAIN, mss=None))
    peer.tcp.listen()
    peer.inject("S", 0)
    peer.tcp.accept()
    peer.inject(".", 1, ack=1)
    assert peer.tcp.info().mss == {4: 536, 16: 1220}[len(peer.path.local)]


def test_a_smaller_path_makes_smaller_segments(established):
    tcp, peer = established
    tcp.path_mtu(0)
    size = tcp.info().mss
    assert size == {4: 536, 16: 1000}[len(peer.path.local)]
    tcp.write(bytes(2 * size))
    peer.expect(".", seq=1, data=size)
    peer.expect(".", seq=1 + size, data=size)


def test_what_was_too_big_for_the_path_is_sent_again_in_parts_without_congestion(fresh):
    peer = fresh(replace(PLAIN, mss=1400))
    tcp = peer.tcp
    tcp.listen()
    peer.inject("S", 0, mss=1400)
    tcp.accept()
    peer.expect("S.", seq=0, ack=1)
    peer.inject(".", 1, ack=1)
    before = tcp.info()
    assert before.mss == 1400
    tcp.write(bytes(2800))
    for at, data in (1, 1400), (1401, 1400):
        peer.expect(".", seq=at, data=data)
    tcp.path_mtu(1280)
    size = tcp.info().mss
    assert size == {4: 1240, 16: 1220}[len(peer.path.local)]
    for at in 1, 1 + size:
        peer.expect(".", seq=at, data=size)
    peer.expect(".", seq=1 + 2 * size, data=2800 - 2 * size)
    peer.expect_nothing()
    peer.inject(".", 1, ack=2801)
    after = tcp.info()
    assert (after.phase, after.ssthresh) == ("open", before.ssthresh)
    assert after.cwnd >= before.cwnd


def test_window_scale_holds_only_if_both_offer_it(make):
    tcp, _ = make(replace(PLAIN, window_scaling=True))
    assert (tcp.info().snd_wscale, tcp.info().rcv_wscale) == (2, 5)
    assert tcp.info().snd_wnd == 40_000


def test_initial_numbers_depend_on_path_secret_and_time(closed):
    path = closed[1].path
    numbers = {
        initial_numbers(secret, Framer(other, 64, 0).ends, now)[0]
        for secret in (b"one", b"two")
        for other in (path, path.replace(remote_port=1))
        for now in (0.0, 1.0)
    }
    assert len(numbers) == 8
    ends = Framer(path, 64, 0).ends
    first = initial_numbers(b"one", ends, 0.0)[0]
    assert (initial_numbers(b"one", ends, 1.0)[0] - first) % 2**32 == 250_000


@pytest.mark.parametrize(
    "wrong",
    [{"delayed_ack_s": 0.5}, {"receive_buffer": 0}, {"mtu": 100}, {"shift": 15}, {"rto_min_s": 0.0},
     {"rto_max_s": 0.1}],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match=r"0\.5|octet|14|rto_max_s"):
        Config(**wrong)


def sack(*edges):
    return [tuple((ISS + edge) % 2**32 for edge in block) for block in edges]


def test_what_is_missing_for_a_quarter_of_a_round_trip_is_lost(make):
    tcp, peer = make(replace(PLAIN, sack=True, no_delay=True))
    tcp.write(bytes(1000))
    peer.expect(".", seq=1, data=1000)
    peer.pass_(0.1)
    peer.said.clear()
    peer.inject(".", 1, ack=1001)
    tcp.write(bytes(2000))
    peer.expect(".", seq=1001, data=1000)
    peer.expect(".", seq=2001, data=1000)
    peer.inject(".", 1, ack=1001, sack=sack((2001, 3001)))
    peer.expect_nothing()  # it may only have been overtaken
    peer.pass_(tcp.info().rtt_s / 3)
    peer.expect(".", seq=1001, data=1000)
    assert tcp.info().ssthresh == 2000


def test_a_retransmission_that_is_lost_is_sent_once_more(make):
    tcp, peer = make(replace(PLAIN, sack=True, tail_loss_probe=False, initial_window=20))
    tcp.write(bytes(1000))
    peer.expect(".", seq=1, data=1000)
    peer.pass_(0.1)
    peer.inject(".", 1, ack=1001)
    tcp.write(bytes(8000))
    peer.expect(".", seq=1001, data=1000)
    peer.said.clear()
    for end in range(3001, 7001, 1000):
        peer.pass_(0.005)
        peer.inject(".", 1, ack=1001, sack=sack((2001, end)))
    peer.expect(".", seq=1001, data=1000)
    peer.expect_nothing()
    tcp.write(bytes(1000))
    peer.inject(".", 1, ack=1001, sack=sack((2001, 9001)))
    peer.expect(".", seq=9001, data=1000)
    peer.expect_nothing()
    peer.pass_(0.15)
    peer.inject(".", 1, ack=1001, sack=sack((2001, 10001)))  # what was sent later came, and the head did not
    peer.expect(".", seq=1001, data=1000)
    peer.expect_nothing()


def test_sack_blocks_go_out_before_data_that_has_no_room_for_them(make):
    tcp, peer = make(replace(PLAIN, sack=True))
    tcp.receive(peer.frame(".", 11, b"later", ack=1), peer.now)
    tcp.write(b"data")
    peer.expect(".", ack=1, seq=1, sack=[(11, 16)])
    peer.expect(".", ack=1, seq=1, data=b"data")


def test_it_can_be_configured_while_it_lives(make):
    tcp, peer = make()
    tcp.write(b"a")
    peer.expect(".", seq=1, data=b"a")
    tcp.write(b"b")
    peer.expect_nothing()
    tcp.configure(no_delay=True, user_timeout_s=5.0, receive_buffer=1 << 19, send_buffer=10)
    peer.expect(".", seq=2, data=b"b")
    assert tcp.writable == 8
    peer.pass_(6)
    assert tcp.ended is Ended.TIMED_OUT
    with pytest.raises(ValueError, match="octet"):
        tcp.configure(send_buffer=0)


def test_an_older_segment_does_not_move_the_window(make):
    tcp, peer = make(win=2000)
    peer.inject(".", 11, b"later", ack=1, win=0)
    peer.expect(".", ack=1)
    peer.inject(".", 1, b"0123456789", ack=1, win=9000)
    peer.expect(".", ack=16)
    assert tcp.info().snd_wnd == 0


def test_an_ack_does_not_move_an_old_window_on(make):
    tcp, peer = make(win=2000)
    tcp.write(bytes(9000))
    peer.expect(".", seq=1, data=1000)
    peer.expect(".", seq=1001, data=1000)
    peer.inject(".", 11, b"later", ack=1, win=2000)
    peer.expect(".", ack=1)
    peer.inject(".", 1, ack=1001, win=1000)  # before that, by its number, but newer
    peer.expect_nothing()
    assert tcp.info().snd_wnd == 1000


def test_urgent_data_may_be_longer_than_a_pointer_reaches(make):
    tcp, peer = make(replace(PLAIN, window_scaling=True, initial_window=200), win=65535)
    tcp.write(bytes(150_000), urgent=True)
    for seq in range(1, 150_001, 1000):
        assert peer.expect("U.", seq=seq, data=1000).urgent == min(150_001 - seq, 65535)
    tcp.write(bytes(1000))
    peer.expect(".", seq=150_001, data=1000)


def test_urgent_data_goes_out_in_plain_segments_and_what_follows_does_not(make):
    tcp, peer = make(replace(PLAIN, initial_window=20))
    tcp.write(bytes(4000))
    tcp.write(b"!", urgent=True)
    tcp.write(bytes(3999))
    assert [Packet.at(frame).tcp_payload_len for frame in tcp.transmit(peer.now)] == [1000] * 8
    peer.inject(".", 1, ack=8001)
    tcp.write(bytes(4000))
    assert [Packet.at(frame).tcp_payload_len for frame in tcp.transmit(peer.now)] == [4000]


def test_a_write_that_was_not_taken_is_not_urgent(make):
    tcp, peer = make(replace(PLAIN, send_buffer=10))
    tcp.write(b"0123456789")
    peer.expect(".", seq=1, data=10)
    assert tcp.write(b"!", urgent=True) == 0
    peer.inject(".", 1, ack=1)
    peer.pass_(1)
    peer.expect(".", seq=1, data=10)
