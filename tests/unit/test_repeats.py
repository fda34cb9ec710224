"""Repeated messages: the first of a kind at once, the number of the others once a minute, bounded memory."""

from vtl_tools.common.repeats import Repeats


def test_the_first_of_a_kind_is_told_and_the_others_are_counted():
    repeats: Repeats[str] = Repeats(60.0)
    assert [repeats.admit("spoofed", now) for now in (0.0, 1.0, 59.0)] == [True, False, False]
    assert repeats.admit("full", 2.0)
    assert repeats.deadline() == 60.0
    assert list(repeats.due(59.9)) == []
    assert list(repeats.due(60.0)) == [("spoofed", 2)]


def test_a_kind_that_goes_on_is_told_once_a_minute_only_by_its_number():
    repeats: Repeats[str] = Repeats(60.0)
    told = [now for now in range(300) if repeats.admit("spoofed", now) or list(repeats.due(now))]
    assert told == [0, 60, 120, 180, 240]


def test_a_kind_that_was_quiet_for_a_period_is_told_at_once_again():
    repeats: Repeats[str] = Repeats(60.0)
    assert repeats.admit("spoofed", 0.0)
    assert list(repeats.due(60.0)) == []
    assert repeats.deadline() is None
    assert repeats.admit("spoofed", 60.0)


def test_a_flood_of_kinds_is_bounded_and_counted():
    repeats: Repeats[int] = Repeats(60.0, most=4)
    assert sum(repeats.admit(kind, 0.0) for kind in range(1000)) == 4
    assert repeats.untold == 996
    assert list(repeats.due(60.0)) == []
    assert repeats.admit(999, 60.0)
