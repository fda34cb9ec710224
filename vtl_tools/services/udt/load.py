"""Looks at the load: whether a transport is the bottleneck, which each module sees for what it sends.

The far module reports it, in a flow of its own that the near module opens by each transport.
"""

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from math import isnan, nan
from typing import Final, Protocol

from vtl_tools.common.relay.connector import Connector
from vtl_tools.common.relay.splice import Splice
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.transport.base import FlowOpening
from vtl_tools.services.udt.transport.flow import MuxFlow

CONTROL: Final = FlowOpening(bytes(4), 0, bytes(4), 0)
"""The opening of the flow for reports: of no client, to no destination."""
SAMPLE_S: Final = 0.1
SAMPLES: Final = 5
"""Samples of one look at the load, and of one report."""
LOADED_LEAST: Final = 4
"""Samples in which a flow was held up, of a look that counts as one of load."""
_REPORT: Final = struct.Struct("!Bf")
_LOADED, _BBR = 1, 2
_REPORTS_MAX: Final = 256
_READ_OCTETS: Final = 64 * _REPORT.size

CarrierId = tuple[str, str]
"""A transport, and the host of the near module that uses it."""


Losses = Callable[[], Mapping[str, float | None]]


class Loaded(Protocol):
    """A flow of the far side."""

    carrier: CarrierId
    splice: Splice | None


class Reporter:
    """At the far side: reports to each near module on the transports that it uses."""

    def __init__(self, *, has_bbr: bool) -> None:
        self._bbr = _BBR if has_bbr else 0
        self._flows: dict[CarrierId, MuxFlow] = {}
        self._held_up: Counter[CarrierId] = Counter()
        self._samples = 0
        self._due: float | None = None

    def add(self, carrier: CarrierId, incoming: MuxFlow, now: float) -> None:
        """Report in a flow from now on."""
        if (past := self._flows.pop(carrier, None)) is not None:
            past.close()
        if len(self._flows) >= _REPORTS_MAX:
            incoming.close()
            return
        self._flows[carrier] = incoming
        self._due = self._due or now + SAMPLE_S

    def deadline(self) -> float | None:
        """Return when the next sample is due; None: nobody wants a report."""
        return self._due

    def wake(self, flows: Iterable[Loaded], losses: Losses, now: float) -> None:
        """Sample, and report, if it is time. losses: returns the share of packets lost, by transport."""
        if self._due is None or now < self._due:
            return
        self._due = now + SAMPLE_S
        self._held_up.update(
            {f.carrier for f in flows if f.splice is not None and not f.splice.down.may_write}
        )
        self._samples += 1
        if self._samples < SAMPLES:
            return
        lost = losses()
        for carrier in list(self._flows):
            self._report(carrier, lost.get(carrier[0]))
        self._samples = 0
        self._held_up.clear()
        if not self._flows:
            self._due = None

    def _report(self, carrier: CarrierId, loss: float | None) -> None:
        loaded = _LOADED if self._held_up[carrier] >= LOADED_LEAST else 0
        try:
            self._flows[carrier].send(_REPORT.pack(loaded | self._bbr, nan if loss is None else loss))
        except BlockingIOError:
            pass  # the report would be late; the next one counts
        except OSError:
            self._flows.pop(carrier).close()


def _is_held_up(splice: Splice | None) -> bool:
    return splice is not None and not splice.down.may_write


class Reports:
    """At the near side: the last report of the far module. loss: of its packets; None: not known."""

    def __init__(self) -> None:
        self.is_loaded, self.has_bbr = False, True
        self.loss: float | None = None
        self._connector: Connector | None = None
        self._is_open = False
        self._rest = b""
        self._room = memoryview(bytearray(_READ_OCTETS))

    def ask(self, connector: Connector) -> None:
        """Have the far module report, in a flow that the connector opens."""
        self._connector, self._is_open, self._rest = connector, False, b""
        connector.stream.on_event = self._on_event  # type: ignore[attr-defined] # an InternalStream
        self._on_event(0, 0.0)

    @property
    def is_asked(self) -> bool:
        """Whether the flow for reports is there."""
        return self._connector is not None

    def _on_event(self, events: int, now: float) -> None:
        connector = self._connector
        if connector is None:
            return
        if not self._is_open:
            result = connector.step(events)
            if result is None:
                return
            if isinstance(result, Reason):
                self._close()
                return
            self._is_open = True
        for octets in self._read(connector):
            self._take(octets)

    def _take(self, octets: bytes) -> None:
        octets = self._rest + octets
        whole = len(octets) // _REPORT.size * _REPORT.size
        self._rest = octets[whole:]
        if whole:
            flags, loss = _REPORT.unpack_from(octets, whole - _REPORT.size)
            self.is_loaded, self.has_bbr = bool(flags & _LOADED), bool(flags & _BBR)
            self.loss = loss if 0 <= loss <= 1 and not isnan(loss) else None

    def _read(self, connector: Connector) -> Iterator[bytes]:
        try:
            while size := connector.stream.recv_into(self._room, _READ_OCTETS):
                yield bytes(self._room[:size])
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close()

    def _close(self) -> None:
        if self._connector is not None:
            self._connector.stream.close()
        self._connector, self.is_loaded = None, False
