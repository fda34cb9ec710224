"""The near side: the far modules that destinations are behind, and the transport that each is reached by."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from math import inf
from typing import Final

from vtl_tools.common.relay.connector import Connector
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.wire import Path
from vtl_tools.services.udt.allowed import Network, Prefixes
from vtl_tools.services.udt.choice import TransportChoice
from vtl_tools.services.udt.load import CONTROL, LOADED_LEAST, SAMPLE_S, SAMPLES, Reports
from vtl_tools.services.udt.transport.base import FlowOpening
from vtl_tools.services.udt.transport.dialer import Dialer

log = logging.getLogger(__name__)

_EXAMINED_MAX: Final = 1024
"""Flows that are looked at in a sample."""
_COUNTED_LEAST: Final = 1 << 20
"""Octets of a transport after which its share of lost packets means something."""
_SHARE: Final = 0.1
"""Share of the octets below which another transport's traffic does not disturb a measurement."""


class _Carrier:
    """One transport to a far module. held_up: samples in which it took less than the guest sent.

    was_held_up, was_loaded: whether it was the bottleneck at the last look, upwards and downwards.
    """

    def __init__(self, dialer: Dialer) -> None:
        self.dialer, self.reports = dialer, Reports()
        self.sent = self.received = self.held_up = 0
        self.was_held_up = self.was_loaded = False

    def moved(self, sent: int, received: int) -> tuple[int, int]:
        """Take the counts of octets; return what was added to them."""
        moved = sent - self.sent, received - self.received
        self.sent, self.received = sent, received
        return moved

    def was_bottleneck(self) -> tuple[bool, bool]:
        """Return whether it was the bottleneck at this look and the one before, upwards and downwards."""
        held_up, loaded = self.held_up >= LOADED_LEAST, self.reports.is_loaded
        found = held_up and self.was_held_up, loaded and self.was_loaded
        self.was_held_up, self.was_loaded, self.held_up = held_up, loaded, 0
        return found


class FarModule:
    """A far module: a dialer for each transport, the choice among them, and the load of each.

    name: HOST:PORT. has_bbr: whether this host has BBR. event: see Stage.event.
    """

    def __init__(
        self, name: str, dialers: Mapping[str, Dialer], *, has_bbr: bool, event: Callable[..., object]
    ) -> None:
        self.name, self._has_bbr, self._event = name, has_bbr, event
        self.carriers = {transport: _Carrier(dialer) for transport, dialer in dialers.items()}
        self.choice = TransportChoice(list(dialers), has_bbr=has_bbr)
        self.up: set[str] = set()
        self._looked_at: float | None = None

    @property
    def dialers(self) -> Sequence[Dialer]:
        """The dialers of all transports."""
        return [carrier.dialer for carrier in self.carriers.values()]

    def connector(self, path: Path, now: float) -> tuple[str, Connector]:
        """Return the transport for a connection of the guest, and what opens a flow there."""
        was = self.choice.current
        transport = self.choice.choose(self.up, now)
        if transport != was:
            log.info("%s: new connections by %s, no longer %s", self.name, transport, was)
            self._event("transport", peer=self.name, transport=transport, was=was)
        return transport, self.carriers[transport].dialer.connector(FlowOpening.of(path))

    # --- measuring

    def look(self, now: float) -> None:
        """Take the counters of the last moments, and ask the far module for reports."""
        elapsed = now - self._looked_at if self._looked_at is not None else inf
        self._looked_at = now
        moved, loads = {}, {}
        losses = []
        for name, carrier in self.carriers.items():
            counters = carrier.dialer.counters()
            self._note_up(name, carrier, is_up=counters.up)
            if counters.rtt_min_s is not None:
                self.choice.rtt_s = counters.rtt_min_s
            if counters.sent + counters.received >= _COUNTED_LEAST:
                losses += [loss for loss in (counters.loss, carrier.reports.loss) if loss is not None]
            moved[name] = carrier.moved(counters.sent, counters.received)
            loads[name] = carrier.was_bottleneck()
        self.choice.loss = max(losses, default=None)
        if "tcp" in self.carriers:
            self.choice.has_bbr = self._has_bbr and self.carriers["tcp"].reports.has_bbr
        for direction in (0, 1):
            total = sum(each[direction] for each in moved.values())
            for name in self.carriers:
                octets = moved[name][direction]
                if loads[name][direction] and total - octets < _SHARE * total:
                    self.choice.note_load(name, octets / elapsed, now)

    def _note_up(self, name: str, carrier: _Carrier, *, is_up: bool) -> None:
        """Note whether a transport reaches the far module, and ask it for reports if there is a choice."""
        if not is_up:
            self.up.discard(name)
            return
        self.up.add(name)
        if not carrier.reports.is_asked and len(self.carriers) > 1:
            carrier.reports.ask(carrier.dialer.connector(CONTROL))

    def status(self) -> dict[str, object]:
        """Return the state, as --json prints it."""
        return {"transport": self.choice.current, "up": bool(self.up)}

    def transports(self, now: float) -> dict[str, dict[str, object]]:
        """Return the counters of each transport, and the rate that it was measured to reach."""
        measured = self.choice.status(now)
        return {
            f"{self.name} {name}": {"measured_mbit": measured.get(name), **carrier.dialer.status(now)}
            for name, carrier in self.carriers.items()
        }


