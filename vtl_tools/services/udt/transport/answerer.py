"""Answerer: the far module's sessions, with every near module that has the key."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Final, cast

from vtl_tools.common.relay.connector import Stream
from vtl_tools.common.session.base import Address, Connection, Transport
from vtl_tools.common.session.secure_channel import Role
from vtl_tools.common.text import host_and_port
from vtl_tools.services.udt.transport.carrier import Carrier, Carriers
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.session import Session, SessionConfig
from vtl_tools.services.udt.transport.window import WindowBudget

STRANGERS: Final = 64
"""Connections whose handshake is not complete; a further one ends the oldest."""
SESSIONS_MAX: Final = 512
_ACCEPTED: Final = 16
"""Connections that are accepted in a turn."""
_SEEN: Final = 1 << 16


class SeenKeys:
    """Ephemeral keys of the last handshakes, so that a recorded one is refused at once.

    An older one is refused as well, a message later: its sender cannot confirm it.
    """

    def __init__(self, most: int = _SEEN) -> None:
        self._most = most
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def is_fresh(self, key: bytes) -> bool:
        """Note a key; return whether it was not seen before."""
        if key in self._keys:
            return False
        self._keys[key] = None
        if len(self._keys) > self._most:
            self._keys.popitem(last=False)
        return True


class Answerer(Carriers):
    """Listens for near modules. on_flow: is given each flow that one asks for (an IncomingFlow).

    event: Stage.event; told "peer-up", "peer-down", and "peer-refused" with peer, transport, why.
    """

    def __init__(
        self,
        transport: Transport,
        address: Address,
        psk: bytes,
        config: SessionConfig,
        on_flow: Callable[[MuxFlow, float], object],
        *,
        event: Callable[..., object] = lambda name, **fields: None,
        budget: WindowBudget | None = None,
    ) -> None:
        super().__init__(config, psk, event, budget)
        self.transport, self._on_flow = transport, on_flow
        self._seen = SeenKeys()
        self.refused = 0
        self._up = 0
        self._listener = transport.listen(address)
        self.address = self._listener.address
        self._may_accept = True
        self._poller.add(cast(Stream, self._listener), self, Answerer._on_waiting)

    def _on_waiting(self, events: int, now: float) -> None:
        self._may_accept = True

    def poll(self, now: float) -> bool:
        """Accept connections, and read what the connections brought."""
        moved = super().poll(now)
        if self._may_accept:
            moved = True
            self._accept(now)
        return moved

    def _accept(self, now: float) -> None:
        for _ in range(_ACCEPTED):
            try:
                connection = self._listener.accept()
            except BlockingIOError:
                self._may_accept = False
                return
            except OSError:
                continue
            self._begin(connection, now)

    def _begin(self, connection: Connection, now: float) -> None:
        peer = host_and_port(*connection.remote)
        session = self.session(Role.RESPONDER, peer, now, is_fresh=self._seen.is_fresh, on_flow=self._on_flow)
        live = [each.session for each in self.carriers if not each.session.is_over]
        strangers = [each for each in live if not each.is_up]
        if len(strangers) >= STRANGERS:
            strangers[0].end("made room for others: too many at once do not complete a handshake")
        if len(live) - len(strangers) >= SESSIONS_MAX:
            connection.close()
            self._refuse(session.peer, "there are too many sessions")
            return
        try:
            self.add(Carrier(connection, session, is_open=True))
        except OSError:
            self._refuse(session.peer, "there is no descriptor left")

    def _refuse(self, peer: str, why: str) -> None:
        self.refused += 1
        host = peer.rpartition(":")[0]
        self.event("peer-refused", peer=peer, transport=self.transport.name, why=why, cause=host)

    def on_change(self, session: Session, now: float) -> None:
        """Count a session that is up, and tell of it."""
        if session.is_up:
            self._up += 1
            self.event("peer-up", peer=session.peer, transport=self.transport.name, cause=session.peer)

    def on_over(self, carrier: Carrier, now: float) -> None:
        """Take the end of a session."""
        session = carrier.session
        if session.was_up:
            self._up -= 1
            name, why = self.transport.name, session.why
            self.event("peer-down", peer=session.peer, transport=name, why=why, cause=session.peer)
        else:
            self._refuse(session.peer, session.why)

    def status(self, now: float) -> dict[str, object]:
        """Return what --json prints of the path."""
        return super().status(now) | {"refused": self.refused}

    def close(self) -> None:
        """Close all connections, and stop listening. Idempotent."""
        super().close()
        self._listener.close()
