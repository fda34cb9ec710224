"""vtl-tor fails closed: killed and started at any moment, the worst of hosts never gets a guest's frame."""

import json
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from vtl_tools.common.device.capture import quiet_scapy

with quiet_scapy():
    from vtl_tools.common.leaktest import host as leakhost
    from vtl_tools.common.leaktest import traffic
    from vtl_tools.common.leaktest.guest import Guest
from vtl_tools.common.leaktest.netns import Networks
from vtl_tools.common.leaktest.proxy import Proxy

pytestmark = [pytest.mark.lab, pytest.mark.slow]

BIN = Path(sys.executable).parent
SENT = {"dns, foreign resolver", "tcp to the host", "udp", "quic", "icmp", "icmpv6", "arp and neighbours",
        "ipv6 routers", "6in4", "gre", "dhcp"}  # fmt: skip
CALL = traffic.Call(traffic.OUTSIDE4, 80, b"hello")


class Scene:
    """The networks of the leak test, with a service that is started and killed as a test likes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.networks = Networks()
        self.selector = selectors.DefaultSelector()
        self.host = leakhost.Host(self.networks, self.selector)
        self.proxy = Proxy(directory / "socks", self.selector)
        self.guest = Guest(self.networks, self.selector, self.wait)
        kinds = [kind for kind in traffic.KINDS if kind.name in SENT]
        self.frames = [bytes(frame) for kind in kinds for frame in kind.frames(leakhost.MAC)]
        self.process: subprocess.Popen[bytes] | None = None
        self.wait(lambda: False, 0.3)
        self.host.leaks()

    def wait(self, condition, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not condition():
            if (left := until - time.monotonic()) <= 0:
                return False
            for key, _ in self.selector.select(left):
                key.data()
        return True

    def pester(self, seconds: float, stop=lambda: False) -> None:
        """Let the guest send all it can for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stop():
            self.guest.send(self.frames[:: 1 + len(self.frames) // 40])
            self.frames.append(self.frames.pop(0))
            self.wait(lambda: False, 0.001)
            self.guest.forget()

    def start(self, *options: str) -> None:
        self.output = (self.directory / "output").open("w+")
        self.process = subprocess.Popen(
            [BIN / "vtl-tor", "--iface", leakhost.LINK, "--socks", f"unix:{self.proxy.path}", "--json",
             "--control", self.directory / "control", *options],
            stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def is_ready(self) -> bool:
        return '"ready"' in Path(self.output.name).read_text()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.output.close()
            self.process = None

    def guard(self, *words: str) -> None:
        subprocess.run([BIN / "vtl-guard", *words, leakhost.LINK], check=True, capture_output=True)

    def close(self) -> None:
        self.kill()
        with self.networks, self.selector, closing(self.host), closing(self.proxy), closing(self.guest):
            pass


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with closing(Scene(tmp_path)) as scene:
        yield scene


def leaks(scene: Scene) -> list[str]:
    scene.wait(lambda: False, 0.05)
    return [f"{where}: {what}" for where, what in scene.host.leaks()]


def test_what_a_guest_sends_reaches_the_host_where_no_guard_stands(scene: Scene) -> None:
    """So that the tests below prove something."""
    scene.pester(0.2)
    found = leaks(scene)
    assert any(leak.startswith("uplink") for leak in found)
    assert any(leak.startswith("host") for leak in found)


def test_killed_before_ready_and_in_the_middle_of_traffic_the_guest_is_cut_off(scene: Scene) -> None:
    scene.guard("raise")
    scene.pester(0.1)
    scene.start()
    scene.pester(30, stop=scene.is_ready)
    assert scene.guest.call(CALL)
    scene.pester(0.3)
    scene.kill()
    scene.pester(0.3)
    assert not scene.guest.is_heard(0.3)
    scene.start()
    scene.pester(30, stop=scene.is_ready)
    assert scene.guest.call(CALL)
    scene.process.terminate()
    scene.pester(10, stop=lambda: scene.process.poll() is not None)
    scene.pester(0.2)
    assert leaks(scene) == []
    scene.guard("clear")
    scene.pester(0.1)
    assert leaks(scene) != []


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_of_its_start_and_its_work_nothing_leaks(scene: Scene, seed: int) -> None:
    rng = Random(seed)
    scene.guard("raise")
    for _ in range(8):
        scene.start()
        scene.pester(rng.uniform(0.0, 1.0))
        scene.kill()
        scene.pester(rng.uniform(0.0, 0.1))
        assert leaks(scene) == []
    scene.start()
    scene.pester(30, stop=scene.is_ready)
    assert scene.guest.call(CALL)
    assert leaks(scene) == []


def test_without_a_proxy_calls_are_refused_until_it_is_back(scene: Scene) -> None:
    scene.start()
    assert scene.wait(scene.is_ready, 30)
    scene.wait(lambda: False, 0.1)
    scene.host.leaks()
    scene.proxy.close()
    scene.proxy.path.unlink()
    scene.pester(0.3)  # nobody answers at the proxy: calls are refused, nothing ends
    assert scene.process is not None
    assert scene.process.poll() is None
    assert leaks(scene) == []
    scene.proxy = Proxy(scene.proxy.path, scene.selector)
    assert scene.guest.call(CALL)
    listed = subprocess.run([BIN / "vtl-guard", "list", "--json"], check=True, capture_output=True, text=True)
    assert json.loads(listed.stdout)["form"] == "kept"
