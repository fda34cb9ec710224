"""Recovery as the endpoint does it, where a script would need the time: timestamps, pacing, rate samples."""

from dataclasses import replace

from talk import ISS, PLAIN, Talk

from vtl_tools.common.tcp.snd import REPAIRS_MAX

STAMPED = replace(PLAIN, mss=1012, timestamps=True, sack=True, tail_loss_probe=False)


def block(*edges):
    return [tuple((ISS + edge) % 2**32 for edge in edges)]


def opened(config, rtt_s=0.1):
    peer = Talk(config)
    stamps = (500, 0) if config.timestamps else None
    peer.tcp.listen()
    peer.inject("S", 0, mss=1012 if stamps else 1000, sack_permitted=True, timestamps=stamps, win=60_000)
    peer.tcp.accept()
    heard = peer.expect("S.", seq=0, ack=1)
    peer.now += rtt_s
    peer.inject(".", 1, ack=1, win=60_000, timestamps=(501, heard.timestamps[0]) if stamps else None)
    return peer


def sent(peer):
    peer.pump()
    heard = [pkt.tcp for pkt in peer.said]
    peer.said.clear()
    return heard


def test_an_ack_that_echoes_the_first_transmission_reverts_a_fast_retransmit():
    """RFC 3522: the segments were only overtaken."""
    peer = opened(STAMPED)
    peer.tcp.write(bytes(10_000))
    first = sent(peer)[0].timestamps[0]
    peer.now += 0.1
    peer.inject(".", 1, ack=1, win=60_000, sack=block(1001, 5001), timestamps=(600, first))
    assert peer.tcp.info().phase == "recovery"
    assert peer.tcp.info().ssthresh == 5000
    sent(peer)
    peer.now += 0.01
    peer.inject(".", 1, ack=5001, win=60_000, timestamps=(610, first))
    assert peer.tcp.info().phase == "open"
    assert peer.tcp.info().ssthresh > 1 << 29


def test_an_ack_that_echoes_the_retransmission_does_not():
    peer = opened(STAMPED)
    peer.tcp.write(bytes(10_000))
    first = sent(peer)[0].timestamps[0]
    peer.now += 0.1
    peer.inject(".", 1, ack=1, win=60_000, sack=block(1001, 5001), timestamps=(600, first))
    again = sent(peer)[0].timestamps[0]
    peer.now += 0.1
    peer.inject(".", 1, ack=10_001, win=60_000, timestamps=(700, again))
    assert peer.tcp.info().ssthresh == 5000


def test_a_retransmission_that_is_sacked_shows_loss_although_its_ack_echoes_older_data():
    """An echo is of data in order (RFC 7323 section 4.3): it does not tell which transmission was SACKed."""
    peer = opened(replace(STAMPED, tail_loss_probe=True))
    peer.tcp.write(bytes(4_000))
    sent(peer)
    peer.pass_(0.21)  # a tail loss probe
    assert len(sent(peer)) == 1
    peer.now += 0.1
    peer.inject(".", 1, ack=1, win=60_000, sack=block(3001, 4001), timestamps=(501, peer.tcp.ts_offset))
    assert peer.tcp.info().phase == "recovery"
    assert len(sent(peer)) == 1


def test_the_echo_of_a_retransmission_measures_the_path():
    """As in Linux: the minimum round trip tells which retransmissions may be acknowledged (RFC 8985 6.2)."""
    peer = opened(STAMPED)
    peer.tcp.write(bytes(1_000))
    sent(peer)
    peer.pass_(0.35)
    again = sent(peer)[0].timestamps[0]
    peer.now += 0.02
    peer.inject(".", 1, ack=1001, win=60_000, timestamps=(700, again))
    assert peer.tcp.snd.rack.min_rtt_s < 0.08


def test_a_timeout_that_was_not_due_is_reverted_by_the_echo():
    peer = opened(STAMPED)
    peer.tcp.write(bytes(10_000))
    first = sent(peer)[0].timestamps[0]
    peer.pass_(0.35)
    assert peer.tcp.info().phase == "loss"
    sent(peer)
    peer.inject(".", 1, ack=10_001, win=60_000, timestamps=(950, first))
    assert peer.tcp.info().phase == "open"
    assert peer.tcp.info().cwnd >= 10_000


