"""vtl-tor fails closed: killed and started at any moment, the worst of hosts never gets a guest's frame."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import closing
from random import Random

import pytest

from lab.failclosed import BIN, CALL, READY_S, Moments, Scene
from vtl_tools.services.tor.selftest.proxy import RecordingProxy

pytestmark = [pytest.mark.lab, pytest.mark.slow]


@pytest.fixture
def scene() -> Iterator[Scene]:
    with closing(Scene()) as scene:
        yield scene


def test_what_a_guest_sends_reaches_the_host_where_no_guard_stands(scene: Scene) -> None:
    """So that the tests below prove something."""
    scene.pester(0.2)
    found = scene.leaked()
    assert any(leak.startswith("uplink") for leak in found)
    assert any(leak.startswith("host") for leak in found)


def test_killed_before_ready_and_in_the_middle_of_traffic_the_guest_is_cut_off(scene: Scene) -> None:
    scene.guard("raise")
    scene.pester(0.1)
    scene.launch()
    scene.pester(READY_S, stop=scene.is_ready)
    assert scene.guest.call(CALL)
    scene.pester(0.3)
    scene.kill()
    scene.pester(0.3)
    assert not scene.guest.is_heard(0.3)
    scene.launch()
    scene.pester(READY_S, stop=scene.is_ready)
    assert scene.guest.call(CALL)
    scene.process.terminate()
    scene.pester(READY_S, stop=lambda: scene.process.poll() is not None)
    scene.pester(0.2)
    assert scene.leaked() == []
    scene.guard("clear")
    scene.pester(0.1)
    assert scene.leaked() != []


@pytest.mark.parametrize("service", ["tor", "fw"])
def test_killed_at_any_moment_of_its_start_and_its_work_nothing_leaks(service: str) -> None:
    """bench/kill.py does this a thousand times."""
    with closing(Scene(service)) as scene:
        moments = Moments(scene, Random(1))
        for _ in range(8):
            moments.once()
            assert moments.found == []
        moments.end()
        assert moments.found == []
        assert moments.ready
        assert moments.heard_after


def test_without_a_proxy_calls_are_refused_until_it_is_back(scene: Scene) -> None:
    scene.launch()
    assert scene.wait(scene.is_ready, READY_S)
    scene.pause(0.1)
    scene.host.leaks()
    scene.proxy.close()
    scene.proxy.path.unlink()
    scene.pester(0.3)  # nobody answers at the proxy: calls are refused, nothing ends
    assert scene.process is not None
    assert scene.process.poll() is None
    assert scene.leaked() == []
    scene.proxy = RecordingProxy(scene.proxy.path, scene.selector)
    assert scene.guest.call(CALL)
    listed = subprocess.run([BIN / "vtl-guard", "list", "--json"], check=True, capture_output=True, text=True)
    assert json.loads(listed.stdout)["form"] == "kept"
