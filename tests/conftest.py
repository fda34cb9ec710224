"""Fixtures that every kind of test may use."""

from collections.abc import Iterator

import pytest

from lab.netns import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A laboratory of hosts, wires and guests that ends with the test. Fails without root."""
    with Lab() as lab:
        yield lab
