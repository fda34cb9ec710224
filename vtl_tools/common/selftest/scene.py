"""Runs a service between a guest and a host in network namespaces."""

import contextlib
import os
import selectors
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.host.process import end
from vtl_tools.common.selftest.host import HostileHost
from vtl_tools.common.selftest.netns import Networks
from vtl_tools.common.selftest.station import Station

HEARD_S: Final = 30.0
GRACE_S: Final = 0.02
"""Seconds for the host's reaction to a frame after the service processed it."""
SETTLED_S: Final = 0.3
"""Seconds for the host's own packets after its interfaces come up."""
LATE_S: Final = 1.0
_READY_S: Final = 30.0
_END_S: Final = 10.0
_BRIDGE: Final = (
    sys.executable,
    "-P",
    "-c",
    "from vtl_tools.cmd.bridge import main; main(prog_name='vtl-bridge')",
)


class EndedError(VTLError):
    """The service ended; has its last message."""


class Scene(ABC):
    """Three networks, with the host in between, and a service in the host's network once it is started.

    A subclass adds its own resources to `stack`.
    """

    guest: Station

    @abstractmethod
    def command(self, iface: str) -> list[str]:
        """Return the service's command for the guest's interface of this name."""

    def leaks(self) -> list[tuple[str, str]]:
        """Return the leaks since the last call: place and description."""
        return self.host.leaks()

    def __init__(self, *, is_routed: bool) -> None:
        self.stack = contextlib.ExitStack()
        try:
            self.directory = Path(
                self.stack.enter_context(tempfile.TemporaryDirectory(prefix="vtl-selftest-"))
            )
            self.networks = self.stack.enter_context(Networks())
            self.selector = self.stack.enter_context(selectors.DefaultSelector())
            self.host = self.stack.enter_context(
                contextlib.closing(HostileHost(self.networks, self.selector, is_routed=is_routed))
            )
        except BaseException:
            self.stack.close()
            raise
        self._output = b""
        self._errors = self.directory / "errors"

    def start(self, command: Sequence[str]) -> None:
        """Start the service, and wait until it is ready. Raises EndedError, VTLError."""
        with self._errors.open("wb") as errors:
            process = subprocess.Popen(
                [*command, "--json", "--control", str(self.directory / "control")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        self.stack.callback(self._stop, process)
        assert process.stdout is not None
        fd = process.stdout.fileno()
        os.set_blocking(fd, False)
        self.selector.register(fd, selectors.EVENT_READ, lambda: self._on_output(fd, process))
        if not self.wait(lambda: b'"event": "ready"' in self._output, _READY_S):
            raise VTLError("selftest: the service does not come up; see why with -vv")

    def _on_output(self, fd: int, process: subprocess.Popen[bytes]) -> None:
        octets = os.read(fd, 65536)
        self._output = (self._output + octets)[-65536:]
        if not octets:
            self.selector.unregister(fd)
            process.wait(_END_S)
            lines = self._errors.read_text(errors="replace").strip().splitlines()
            said = lines[-1] if lines else "it did not say why"
            raise EndedError(f"selftest: the service ended: {said}")

    def _stop(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(KeyError):
            self.selector.unregister(process.stdout.fileno())
        end(process, _END_S)
        process.stdout.close()

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Serve all sockets until a condition holds, for so many seconds at most. Return whether it holds."""
        until = time.monotonic() + seconds
        while not condition():
            if (left := until - time.monotonic()) <= 0:
                return False
            for key, _ in self.selector.select(left):
                key.data()
        return True

    def pause(self, seconds: float) -> None:
        """Serve all sockets for a while."""
        self.wait(lambda: False, seconds)

    def starts_beside(self, iface: str) -> bool:
        """Start vtl-bridge between the guest's interface and another. Return whether it came up."""
        said = self.directory / "beside"
        with said.open("wb") as output:
            process = subprocess.Popen(
                [*_BRIDGE, "--iface", iface, "--iface", self.host.other_link(), "--guard", "off", "--json",
                 "--control", str(self.directory / "beside.sock")],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        self.stack.callback(end, process, _END_S)

        def is_ready() -> bool:
            return b'"event": "ready"' in said.read_bytes()

        self.wait(lambda: process.poll() is not None or is_ready(), _READY_S)
        return is_ready()

    def close(self) -> None:
        """End the service, and remove the networks."""
        self.stack.close()
