"""Carriers: sessions on connections. The only part of the sessions that does I/O."""

import os
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from vtl_tools.common.relay.connector import HUNG_UP, READABLE, WRITABLE
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.session.base import Connection
from vtl_tools.common.session.secure_channel import Role
from vtl_tools.services.udt.transport.base import Counters
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.session import Session, SessionConfig
from vtl_tools.services.udt.transport.window import WindowBudget

_READ: Final = 1 << 18
"""Octets of one read of a connection."""
_READS: Final = 4
"""Reads of one connection in a turn."""
_PIECES: Final = 64
_TICK_S: Final = 0.1
"""Resolution of the timers of sessions."""
_SILENT_S: Final = 1.0
"""Silence after which the transport is asked whether packets come."""
_PACKETS_LEAST: Final = 200
"""Packets before their loss says anything."""
_RATE_S: Final = 1.0
"""Time over which a rate is measured."""
_RATES: Final = 10
"""Rates that are kept: the highest of them is reported."""


class RateMeter:
    """The highest rate of the last seconds, of octets that are counted elsewhere. None: nothing moved yet."""

    def __init__(self) -> None:
        self._octets, self._at = 0, 0.0
        self._rates: deque[float] = deque(maxlen=_RATES)

    @property
    def best(self) -> float | None:
        """Octets a second."""
        return max(self._rates, default=None)

    def note(self, octets: int, now: float) -> bool:
        """Take the count, at any time; return whether a second has passed since the last rate."""
        passed = now - self._at
        if passed < _RATE_S:
            return False
        if self._at and octets > self._octets:
            self._rates.append((octets - self._octets) / passed)
        self._octets, self._at = octets, now
        return True


class Carrier:
    """A session and its connection. is_open: the connection is there. rtt_s: for which it was made."""

    def __init__(
        self, connection: Connection, session: Session, *, is_open: bool, rtt_s: float | None = None
    ) -> None:
        self.connection, self.session, self.is_open = connection, session, is_open
        self.rtt_s = rtt_s
        self._heard: int | None = None
        self._rate = RateMeter()
        self.may_read = self.may_write = is_open
        self.has_hung_up = False

    def read(self, buffer: memoryview, now: float) -> bool:
        """Read a bounded part of what waits. Return whether there was any."""
        session, connection = self.session, self.connection
        for turn in range(_READS):
            try:
                size = connection.recv_into(buffer, _READ)
            except BlockingIOError:
                self.may_read = False
                return turn > 0
            except OSError as e:
                self._lose(f"the connection broke: {e.strerror or e}")
                return True
            if not size:
                self._lose("closed the connection")
                return True
            session.receive(buffer[:size], now)
            if session.is_over:
                self.may_read = False
                return True
            if size < _READ and not self.has_hung_up:
                self.may_read = False
                return True
        return True

    def write(self) -> None:
        """Write what the connection takes."""
        session, connection = self.session, self.connection
        while self.may_write and session.outbox:
            pieces = tuple(islice(session.outbox, _PIECES))
            try:
                sent = connection.sendmsg(pieces)
            except BlockingIOError:
                self.may_write = False
                return
            except OSError as e:
                self._lose(f"the connection broke: {e.strerror or e}")
                return
            session.transmitted(sent)

    def wake(self, now: float) -> None:
        """Do what is due. Packets that come tell that the other module is alive."""
        session = self.session
        if now > session.heard_at + _SILENT_S:
            heard = self.connection.packets().heard
            if self._heard is not None and heard != self._heard:
                session.note_alive(now)
            self._heard = heard
        else:
            self._heard = None
        if self._rate.note(session.sent, now) and self._rate.best is not None:
            self.connection.expect(self._rate.best)
        if now >= session.deadline():
            session.wake(now)

    def _lose(self, why: str) -> None:
        self.may_read = self.may_write = False
        self.session.end(why)


