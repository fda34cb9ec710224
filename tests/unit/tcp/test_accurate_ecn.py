"""The counters of accurate ECN, and peers that lie with them."""

from dataclasses import replace
from random import Random

import pytest
from talk import PLAIN, Talk

from vtl_tools.common.tcp.accurate import CE, ECT_0, ECT_1, ORDER_0, ORDER_1, AccurateECN

MSS = 1000


def field(octets):
    return (octets % (1 << 24)).to_bytes(3, "big")


@pytest.mark.parametrize("size", range(39))
@pytest.mark.parametrize("kind", [ORDER_0, ORDER_1])
def test_options_of_any_length_and_order_are_read(size, kind):
    """Whole fields count, and what is behind them is padding (RFC 9768 section 3.2.3)."""
    counters = AccurateECN(0, is_server=True)
    told = (field(101) + field(1000) + field(201) + bytes(29))[:size]
    more = counters.told(6, kind, told[:9], 1000, MSS)
    first, third = 101 if size >= 3 else 1, 201 if size >= 9 else 1
    assert (counters.told_e0b, counters.told_e1b) == ((first, third) if kind == ORDER_0 else (third, first))
    assert (more, counters.told_ceb) == (1, 1000 if size >= 6 else 0)


def test_counters_of_octets_go_round():
    here, there = AccurateECN(0, is_server=True), AccurateECN(0, is_server=False)
    for _ in range(40):
        there.arrived(ECT_0, 1000, 1_000_000, unacked=True)
        there.arrived(CE, 1, 1000, unacked=True)
        option = there.option(40)
        here.told(there.ace(pure=False), ORDER_0, option[-6:], 1_001_000, MSS)
    assert (here.told_e0b, here.told_ceb, here.told_cep) == (40_000_001, 40_000, 45)


def test_the_option_has_what_ever_changed_in_the_shorter_order():
    counters = AccurateECN(0, is_server=True)
    assert not counters.is_due
    counters.arrived(ECT_1, 1, 5, unacked=True)
    assert counters.option(40) == b"\1\1\1" + bytes((ORDER_1, 5)) + field(6)
    assert not counters.is_due
    counters.arrived(CE, 1, 5, unacked=True)
    assert counters.option(40) == bytes((ORDER_1, 8)) + field(6) + field(5)
    counters.arrived(ECT_0, 1, 5, unacked=True)
    assert counters.option(11) == b"", "there is no room for all that changed"
    assert counters.is_due
    assert counters.option(12) == b"\1" + bytes((ORDER_0, 11)) + field(6) + field(5) + field(6)


def test_a_counter_that_runs_backwards_is_not_followed():
    counters = AccurateECN(0, is_server=True)
    counters.told(6, ORDER_0, field(1) + field(5000), 5000, MSS)
    counters.told(6, ORDER_0, field(1) + field(4000), 5000, MSS)
    assert counters.told_ceb == 5000


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("congestion", ["newreno", "cubic", "bbr"])
def test_a_peer_that_lies_slows_down_nobody_but_itself(seed, congestion):
    """Any flags, options and codepoints: nothing is raised, and data still flows."""
    rng = Random(seed)
    peer = Talk(replace(PLAIN, sack=True, congestion=congestion, send_buffer=100_000))
    peer.tcp.listen()
    peer.inject("SEWA", 0, mss=MSS, sack_permitted=True, win=60_000)
    peer.tcp.accept()
    ack = seq = 1
    for turn in range(80):
        peer.tcp.write(bytes(2 * MSS))
        peer.pass_(0.05)
        for heard in peer.said:
            ack = max(ack, (heard.tcp.seq - 2**32 + 3) % 2**32 + len(heard.tcp.payload))
        peer.said.clear()
        size = rng.choice((0, 0, 5, 300))
        raw = bytes((rng.choice((172, 174)), rng.randrange(13))) + rng.randbytes(11)
        flags = "".join(letter for letter in "EWA" if rng.random() < 0.5) + "."
        peer.inject(flags, seq, size, ack=ack if turn else 1, ecn=rng.randrange(4), raw=raw, win=60_000)
        seq += size
        while peer.tcp.read():
            pass
        peer.said.clear()
    assert peer.tcp.acknowledged > 20 * MSS
    assert peer.tcp.info().cwnd >= MSS
