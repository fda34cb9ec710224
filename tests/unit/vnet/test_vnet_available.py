"""The estimate of available bandwidth, against a path of which a test knows the capacity."""

from random import Random

import pytest

from vtl_tools.services.vnet.available import Available


class Path:
    """A bottleneck of so many Mbit/s with a queue, and the heartbeats' round trip over it, smoothed."""

    def __init__(self, mbit: float, rtt_ms: float = 40.0, queue_ms: float = 100.0) -> None:
        self.mbit, self.rtt_ms, self.queue_ms, self.waiting_ms = mbit, rtt_ms, queue_ms, 0.0
        self.shown_ms, self.now = rtt_ms, 0.0
        self.estimate = Available()

    def send(self, mbit: float, seconds: int, cross_mbit: float = 0.0) -> None:
        for _ in range(seconds):
            self.now += 1.0
            free = self.mbit - cross_mbit
            self.waiting_ms += (mbit - free) / self.mbit * 1000
            over_ms = max(0.0, self.waiting_ms - self.queue_ms)
            self.waiting_ms = min(max(0.0, self.waiting_ms), self.queue_ms)
            loss = 100 * min(1.0, over_ms / 1000 * self.mbit / mbit) if mbit else 0.0
            for _ in range(2):
                self.shown_ms += (self.rtt_ms + self.waiting_ms - self.shown_ms) / 8
            self.estimate.note(mbit, self.shown_ms, loss, self.now)


def test_a_path_that_is_never_full_carries_at_least_what_was_sent() -> None:
    path = Path(100.0)
    path.send(20.0, 10)
    path.send(60.0, 3)
    path.send(5.0, 10)
    assert (path.estimate.mbit, path.estimate.is_least) == (60.0, True)


@pytest.mark.parametrize("cross_mbit", [0.0, 40.0])
def test_a_full_path_shows_what_is_left_beside_other_traffic(cross_mbit: float) -> None:
    path, rng = Path(100.0), Random(1)
    path.send(20.0, 10)
    for _ in range(20):
        path.send((100.0 - cross_mbit) * rng.uniform(0.95, 1.1), 1, cross_mbit)
    assert not path.estimate.is_least
    assert path.estimate.mbit == pytest.approx(100.0 - cross_mbit, rel=0.1)


def test_it_follows_a_path_that_becomes_slower_and_quicker() -> None:
    path = Path(100.0)
    path.send(110.0, 10)
    path.mbit = 30.0
    path.send(33.0, 20)
    assert path.estimate.mbit == pytest.approx(30.0, rel=0.1)
    path.mbit = 100.0
    path.send(5.0, 60)
    path.send(80.0, 10)
    assert (path.estimate.mbit, path.estimate.is_least) == (80.0, True)


def test_it_says_nothing_without_traffic_or_heartbeats_and_forgets() -> None:
    estimate = Available()
    estimate.note(50.0, None, 0.0, 1.0)
    estimate.note(0.0, 10.0, 0.0, 2.0)
    assert estimate.mbit is None
    estimate.note(50.0, 10.0, 0.0, 3.0)
    estimate.note(0.0, 10.0, 0.0, 700.0)
    assert estimate.mbit is None
