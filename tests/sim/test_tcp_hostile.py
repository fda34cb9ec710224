"""No sequence of segments, calls and times breaks an endpoint (hypothesis looks for one)."""

import pytest
from hypothesis import HealthCheck, settings
from tcp_hostile import Hostile

TestHostile = pytest.mark.slow(Hostile.TestCase)
TestHostile.settings = settings(
    max_examples=200, stateful_step_count=40, deadline=None, derandomize=True,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
