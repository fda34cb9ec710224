"""A small table of goodput: what no assertion on segments shows of congestion control and loss recovery."""

from random import Random

import pytest
from tcp_link import Link, measure

OCTETS, SEEDS = 600_000, range(3)
# Mbit/s of 50, by round trip in ms, buffer in octets, and loss. Renew it if a change is for the better.
TABLE = {
    (2, 65_536, 0.0): 46.59,
    (2, 65_536, 0.01): 43.77,
    (2, 65_536, 0.1): 9.39,
    (20, 65_536, 0.0): 21.59,
    (20, 262_144, 0.0): 30.56,
    (20, 262_144, 0.01): 13.62,
    (20, 262_144, 0.05): 2.91,
    (20, 262_144, 0.2): 0.73,
    (100, 262_144, 0.0): 8.30,
    (100, 262_144, 0.01): 3.31,
}
TOLERANCE = 0.15


@pytest.mark.parametrize(("cell", "expected"), TABLE.items(), ids=str)
def test_goodput_is_as_it_was(cell, expected):
    rtt_ms, buffer, loss = cell
    runs = [measure(Link(Random(seed), delay_s=rtt_ms / 2000, loss=loss), buffer, OCTETS) for seed in SEEDS]
    goodput = sum(run.mbit_s for run in runs) / len(SEEDS)
    assert goodput == pytest.approx(expected, rel=TOLERANCE)