def test_duplicates_widen_the_reordering_window():
    """RFC 8985 section 6.2, step 4: a quarter of the round trip more for each round trip with a D-SACK."""
    peer = opened(replace(STAMPED, timestamps=False))
    rack = peer.tcp.snd.rack
    for turn in range(3):
        start = 1 + turn * 4000
        peer.tcp.write(bytes(4000))
        sent(peer)
        peer.now += 0.1
        peer.inject(".", 1, ack=start + 4000, win=60_000, sack=block(start, start + 1000))
        assert rack.mult == 2 + turn


def test_paced_segments_leave_by_deadlines():
    peer = opened(replace(PLAIN, sack=True, congestion="bbr", no_delay=True))
    rate = peer.tcp.snd.cc.pacing_rate
    peer.tcp.write(bytes(10_000))
    times = []
    for _ in range(20):
        times += [peer.now] * len(sent(peer))
        if len(times) == 10:
            break
        peer.now = peer.tcp.deadline()
        peer.tcp.wake(peer.now)
    assert len(times) == 10
    late = 10_000 / rate - 0.01  # some of it may leave at once
    assert times[-1] - times[0] >= late - 2 * 2000 / rate
    assert max(times.count(time) for time in times[4:]) <= 2, "a quantum at once"


def test_a_late_driver_sends_what_was_due_meanwhile_and_a_pause_earns_nothing():
    peer = opened(replace(PLAIN, sack=True, congestion="bbr", no_delay=True))
    segments_s = peer.tcp.snd.cc.pacing_rate / 1000
    peer.tcp.write(bytes(10_000))
    first = len(sent(peer))
    peer.now = peer.tcp.deadline() + 0.02
    peer.tcp.wake(peer.now)
    then = len(sent(peer))
    assert 0.02 * segments_s - 1 < then < 0.02 * segments_s + 3
    peer.pass_(0.1)
    peer.inject(".", 1, ack=1 + 1000 * (first + then), win=60_000)
    sent(peer)
    peer.pass_(0.1)
    peer.inject(".", 1, ack=10_001, win=60_000)
    peer.pass_(1.0)
    segments_s = peer.tcp.snd.cc.pacing_rate / 1000
    peer.tcp.write(bytes(10_000))
    assert len(sent(peer)) < 0.01 * segments_s + 3 < 10


def test_a_rate_sample_is_what_was_delivered_over_the_longer_of_sending_and_acknowledging():
    peer = opened(replace(PLAIN, sack=True, congestion="bbr", no_delay=True))
    peer.tcp.write(bytes(4000))
    peer.pass_(0.08)
    sent(peer)
    assert peer.tcp.info().delivery_rate == 0.0
    peer.now = 100.3
    for end in range(1001, 5001, 1000):
        peer.inject(".", 1, ack=end, win=60_000)
        peer.now += 0.05
    rate = peer.tcp.info().delivery_rate
    assert 4000 / 0.40 < rate < 4000 / 0.30
    peer.tcp.write(bytes(1000))
    peer.pass_(0.1)
    assert peer.tcp.info().app_limited
    peer.inject(".", 1, ack=5001, win=60_000)
    assert peer.tcp.info().delivery_rate == rate, "the user was slow to write"


def test_lost_retransmissions_of_many_segments_are_all_repaired_without_a_timeout():
    peer = opened(replace(PLAIN, sack=True, initial_window=20))
    peer.tcp.write(bytes(20_000))
    sent(peer)
    peer.now += 0.1
    peer.inject(".", 1, ack=1, win=60_000, sack=block(3001, 20_001))
    assert len(sent(peer)) == 3
    peer.tcp.write(bytes(4000))
    assert len(sent(peer)) == 4
    peer.now += 0.1
    peer.inject(".", 1, ack=1, win=60_000, sack=block(3001, 24_001))
    assert [(heard.seq - ISS) % 2**32 for heard in sent(peer)] == [1, 1001, 2001]
    peer.now += 0.1
    peer.inject(".", 1, ack=24_001, win=60_000)
    assert peer.tcp.info().phase == "open"
    assert peer.tcp.info().backoffs == 0


def test_what_is_remembered_of_retransmissions_is_bounded_whatever_the_peer_acknowledges():
    peer = opened(PLAIN)
    peer.tcp.write(bytes(10_000))
    assert len(sent(peer)) == 10
    for _ in range(3):
        peer.inject(".", 1, ack=1, win=60_000)
    assert peer.tcp.info().phase == "recovery"
    for octets in range(1, 9_900):
        peer.inject(".", 1, ack=1 + octets, win=60_000)
    assert peer.tcp.info().retransmits > REPAIRS_MAX
    assert len(peer.tcp.snd.repairs) <= REPAIRS_MAX
