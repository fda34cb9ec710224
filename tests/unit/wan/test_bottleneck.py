"""The bottleneck: what a rate does to times, and a queue to frames."""

import pytest

from vtl_tools.services.wan.bottleneck import OPPORTUNITY, Bottleneck, read_trace
from vtl_tools.services.wan.settings import UNCHANGED, PathSettings, changed


def settings(**changes: str) -> PathSettings:
    return changed((UNCHANGED, UNCHANGED), changes)[0]


def test_without_a_rate_a_frame_leaves_at_once() -> None:
    assert Bottleneck(UNCHANGED, 0.0).depart(1500, 7.0).at == 7.0


def test_a_frame_takes_the_time_of_its_octets_behind_those_before_it() -> None:
    bottleneck = Bottleneck(settings(rate="8mbit", queue="1s"), 0.0)
    assert [bottleneck.depart(1000, 5.0).at for _ in range(3)] == pytest.approx([5.001, 5.002, 5.003])
    assert bottleneck.depart(1000, 9.0).at == pytest.approx(9.001)


@pytest.mark.parametrize(("bound", "taken"), [("10ms", 11), ("10kb", 10)])
def test_a_queue_that_is_full_drops_the_tail(bound: str, taken: int) -> None:
    bottleneck = Bottleneck(settings(rate="8mbit", queue=bound), 0.0)
    departures = [bottleneck.depart(1000, 0.0) for _ in range(20)]
    assert sum(d.at is not None for d in departures) == taken
    assert departures[-1].reason == "queue-full"
    assert bottleneck.depart(1000, 0.0015).at is not None or taken == 11


def test_the_rate_is_kept_over_a_long_time() -> None:
    bottleneck = Bottleneck(settings(rate="10mbit", queue="50ms"), 0.0)
    left = [d.at for i in range(20_000) if (d := bottleneck.depart(1250, i * 0.0005)).at is not None]
    assert len(left) * 1250 * 8 / (left[-1] - left[0]) == pytest.approx(10e6, rel=1e-3)  # type: ignore[operator]


def test_codel_brings_a_standing_queue_down_to_its_target() -> None:
    """A sender that keeps a queue and halves what it has in flight when a frame is dropped, as TCP does."""
    bottleneck = Bottleneck(settings(rate="10mbit", queue="2s", aqm="codel"), 0.0)
    now, window, waits, drops = 0.0, 50.0, [], 0
    while now < 30.0:
        departure = bottleneck.depart(1250, now)
        if departure.at is None:
            drops += departure.reason == "aqm"
            window = max(window / 2, 2.0)
        else:
            window += 1 / window
        waits.append(bottleneck.waits_s(now))
        now += (0.02 + bottleneck.waits_s(now)) / window
    assert drops > 10
    late = sorted(waits[len(waits) // 2 :])
    assert late[len(late) // 2] < 0.015


def test_codel_marks_what_may_be_marked() -> None:
    bottleneck = Bottleneck(settings(rate="1mbit", queue="9s", aqm="codel", ecn="on"), 0.0)
    seen = [bottleneck.depart(1250, i * 0.009, is_capable=i % 2 == 0) for i in range(500)]
    assert any(d.marked for d in seen)
    assert any(d.reason == "aqm" for d in seen)
    assert not any(d.marked and d.at is None for d in seen)


TRACE = (0, 1, 1, 4, 10)


def test_a_trace_gives_the_moments_at_which_octets_leave() -> None:
    bottleneck = Bottleneck(PathSettings(opportunities=TRACE, queue_s=9.0), 0.0)
    left = [bottleneck.depart(OPPORTUNITY, 0.0).at for _ in range(8)]
    assert left == pytest.approx([0.0, 0.001, 0.001, 0.004, 0.010, 0.010, 0.011, 0.011])


def test_small_frames_share_a_moment_and_large_ones_take_several() -> None:
    bottleneck = Bottleneck(PathSettings(opportunities=TRACE, queue_s=9.0), 0.0)
    assert [bottleneck.depart(700, 0.0).at for _ in range(3)] == pytest.approx([0.0, 0.0, 0.001])
    assert bottleneck.depart(3 * OPPORTUNITY, 0.0).at == pytest.approx(0.010)


def test_moments_that_found_no_frame_are_gone() -> None:
    bottleneck = Bottleneck(PathSettings(opportunities=TRACE, queue_s=9.0), 0.0)
    assert bottleneck.depart(100, 0.0055).at == pytest.approx(0.010)
    assert bottleneck.depart(100, 123.4561).at == pytest.approx(123.460)


@pytest.mark.parametrize("lines", [[], ["0"], ["5", "3"], ["-1", "4"], ["x"], ["1.5"]])
def test_what_is_no_trace(lines: list[str]) -> None:
    with pytest.raises(ValueError):
        read_trace(lines)
