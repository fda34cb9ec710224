"""Runs vtl-fw between a guest and a network, and each attack against it."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from scapy.layers.inet6 import ICMPv6ND_NS, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from vtl_tools.common.errors import VTLError
from vtl_tools.common.selftest import host
from vtl_tools.common.selftest.result import TrialResult
from vtl_tools.common.selftest.scene import GRACE_S, HEARD_S, LATE_S, SETTLED_S, Scene
from vtl_tools.common.selftest.station import Station
from vtl_tools.services.fw.selftest import packets as fw_packets
from vtl_tools.services.fw.selftest.packets import FLOWS, OWN6, PEER6, RULES

_CHUNK: Final = 200
"""Number of frames, of any size, that fit a link's buffer."""

_ASKED_BY_SERVICE: Final = bytes(fw_packets.probe(PEER6))
"""vtl-fw asks the network whether an address that the guest claims is taken. The guest never sends this."""

Frame: TypeAlias = Packet | bytes


class Firewalled(Scene):
    """A guest, vtl-fw, and a world in which one station plays all hosts.

    Frames of either side arrive at the other unchanged, if at all. Any other frame that arrives has leaked.
    """

    def __init__(self, program: Sequence[str], options: Sequence[str]) -> None:
        super().__init__(is_routed=False)
        self._program, self._options = program, options
        networks = self.networks
        guest = Station(networks, networks.guest, "eth0", self.selector, self.wait)
        self.guest = self.stack.enter_context(contextlib.closing(guest))
        world = Station(networks, networks.world, "wan0", self.selector, self.wait)
        self.world = self.stack.enter_context(contextlib.closing(world))
        self._sentinels = 0
        self._may: dict[Station, set[bytes]] = {self.guest: set(), self.world: {_ASKED_BY_SERVICE}}
        self._due: dict[Station, Counter[bytes]] = {self.guest: Counter(), self.world: Counter()}
        self._came: dict[Station, list[bytes]] = {self.guest: [], self.world: []}
        self._result = TrialResult("")

    def command(self, iface: str) -> list[str]:
        """Return the service's command for the guest's interface of this name.

        The options come last, as they may name other rules.
        """
        rules = self.directory / "fw.rules"
        rules.write_text(RULES)
        return [
            *self._program, "--rules", str(rules), *self._options,
            "--iface", iface, "--uplink", host.UPLINK, "--flows", str(FLOWS),
        ]  # fmt: skip

    # --- steps of an attack

    def out(self, *frames: Frame, due: bool = False, may: Iterable[Frame] = ()) -> None:
        """Let the guest send frames. due: all must arrive. may: other frames that may arrive."""
        self._send(self.guest, self.world, frames, due, may)

    def come(self, *frames: Frame, due: bool = False, may: Iterable[Frame] = ()) -> None:
        """Let the world send frames to the guest."""
        self._send(self.world, self.guest, frames, due, may)

    def _send(
        self, sender: Station, receiver: Station, frames: Sequence[Frame], due: bool, may: Iterable[Frame]
    ) -> None:
        octets = [bytes(frame) for frame in frames]
        self._may[receiver].update(bytes(frame) for frame in may)
        if due:
            self._due[receiver].update(octets)
        self._result.sent += len(octets)
        for at in range(0, len(octets), _CHUNK):
            sender.send(octets[at : at + _CHUNK])
            self.settle()

    def first(self, *frames: Frame, out: bool) -> None:
        """Send frames that must arrive, one by one, while the guest has no address for settle()."""
        sender, receiver = (self.guest, self.world) if out else (self.world, self.guest)
        for octets in map(bytes, frames):
            self._due[receiver][octets] += 1
            self._result.sent += sender.send([octets])
            self._must(receiver, octets)

    def settle(self) -> None:
        """Wait until all frames of both directions are processed. Raises VTLError if nothing passes."""
        self._sentinels += 1
        asked, answered = (bytes(frame) for frame in fw_packets.sentinel(self._sentinels))
        for sender, receiver, octets in (
            (self.guest, self.world, asked),
            (self.world, self.guest, answered),
        ):
            self._may[receiver].add(octets)
            sender.send([octets])
            self._must(receiver, octets)

    def _must(self, receiver: Station, octets: bytes) -> None:
        if not self.wait(lambda: self._has(receiver, octets), HEARD_S):
            raise VTLError(
                f"selftest: the service let nothing pass at {self._result.kind!r}; see why with -vv"
            )

    def _has(self, station: Station, octets: bytes) -> bool:
        fresh = station.take()
        self._came[station] += fresh
        if station is self.guest:
            for frame in fresh:
                self._answer(frame)
        return octets in fresh or octets in self._came[station]

    def _answer(self, frame: bytes) -> None:
        """Answer a solicitation for an address of the guest, as a host does (RFC 4861 section 7.2.4)."""
        if frame[12:14] != b"\x86\xdd" or ICMPv6ND_NS not in (asked := Ether(frame)):
            return
        if asked[ICMPv6ND_NS].tgt in OWN6:
            told = bytes(fw_packets.advert(asked[ICMPv6ND_NS].tgt, asked[IPv6].src))
            self._may[self.world].add(told)
            self.guest.send([told])

    # --- results

    def attack(self, name: str, steps: Callable[["Firewalled"], object]) -> TrialResult:
        """Run an attack and return its result."""
        result = self._result = TrialResult(name)
        steps(self)
        self.settle()
        self.pause(GRACE_S)
        leaks = self.leaks()
        result.leaked, result.leaks = len(leaks), host.counted(leaks)
        return result

    def leaks(self) -> list[tuple[str, str]]:
        """Return the leaks since the last call, and count the frames that had to arrive."""
        found = self.host.leaks()
        result = self._result
        for station, place in (self.world, "uplink"), (self.guest, "guest"):
            came = Counter(self._came[station] + station.take())
            due, may = self._due[station], self._may[station]
            result.calls += due.total()
            result.carried += (came & due).total()
            found += [
                (place, host.summary(octets))
                for octets, count in came.items()
                if octets not in due and octets not in may
                for _ in range(count)
            ]
            self._came[station] = []
            due.clear()
            may.clear()
        self._may[self.world].add(_ASKED_BY_SERVICE)
        return found

    def run(self, attacks: Iterable[tuple[str, Callable[["Firewalled"], object]]]) -> Iterator[TrialResult]:
        """Start the service, and yield the result of each attack."""
        self.start(self.command(host.LINK))
        self.pause(SETTLED_S)
        self.leaks()
        for name, steps in attacks:
            yield self.attack(name, steps)
        self._result = TrialResult("afterwards")
        self.pause(LATE_S)
        leaks = self.leaks()
        self._result.leaked, self._result.leaks = len(leaks), host.counted(leaks)
        yield self._result
