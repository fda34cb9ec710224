"""TIME-WAIT, and the SYN that ends it (RFC 9293 section 3.6.1, RFC 6191)."""

from dataclasses import replace

import pytest
from talk import ISS, PLAIN

from vtl_tools.common.tcp.endpoint import Endpoint
from vtl_tools.common.tcp.isn import number_after
from vtl_tools.common.tcp.state import Ended, State

pytestmark = pytest.mark.usefixtures("fresh")


def reopened(peer, **options):
    """Let a SYN take over; the new endpoint follows the old one, which the peer forgets."""
    old = peer.tcp
    peer.inject("S", 5, **options)
    assert old.ended is Ended.CLOSED
    peer.tcp = Endpoint(peer.path, b"secret", peer.now, old.config, iss=ISS)
    peer.tcp.listen(after=old)
    peer.inject("S", 5, **options)
    peer.tcp.accept()
    return old


def test_our_numbers_begin_above_those_of_the_connection_before(time_wait):
    old, peer = time_wait
    assert old.info().sent == 2
    reopened(peer)
    answer = peer.expect("S.", seq=2 + 0x1_0001, ack=6)
    peer.inject(".", 6, ack=3 + 0x1_0001)
    assert peer.tcp.state is State.ESTABLISHED
    assert answer.seq == (ISS + 2 + 0x1_0001) % 2**32


def test_a_number_of_the_clock_that_is_above_is_kept():
    assert number_after(2**31 + 6 + 0x1_0001, 5) == 5 + 0x1_0001, "half of all numbers are below"
    assert number_after(0x2_0000, 5) == 0x2_0000
    assert number_after(0x1_0001, 2**32 - 5) == 0x1_0001
    assert number_after(2**32 - 6, 2**32 - 5) == 0x1_0001 - 5


def test_the_syn_of_an_old_duplicate_returns_to_time_wait(time_wait):
    _, peer = time_wait
    reopened(peer)
    peer.expect("S.", seq=2 + 0x1_0001, ack=6)
    peer.inject("R", 6)
    assert peer.tcp.state is State.TIME_WAIT
    peer.inject("F.", 1, ack=2)  # of the connection before, once more
    peer.expect(".", seq=2, ack=2)
    peer.pass_(241)
    assert peer.tcp.ended is Ended.CLOSED


def test_once_open_a_reset_is_a_reset(time_wait):
    _, peer = time_wait
    reopened(peer)
    peer.expect("S.", seq=2 + 0x1_0001, ack=6)
    peer.inject(".", 6, ack=3 + 0x1_0001)
    peer.inject("R", 6)
    assert peer.tcp.ended is Ended.RESET


def test_a_timestamp_decides_before_a_number(fresh):
    peer = fresh(replace(PLAIN, timestamps=True))
    peer.tcp.listen()
    peer.inject("S", 0, mss=1000, timestamps=(500, 0))
    peer.tcp.accept()
    peer.expect("S.", seq=0, ack=1)
    peer.inject(".", 1, ack=1, timestamps=(500, 0))
    peer.tcp.close()
    peer.expect("F.", seq=1, ack=1)
    peer.inject("F.", 1, ack=2, timestamps=(510, 0))
    peer.expect(".", seq=2, ack=2)
    for seq, stamp in (5, 509), (1, 510), (2, 509):  # older, or as old and not above RCV.NXT
        peer.inject("S", seq, timestamps=(stamp, 0))
        peer.expect(".", seq=2, ack=2)
    peer.inject("S", 5)  # without a timestamp its number decides
    assert peer.tcp.ended is Ended.CLOSED
