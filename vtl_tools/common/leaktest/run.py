"""The test itself: each kind of traffic in its turn, and what came of it."""

import contextlib
import os
import selectors
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.leaktest import host, traffic
from vtl_tools.common.leaktest.guest import Guest
from vtl_tools.common.leaktest.netns import Networks
from vtl_tools.common.leaktest.proxy import RESOLVED, Proxy, Request
from vtl_tools.common.leaktest.traffic import Call, Kind
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.socks import Command

_READY_S: Final = 30.0
_HEARD_S: Final = 30.0
_GRACE_S: Final = 0.02
"""For what the host makes of a frame once the service has had it."""
_SETTLED_S: Final = 0.3
"""For what the host has to say by itself when its interfaces come up."""
_LATE_S: Final = 1.0
_END_S: Final = 10.0


@dataclass
class Result:
    """What came of a kind of traffic. calls: of so many connections, so many were carried.

    asked: of the proxy. leaks: as lines; leaked: how many there were.
    """

    kind: str
    sent: int = 0
    calls: int = 0
    carried: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    leaked: int = 0
    leaks: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """Return "held", "leaked", or "not carried": then nothing is proved, since nothing works."""
        if self.leaked:
            return "leaked"
        return "held" if self.carried == self.calls else "not carried"

    def as_json(self) -> dict[str, object]:
        """Return what --json prints."""
        return {
            "class": self.kind, "sent": self.sent, "connections": self.calls, "carried": self.carried,
            "answered": dict(self.answered), "asked": self.asked, "leaked": self.leaked, "leaks": self.leaks,
            "verdict": self.verdict,
        }  # fmt: skip


def run(service: Sequence[str]) -> Iterator[Result]:
    """Start a service, and yield the result of each kind of traffic. service: a command of vtl-tor's options.

    Raises PermissionNeededError without root, and VTLError if the service does not start, or ends.
    """
    with contextlib.ExitStack() as stack:
        scene = stack.enter_context(contextlib.closing(_Scene(stack, service)))
        yield from scene.run()


class _Scene:
    def __init__(self, stack: contextlib.ExitStack, service: Sequence[str]) -> None:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vtl-selftest-")))
        networks = stack.enter_context(Networks())
        self._selector = stack.enter_context(selectors.DefaultSelector())
        self._host = stack.enter_context(contextlib.closing(host.Host(networks, self._selector)))
        self._proxy = stack.enter_context(contextlib.closing(Proxy(directory / "socks", self._selector)))
        self._guest = stack.enter_context(contextlib.closing(Guest(networks, self._selector, self.wait)))
        self._errors = directory / "errors"
        self._output = b""
        with self._errors.open("wb") as errors:
            ours = ["--iface", host.LINK, "--socks", f"unix:{self._proxy.path}", "--json"]
            self._process = subprocess.Popen(
                [*service, *ours, "--control", str(directory / "control")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
            )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout.fileno()
        os.set_blocking(self._stdout, False)
        self._selector.register(self._stdout, selectors.EVENT_READ, self._on_output)

    def _on_output(self) -> None:
        octets = os.read(self._stdout, 65536)
        self._output = (self._output + octets)[-65536:]
        if not octets:
            self._selector.unregister(self._stdout)
            self._process.wait(_END_S)
            lines = self._errors.read_text(errors="replace").strip().splitlines()
            raise VTLError(f"selftest: the service ended: {lines[-1] if lines else 'it did not say why'}")

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        until = time.monotonic() + seconds
        while not condition():
            if (left := until - time.monotonic()) <= 0:
                return False
            for key, _ in self._selector.select(left):
                key.data()
        return True

    def run(self) -> Iterator[Result]:
        if not self.wait(lambda: b'"event": "ready"' in self._output, _READY_S):
            raise VTLError("selftest: the service does not come up; see why with -vv")
        if not self._guest.is_heard(_HEARD_S):
            raise VTLError("selftest: the service does not answer the guest; see why with -vv")
        self.wait(lambda: False, _SETTLED_S)
        self._host.leaks()
        self._guest.answers()
        self._proxy.asked.clear()
        for kind in traffic.KINDS:
            yield self._try(kind)
        self.wait(lambda: False, _LATE_S)
        yield self._judged(Result("afterwards"), Kind("afterwards"), ())

    def _try(self, kind: Kind) -> Result:
        result = Result(kind.name, calls=len(kind.calls))
        result.sent = self._guest.send(kind.frames(host.MAC))
        for call in kind.calls:
            address = self._guest.look_up(call.target) if kind.asks else call.target
            result.carried += address is not None and self._guest.call(call._replace(target=address))
        if not self._guest.is_heard(_HEARD_S):
            raise VTLError(f"selftest: the service fell silent at {kind.name!r}; see why with -vv")
        self.wait(lambda: False, _GRACE_S)
        return self._judged(result, kind, kind.calls)

    def _judged(self, result: Result, kind: Kind, calls: Sequence[Call]) -> Result:
        result.answered = self._guest.answers()
        asked = list(self._proxy.asked)
        self._proxy.asked.clear()
        result.asked = sorted({str(request) for request in asked})
        leaks = self._host.leaks()
        leaks += [("proxy", f"was asked to {each}") for each in asked if not _is_due(each, kind, calls)]
        result.leaked, result.leaks = len(leaks), host.counted(leaks)
        return result

    def close(self) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(self._stdout)
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def _is_due(request: Request, kind: Kind, calls: Sequence[Call]) -> bool:
    """Whether TCP or DNS of this kind may have Tor asked for that."""
    if request.command is not Command.CONNECT:
        return request.command is Command.RESOLVE and request.target in traffic.NAMES
    where = request.target, request.port
    of_frames = request.target in kind.targets and request.port in kind.ports
    return of_frames or any(where in ((call.target, call.port), _resolved(call)) for call in calls)


def _resolved(call: Call) -> tuple[str, int]:
    return format_ip(RESOLVED), call.port
