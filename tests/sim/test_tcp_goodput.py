"""A small table of goodput: what no assertion on segments shows of congestion control and loss recovery."""

from random import Random

import pytest
from tcp_link import Link, measure

from vtl_tools.common.tcp.congestion.choice import CONTROLS

OCTETS, SEEDS = 600_000, range(3)
# Mbit/s of 50, by round trip in ms, buffer in octets, and loss. Renew it if a change is for the better.
TABLE = {
    (2, 65_536, 0.0): 46.59,
    (2, 65_536, 0.01): 43.77,
    (2, 65_536, 0.1): 16.46,
    (20, 65_536, 0.0): 21.59,
    (20, 262_144, 0.0): 30.56,
    (20, 262_144, 0.01): 13.62,
    (20, 262_144, 0.05): 2.91,
    (20, 262_144, 0.2): 0.75,
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


# The same of a longer transfer over 50 Mbit/s, 50 ms and a queue of 50 ms, by control and loss.
LONG = {
    ("newreno", 0.0): 33.8,
    ("newreno", 0.01): 2.26,
    ("cubic", 0.0): 35.3,
    ("cubic", 0.01): 2.63,
    ("bbr", 0.0): 35.1,
    ("bbr", 0.01): 32.7,
    ("bbr", 0.05): 31.3,
}


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "expected"), LONG.items(), ids=str)
def test_goodput_of_each_control_is_as_it_was(cell, expected):
    congestion, loss = cell
    link = Link(Random(1), delay_s=0.025, loss=loss)
    goodput = measure(link, 1 << 21, 6 * OCTETS, congestion).mbit_s
    assert goodput == pytest.approx(expected, rel=TOLERANCE)


def test_each_control_has_a_row():
    assert {name for name, _ in LONG} == set(CONTROLS)
