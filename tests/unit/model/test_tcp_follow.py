"""What a TCP model knows after a conversation has passed."""

import pytest

from vtl_tools.common.model.base import LOCAL, REMOTE


def test_a_handshake_is_followed_through_its_states(talk):
    talk.local("S", 0, mss=1460)
    assert talk.states == ("SYN-SENT", "LISTEN")
    talk.remote("S.", 0, ack=1, mss=1400)
    assert talk.states == ("ESTABLISHED", "SYN-RECEIVED")
    talk.local(".", 1, ack=1)
    assert talk.states == ("ESTABLISHED", "ESTABLISHED")
    assert talk.numbers(LOCAL) == talk.numbers(REMOTE) == (1, 1, 1)
    assert (talk.model.local.mss, talk.model.remote.mss) == (1460, 1400)
    assert not talk.model.joined


def test_the_remote_end_may_open(talk):
    talk.remote("S", 0, window_scale=5)
    talk.local("S.", 0, ack=1, window_scale=6)
    talk.remote(".", 1, ack=1, win=10)
    assert talk.states == ("ESTABLISHED", "ESTABLISHED")
    assert talk.model.local.snd_wnd == 10 << 5


def test_windows_are_shifted_by_their_senders_scale_but_not_in_a_syn(talk):
    talk.local("S", 0, win=64000, window_scale=7)
    talk.remote("S.", 0, ack=1, win=65000, window_scale=8)
    assert talk.model.local.snd_wnd == 65000
    assert talk.model.local.rcv_wnd == 64000
    talk.local(".", 1, ack=1, win=501)
    assert talk.model.remote.snd_wnd == talk.model.local.rcv_wnd == 501 << 7
    talk.remote(".", 1, ack=1, win=502)
    assert talk.model.local.snd_wnd == talk.model.remote.rcv_wnd == 502 << 8


@pytest.mark.parametrize(("ours", "theirs"), [(7, None), (None, 7), (None, None)])
def test_a_scale_that_one_end_did_not_offer_is_not_used(talk, ours, theirs):
    talk.local("S", 0, window_scale=ours)
    talk.remote("S.", 0, ack=1, window_scale=theirs)
    talk.local(".", 1, ack=1, win=77)
    assert (talk.model.local.wscale, talk.model.remote.wscale) == (0, 0)
    assert talk.model.remote.snd_wnd == 77


def test_a_scale_above_14_means_14(talk):
    talk.handshake(wscale=(200, 3))
    assert talk.model.local.wscale == 14


@pytest.mark.parametrize(("offer", "answer", "agreed"), [((1, 0), (2, 1), True), ((1, 0), None, False)])
def test_timestamps_hold_if_both_offer_them(talk, offer, answer, agreed):
    talk.local("S", 0, timestamps=offer, sack_permitted=True)
    talk.remote("S.", 0, ack=1, timestamps=answer, sack_permitted=agreed)
    assert talk.model.timestamps is agreed
    assert talk.model.sack_permitted is agreed


def test_data_moves_both_ends(established):
    assert established.local("P.", 1, 100, ack=1) == "data"
    assert established.numbers(LOCAL) == (1, 101, 1)
    assert established.numbers(REMOTE) == (1, 1, 101)
    assert established.remote(".", 1, ack=101) == "ack"
    assert established.numbers(LOCAL) == (101, 101, 1)


def test_numbers_wrap_around(established):
    for i in range(20):
        assert established.remote("P.", 1 + 100 * i, 100, ack=1) == "data"
        assert established.local(".", 1, ack=101 + 100 * i) == "ack"
    assert established.model.remote.snd_nxt == (2**32 - 200 + 2001) % 2**32
    assert established.numbers(REMOTE) == (2001, 2001, 1)


