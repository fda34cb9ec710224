"""A fixture for each state, reached by speaking. Each gives the scene, the guest and the stream."""

import pytest
from carry import Call, Scene


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def fresh(request):
    """A function that makes a scene of some configuration and limits."""
    return lambda **more: Scene(request.param, **more)


@pytest.fixture
def scene(fresh):
    """The relay, and nothing has happened yet. At its end no relay keeps anything of what has ended."""
    scene = fresh()
    yield scene
    assert scene.relay.budget.buffered == sum(flow.buffered for flow in scene.relay.flows.values())


@pytest.fixture
def guest(scene):
    return scene.guest()


@pytest.fixture
def calling(scene, guest):
    """The guest has called, and the call is under way."""
    call = Call(None)
    scene.calls.append(call)
    guest.syn()
    guest.expect_nothing()
    return scene, guest, call


@pytest.fixture
def established(scene, guest):
    return scene, guest, guest.establish()
