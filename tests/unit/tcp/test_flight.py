"""The octets in flight: what was sent together, what is SACKed, what is lost."""

from itertools import pairwise
from random import Random

from vtl_tools.common.tcp.flight import RUNS_MAX, Flight


def sent(*edges):
    flight = Flight()
    for start, end in pairwise(edges):
        flight.sent(start, end, float(start))
    return flight


def test_ranges_that_touch_become_one_and_are_news_once():
    flight = sent(0, 10, 20, 30, 40, 50)
    assert [(run.start, run.end) for run in flight.sack(10, 20, 10)] == [(10, 20)]
    assert [(run.start, run.end) for run in flight.sack(15, 40, 10)] == [(20, 30), (30, 40)]
    assert not flight.sack(12, 18, 10)
    assert (flight.sacked, flight.segments, flight.top) == (30, 3, 40)
    assert [(run.start, run.end) for run in flight.runs] == [(0, 10), (10, 40), (40, 50)]


def test_a_part_of_what_was_sent_together_can_be_sacked_lost_and_sent_again():
    flight = sent(0, 100)
    flight.sack(40, 60, 10)
    assert flight.lose_head(10) == 10
    assert flight.first_lost(100, 10) == (0, 10)
    flight.sent_again(0, 10, 5.0)
    assert flight.lost == 0
    assert flight.first_lost(100, 10) is None
    assert [(run.end - run.start, run.again) for run in flight.acked(50)] == [(10, True), (30, False)]
    assert flight.sacked == 10


def test_lost_runs_that_touch_are_sent_again_together():
    flight = sent(0, 10, 20, 30, 40)
    for run in flight.runs[1:]:
        flight.lose(run)
    assert flight.first_lost(25, 10) == (10, 35)
    flight.sent_again(10, 35, 9.0)
    assert flight.first_lost(25, 10) == (35, 40)
    flight.keep_all()
    assert flight.first_lost(25, 10) is None


def test_a_small_lost_run_is_sent_again_with_what_fits_in_its_segment_whole():
    flight = sent(0, 4, 7, 9, 20, 40, 50)
    flight.lose_all()
    pieces = []
    while (hole := flight.first_lost(30, 10)) is not None:
        pieces.append(hole)
        flight.sent_again(*hole, 9.0)
    assert pieces == [(0, 9), (9, 20), (20, 50)]


def test_segments_larger_than_the_path_takes_are_lost_and_small_ones_at_the_end_of_a_run_are_not():
    flight = Flight()
    flight.sent(0, 34, 1.0, smss=10)
    flight.sent(34, 44, 2.0, smss=10)
    flight.sent(44, 65, 3.0, smss=10)  # with a FIN
    assert flight.lose_larger(7, 10, fin=64) == 61
    assert [(run.start, run.end) for run in flight.runs if not run.lost] == [(30, 34)]


def test_a_peer_that_reneges_is_sent_its_data_again():
    flight = sent(0, 10, 20)
    flight.sack(0, 10, 10)
    assert flight.has_reneged(0)
    flight.forget()
    assert (flight.sacked, flight.lost, flight.segments) == (0, 10, 0)


def test_a_peer_that_tells_of_every_other_octet_does_not_fill_memory():
    flight = sent(0, 10 * RUNS_MAX)
    for at in range(0, 10 * RUNS_MAX, 2):
        flight.sack(at, at + 1, 1)
    assert len(flight.runs) <= RUNS_MAX + 1


def test_a_part_of_a_segment_is_not_taken_as_received():
    flight = sent(0, 45)  # segments of 10 octets, and one of 5
    assert not flight.sack(11, 20, 10)
    assert not flight.sack(42, 45, 10)
    assert [(run.start, run.end) for run in flight.sack(5, 28, 10)] == [(10, 20)]
    assert [(run.start, run.end) for run in flight.sack(15, 45, 10)] == [(20, 45)]
    assert flight.sacked == 35


