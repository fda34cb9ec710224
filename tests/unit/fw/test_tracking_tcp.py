"""What belongs to a TCP connection, at the edges: much was found by comparing with nftables."""

import fw
import pytest
from fw import IN, OUT, Wire, ends, segment

from vtl_tools.common.packet import build, icmp, ip, tcp
from vtl_tools.services.fw.flow import pack


@pytest.fixture
def narrow():
    """A connection whose peer offers 100 octets."""
    wire = Wire("allow out tcp\ndeny")
    assert wire.out("S", 0) == "+new"
    assert wire.come("S.", 0, 1, window=100) == "+known"
    assert wire.out(".", 1, 1) == "+known"
    return wire


@pytest.mark.parametrize("flags", ["SF", "SR", "RF", "RF.", "SFRP"])
def test_flags_that_no_end_sends_together_do_not_pass(wire, flags):
    wire.open()
    assert wire.out(flags, 1, 1) == "tcp-flags"
    assert wire.come(flags, 1, 1) == "tcp-flags"
    assert wire.come(".", 1, 1, b"x") == "+known"
    assert wire.out(flags, 0, vm=40001) == "tcp-not-open"
    assert wire.out("R", 1) == "+known"
    assert wire.come(flags, 1, 1) == "tcp-flags"  # it ends nothing that is just over, either


def test_a_fin_is_no_challenge_of_a_syn(wire):
    assert wire.out("S", 0) == "+new"
    assert wire.come("F.", 500, 70_000) == "tcp-not-open"
    assert wire.come(".", 500, 70_000) == "+known"


def test_a_reset_before_a_connection_is_open_must_answer_a_challenge(wire):
    assert wire.out("S", 0) == "+new"
    assert wire.out("R", 70_000) == "tcp-not-open"
    assert wire.come(".", 500, 70_000) == "+known"
    assert wire.out("R", 69_999) == "tcp-not-open"
    assert wire.out("R", 70_000) == "+known"
    assert wire.come("S.", 0, 1) == "+known"


def test_who_sent_a_syn_sends_a_syn_ack_only_for_the_other_ones_syn(wire):
    assert wire.out("S", 0) == "+new"
    assert wire.out("S.", 0, 1) == "tcp-not-open"
    assert wire.come("S.", 0, 77) == "tcp-ack-of-unsent"
    assert wire.come("S.", 0, 1) == "+known"
    assert wire.out(".", 1, 1) == "+known"
    assert wire.come("S.", 0, 1) == "+known"  # it was lost behind us
    assert wire.come("S.", 0, 77) == "tcp-ack-of-unsent"
    assert wire.out("S.", 0, 1) == "tcp-unexpected-syn"
    assert wire.come("S", 0) == "tcp-unexpected-syn"


def test_syn_acks_may_cross(wire):
    assert [wire.out("S", 0), wire.come("S", 0), wire.come("S", 0)] == ["+new", "+known", "+known"]
    assert [wire.come("S.", 0, 1), wire.out("S.", 0, 1)] == ["+known", "+known"]
    assert wire.out(".", 1, 1) == "+known"
    assert wire.out("S.", 0, 1) == "tcp-unexpected-syn"


@pytest.mark.parametrize("iss", [(2**32 - 1, 2**32 - 1), (2**32 - 1000, 2**31 - 1), (0, 2**31)], ids=str)
def test_numbers_that_wrap_behind_syns_that_crossed_are_judged_as_others(wire, monkeypatch, iss):
    monkeypatch.setattr(fw, "ISS", {OUT: iss[0], IN: iss[1]})
    options = tcp.encode_options(mss=1460, window_scale=3)
    assert [wire.out("S", 0, options=options), wire.come("S", 0, options=options)] == ["+new", "+known"]
    assert [wire.come("S.", 0, 1), wire.out("S.", 0, 1)] == ["+known", "+known"]
    (flow,) = wire.tracker.flows
    for i in range(40):
        flow.ends = pack(wire.tracker.flows.ends(flow))  # as if it had been quiet
        assert wire.out(".", 1 + 100 * i, 1 + 100 * i, bytes(100)) == "+known"
        assert wire.come(".", 1 + 100 * i, 101 + 100 * i, bytes(100)) == "+known"
        assert wire.come(".", 100 * i - 2**31, 101, b"x") != "+known"
        assert wire.come(".", 70_000 + 100 * i, 101 + 100 * i, b"x") == "tcp-out-of-window"
        assert wire.come(".", 101 + 100 * i, 102 + 100 * i, b"x") == "tcp-ack-of-unsent"
        assert wire.come("R", 70_000 + 100 * i) == "tcp-out-of-window"
    assert wire.come("R", 4001) == "+known"


