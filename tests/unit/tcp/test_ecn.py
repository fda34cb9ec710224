"""Explicit congestion notification (RFC 3168): who may be marked, who echoes, who reduces, and once."""

from dataclasses import replace

import pytest
from talk import PLAIN, Talk

from vtl_tools.common.packet.packet import Packet

ECN = replace(PLAIN, ecn=True, sack=True, tail_loss_probe=False)
CAPABLE, MARKED = 2, 3


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def talk(request):
    peer = Talk(ECN, request.param)
    peer.tcp.listen()
    peer.inject("SEW", 0, mss=1000, sack_permitted=True)
    peer.tcp.accept()
    peer.expect("SE.", seq=0, ack=1)
    peer.inject(".", 1, ack=1)
    return peer


def next_packet(peer):
    peer.pump()
    return peer.said.pop(0)


def mark(peer, *arguments, **fields):
    """Say something that the network marks on its way."""
    frame = peer.frame(*arguments, **fields)
    pkt = Packet.at(frame)
    pkt.ip.ecn = MARKED
    peer.tcp.receive(frame, peer.now)
    peer.pump()


def test_our_syn_asks_and_one_that_is_sent_again_does_not():
    peer = Talk(ECN)
    peer.tcp.connect()
    peer.expect("SEW", seq=0)
    peer.pass_(1.1)
    peer.expect("S", seq=0)


@pytest.mark.parametrize(("answer", "agreed"), [("SE.", True), ("S.", False), ("SEW.", False)])
def test_it_is_agreed_by_ece_alone_in_the_answer(answer, agreed):
    peer = Talk(ECN)
    peer.tcp.connect()
    peer.expect("SEW", seq=0)
    peer.inject(answer, 0, ack=1, mss=1000)
    peer.expect(".", seq=1, ack=1)
    peer.tcp.write(bytes(10))
    assert next_packet(peer).ip.ecn == (CAPABLE if agreed else 0)


def test_new_data_may_be_marked_and_nothing_else(talk):
    talk.tcp.write(bytes(1000))
    assert next_packet(talk).ip.ecn == CAPABLE
    talk.pass_(1.1)
    assert next_packet(talk).ip.ecn == 0, "a retransmission"
    talk.inject(".", 1, b"data", ack=1001)
    assert next_packet(talk).ip.ecn == 0, "a pure ACK"


def test_a_mark_is_echoed_until_the_peer_has_reduced(talk):
    mark(talk, ".", 1, b"one", ack=1)
    talk.expect("E.", seq=1, ack=4)
    talk.inject(".", 4, b"two", ack=1)
    talk.expect("E.", seq=1, ack=7)
    talk.inject("W.", 7, b"six", ack=1)
    talk.expect(".", seq=1, ack=10)


def test_an_echo_halves_the_window_once_a_round_trip_and_is_answered(talk):
    talk.tcp.write(bytes(10_000))
    talk.pump()
    talk.said.clear()
    talk.now += 0.1
    talk.inject("E.", 1, ack=2001)
    assert talk.tcp.info().ssthresh == 5000
    assert talk.tcp.info().retransmits == 0
    talk.inject("E.", 1, ack=4001)
    assert talk.tcp.info().ssthresh == 5000
    talk.inject("E.", 1, ack=8001)
    talk.tcp.write(bytes(2000))
    talk.expect("W.", seq=10_001, data=1000, ack=1)
    talk.expect(".", seq=11_001, data=1000, ack=1)
    talk.inject("E.", 1, ack=10_001)
    assert talk.tcp.info().cwnd_segments == 5
    talk.inject("E.", 1, ack=11_001)
    assert talk.tcp.info().ssthresh == 2000


def test_who_does_not_ask_is_not_answered():
    peer = Talk(ECN)
    peer.tcp.listen()
    peer.inject("SE", 0, mss=1000)
    peer.tcp.accept()
    peer.expect("S.", seq=0, ack=1)


def test_a_partial_acknowledgement_elsewhere_does_not_widen_a_window_that_a_mark_reduces(talk):
    other = Talk(PLAIN)
    other.tcp.connect()
    other.expect("S", seq=0)
    other.inject("S.", 0, ack=1, mss=1000)
    for peer in (talk, other):
        peer.inject(".", 1, ack=1, win=60_000)
        peer.tcp.write(bytes(30_000))
        peer.pump()
        peer.said.clear()
        peer.now += 0.1
    for flags, ack in (("E.", 2001), ("E.", 4001), (".", 6001)):
        talk.inject(flags, 1, ack=ack, win=60_000)
        talk.said.clear()
    for _ in range(3):
        other.inject(".", 1, ack=1, win=60_000)
    other.inject(".", 1, ack=3001, win=60_000)
    assert other.tcp.info().phase == "recovery"
    talk.inject(".", 1, ack=8001, win=60_000)
    talk.expect_nothing()