def test_segments_of_another_size_are_taken_as_they_are():
    flight = sent(0, 40)
    assert [(run.start, run.end) for run in flight.sack(12, 28, 16)] == [(12, 28)]


def test_a_small_segment_is_a_run_of_its_own():
    flight = Flight()
    for start, end in (0, 10), (10, 13), (13, 16), (16, 36):
        flight.sent(start, end, 1.0, smss=10)
    assert [(run.start, run.end) for run in flight.runs] == [(0, 13), (13, 16), (16, 36)]
    assert flight.sack(0, 10 * RUNS_MAX, 1000), "a SACK that joins runs is taken"
    assert len(flight.runs) == 1


def test_a_peer_that_has_each_octet_sent_again_does_not_fill_memory():
    flight = sent(0, 3 * RUNS_MAX)
    flight.lose_all()
    while (hole := flight.first_lost(1, 1)) is not None:
        flight.sent_again(*hole, 9.0)
    assert len(flight.runs) <= RUNS_MAX + 2
    assert [run.start for run in flight.runs[1:]] == [run.end for run in flight.runs[:-1]]
    assert flight.repaired == 3 * RUNS_MAX


def test_a_user_that_writes_octet_by_octet_does_not_fill_memory():
    flight = sent(*range(2 * RUNS_MAX))
    assert len(flight.runs) == RUNS_MAX
    assert flight.runs[-1].end == 2 * RUNS_MAX - 1


def test_many_small_segments_do_not_fill_memory():
    flight = Flight()
    for at in range(2 * RUNS_MAX):
        flight.sent(at, at + 1, float(at), smss=10)
    assert len(flight.runs) == RUNS_MAX
    assert flight.runs[-1].end == 2 * RUNS_MAX


def test_the_counts_are_those_of_the_runs_whatever_happens():
    rng = Random(5)
    flight, una, nxt = Flight(), 0, 0
    for _ in range(3000):
        kind = rng.randrange(6)
        if kind < 2:
            size = rng.randint(1, 40)
            flight.sent(nxt, nxt + size, 0.0)
            nxt += size
        elif kind == 2 and nxt > una:
            una = rng.randint(una, min(nxt, una + 30))
            flight.acked(una)
        elif kind == 3 and nxt > una + 1:
            start = rng.randint(una, nxt - 1)
            flight.sack(start, rng.randint(start + 1, nxt), 10)
        elif kind == 4:
            for run in flight.runs:
                if not (run.lost or run.sacked) and rng.random() < 0.3:
                    flight.lose(run)
        elif (hole := flight.first_lost(rng.randint(1, 50), 10)) is not None:
            flight.sent_again(*hole, 1.0)
        runs = flight.runs
        assert [run.start for run in runs] == [una, *(run.end for run in runs)][: len(runs)]
        assert not runs or runs[-1].end == nxt
        assert flight.sacked == sum(run.end - run.start for run in runs if run.sacked)
        assert flight.lost == sum(run.end - run.start for run in runs if run.lost)
        assert not [run for run in runs if run.lost and run.sacked]


def test_segments_that_leave_in_a_tick_are_one_run_as_old_as_the_last_of_them():
    flight = Flight()
    for at in range(10_000):
        flight.sent(at, at + 1, at / 1024, tick_s=1 / 128)
    assert len(flight.runs) == 1250
    assert [(run.start, run.sent_at) for run in flight.runs[:2]] == [(0, 7 / 1024), (8, 15 / 1024)]


def test_a_probe_of_a_zero_window_may_be_of_sacked_octets():
    """A peer that SACKs SND.UNA does not acknowledge what it has; nothing of that may be counted for ever."""
    flight = sent(0, 10, 20)
    flight.sack(0, 10, 10)
    flight.sent_again(0, 1, 5.0)
    assert flight.sacked == 9
    flight.acked(20)
    assert (flight.sacked, flight.segments, flight.lost) == (0, 0, 0)
