"""A service, started and killed at any moment, between a guest that sends all it can and a host that leaks.

The networks are those of the leak test, in the calling thread: a guest, a host that forwards and answers, and
the far end of its uplink. The service is the shipped command, as its user would start it.
"""

import errno
import selectors
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import IO, Any, Final

from vtl_tools.common.device.capture import quiet_scapy

with quiet_scapy():
    from vtl_tools.common.selftest import host as leakhost
    from vtl_tools.common.selftest import traffic
    from vtl_tools.common.selftest.guest import RawGuest
from vtl_tools.common.selftest.netns import Networks
from vtl_tools.services.tor.selftest.proxy import RecordingProxy

BIN: Final = Path(sys.executable).parent
SENT: Final = {"dns, foreign resolver", "tcp to the host", "udp", "quic", "icmp", "icmpv6", "ipv6 routers",
               "arp and neighbours", "6in4", "gre", "dhcp"}  # fmt: skip
CALL: Final = traffic.CarriedConnection(traffic.OUTSIDE4, 80, b"hello")

RULES: Final = """
deny arp
deny icmp6 type 133, 134, 135, 136, 137
deny any
"""
"""Nothing may pass, and not what passes where no rule names it."""
READY_S: Final = 30.0


class Scene:
    """The networks of the leak test, with a service ("tor" or "fw") in the way of its guest."""

    def __init__(self, directory: Path, service: str = "tor") -> None:
        self.directory = directory
        self.networks = Networks()
        self.selector = selectors.DefaultSelector()
        self.host = leakhost.HostileHost(self.networks, self.selector)
        self.proxy = RecordingProxy(directory / "socks", self.selector)
        self.guest = RawGuest(self.networks, self.selector, self.wait)
        kinds = [kind for kind in traffic.KINDS if kind.name in SENT]
        self.frames = [bytes(frame) for kind in kinds for frame in kind.frames(leakhost.MAC)]
        self.sent = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.output: IO[Any] | None = None
        (directory / "deny.rules").write_text(RULES)
        own = {
            "tor": ["--socks", f"unix:{self.proxy.path}"],
            "fw": ["--uplink", leakhost.UPLINK, "--rules", directory / "deny.rules"],
        }[service]
        control = ["--json", "--control", directory / "control"]
        self.command = [BIN / f"vtl-{service}", "--iface", leakhost.LINK, *own, *control]
        self.wait(lambda: False, 0.3)
        self.host.leaks()

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Serve the proxy and hear what leaks until a condition holds; return whether it came to hold."""
        until = time.monotonic() + seconds
        while not condition():
            if (left := until - time.monotonic()) <= 0:
                return False
            for key, _ in self.selector.select(left):
                key.data()
        return True

    def pester(self, seconds: float, stop: Callable[[], bool] = lambda: False) -> None:
        """Let the guest send all it can for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not stop():
            some = self.frames[:: 1 + len(self.frames) // 40]
            try:
                self.guest.send(some)
                self.sent += len(some)
            except OSError as e:
                if e.errno != errno.ENOBUFS:  # nobody has taken what was sent before
                    raise
            self.frames.append(self.frames.pop(0))
            self.wait(lambda: False, 0.001)
            self.guest.forget()

    def start(self, *options: str) -> None:
        """Start the service."""
        self.output = (self.directory / "output").open("w+")
        self.process = subprocess.Popen(
            [*self.command, *options], stdin=subprocess.DEVNULL, stdout=self.output, stderr=subprocess.STDOUT
        )

    def said(self) -> str:
        """Return what the service has printed."""
        return (self.directory / "output").read_text()

    def is_ready(self) -> bool:
        """Say whether the service is."""
        return '"ready"' in self.said()

    def kill(self) -> None:
        """Kill the service, by SIGKILL. Idempotent."""
        if self.process is not None and self.output is not None:
            self.process.kill()
            self.process.wait()
            self.output.close()
            self.process = None

    def guard(self, *words: str) -> None:
        """Run vtl-guard for the guest's interface."""
        subprocess.run([BIN / "vtl-guard", *words, leakhost.LINK], check=True, capture_output=True)

    def leaks(self) -> list[str]:
        """Return what has leaked since the last call."""
        self.wait(lambda: False, 0.05)
        return [f"{where}: {what}" for where, what in self.host.leaks()]

    def close(self) -> None:
        """End all."""
        self.kill()
        with self.networks, self.selector, closing(self.host), closing(self.proxy), closing(self.guest):
            pass


class Moments:
    """Kills the service at random moments, from the first instant of its process to well after it is ready.

    The guard is raised before the first start, as a host that lets no guest out does. When it is cleared at
    the end, the guest must be heard; before, it may not be, as the host would speak of it to itself for long.
    """

    def __init__(self, scene: Scene, rng: Random) -> None:
        self.scene, self.rng = scene, rng
        self.moments = self.ready = 0
        self.found: list[str] = []
        self._start_s = 0.5
        self.heard_after = 0
        scene.guard("raise")

    def once(self) -> None:
        """Start, kill, and look what leaked."""
        scene, began = self.scene, time.monotonic()
        scene.start()
        scene.pester(self.rng.uniform(0.0, 1.5 * self._start_s))
        is_ready = scene.is_ready()
        while not is_ready and self.moments % 20 == 0 and time.monotonic() - began < READY_S:
            scene.pester(0.01)  # at times, see how long a start takes here and now
            if is_ready := scene.is_ready():
                self._start_s = time.monotonic() - began
        scene.kill()
        scene.pester(self.rng.uniform(0.0, 0.05))
        if '"error"' in scene.said():
            self.found.append(f"did not start: {scene.said()}")
        self.moments += 1
        self.ready += is_ready
        self.found += scene.leaks()

    def end(self) -> None:
        """See that the last one starts, and that the guest is heard once the guard is lifted."""
        scene = self.scene
        scene.start()
        scene.pester(READY_S, stop=scene.is_ready)
        if not scene.is_ready():
            self.found.append(f"did not start in the end: {scene.said()}")
        scene.kill()
        self.found += scene.leaks()
        scene.guard("clear")
        scene.pester(0.3)
        self.heard_after = len(scene.leaks())