class NearSide:
    """Finds the far module for each connection of the guest. behind: prefixes, and the far module of each."""

    def __init__(self, behind: Sequence[tuple[Network, FarModule]]) -> None:
        self.modules = list({id(module): module for _, module in behind}.values())
        self._prefixes: Prefixes[FarModule] = Prefixes(behind)
        self._explicit = Prefixes((net, True) for net, _ in behind if net.prefixlen)
        self._carried: dict[bytes, tuple[FarModule, str]] = {}
        self._due, self._samples = 0.0, 0

    def is_behind(self, octets: bytes) -> bool:
        """Tell whether an address is behind a far module."""
        return self._prefixes.find(octets) is not None

    def is_reached(self, octets: bytes) -> bool:
        """Tell whether the far module that an address is behind answers."""
        module = self._prefixes.find(octets)
        return module is not None and bool(module.up)

    def is_named(self, octets: bytes) -> bool:
        """Tell whether an address is behind a far module by a prefix other than all addresses."""
        return self._explicit.find(octets) is not None

    def dial(self, path: Path, now: float) -> Connector | Reason:
        """Return what opens a flow for a connection of the guest, or why there is none."""
        module = self._prefixes.find(path.local)
        if module is None:
            return Reason.NET_UNREACHABLE
        transport, connector = module.connector(path, now)
        self._carried[_key(path)] = module, transport
        return connector

    def on_end(self, flow: RelayFlow, now: float) -> None:
        """Note that a connection of the guest has ended."""
        self._carried.pop(_key(flow.endpoint.path), None)

    # --- time

    def deadline(self) -> float | None:
        """Return when the next sample is due."""
        return self._due if self.modules else None

    def wake(self, flows: Mapping[bytes, RelayFlow], now: float) -> None:
        """Sample the load, if it is time. flows: the connections of the guest."""
        if now < self._due:
            return
        self._due = now + SAMPLE_S
        for carrier in self._held_up(flows):
            carrier.held_up += 1
        self._samples += 1
        if self._samples == SAMPLES:
            self._samples = 0
            for module in self.modules:
                module.look(now)

    def _held_up(self, flows: Mapping[bytes, RelayFlow]) -> Iterable[_Carrier]:
        """Return the transports that take less than the guest sends at this moment."""
        found = {}
        for flow in islice(flows.values(), _EXAMINED_MAX):
            if not flow.may_write and flow.connector is None:
                carried = self._carried.get(_key(flow.endpoint.path))
                if carried is not None:
                    found[id(carried[0]), carried[1]] = carried[0].carriers[carried[1]]
        return found.values()


def _key(path: Path) -> bytes:
    ports = path.remote_port.to_bytes(2, "big") + path.local_port.to_bytes(2, "big")
    return path.remote + path.local + ports