def test_a_super_segment_takes_an_identification_for_each_packet(new_talk):
    talk = new_talk(4).handshake()
    frame = talk.model.create(bytes(10_000), offload=True, sync=False)
    before = talk.model.ip.local.identification
    assert talk.model.sync_frame(frame) is LOCAL
    assert (talk.model.ip.local.identification - before) == -(-10_000 // 1460)
    assert talk.numbers(LOCAL) == (1, 10_001, 1)


def test_a_syn_that_is_sent_again_changes_nothing(talk):
    talk.local("S", 0, window_scale=7)
    assert talk.local("S", 0, window_scale=7) == "retransmission"
    talk.remote("S.", 0, ack=1, window_scale=7)
    assert talk.remote("S.", 0, ack=1, window_scale=7) == "retransmission"
    talk.local(".", 1, ack=1)
    assert talk.remote("S.", 0, ack=1, window_scale=7) == "retransmission"
    assert talk.states == ("ESTABLISHED", "ESTABLISHED")


def test_a_syn_with_another_number_begins_anew_until_it_is_answered(talk):
    talk.local("S", 0)
    assert talk.local("S", 5000) == "syn"
    assert talk.remote("S.", 0, ack=1) == "ack-of-unsent"
    assert talk.remote("S.", 0, ack=5001) == "syn"


def test_both_ends_may_open_at_once(talk):
    talk.local("S", 0, window_scale=3)
    assert talk.remote("S", 0, window_scale=4) == "syn"
    assert talk.states == ("SYN-RECEIVED", "SYN-RECEIVED")
    talk.local("S.", 0, ack=1, window_scale=3)
    talk.remote("S.", 0, ack=1, window_scale=4)
    assert talk.states == ("ESTABLISHED", "ESTABLISHED")
    assert talk.local("P.", 1, 10, ack=1, win=5) == "data"
    assert talk.model.remote.snd_wnd == 5 << 3


def test_a_refused_connection_is_closed_by_its_reset(talk):
    talk.local("S", 0)
    assert talk.remote("R.", 0, ack=77) == "ack-of-unsent"
    assert talk.remote("R.", 0, ack=1) == "reset"
    assert talk.states == ("CLOSED", "CLOSED")
    assert talk.model.closed


def test_ports_may_be_used_again_after_a_reset(established):
    established.local("R", 1)
    assert established.local("S", 90_000) == "syn"
    assert established.states == ("SYN-SENT", "LISTEN")


def test_an_end_closes_its_half_and_the_other_goes_on(established):
    assert established.local("F.", 1, ack=1) == "data"
    assert established.states == ("FIN-WAIT-1", "CLOSE-WAIT")
    established.remote(".", 1, ack=2)
    assert established.states == ("FIN-WAIT-2", "CLOSE-WAIT")
    assert established.remote("P.", 1, 50, ack=2) == "data"
    established.local(".", 2, ack=51)
    established.remote("F.", 51, ack=2)
    assert established.states == ("TIME-WAIT", "LAST-ACK")
    established.local(".", 2, ack=52)
    assert established.states == ("TIME-WAIT", "CLOSED")
    assert established.model.closed


def test_a_fin_that_acknowledges_a_fin(established):
    established.remote("F.", 1, ack=1)
    assert established.states == ("CLOSE-WAIT", "FIN-WAIT-1")
    established.local("F.", 1, ack=2)
    assert established.states == ("LAST-ACK", "TIME-WAIT")
    established.remote(".", 2, ack=2)
    assert established.states == ("CLOSED", "TIME-WAIT")


def test_both_ends_may_close_at_once(established):
    established.local("F.", 1, ack=1)
    established.remote("F.", 1, ack=1)
    assert established.states == ("CLOSING", "CLOSING")
    established.local(".", 2, ack=2)
    established.remote(".", 2, ack=2)
    assert established.states == ("TIME-WAIT", "TIME-WAIT")


def test_the_last_fin_may_be_repeated(established):
    established.local("F.", 1, ack=1)
    established.remote("F.", 1, ack=2)
    established.local(".", 2, ack=2)
    assert established.remote("F.", 1, ack=2) == "retransmission"
    assert established.states == ("TIME-WAIT", "CLOSED")


def test_ports_may_be_used_again_in_time_wait(established):
    established.local("F.", 1, ack=1)
    established.remote("F.", 1, ack=2)
    established.local(".", 2, ack=2)
    assert established.local("S", 0) == "retransmission", "of the old SYN"
    assert established.local("S", 70_000, window_scale=2) == "syn"
    assert established.model.local.snd_nxt == (established.iss[LOCAL] + 70_001) % 2**32


def test_a_fin_behind_a_gap_waits_for_it(established):
    assert established.local("F.", 101, ack=1) == "out-of-order"
    assert established.states == ("FIN-WAIT-1", "ESTABLISHED")
    established.local("P.", 1, 100, ack=1)
    assert established.remote(".", 1, ack=102) == "ack"
    assert established.states == ("FIN-WAIT-2", "CLOSE-WAIT")


def test_a_gap_is_closed_by_the_receivers_own_ack(established):
    assert established.local("P.", 101, 100, ack=1) == "out-of-order"
    assert established.numbers(REMOTE)[2] == 1
    assert established.numbers(LOCAL)[1] == 201
    assert established.local("P.", 1, 100, ack=1) == "data"
    assert established.numbers(REMOTE)[2] == 101
    established.remote(".", 1, ack=201)
    assert established.numbers(REMOTE)[2] == 201


def test_what_is_sent_again_changes_nothing_but_its_ack_counts(established):
    established.local("P.", 1, 100, ack=1)
    established.remote("P.", 1, 10, ack=1)
    assert established.local("P.", 1, 100, ack=11) == "retransmission"
    assert established.numbers(REMOTE) == (11, 11, 101)


def test_what_was_acknowledged_and_comes_again_is_not_taken_for_news(established):
    established.local("P.", 1, 100, ack=1)
    established.remote(".", 1, ack=101)
    assert established.local("P.", 1, 100, ack=1, win=0) in ("retransmission", "keep-alive")
    established.local("P.", 101, 100, ack=1)
    established.remote(".", 1, ack=201)
    assert established.local("P.", 1, 100, ack=1, win=0) == "retransmission"
    assert established.model.remote.snd_wnd == 1000 << 7


@pytest.mark.parametrize("garbage", [0, 1])
def test_a_keep_alive_changes_nothing(established, garbage):
    established.local("P.", 1, 100, ack=1)
    established.remote(".", 1, ack=101)
    before = established.numbers(LOCAL), established.numbers(REMOTE)
    assert established.local(".", 100, garbage, ack=1) == "keep-alive"
    assert established.remote(".", 1, ack=101) == "ack"
    assert (established.numbers(LOCAL), established.numbers(REMOTE)) == before


def test_a_probe_of_a_closed_window_is_not_received(established):
    established.remote(".", 1, ack=1, win=0)
    assert established.model.local.snd_wnd == 0
    assert established.local(".", 0, ack=1) == "keep-alive"  # Linux's probe
    assert established.local(".", 1, 1, ack=1) == "probe"  # BSD's
    assert established.numbers(REMOTE) == (1, 1, 1)
    established.remote(".", 1, ack=1, win=10)
    assert established.local(".", 1, 100, ack=1) == "data"


def test_a_window_takes_what_fits_it(established):
    established.remote(".", 1, ack=1, win=1)
    assert established.local("P.", 1, 300, ack=1) == "data"
    assert established.numbers(REMOTE)[2] == 257
    assert established.local("P.", 301, 10, ack=1) == "out-of-window"


def test_a_fin_needs_no_window(established):
    established.remote(".", 1, ack=1, win=0)
    established.local("F.", 1, ack=1)
    assert established.states == ("FIN-WAIT-1", "CLOSE-WAIT")


def test_an_older_window_does_not_replace_a_newer(established):
    established.remote("P.", 1, 10, ack=1, win=500)
    assert established.model.local.snd_wnd == 500 << 8
    assert established.remote("P.", 1, 5, ack=1, win=3) == "retransmission"
    assert established.remote(".", 11, ack=1, win=400) == "ack"
    assert established.model.local.snd_wnd == 400 << 8


@pytest.mark.parametrize(
    ("flags", "seq", "length", "ack", "verdict"),
    [
        (".", 500_000, 10, 1, "out-of-window"),
        (".", 2**31, 10, 1, "out-of-window"),
        (".", -300_000, 10, 1, "out-of-window"),
        (".", 1, 10, 2, "ack-of-unsent"),
        (".", 1, 10, -300_000, "old-ack"),
        ("", 1, 10, 0, "no-ack"),
        ("F", 1, 0, 0, "no-ack"),
        ("S", 500, 0, 0, "unexpected-syn"),
        ("S", 2, 0, 0, "unexpected-syn"),
        ("S.", 500, 0, 1, "unexpected-syn"),
        ("SF", 500, 0, 0, "unexpected-syn"),
        ("R", 5, 0, 0, "unsure-reset"),
        ("R.", 0, 0, 1, "out-of-window"),
        ("R", 900_000, 0, 0, "out-of-window"),
    ],
)
def test_what_its_receiver_would_refuse_is_refused(established, flags, seq, length, ack, verdict):
    assert established.remote(flags, seq, length, ack=ack) == verdict
    assert established.states == ("ESTABLISHED", "ESTABLISHED")


def test_a_reset_counts_at_what_is_acknowledged_or_at_what_passed(new_talk):
    for seq in 1, 101:
        talk = new_talk().handshake()
        talk.remote("P.", 1, 100, ack=1)
        assert talk.remote("R", 50) == "unsure-reset"
        assert talk.remote("R", seq) == "reset"
        assert talk.model.closed


def test_nothing_is_open_after_a_reset(established):
    established.local("R", 1)
    assert established.remote("P.", 1, 10, ack=1) == "not-open"
    assert established.remote("R", 1) == "not-open"


def test_timestamps_are_kept_of_both_ends(talk):
    talk.handshake(timestamps=True)
    talk.remote("P.", 1, 10, ack=1, timestamps=(950, 101))
    local, remote = talk.model.local, talk.model.remote
    assert (local.tsval, local.ts_recent, remote.tsval, remote.ts_recent) == (101, 950, 950, 101)
    assert talk.remote("P.", 11, 10, ack=1, timestamps=(949, 101)) == "old-timestamp"
    assert talk.remote("P.", 21, 10, ack=1, timestamps=(960, 101)) == "out-of-order"
    assert local.ts_recent == 950, "what is out of order does not move TS.Recent"


def test_timestamps_wrap_around(talk):
    talk.local("S", 0, timestamps=(2**32 - 1, 0))
    talk.remote("S.", 0, ack=1, timestamps=(5, 2**32 - 1))
    assert talk.local(".", 1, ack=1, timestamps=(3, 5)) == "ack"
    assert talk.model.remote.ts_recent == 3


def test_a_keep_alive_renews_ts_recent(talk):
    talk.handshake(timestamps=True)
    assert talk.remote(".", 0, ack=1, timestamps=(5000, 101)) == "keep-alive"
    assert talk.model.local.ts_recent == 5000


def test_sack_blocks_behind_timestamps_do_not_disturb(talk):
    talk.handshake(timestamps=True)
    talk.local("P.", 1, 100, ack=1, timestamps=(102, 900))
    blocks = [(50, 60), (70, 80)]
    assert talk.remote(".", 1, ack=50, timestamps=(901, 102), sack=blocks) == "ack"
    assert talk.numbers(LOCAL)[0] == 50


def test_a_connection_may_be_joined_in_the_middle(talk):
    talk.local("P.", 1001, 100, ack=501, win=300)
    assert talk.model.joined
    assert talk.states == ("ESTABLISHED", "ESTABLISHED")
    assert talk.numbers(LOCAL) == (1001, 1101, 501)
    assert talk.model.local.wscale is None
    assert talk.model.local.rcv_wnd == 300, "unshifted: a lower bound"
    assert talk.remote(".", 501, ack=601) == "ack", "what we saw was not the first that is under way"
    assert talk.numbers(LOCAL)[0] == 601
    assert talk.numbers(REMOTE) == (501, 501, 601), "what is not seen is not held"
    talk.remote(".", 501, ack=1101)
    assert talk.numbers(REMOTE) == (501, 501, 1101)
    assert talk.remote("P.", 501, 30_000, ack=1101) == "data"
    assert talk.local(".", 1101, ack=30_501) == "ack"
    assert talk.remote("P.", 600_000, 5, ack=1101) == "out-of-order", "the window may be large"


def test_a_shift_may_be_learnt_elsewhere(talk):
    talk.local("P.", 1001, 100, ack=501, win=300)
    for model in talk.model, talk.quick:
        model.learn_scale(LOCAL, 7)
    assert talk.model.local.rcv_wnd == talk.model.remote.snd_wnd == 300 << 7
    talk.local(".", 1101, ack=501, win=400)
    assert talk.model.remote.snd_wnd == 400 << 7


def test_data_sent_before_we_joined_may_be_acknowledged(talk):
    talk.remote(".", 1, ack=1)
    assert talk.remote(".", 1, ack=2001) == "ack"
    assert talk.numbers(LOCAL) == (2001, 2001, 1)


@pytest.mark.parametrize(("scale", "shifts"), [(8, (None, 8)), (None, (0, 0))])
def test_joining_at_the_syn_ack_tells_all_but_the_others_shift(talk, scale, shifts):
    talk.remote("S.", 0, ack=1, window_scale=scale, timestamps=(5, 4), sack_permitted=True)
    assert talk.states == ("ESTABLISHED", "SYN-RECEIVED")
    talk.local(".", 1, ack=1, timestamps=(6, 5))
    assert talk.states == ("ESTABLISHED", "ESTABLISHED")
    assert (talk.model.local.wscale, talk.model.remote.wscale) == shifts
    assert talk.model.timestamps
    assert talk.model.sack_permitted


def test_joining_at_a_fin(talk):
    talk.local("F.", 1, ack=1)
    assert talk.states == ("FIN-WAIT-1", "CLOSE-WAIT")


def test_a_gateway_that_changes_its_address_is_followed(established):
    frame = established.frame(REMOTE, ".", 1, ack=1)
    frame[16:22] = b"\x02gate!"
    assert established.model.sync_frame(frame) is REMOTE
    assert established.model.ip.link.remote.mac == b"\x02gate!"


def test_tags_are_followed(established):
    established.local(".", 1, ack=1, vlan=(100, 7))
    assert len(established.model.ip.link.local.tags) == 8
    assert established.model.ip.link.remote.tags == b""


def test_an_end_is_heard_only_when_it_is_believed(talk):
    talk.local("P.", 1, 10, ack=1)
    assert talk.remote(".", 1, ack=2**31 - 5) == "ack-of-unsent"
    assert not talk.model.remote.heard
    assert talk.remote(".", 1, ack=1) == "ack"
    assert talk.model.remote.heard
