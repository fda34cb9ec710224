"""A cell: one service in a network of its own, with traffic through it, and the faults that befall it."""

import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

from lab import kernel
from lab.host import Host
from lab.netns import Lab
from lab.soak.flow import Flow
from lab.wait import until
from vtl_tools.common.errors import VTLError
from vtl_tools.common.runtime import control

BIN: Final = Path(sys.executable).parent
RECOVERY_S: Final = 120.0
"""Seconds in which all flows must carry again after a fault."""
DISK_OCTETS: Final = 8 << 20
HUNG_CLIENTS: Final = 12
SETTLED_S: Final = 30.0
"""Seconds after which a service has all that it needs to carry the same traffic for ever."""
OBSERVER: Final = """
table inet soak {
  counter leaked { }
  chain before { type filter hook prerouting priority -500; iifname "%s" counter name leaked; }
}
"""

Fault = Callable[[], None]


class Broken(Exception):  # noqa: N818 - a promise, not an error of ours
    """A promise that was not kept."""


class Cell:
    """Base. Subclasses make the network and say how the service is run.

    middle: the host of the service. guarded: its interface that may give the host's stack nothing; "": none.
    """

    service = ""
    guarded = ""

    def __init__(self, lab: Lab, middle: Host, rng: Random, preload: tuple[Path, Path]) -> None:
        self.lab, self.middle, self.rng = lab, middle, rng
        self._preload, self.clock = preload
        self.flows: list[Flow] = []
        self.faults: dict[str, Fault] = {
            "kill -9": self.kill_and_restart,
            "link flap": self.flap,
            "interface deleted": self.delete,
            "disk full": self.fill,
            "clock stepped": self.step,
            "hung clients": self.hang,
            "SIGHUP": self.hang_up,
        }
        self.befell: Counter[str] = Counter()
        self.broken: list[str] = []
        self.slowest_s = 0.0
        self.growth_kib = self.base_kib = self.most_kib = 0
        self._ready_at = 0.0
        self._base = 0
        self.disk = lab.dir / f"disk-{self.service}"
        self.disk.mkdir()
        middle.call(kernel.mount, "disk", str(self.disk), "tmpfs", 0, f"size={DISK_OCTETS},mode=0755")
        self.control = self.disk / "control.sock"
        self.process: subprocess.Popen[Any] | None = None
        lab.defer(self.close)

    # --- the service

    def command(self) -> list[str]:
        """Return the service's own options."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the service, and wait until it answers."""
        capture = self.disk / f"{self.service}.pcapng"
        records = ["--pcap", capture, "--pcap-size", "1", "--pcap-files", "2", "--pcap-overwrite"]
        records += ["--log", self.disk / f"{self.service}.log"]
        command = [BIN / self.service, *self.command(), *records, "--json", "--control", self.control]
        environment = {**os.environ, "LD_PRELOAD": str(self._preload), "SOAK_CLOCK": str(self.clock)}
        self.process = self.middle.popen(
            "sh",
            "-c",
            'exec "$@" >>"$0.out" 2>>"$0.err"',
            self.disk / self.service,
            *command,
            env=environment,
        )
        until(self._answers, f"{self.service} to answer", RECOVERY_S)
        self._ready_at, self._base = time.monotonic(), 0

    def _answers(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise Broken(f"it did not start: {self.said()}")
        try:
            self.status()
        except VTLError:
            return False
        return True

    def status(self) -> Any:
        """Return the service's status. Raises VTLError."""
        return self.middle.call(control.ask, self.control, "status")

    def said(self) -> str:
        """Return the last of what the service has printed on standard error."""
        said = ""
        for name in f"{self.service}.err", f"{self.service}.log":
            with contextlib.suppress(OSError):
                said += self.middle.call((self.disk / name).read_text)[-600:]
        return said or "nothing"

    def kill(self) -> None:
        """Kill the service, and all processes of its session, by SIGKILL."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    # --- faults

    def kill_and_restart(self) -> None:
        """Kill the service, and start it as its unit would, a while later."""
        self.kill()
        time.sleep(self.rng.uniform(0.0, 2.0))
        self.start()

    def flap(self) -> None:
        """Set an interface down, and up again."""
        host, interface = self.rng.choice(self.cables())
        host.run("ip", "link", "set", "dev", interface, "down")
        time.sleep(self.rng.uniform(0.0, 2.0))
        host.run("ip", "link", "set", "dev", interface, "up")
        self.readdress()

    def cables(self) -> list[tuple[Host, str]]:
        """Return interfaces that may be set down."""
        raise NotImplementedError

    def readdress(self) -> None:
        """Give back the addresses that an interface lost when it was set down: those of IPv6."""

    def delete(self) -> None:
        """Delete an interface of the service, and create it again."""
        raise NotImplementedError

    def fill(self) -> None:
        """Fill the disk of the service's captures, events, log and state, and make room again."""
        ballast = self.disk / "ballast"

        def fill() -> None:
            with ballast.open("wb", 0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

        self.middle.call(fill)
        time.sleep(self.rng.uniform(1.0, 4.0))
        self.middle.call(ballast.unlink)

    def hang_up(self) -> None:
        """Ask for the files to be opened again, after they were renamed."""
        log = self.disk / f"{self.service}.log"
        with contextlib.suppress(FileNotFoundError):
            self.middle.call(log.rename, log.with_suffix(".1"))
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGHUP)

    def step(self) -> None:
        """Step the clock that the service reads, by up to a day in either direction."""
        with self.clock.open("r+b") as file:  # not emptied first: the service maps it
            file.write(struct.pack("=q", self.rng.choice((-86400, -3600, -5, 5, 3600, 86400))))
        time.sleep(self.rng.uniform(0.5, 2.0))

    def hang(self) -> None:
        """Let clients of the control socket say nothing, half a request, or ask and not read."""
        clients = []
        for number in range(HUNG_CLIENTS):
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.settimeout(5.0)
            self.middle.call(client.connect, str(self.control))
            if number % 3 == 1:
                client.sendall(b'{"verb": "sta')
            elif number % 3 == 2:
                client.setblocking(False)
                with contextlib.suppress(OSError):
                    for _ in range(1000):
                        client.send(b'{"verb": "status"}\n')
        self.status()
        time.sleep(self.rng.uniform(0.5, 3.0))
        self.status()
        for client in clients:
            client.close()

    # --- what was promised

    def befall(self, name: str) -> None:
        """Let a fault befall the cell, and wait until all is as before."""
        try:
            self.faults[name]()
            self.befell[name] += 1
            self.recover(name)
        except Exception as e:  # a fault of the soak itself is to be seen in its table, too
            self.broken.append(f"{name}: {e}")

    def recover(self, after: str) -> None:
        """Wait until each flow carries again. Raises Broken."""
        assert self.process is not None
        began, before = time.monotonic(), [way.octets for flow in self.flows for way in flow.ways]
        while True:
            if self.process.poll() is not None:
                raise Broken(f"the service ended with {self.process.returncode}: {self.said()}")
            now = [way.octets for flow in self.flows for way in flow.ways]
            if all(new > old for new, old in zip(now, before, strict=True)) and self.carries():
                break
            if broken := [why for flow in self.flows for why in flow.broken]:
                raise Broken("; ".join(broken))
            if time.monotonic() - began > RECOVERY_S:
                raise Broken(f"nothing is carried {RECOVERY_S:.0f} s after '{after}': {self.said()}")
            time.sleep(0.05)
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)

    def carries(self) -> bool:
        """Return whether new connections work, where that is promised."""
        return True

    def leaked(self) -> int:
        """Return the packets that got where they must not."""
        return count_of(self.middle, "leaked") if self.guarded else 0

    def observe(self) -> None:
        """Guard the interface before the first start, and count from then on what the host's stack gets."""
        if self.guarded:
            self.middle.run(BIN / "vtl-guard", "raise", self.guarded)
            self.middle.run("nft", "-f", "-", input=OBSERVER % self.guarded)

    def measure(self) -> None:
        """Note the resident memory of the service's process, without the queues shared with writers."""
        assert self.process is not None
        try:
            text = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return
        found = re.search(r"RssAnon:\s+(\d+) kB", text)
        if found is None or time.monotonic() - self._ready_at < SETTLED_S:
            return
        now = int(found[1])
        self._base = self._base or now
        self.base_kib = max(self.base_kib, self._base)
        self.most_kib = max(self.most_kib, now)
        self.growth_kib = max(self.growth_kib, now - self._base)

    def close(self) -> None:
        """End flows and service."""
        for flow in self.flows:
            flow.close()
        if self.process is not None:
            self.kill()


def count_of(host: Host, counter: str) -> int:
    """Return the packets of a named counter in a host."""
    text = host.run("nft", "list", "counter", "inet", "soak", counter).stdout
    found = re.search(r"packets (\d+)", text)
    assert found
    return int(found[1])
