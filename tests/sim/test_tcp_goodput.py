"""A small table of goodput: what no assertion on segments shows of congestion control and loss recovery."""

from random import Random

import pytest
from tcp_link import Link, measure

OCTETS, SEEDS = 600_000, range(3)
# Mbit/s of 50, by round trip in ms, buffer in octets, and loss. Renew it if a change is for the better.
TABLE = {
    (2, 65_536, 0.0): 45.70,
    (2, 65_536, 0.01): 35.67,
    (2, 65_536, 0.1): 8.63,
    (20, 65_536, 0.0): 19.81,
    (20, 262_144, 0.0): 27.10,
    (20, 262_144, 0.01): 12.46,
    (20, 262_144, 0.05): 2.84,
    (20, 262_144, 0.2): 0.71,
    (100, 262_144, 0.0): 7.08,
    (100, 262_144, 0.01): 2.97,
}
TOLERANCE = 0.15


@pytest.mark.parametrize(("cell", "expected"), TABLE.items(), ids=str)
def test_goodput_is_as_it_was(cell, expected):
    rtt_ms, buffer, loss = cell
    runs = [measure(Link(Random(seed), delay_s=rtt_ms / 2000, loss=loss), buffer, OCTETS) for seed in SEEDS]
    goodput = sum(run.mbit_s for run in runs) / len(SEEDS)
    assert goodput == pytest.approx(expected, rel=TOLERANCE)
