"""Connections to begin a test of a model with."""

import pytest
from tcp_conversation import Conversation


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def talk(request):
    """Nobody has said anything yet. Numbers wrap around soon."""
    return Conversation(request.param, iss=(2**32 - 1, 2**32 - 200))


@pytest.fixture
def established(talk):
    """A connection whose handshake was seen; windows are shifted by 7 (ours) and 8 (theirs)."""
    return talk.handshake()


@pytest.fixture
def new_talk():
    """Conversation itself, for tests that need several or other numbers."""
    return Conversation
