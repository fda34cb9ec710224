"""Fixtures of the tests of short ways."""

import pytest
from figure6 import World


@pytest.fixture
def world():
    """VM1 and VM2 of Figure 6, which have talked the long way once."""
    world = World(2)
    world.talk()
    return world
