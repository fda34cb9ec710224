"""When a transport is the bottleneck: each module sees it for what it sends, and the far one reports it.

The report goes in a flow of its own, which the near module opens by each transport.
"""

import struct
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

from vtl_tools.common.relay.connector import HUNG_UP, Connector
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.splice import Splice
from vtl_tools.services.udt.transport.base import FlowOpening
from vtl_tools.services.udt.transport.flow import MuxFlow

CONTROL: Final = FlowOpening(bytes(4), 0, bytes(4), 0)
"""The opening of the flow for reports: of no client, to no destination."""
TICK_S: Final = 0.5
"""Time between two looks at the load, and between two reports."""
_REPORT: Final = struct.Struct("!B")  # 1: loaded
_REPORTS_MAX: Final = 256
_READ_OCTETS: Final = 256


Carrier = tuple[str, str]
"""A transport, and the host of the near module that uses it."""


class Loaded(Protocol):
    """A flow of the far side."""

    carrier: Carrier
    splice: Splice | None


class Reporter:
    """At the far side: tells each near module whether a transport holds up what is sent to it."""

    def __init__(self) -> None:
        self._flows: dict[Carrier, MuxFlow] = {}
        self._due: float | None = None

    def add(self, carrier: Carrier, incoming: MuxFlow, now: float) -> None:
        """Report in a flow from now on."""
        if (past := self._flows.pop(carrier, None)) is not None:
            past.stream.close()
        if len(self._flows) >= _REPORTS_MAX:
            incoming.stream.close()
            return
        self._flows[carrier] = incoming
        self._due = self._due or now + TICK_S

    def deadline(self) -> float | None:
        """Return when the next report is due; None: nobody wants one."""
        return self._due

    def wake(self, flows: Iterable[Loaded], now: float) -> None:
        """Report, if it is time."""
        if self._due is None or now < self._due:
            return
        loaded = {flow.carrier for flow in flows if flow.splice is not None and is_held_up(flow.splice)}
        for carrier, incoming in list(self._flows.items()):
            try:
                incoming.stream.send(_REPORT.pack(carrier in loaded))
            except BlockingIOError:
                continue  # the report would be late; the next one counts
            except OSError:
                incoming.stream.close()
                del self._flows[carrier]
        self._due = now + TICK_S if self._flows else None


def is_held_up(splice: Splice) -> bool:
    """Tell whether the peer took less than there was since the last call, or takes nothing now."""
    held_up = splice.down.blocked or not splice.down.may_write
    splice.down.blocked = False
    return held_up


class Reports:
    """At the near side: what the far module of one session reports. loaded: in the last report."""

    def __init__(self) -> None:
        self.loaded = False
        self._connector: Connector | None = None
        self._is_open = False
        self._room = memoryview(bytearray(_READ_OCTETS))

    def open(self, connector: Connector) -> None:
        """Ask for reports, in a flow of its own."""
        self._connector, self._is_open = connector, False
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
            self.loaded = bool(octets[-1])
        if events & HUNG_UP:
            self._close()

    def _read(self, connector: Connector) -> Iterator[memoryview]:
        try:
            while size := connector.stream.recv_into(self._room, _READ_OCTETS):
                yield self._room[:size]
        except BlockingIOError:
            return
        except OSError:
            pass
        self._close()

    def _close(self) -> None:
        if self._connector is not None:
            self._connector.stream.close()
        self._connector, self.loaded = None, False
