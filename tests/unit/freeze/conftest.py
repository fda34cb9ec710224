"""Connections to begin a test of vtl-freeze with."""

import pytest
from freeze_talk import Talk


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def talk(request):
    """A connection that was followed from its SYN, and is frozen: ack 1001 and seq 201 are what is said."""
    return Talk(request.param).open().freeze()


@pytest.fixture
def new_talk():
    """Talk itself, for tests that begin otherwise."""
    return Talk