def test_a_syn_is_acknowledged_before_anything_else(wire):
    assert wire.out("S", 0) == "+new"
    assert wire.come("S.", 0, 1) == "+known"
    assert wire.out("P.", 1, 0, b"x") == "tcp-old-ack"
    assert wire.out("P.", 1, 1, b"x") == "+known"


def test_a_window_counts_from_behind_a_syn_that_is_not_acknowledged_yet():
    wire = Wire("allow in tcp\ndeny")
    assert wire.come("S", 0, window=100) == "+new"
    assert wire.out("S.", 0, 1) == "+known"
    assert wire.out("P.", 1, 1, b"x" * 100) == "+known"
    assert wire.out("F.", 101, 1) == "+known"
    assert wire.out("P.", 102, 1, b"x") == "tcp-out-of-window"


def test_behind_a_fin_for_which_there_was_no_room_acknowledgements_pass(narrow):
    assert narrow.out("P.", 1, 1, b"x" * 100) == "+known"
    assert narrow.out("F.", 101, 1) == "+known"
    assert narrow.out(".", 102, 1) == "+known"
    assert narrow.out("P.", 102, 1, b"x") == "tcp-out-of-window"
    assert narrow.out("R", 102) == "+known"


def test_a_whole_window_may_come_again_though_the_fin_behind_it_arrived(narrow):
    assert narrow.out("P.", 1, 1, b"x" * 100) == "+known"
    assert narrow.out("F.", 101, 1) == "+known"
    assert narrow.come(".", 1, 102, window=100) == "+known"
    assert narrow.out("P.", 1, 1, b"x" * 100) == "+known"  # that acknowledgement was lost behind us


def test_behind_a_fin_that_was_lost_acknowledgements_pass(narrow):
    assert narrow.out(".", 102, 1) == "+known"
    assert narrow.out(".", 103, 1) == "tcp-out-of-window"
    assert narrow.out("P.", 102, 1, b"x") == "tcp-out-of-window"


def test_a_connection_that_both_ends_forgot_begins_anew(wire):
    wire.open()
    assert wire.come("S.", 700_000, 600_001) == "tcp-unexpected-syn"  # an answer to nothing
    assert wire.out("S", 600_000) == "+known"
    assert wire.raw(error(segment(OUT, "S", 600_000)), IN) == "+related"
    assert wire.come("S.", 700_000, 600_002) == "tcp-unexpected-syn"
    assert wire.come("S.", 700_000, 600_001) == "+known"
    assert wire.out("P.", 600_001, 700_001, b"x") == "+known"
    assert wire.come(".", 1, 1, b"x") == "tcp-out-of-window"
    assert wire.come(".", 700_001, 600_002) == "+known"
    assert len(wire.tracker.flows) == 1


def test_a_connection_that_the_other_end_refuses_to_begin_anew_is_over(wire):
    wire.open()
    assert wire.out("S", 600_000) == "+known"
    assert wire.come("R.", 0, 600_001) == "+known"
    assert wire.out("P.", 1, 1, b"x") == "tcp-not-open"


def error(about):
    """An ICMP error of a router about a frame."""
    side = ends(IN)
    l2 = build.ethernet(side["src_mac"], side["dst_mac"], 0x0800)
    head = icmp.ICMP.HEADER.pack(icmp.UNREACHABLE, icmp.HOST_UNREACHABLE, 0, 0)
    return build.over_ip(l2, side["src"], side["dst"], ip.ICMP, head, bytes(about[24:52]))


def test_an_icmp_error_about_an_echo_quotes_an_echo(wire):
    ping = build.icmp_echo(**ends(OUT), identifier=3, sequence=1)
    assert wire.raw(ping, OUT) == "+new"
    assert wire.raw(error(ping), IN) == "+related"
    ping[24 + 20 + 1] = 64
    assert wire.raw(error(ping), IN) == "rule"
