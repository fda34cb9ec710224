"""The clients of vortex-backend: many connections on one port, each a session under its client's own key.

A caller first sends the name of its key in the clear (common/session/keys.py), then the handshake. So a
client speaks as itself only, and one handshake costs the backend no trial of all keys.
"""

import os
import select
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.session.base import Address, PathProfile
from vtl_tools.common.session.keys import KEY_ID
from vtl_tools.common.session.peer_connection import READ, FramedConnection
from vtl_tools.common.session.peer_session import HOPS_MAX, PeerSession
from vtl_tools.common.session.secure_channel import Role, SecureConfig
from vtl_tools.common.session.tcp import TCPConnection, TCPTransport
from vtl_tools.common.text import host_and_port
from vtl_tools.services.vortex.wormhole_client import WormholeClient

CALLERS_MAX: Final = 64
"""Connections that have not proved their key; the oldest of more is closed."""
_ACCEPTS: Final = 16
_KEYS_SEEN: Final = 4096
_TICK_S: Final = 0.25


class _Caller:
    """A connection: that of a stranger until it named its key, then of a client that has to prove it."""

    def __init__(self, connection: TCPConnection, now: float) -> None:
        self.connection, self.began = connection, now
        self.name = b""
        self.client: WormholeClient | None = None
        self.framed: FramedConnection | None = None

    @property
    def where(self) -> str:
        """Where it is connected from."""
        return host_and_port(*self.connection.remote)


class ClientListener:
    """A source of the stage. on_frames: is given what a client sends; on_connected: who came and went."""

    def __init__(
        self, address: Address, clients: Iterable[WormholeClient], config: SecureConfig | None = None
    ) -> None:
        """Listen. Raises DeviceError, PermissionNeededError."""
        self.on_frames: Callable[[WormholeClient, Batch, float], object] = lambda client, batch, now: None
        self.on_connected: Callable[[WormholeClient, str, str], object] = lambda client, remote, why: None
        self.refused = 0
        """Connections that ended before they proved a key."""
        self._clients = {client.key_id: client for client in clients}
        self._config = config or SecureConfig()
        self._listener = TCPTransport(PathProfile()).listen(address)
        self.address = self._listener.address
        self._epoll = select.epoll()
        self._epoll.register(self._listener.fileno(), select.EPOLLIN)
        self._callers: OrderedDict[int, _Caller] = OrderedDict()
        self._up: dict[str, _Caller] = {}
        self._of_fd: dict[int, _Caller] = {}
        self._seen: deque[bytes] = deque(maxlen=_KEYS_SEEN)
        self._batch = Batch()
        self._buffer = memoryview(bytearray(READ))
        self._due = 0.0

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._epoll.fileno()

    def poll(self, now: float) -> bool:
        """Accept callers, and read each connection that has something, once."""
        moved = False
        for fd, _ in self._epoll.poll(0):
            if fd == self._listener.fileno():
                self._accept(now)
            elif (caller := self._of_fd.get(fd)) is not None:
                moved |= self._read(caller, now)
        return moved

    # --- callers

    def _accept(self, now: float) -> None:
        for _ in range(_ACCEPTS):
            try:
                connection = self._listener.accept()
            except OSError:
                return
            assert isinstance(connection, TCPConnection)
            if len(self._callers) >= CALLERS_MAX:
                self._end(next(iter(self._callers.values())), "made way for another")
            caller = _Caller(connection, now)
            self._callers[connection.fileno()] = self._of_fd[connection.fileno()] = caller
            self._epoll.register(connection.fileno(), select.EPOLLIN)

    def _introduce(self, caller: _Caller, now: float) -> str:
        """Read the name of the caller's key. Return why the connection is refused."""
        try:
            octets = caller.connection.recv(KEY_ID - len(caller.name))
        except BlockingIOError:
            return ""
        except OSError as e:
            return (e.strerror or str(e)).lower()
        if not octets:
            return "closed the connection"
        caller.name += octets
        if len(caller.name) < KEY_ID:
            return ""
        client = self._clients.get(caller.name)
        if client is None:
            return "has no key of ours"
        session = PeerSession(
            Role.RESPONDER, self._config, psk=client.key, ephemeral=os.urandom(32), now=now,
            is_fresh=self._is_fresh,
        )  # fmt: skip
        caller.client = client
        caller.framed = FramedConnection(caller.connection, session, self._watch, is_open=True)
        return ""

    def _watch(self, fd: int, *, write: bool) -> None:
        self._epoll.modify(fd, select.EPOLLIN | (select.EPOLLOUT if write else 0))

    def _is_fresh(self, key: bytes) -> bool:
        if key in self._seen:
            return False
        self._seen.append(key)
        return True

    def _read(self, caller: _Caller, now: float) -> bool:
        framed, client = caller.framed, caller.client
        if framed is None or client is None:
            if why := self._introduce(caller, now):
                self._end(caller, why)
            return False
        why = framed.advance(self._buffer, now)
        session = framed.session
        if session.is_up and self._up.get(client.name) is not caller:
            self._come_up(caller, client)
        moved = bool(session.frames)
        while session.frames:
            self._batch.clear()
            while session.frames and self._batch.count < SLOTS:
                self._batch.append(session.frames.popleft()[1])
            self.on_frames(client, self._batch, now)
        if session.malformed:
            client.drops["malformed"] += session.malformed
            session.malformed = 0
        if why or session.is_over:
            self._end(caller, why or session.why)
        return moved

    def _come_up(self, caller: _Caller, client: WormholeClient) -> None:
        """Make an authenticated connection its client's; a new one replaces the old one."""
        del self._callers[caller.connection.fileno()]
        old = self._up.pop(client.name, None)
        self._up[client.name] = caller
        if old is not None:
            self._close(old)
        self.on_connected(client, caller.where, "")

    def _end(self, caller: _Caller, why: str) -> None:
        if caller.framed is not None:
            caller.framed.session.end(why)
        if self._callers.pop(caller.connection.fileno(), None) is not None:
            self.refused += 1
        self._close(caller)
        client = caller.client
        if client is not None and self._up.get(client.name) is caller:
            del self._up[client.name]
            self.on_connected(client, "", why)

    def _close(self, caller: _Caller) -> None:
        fd = caller.connection.fileno()
        if self._of_fd.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            caller.connection.close()

    # --- time, and frames out

    def deadline(self) -> float:
        """Return when wake() is due."""
        return self._due

    def wake(self, now: float) -> None:
        """Keep the sessions alive; end those of clients that are gone, and callers that take too long."""
        if now < self._due:
            return
        self._due = now + _TICK_S
        for caller in list(self._of_fd.values()):
            framed = caller.framed
            if framed is None:
                if now >= caller.began + self._config.handshake_s:
                    self._end(caller, "does not say who it is")
                continue
            framed.session.wake(now)
            if not framed.session.is_over:
                framed.write()
            if framed.session.is_over:
                self._end(caller, framed.session.why)

    def send(self, client: WormholeClient, frames: Sequence[memoryview]) -> int:
        """Send frames to a client. Return for how many there was room."""
        caller = self._up.get(client.name)
        if caller is None or caller.framed is None:
            return 0
        return caller.framed.send(frames, HOPS_MAX)

    def close(self) -> None:
        """End all sessions. Idempotent."""
        if self._epoll.closed:
            return
        for caller in list(self._of_fd.values()):
            if caller.framed is not None:
                caller.framed.bid_farewell()
            caller.connection.close()
        self._of_fd.clear()
        self._listener.close()
        self._epoll.close()
