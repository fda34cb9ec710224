"""Runs vtl-tor's self-test: each kind of traffic in turn."""

import contextlib
from collections.abc import Iterator, Sequence

from vtl_tools.common.errors import VTLError
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.selftest import host, situations, traffic
from vtl_tools.common.selftest.guest import RawGuest
from vtl_tools.common.selftest.result import TrialResult
from vtl_tools.common.selftest.scene import GRACE_S, HEARD_S, LATE_S, SETTLED_S, Scene
from vtl_tools.common.selftest.traffic import CarriedConnection, TrafficKind
from vtl_tools.common.socks import Command
from vtl_tools.services.tor.selftest.proxy import RESOLVED, RecordedRequest, RecordingProxy


def run(service: Sequence[str]) -> Iterator[TrialResult]:
    """Start a service, and yield the result of each kind of traffic. service: a command of vtl-tor's options.

    Raises PermissionNeededError without root, and VTLError if the service does not start, or ends.
    """
    with contextlib.closing(_Scene(service)) as scene:
        yield from scene.run()
    for situation in situations.ALL:
        with contextlib.closing(_Scene(service)) as scene:
            yield situations.tried(scene, situation)


class _Scene(Scene):
    def __init__(self, service: Sequence[str]) -> None:
        super().__init__(is_routed=True)
        self._service = service
        self._proxy = self.stack.enter_context(
            contextlib.closing(RecordingProxy(self.directory / "socks", self.selector))
        )
        guest = RawGuest(self.networks, self.selector, self.wait)
        self.guest: RawGuest = self.stack.enter_context(contextlib.closing(guest))

    def command(self, iface: str) -> list[str]:
        """Return the service's command for the guest's interface of this name."""
        return [*self._service, "--iface", iface, "--socks", f"unix:{self._proxy.path}"]

    def run(self) -> Iterator[TrialResult]:
        self.start(self.command(host.LINK))
        if not self.guest.is_heard(HEARD_S):
            raise VTLError("selftest: the service does not answer the guest; see why with -vv")
        self.pause(SETTLED_S)
        self.host.leaks()
        self.guest.answers()
        self._proxy.asked.clear()
        for kind in traffic.KINDS:
            yield self._try(kind)
        self.pause(LATE_S)
        yield self._judged(TrialResult("afterwards"), TrafficKind("afterwards"), ())

    def _try(self, kind: TrafficKind) -> TrialResult:
        result = TrialResult(kind.name, calls=len(kind.calls))
        result.sent = self.guest.send(kind.frames(host.MAC))
        for call in kind.calls:
            address = self.guest.look_up(call.target) if kind.asks else call.target
            result.carried += address is not None and self.guest.call(call._replace(target=address))
        for name in kind.names:
            result.sent += 1
            if (address := self.guest.look_up(name)) is not None:
                self.guest.send(traffic.syn_to(address))
        if not self.guest.is_heard(HEARD_S):
            raise VTLError(f"selftest: the service fell silent at {kind.name!r}; see why with -vv")
        self.pause(GRACE_S)
        return self._judged(result, kind, kind.calls)

    def _judged(
        self, result: TrialResult, kind: TrafficKind, calls: Sequence[CarriedConnection]
    ) -> TrialResult:
        result.answered = self.guest.answers()
        asked = list(self._proxy.asked)
        self._proxy.asked.clear()
        result.asked = sorted({str(request) for request in asked})
        leaks = self.host.leaks()
        leaks += [("proxy", f"was asked to {each}") for each in asked if not _is_due(each, kind, calls)]
        result.leaked, result.leaks = len(leaks), host.counted(leaks)
        return result


def _is_due(request: RecordedRequest, kind: TrafficKind, calls: Sequence[CarriedConnection]) -> bool:
    """Return whether TCP or DNS of this kind of traffic may cause this request to Tor."""
    if request.command is not Command.CONNECT:
        return request.command is Command.RESOLVE and request.target in traffic.NAMES
    where = request.target, request.port
    of_frames = request.target in kind.targets and request.port in kind.ports
    return of_frames or any(where in ((call.target, call.port), _resolved(call)) for call in calls)


def _resolved(call: CarriedConnection) -> tuple[str, int]:
    return format_ip(RESOLVED), call.port
