"""The clients of vortex-backend: many connections on one port, each a session under its client's own key.

A caller first sends the name of its key in the clear (common/session/keys.py), then the handshake. So a
client speaks as itself only, and one handshake costs the backend no trial of all keys.
"""

import os
import select
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.model.source_shares import SourceShares
from vtl_tools.common.session.base import Address, PathProfile
from vtl_tools.common.session.caller_limit import CallerLimit, source_of
from vtl_tools.common.session.callers import READ, Caller
from vtl_tools.common.session.items import HOPS_MAX, Hello
from vtl_tools.common.session.keys import KEY_ID
from vtl_tools.common.session.peer_session import PeerSession
from vtl_tools.common.session.secure_channel import Role, SecureConfig
from vtl_tools.common.session.tcp import TCPConnection, TCPTransport
from vtl_tools.common.text import host_and_port
from vtl_tools.services.vortex.wormhole_client import WormholeClient

STRANGERS_MAX: Final = 64
"""Connections that have not proved their key. When there are more, the oldest of the address with the most
of them is closed."""
HELLO: Final = Hello("vortex")
"""The name in a session, which nobody chooses: it is the key that tells who a client is."""
_ACCEPTS: Final = 16
_KEYS_SEEN: Final = 4096
_TICK_S: Final = 0.25


class _Arrival:
    """A connection: that of a stranger until it named its key, then of a client that has to prove it.

    share, before, behind: of SourceShares.
    """

    def __init__(self, connection: TCPConnection, now: float) -> None:
        self.connection, self.began = connection, now
        self.source = source_of(connection.remote[0])
        self.share: Any = None
        self.before: _Arrival | None = None
        self.behind: _Arrival | None = None
        self.name = b""
        self.client: WormholeClient | None = None
        self.caller: Caller | None = None

    @property
    def where(self) -> str:
        """Where it is connected from."""
        return host_and_port(*self.connection.remote)