class Carriers:
    """Base of Dialer and Answerer: a Source with the sessions of one transport.

    A stage calls settle() after it has used its flows in a turn, deadline() and wake() as its own, and
    on_stop() when the service ends. has_more: whether a turn is to follow this one. budget: of all that share
    it; one of its own, if not given.
    """

    def __init__(
        self, config: SessionConfig, psk: bytes, event: Callable[..., object], budget: WindowBudget | None
    ) -> None:
        self.config, self._psk, self.event = config, psk, event
        self.budget = budget or WindowBudget(config.memory)
        self.carriers: list[Carrier] = []
        self._poller = Poller()
        self._buffer = memoryview(bytearray(_READ))
        self._tick_at = 0.0
        self._sent = self._received = 0
        """Octets of connections that are gone."""
        self._send_rate, self._receive_rate = RateMeter(), RateMeter()

    def session(
        self, role: Role, peer: str, now: float, *,
        is_fresh: Callable[[bytes], bool] = lambda key: True,
        on_flow: Callable[[MuxFlow, float], object] = lambda flow, now: None,
    ) -> Session:  # fmt: skip
        """Return a new session, of a connection that begins."""
        return Session(
            role, self.config, self.budget, psk=self._psk, ephemeral=os.urandom(32), now=now, peer=peer,
            is_fresh=is_fresh, on_flow=on_flow, on_change=self.on_change,
        )  # fmt: skip

    def on_change(self, session: Session, now: float) -> None:
        """Note that a session is up or over."""

    # --- a Source

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._poller.fileno()

    def poll(self, now: float) -> bool:
        """Read what the connections brought."""
        moved = self._poller.poll(now)
        for carrier in self.carriers:
            if carrier.may_read and carrier.read(self._buffer, now):
                moved = True
        return moved or self.has_more

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for carrier in self.carriers:
            self._poller.close(carrier.connection)
        self.carriers.clear()
        self._poller.end()

    @property
    def has_more(self) -> bool:
        """Whether a turn is to follow: octets wait to be read, or flows were told that there is room."""
        return any(carrier.may_read or carrier.session.has_more for carrier in self.carriers)

    # --- carriers

    def add(self, carrier: Carrier) -> None:
        """Drive a session from now on. Raises OSError without descriptors."""
        self._poller.add(carrier.connection, carrier, self._on_event)
        self.carriers.append(carrier)

    def _on_event(self, carrier: Carrier, events: int, now: float) -> None:
        if not carrier.is_open:
            code = carrier.connection.connected(events)
            if code is None:
                return
            if code:
                self.on_failure(carrier, code, now)
                return
            carrier.is_open = carrier.may_write = carrier.may_read = True
        if events & READABLE:
            carrier.may_read = True
        if events & WRITABLE:
            carrier.may_write = True
        if events & HUNG_UP:
            carrier.may_read = carrier.has_hung_up = True

    def on_failure(self, carrier: Carrier, code: int, now: float) -> None:
        """Take the failure of a connection that was begun. code: errno."""

    def on_over(self, carrier: Carrier, now: float) -> None:
        """Take the end of a session."""

    def _remove(self, carrier: Carrier, now: float) -> None:
        self._sent += carrier.session.sent
        self._received += carrier.session.received
        self.carriers.remove(carrier)
        self._poller.close(carrier.connection)
        self.on_over(carrier, now)

    def settle(self, now: float) -> None:
        """Send what the flows, and the sessions themselves, have to send."""
        for carrier in list(self.carriers):
            session = carrier.session
            session.settle(now)
            carrier.write()
            if session.is_over:
                self._remove(carrier, now)
            else:
                session.share(now)

    def deadline(self) -> float | None:
        """Return when wake() is due."""
        return self._tick_at if self.carriers else None

    def wake(self, now: float) -> None:
        """Do what is due, for all sessions at once."""
        if now < self._tick_at:
            return
        self._tick_at = now + _TICK_S
        for carrier in self.carriers:
            carrier.wake(now)
        sent, received = self._totals()
        self._send_rate.note(sent, now)
        self._receive_rate.note(received, now)
        self.settle(now)

    def on_stop(self, now: float) -> None:
        """End all sessions, and tell the other module."""
        for carrier in list(self.carriers):
            carrier.session.end("this module ends", say=True)
            carrier.write()

    def _totals(self) -> tuple[int, int]:
        sessions = [carrier.session for carrier in self.carriers]
        sent = self._sent + sum(each.sent for each in sessions)
        return sent, self._received + sum(each.received for each in sessions)

    def counters(self) -> Counters:
        """Return what is known of the path."""
        up = [carrier for carrier in self.carriers if carrier.session.is_up]
        sent, received = self._totals()
        rtts = [each.session.rtt_s for each in up if each.session.rtt_s is not None]
        least = [each.session.rtt_min_s for each in up if each.session.rtt_min_s is not None]
        counts = [each.connection.packets() for each in up]
        counted, lost = sum(each.counted for each in counts), sum(each.lost for each in counts)
        return Counters(
            rtt_s=min(rtts, default=None),
            rtt_min_s=min(least, default=None),
            loss=lost / counted if counted >= _PACKETS_LEAST else None,
            send_rate=self._send_rate.best,
            receive_rate=self._receive_rate.best,
            sent=sent,
            received=received,
            up=bool(up),
            sessions=len(up),
            flows=sum(len(each.session.flows) for each in up),
        )

    def status(self, now: float) -> dict[str, object]:
        """Return what --json prints of the path: times in milliseconds, rates in Mbit/s."""
        known = self.counters()
        return {
            "up": known.up,
            "sessions": known.sessions,
            "flows": known.flows,
            "rtt_ms": _scaled(known.rtt_s, 1e3),
            "rtt_min_ms": _scaled(known.rtt_min_s, 1e3),
            "loss_percent": _scaled(known.loss, 1e2),
            "send_mbit": _scaled(known.send_rate, 8e-6),
            "receive_mbit": _scaled(known.receive_rate, 8e-6),
            "octets_sent": known.sent,
            "octets_received": known.received,
        }


def _scaled(number: float | None, factor: float) -> float | None:
    return None if number is None else round(number * factor, 3)
