"""The near side: the far modules that destinations are behind, and the transport that each is reached by."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from vtl_tools.common.relay.connector import Connector
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.wire import Path
from vtl_tools.services.udt.allowed import Network, Prefixes
from vtl_tools.services.udt.choice import TransportChoice
from vtl_tools.services.udt.load import CONTROL, TICK_S, Reports
from vtl_tools.services.udt.transport.base import FlowOpening
from vtl_tools.services.udt.transport.dialer import Dialer

log = logging.getLogger(__name__)

_EXAMINED_MAX: Final = 1024
"""Flows that are looked at to see whether their transport holds them up."""
_SHARE: Final = 0.1
"""Share of the octets below which another transport's traffic does not disturb a measurement."""


@dataclass(slots=True)
class _Carrier:
    """One transport to a far module, and what its counters said at the last look."""

    dialer: Dialer
    reports: Reports = field(default_factory=Reports)
    sent: int = 0
    received: int = 0
    was_held_up: bool = False
    was_loaded: bool = False


class FarModule:
    """A far module: a dialer for each transport, the choice among them, and the load of each.

    name: HOST:PORT. event: see Stage.event.
    """

    def __init__(
        self, name: str, dialers: Mapping[str, Dialer], *, bbr: bool, event: Callable[..., object]
    ) -> None:
        self.name, self._event = name, event
        self.carriers = {transport: _Carrier(dialer) for transport, dialer in dialers.items()}
        self.choice = TransportChoice(list(dialers), bbr=bbr)
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

    def look(self, held_up: set[str], now: float) -> None:
        """Take the counters of the last moments. held_up: transports that take less than the guest sends."""
        elapsed = TICK_S if self._looked_at is None else now - self._looked_at
        self._looked_at = now
        rates: dict[str, tuple[float, float]] = {}
        for name, carrier in self.carriers.items():
            counters = carrier.dialer.counters()
            self._note_up(name, carrier, counters.up)
            self.choice.note_path(counters.rtt_min_s, counters.loss)
            rates[name] = (
                (counters.sent - carrier.sent) / elapsed, (counters.received - carrier.received) / elapsed
            )  # fmt: skip
            carrier.sent, carrier.received = counters.sent, counters.received
        for direction in (0, 1):
            total = sum(each[direction] for each in rates.values())
            for name, carrier in self.carriers.items():
                rate = rates[name][direction]
                if self._is_loaded(carrier, direction, name in held_up) and total - rate < _SHARE * total:
                    self.choice.note_load(name, rate, now)
        for name, carrier in self.carriers.items():
            carrier.was_held_up, carrier.was_loaded = name in held_up, carrier.reports.loaded

    def _is_loaded(self, carrier: _Carrier, direction: int, is_held_up: bool) -> bool:
        """Tell whether a transport was the bottleneck all the time since the last look."""
        if direction == 0:
            return is_held_up and carrier.was_held_up
        return carrier.reports.loaded and carrier.was_loaded

    def _note_up(self, name: str, carrier: _Carrier, is_up: bool) -> None:
        """Note whether a transport reaches the far module, and ask it for reports if there is a choice."""
        if not is_up:
            self.up.discard(name)
            return
        self.up.add(name)
        if not carrier.reports.is_asked and len(self.carriers) > 1:
            carrier.reports.open(carrier.dialer.connector(CONTROL))

    def status(self, now: float) -> dict[str, object]:
        """Return the counters of each transport, as --json prints them."""
        return {
            "transport": self.choice.current,
            "up": bool(self.up),
            "measured_mbit": self.choice.status(now),
            "transports": {name: carrier.dialer.status(now) for name, carrier in self.carriers.items()},
        }


class NearSide:
    """Finds the far module for each connection of the guest. behind: prefixes, and the far module of each."""

    def __init__(self, behind: Sequence[tuple[Network, FarModule]]) -> None:
        self.modules = list({id(module): module for _, module in behind}.values())
        self._prefixes: Prefixes[FarModule] = Prefixes(behind)
        self._explicit = Prefixes((net, True) for net, _ in behind if net.prefixlen)
        self._carried: dict[bytes, tuple[FarModule, str]] = {}
        self._due = 0.0

    def is_behind(self, octets: bytes) -> bool:
        """Tell whether an address is behind a far module."""
        return self._prefixes.find(octets) is not None

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
        """Return when the next look at the load is due."""
        return self._due if self.modules else None

    def wake(self, flows: Mapping[bytes, RelayFlow], now: float) -> None:
        """Look at the load, if it is time. flows: the connections of the guest."""
        if now < self._due:
            return
        self._due = now + TICK_S
        held_up: dict[int, set[str]] = {}
        for flow in islice(flows.values(), _EXAMINED_MAX):
            if flow.may_write or flow.connector is not None:
                continue
            if (carried := self._carried.get(_key(flow.endpoint.path))) is not None:
                held_up.setdefault(id(carried[0]), set()).add(carried[1])
        for module in self.modules:
            module.look(held_up.get(id(module), set()), now)


def _key(path: Path) -> bytes:
    ports = path.remote_port.to_bytes(2, "big") + path.local_port.to_bytes(2, "big")
    return path.remote + path.local + ports
