"""Events around a service's start in a self-test: actions of the guest, and of the host's administrator."""

import ctypes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.selftest import host, traffic
from vtl_tools.common.selftest.netns import ip
from vtl_tools.common.selftest.result import TrialResult
from vtl_tools.common.selftest.scene import LATE_S, SETTLED_S, EndedError, Scene

_ALTERNATIVE: Final = "guestlan0"
_RENAMED: Final = "vmnet9"
_ROUTE_S: Final = 20.0
_PROBES: Final = ("udp", "icmp", "icmpv6", "fragments")
"""Kinds of traffic that no service carries."""


@dataclass(frozen=True)
class Situation:
    """before, after: actions before and after the service's start. after returns a message if it succeeds
    although it must not.

    iface: the name of the guest's interface in the service's command.
    """

    name: str
    before: Callable[[Scene], object] = lambda scene: None
    after: Callable[[Scene], str] = lambda scene: ""
    iface: str = host.LINK


def tried(scene: Scene, situation: Situation) -> TrialResult:
    """Return the result of a situation. Raises VTLError if it cannot be set up.

    A service that does not start carries nothing, and so leaks nothing.
    """
    result = TrialResult(situation.name)
    scene.pause(SETTLED_S)
    situation.before(scene)
    try:
        scene.start(scene.command(situation.iface))
    except EndedError:
        result.answered = Counter({"no start": 1})
        return result
    found = list[tuple[str, str]]()
    try:
        if wrong := situation.after(scene):
            found.append(("host", wrong))
        scene.pause(LATE_S)
    except EndedError:
        result.answered = Counter({"its end": 1})
    scene.leaks()
    for kind in traffic.KINDS:
        if kind.name in _PROBES:
            result.sent += scene.guest.send(kind.frames(host.MAC))
    try:
        scene.pause(LATE_S)
    except EndedError:
        result.answered = Counter({"its end": 1})
    found += scene.leaks()
    result.leaked, result.leaks = len(found), host.counted(found)
    return result


def _advertise(scene: Scene) -> None:
    scene.guest.send(traffic.router(host.MAC))
    if not scene.wait(scene.host.has_route_by_guest, _ROUTE_S):
        raise VTLError("selftest: the host does not believe in the guest as its router; is IPv6 off?")


def _name_otherwise(scene: Scene) -> None:
    ip("link", "property", "add", "dev", host.LINK, "altname", _ALTERNATIVE)


def _bridge(scene: Scene) -> str:
    return "vtl-bridge started beside it" if scene.starts_beside(host.LINK) else ""


def _rename(scene: Scene) -> str:
    scene.host.rename(_RENAMED)
    return ""


def _flush(scene: Scene) -> str:
    """Do as `nft flush ruleset` does, without need for nft."""
    library = ctypes.CDLL("libnftables.so.1")
    library.nft_ctx_new.restype = ctypes.c_void_p
    context = ctypes.c_void_p(library.nft_ctx_new(0))
    failed = library.nft_run_cmd_from_buffer(context, b"flush ruleset")
    library.nft_ctx_free(context)
    if failed:
        raise VTLError("selftest: the rules of nftables cannot be flushed")
    return ""


ALL: Final = (
    Situation("router before the start", before=_advertise),
    Situation("alternative name", before=_name_otherwise, iface=_ALTERNATIVE),
    Situation("second service", after=_bridge),
    Situation("interface renamed", after=_rename),
    Situation("nft flush ruleset", after=_flush),
)