class ClientListener:
    """A source of the stage. on_frames: is given what a client sends; on_connected: who came and went."""

    def __init__(self, address: Address, config: SecureConfig | None = None) -> None:
        """Listen. Raises DeviceError, PermissionNeededError."""
        self.on_frames: Callable[[WormholeClient, Batch, float], object] = lambda client, batch, now: None
        self.on_connected: Callable[[WormholeClient, str, str], object] = lambda client, remote, why: None
        self.refused = 0
        """Connections that ended before they proved a key."""
        self._clients: dict[bytes, WormholeClient] = {}
        self._config = config or SecureConfig()
        self._listener = TCPTransport(PathProfile()).listen(address)
        self.address = self._listener.address
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._strangers: SourceShares[_Arrival] = SourceShares()
        self._up: dict[str, _Arrival] = {}
        self._of_fd: dict[int, _Arrival] = {}
        self._seen: deque[bytes] = deque(maxlen=_KEYS_SEEN)
        self._batch = Batch()
        self._buffer = memoryview(bytearray(READ))
        self._limit = CallerLimit()
        self._busy: deque[_Arrival] = deque()
        self._due = 0.0

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._epoll.fileno()

    def serve(self, clients: Iterable[WormholeClient]) -> None:
        """Take connections of these clients, and end those of all others."""
        self._clients = {client.key_id: client for client in clients}
        for arrival in list(self._of_fd.values()):
            client = arrival.client
            if client is not None and self._clients.get(client.key_id) is not client:
                self._end(arrival, "lost its key")

    def poll(self, now: float) -> bool:
        """Accept connections, and read each that has something, once. A client has one batch in each turn."""
        moved = bool(self._busy)
        for _ in range(len(self._busy)):
            self._pass_on(self._busy.popleft(), now)
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept(now)
            elif (arrival := self._of_fd.get(fd)) is not None:
                moved |= self._read(arrival, now)
        return moved

    # --- connections

    def _accept(self, now: float) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection = self._listener.accept()
            except OSError:
                return
            assert isinstance(connection, TCPConnection)
            arrival = _Arrival(connection, now)
            self._of_fd[connection.fileno()] = arrival
            self._strangers.add(arrival)
            self._epoll.register(connection.fileno(), select.EPOLLIN)
            if self._strangers.count > STRANGERS_MAX and (victim := self._strangers.victim()) is not None:
                self._end(victim, "made way for another")

    def _introduce(self, arrival: _Arrival, now: float) -> str:
        """Read the name of the key. Return why the connection is refused."""
        try:
            octets = arrival.connection.recv(KEY_ID - len(arrival.name))
        except BlockingIOError:
            return ""
        except OSError as e:
            return (e.strerror or str(e)).lower()
        if not octets:
            return "closed the connection"
        arrival.name += octets
        if len(arrival.name) < KEY_ID:
            return ""
        client = self._clients.get(arrival.name)
        if client is None:
            return "has no key of ours"
        if not self._limit.admits(arrival.connection.remote[0], now):
            return "tries too often"
        session = PeerSession(
            Role.RESPONDER, self._config, psk=client.key, ephemeral=os.urandom(32), now=now, hello=HELLO,
            is_fresh=self._is_fresh,
        )  # fmt: skip
        arrival.client = client
        arrival.caller = Caller(arrival.connection, session, is_open=True)
        self._watch(arrival.caller)
        return ""

    def _watch(self, caller: Caller) -> None:
        """Wake for room in the output while octets wait for it."""
        waits = bool(caller.session.outbox)
        if caller.waits_to_write != waits:
            caller.waits_to_write = waits
            events = select.EPOLLIN | (select.EPOLLOUT if waits else 0)
            self._epoll.modify(caller.connection.fileno(), events)

    def _is_fresh(self, key: bytes) -> bool:
        if key in self._seen:
            return False
        self._seen.append(key)
        return True

    def _read(self, arrival: _Arrival, now: float) -> bool:
        caller, client = arrival.caller, arrival.client
        if caller is None or client is None:
            if why := self._introduce(arrival, now):
                self._end(arrival, why)
            return False
        why = caller.advance(self._buffer, now)
        session = caller.session
        if session.is_up and self._up.get(client.name) is not arrival:
            self._come_up(arrival, client)
        moved = self._pass_on(arrival, now)
        if session.malformed:
            client.drops["malformed"] += session.malformed
            session.malformed = 0
        if why or session.is_over:
            self._end(arrival, why or session.why)
        else:
            self._watch(caller)
        return moved

    def _pass_on(self, arrival: _Arrival, now: float) -> bool:
        """Pass on up to a batch of a client's frames. Return whether there were any."""
        caller, client = arrival.caller, arrival.client
        if caller is None or client is None or not (frames := caller.session.frames):
            return False
        self._batch.clear()
        while frames and self._batch.count < SLOTS:
            self._batch.append(frames.popleft()[1])
        if frames and arrival not in self._busy:
            self._busy.append(arrival)
        self.on_frames(client, self._batch, now)
        return True

    def _come_up(self, arrival: _Arrival, client: WormholeClient) -> None:
        """Make an authenticated connection its client's; a new one replaces the old one."""
        self._strangers.remove(arrival)
        old = self._up.pop(client.name, None)
        self._up[client.name] = arrival
        if old is not None:
            self._close(old)
        self.on_connected(client, arrival.where, "")

    def _end(self, arrival: _Arrival, why: str) -> None:
        if arrival.caller is not None:
            arrival.caller.session.end(why)
        client = arrival.client
        if client is not None and self._up.get(client.name) is arrival:
            del self._up[client.name]
            self.on_connected(client, "", why)
        else:
            self._strangers.remove(arrival)
            self.refused += 1
        self._close(arrival)

    def _close(self, arrival: _Arrival) -> None:
        fd = arrival.connection.fileno()
        del self._of_fd[fd]
        self._epoll.unregister(fd)
        arrival.connection.close()

    # --- time, and frames out

    def deadline(self) -> float:
        """Return when wake() is due."""
        return self._due

    def wake(self, now: float) -> None:
        """Keep the sessions alive; end those of clients that are gone, and strangers that take too long."""
        if now < self._due:
            return
        self._due = now + _TICK_S
        for arrival in list(self._of_fd.values()):
            caller = arrival.caller
            if caller is None:
                if now >= arrival.began + self._config.handshake_s:
                    self._end(arrival, "does not say who it is")
                continue
            caller.session.wake(now)
            if not caller.session.is_over:
                caller.write()
            if caller.session.is_over:
                self._end(arrival, caller.session.why)
            else:
                self._watch(caller)

    def send(self, client: WormholeClient, frames: Sequence[memoryview]) -> int:
        """Send frames to a client. Return for how many there was room."""
        arrival = self._up.get(client.name)
        if arrival is None or arrival.caller is None:
            return 0
        taken = arrival.caller.send(frames, HOPS_MAX)
        self._watch(arrival.caller)
        return taken

    def close(self) -> None:
        """End all sessions. Idempotent."""
        if self._epoll.closed:
            return
        for arrival in list(self._of_fd.values()):
            if arrival.caller is not None:
                arrival.caller.session.end("ends", say=True)
                arrival.caller.write()
            self._close(arrival)
        self._listener.close()
        self._epoll.close()
