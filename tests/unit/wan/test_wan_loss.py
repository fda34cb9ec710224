"""Loss as it was asked for: its share, and the length of its runs."""

from itertools import groupby, pairwise
from random import Random

import pytest

from vtl_tools.services.wan.loss import Loss
from vtl_tools.services.wan.settings import UNCHANGED, PathSettings, changed
from vtl_tools.services.wan.verify import mean_loss

FRAMES = 400_000


def fates(text: str, seed: int = 1) -> tuple[PathSettings, list[bool]]:
    settings = changed((UNCHANGED, UNCHANGED), {"loss": text})[0]
    loss = Loss(settings, Random(seed))
    return settings, [loss.takes() for _ in range(FRAMES)]


def runs(lost: list[bool]) -> list[int]:
    return [sum(1 for _ in group) for is_lost, group in groupby(lost) if is_lost]


@pytest.mark.parametrize(
    "text", ["0", "0.1%", "1%", "30%", "100%", "burst:1%,5", "burst:10%,3", "ge:1%,20%,50%,0.1%"]
)
def test_the_share_of_lost_frames(text: str) -> None:
    settings, lost = fates(text)
    expected = mean_loss(settings)
    length = 1 / settings.to_good if settings.to_bad else 1.0
    deviation = (expected * (1 - expected) * (2 * length - 1) / FRAMES) ** 0.5
    assert abs(sum(lost) / FRAMES - expected) <= 5 * deviation


@pytest.mark.parametrize(("text", "length"), [("burst:1%,5", 5.0), ("burst:5%,20", 20.0), ("1%", 1 / 0.99)])
def test_runs_are_as_long_as_asked(text: str, length: float) -> None:
    found = runs(fates(text)[1])
    assert sum(found) / len(found) == pytest.approx(length, rel=0.1)


def test_independent_losses_do_not_know_each_other() -> None:
    lost = fates("10%")[1]
    pairs = sum(a and b for a, b in pairwise(lost))
    assert pairs / FRAMES == pytest.approx(0.01, rel=0.1)


def test_a_seed_makes_it_repeatable() -> None:
    assert fates("burst:1%,5", 7)[1] == fates("burst:1%,5", 7)[1] != fates("burst:1%,5", 8)[1]


def test_no_loss_after_it_was_set_to_none() -> None:
    settings, _ = fates("burst:50%,9")
    loss = Loss(settings, Random(1))
    for _ in range(1000):
        loss.takes()
    loss.apply(UNCHANGED)
    assert not any(loss.takes() for _ in range(10_000))
