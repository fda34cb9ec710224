"""Dialer: the near module's sessions to one far module, by one transport."""

import errno
import os
from collections import deque
from collections.abc import Callable
from typing import Final

from vtl_tools.common.session.base import Address, Transport
from vtl_tools.common.session.secure_channel import Role
from vtl_tools.common.socks import Reason
from vtl_tools.common.text import host_and_port
from vtl_tools.services.udt.transport.base import FlowOpening, FlowStream
from vtl_tools.services.udt.transport.carrier import Carrier, Carriers
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.session import Session, SessionConfig
from vtl_tools.services.udt.transport.window import WindowBudget

RETRY_S: Final = 0.2
"""Time between two attempts to reach the far module, doubled up to RETRY_MAX_S."""
RETRY_MAX_S: Final = 1.6
WAITING: Final = 1024
"""Flows that wait for a session before those that were closed meanwhile are forgotten."""
SESSIONS: Final = 8
"""Sessions to a far module at most: the first flows have one each, and further ones share them."""


class FlowConnector:
    """Opens a flow: a relay.Connector."""

    def __init__(self, flow: MuxFlow) -> None:
        self._flow = flow

    @property
    def stream(self) -> FlowStream:
        """The flow."""
        return self._flow

    def step(self, events: int) -> bytes | Reason | None:
        """Return octets if the far module has connected, a reason if it has not, None to wait."""
        flow = self._flow
        if flow.is_gone:
            return flow.reason or Reason.CLOSED
        return b"" if flow.is_open else None


class Dialer(Carriers):
    """Opens flows to the other module, and keeps sessions with it.

    A session without flows is kept ready, so that a flow opens within one round trip, and the first flows, up
    to the number of sessions, have a connection each. Without a session, flows wait for the next attempt's
    result. sessions: 1: all flows share one. event: Stage.event; told "peer-up" and "peer-down" with peer,
    transport, why.
    """

    def __init__(
        self,
        transport: Transport,
        address: Address,
        psk: bytes,
        config: SessionConfig,
        *,
        sessions: int = SESSIONS,
        event: Callable[..., object] = lambda name, **fields: None,
        budget: WindowBudget | None = None,
    ) -> None:
        super().__init__(config, psk, event, budget)
        transport.start()
        self.transport, self.address, self._most = transport, address, sessions
        self.peer = host_and_port(*address)
        self.why = "no attempt yet"
        """Why there is no session."""
        self._waiting: deque[MuxFlow] = deque()
        self._forget_at = WAITING
        self._retry_at, self._retry_s = 0.0, RETRY_S
        self._is_up = False
        self._rtt_s: float | None = None

    @property
    def is_up(self) -> bool:
        """Whether a session is there."""
        return self._is_up

    # --- flows

    def connector(self, opening: FlowOpening) -> FlowConnector:
        """Return a connector for a flow, which is opened at once if there is a session."""
        flow = MuxFlow(opening)
        if len(self._waiting) >= self._forget_at:  # a guest may close what it opens, again and again
            self._waiting = deque(each for each in self._waiting if not each.is_closed)
            self._forget_at = max(WAITING, 2 * len(self._waiting))
        self._waiting.append(flow)
        return FlowConnector(flow)

    def _place(self, now: float) -> None:
        """Open the flows that wait, each on the session with the fewest."""
        while self._waiting:
            up = [each for each in self.carriers if each.session.is_up and not each.session.is_full]
            if not up:
                return
            flow = self._waiting.popleft()
            if not flow.is_closed:
                best = min(up, key=lambda each: (len(each.session.flows), not self._fits(each)))
                best.session.open(flow, now)

    def settle(self, now: float) -> None:
        """Open flows, send, and have a session ready for the next flow."""
        self._place(now)
        super().settle(now)
        idle = [each for each in self.carriers if not each.session.is_over and not each.session.flows]
        ready = [each for each in idle if self._fits(each)]
        if not ready and len(self.carriers) < self._most and now >= self._retry_at:
            self._begin(now)
        if any(each.session.is_up for each in ready):
            for each in idle:
                if each.session.is_up and each not in ready:
                    each.session.end("replaced: its windows are not those of the path", say=True)

    def _fits(self, carrier: Carrier) -> bool:
        """Tell whether a connection's windows are those of the path, as far as it is known."""
        has, needs = self.transport.window(carrier.rtt_s), self.transport.window(self._rtt_s)
        return self._rtt_s is None or 2 * min(has, needs) >= max(has, needs)

    def wake(self, now: float) -> None:
        """Do what is due, and note the round-trip time."""
        super().wake(now)
        least = [each.session.rtt_min_s for each in self.carriers if each.session.rtt_min_s is not None]
        if least:
            self._rtt_s = min(least)

    def deadline(self) -> float | None:
        """Return when wake() is due."""
        return self._tick_at if self.carriers else max(self._retry_at, self._tick_at)

    # --- sessions

    def _begin(self, now: float) -> None:
        """Begin a connection."""
        session = self.session(Role.INITIATOR, self.peer, now)
        self._retry_at = now + self._retry_s  # until it is up
        try:
            connection = self.transport.connect(self.address, self._rtt_s)
            self.add(Carrier(connection, session, is_open=False, rtt_s=self._rtt_s))
        except OSError as e:
            self._fail(e.errno or errno.EIO, now)

    def on_change(self, session: Session, now: float) -> None:
        """Open the flows that wait, if a session is up."""
        if session.is_up:
            self._retry_s, self._retry_at = RETRY_S, now
            if not self._is_up:
                self._is_up = True
                self.event("peer-up", peer=self.peer, transport=self.transport.name)
            self._place(now)

    def on_failure(self, carrier: Carrier, code: int, now: float) -> None:
        """Take the failure of a connection that was begun."""
        carrier.session.end(os.strerror(code).lower())

    def on_over(self, carrier: Carrier, now: float) -> None:
        """Take the end of a session."""
        if not any(each.session.is_up for each in self.carriers):
            self._fail(carrier.session.why, now)
        elif not carrier.session.was_up:
            self._delay(now)

    def _fail(self, why: int | str, now: float) -> None:
        """Note that the far module is not there; flows that wait are refused."""
        self.why = os.strerror(why).lower() if isinstance(why, int) else why
        self._delay(now)
        if self._is_up:
            self._is_up = False
            self.event("peer-down", peer=self.peer, transport=self.transport.name, why=self.why)
        waiting, self._waiting = self._waiting, deque()
        for flow in waiting:
            if not flow.is_closed:
                flow.fail(Reason.HOST_UNREACHABLE, now)

    def close(self) -> None:
        """Close all connections. Idempotent."""
        super().close()
        self.transport.close()

    def _delay(self, now: float) -> None:
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MAX_S)
