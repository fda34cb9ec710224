"""tcp: links of vtl-vnet: a session over one connection of kernel TCP, made again whenever it is lost.

tcp:HOST:PORT                 connects
tcp:ADDRESS:PORT,server       listens, for one other daemon; a new session of it replaces the old one
tcp:ADDRESS:PORT,listen       listens, for any number of daemons; each has a link of its name
"""

import socket
import time
from collections.abc import Sequence

from vtl_tools.common.device.base import RETRY_S
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.peer import resolve
from vtl_tools.common.session.base import Address, Listener, PacketCounts, PathProfile
from vtl_tools.common.session.callers import Caller, CallerTable
from vtl_tools.common.session.items import Conversation, Hello
from vtl_tools.common.session.peer_link import NO_PLACE, TICK_S, Door, PeerLink
from vtl_tools.common.session.secure_channel import Role, SecureConfig
from vtl_tools.common.session.tcp import TCPTransport


class TCPPeerLink(PeerLink):
    """A link over the connection that it was given last: of a daemon that came through a door."""

    def __init__(self, spec: str, buffer: memoryview) -> None:
        super().__init__(spec)
        self._buffer = buffer
        self._peer: Caller | None = None

    def connect(self) -> None:
        """Begin to look after the connection."""
        self.handle.alarm(TICK_S)

    def take(self, caller: Caller) -> None:
        """Make an authenticated connection the link's, in place of the one before."""
        if (old := self._peer) is not None:
            self.handle.forget(old.connection.fileno())
            old.connection.close()
        self._peer, self._why = caller, ""
        self.remote = caller.session.remote
        self.where = caller.connection.remote[0]
        self._watch(caller)
        self.went_up()
        self.handle.wake()

    def _watch(self, caller: Caller) -> None:
        caller.waits_to_write = bool(caller.session.outbox)
        self.handle.watch(caller.connection.fileno(), write=caller.waits_to_write)

    def _lose(self, why: str) -> None:
        assert self._peer is not None
        self.handle.forget(self._peer.connection.fileno())
        self._peer.connection.close()
        self._peer, self._why = None, why
        self.went_down(f"the other daemon {why}")

    def read(self) -> Batch:
        """Receive up to a batch of frames; keep the connection alive."""
        now = time.monotonic()
        self._batch.clear()
        self.hops = []
        if self.handle.alarm_expired():
            self._tick(now)
        self._look_for_peer(now)
        if (peer := self._peer) is not None:
            if why := peer.advance(self._buffer, now):
                self._lose(why)
            else:
                if peer.waits_to_write != bool(peer.session.outbox):
                    self._watch(peer)
                self.take_frames(peer.session)
        return self.received(self._batch)

    @property
    def session(self) -> Conversation | None:
        """The session that is up."""
        return None if self._peer is None else self._peer.session

    def flush(self) -> None:
        """Send what the session has made."""
        if self._peer is not None:
            self._peer.write()
            self._watch(self._peer)

    def _look_for_peer(self, now: float) -> None:
        """Find another connection of the peer; a door brings it."""

    def _tick(self, now: float) -> None:
        if (peer := self._peer) is not None:
            peer.session.wake(now)
            if peer.session.is_over:
                self._lose(peer.session.why)
            else:
                peer.write()
        self.handle.alarm(TICK_S)

    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Send frames while the connection has room."""
        if (peer := self._peer) is None:
            return 0
        taken, session = peer.send(frames, hops), peer.session
        if session.is_over:
            self.handle.wake()  # read() finds out
        elif peer.waits_to_write != bool(session.outbox):
            self._watch(peer)
        return taken

    def packets(self) -> PacketCounts:
        """Return the segments of the connection."""
        return PacketCounts() if self._peer is None else self._peer.connection.packets()

    def close(self) -> None:
        """End the session. Idempotent."""
        if (peer := self._peer) is not None:
            peer.session.end("ends", say=True)
            peer.write()
            peer.connection.close()
            self._peer = None
        super().close()


class TCPLink(TCPPeerLink):
    """A link that connects to another daemon, or listens for one. address: see the module.

    key: the pre-shared key. hello: what this daemon tells of itself. introduction: see CallerTable.
    """

    def __init__(
        self, spec: str, address: Address, *, server: bool, key: bytes, hello: Hello,
        introduction: bytes = b"", config: SecureConfig | None = None,
    ) -> None:  # fmt: skip
        self._address, self._server = address, server
        self._transport = TCPTransport(PathProfile())
        self._where: Address = address
        self._listener: Listener | None = None
        self._retry_at = 0.0
        super().__init__(spec, memoryview(b""))
        self._callers = CallerTable(self.handle, key, config or SecureConfig(), hello, introduction)
        self._buffer = self._callers.buffer

    def connect(self) -> None:
        """Listen, or begin to connect. Raises DeviceError, PermissionNeededError."""
        self._where = numeric(self.spec, self._address, socket.SOCK_STREAM)
        if self._server:
            self._listener = self._transport.listen(self._where)
            self.handle.watch(self._listener.fileno())
        else:
            self._call(time.monotonic())
        super().connect()

    def _call(self, now: float) -> None:
        self._retry_at = now + RETRY_S
        try:
            connection = self._transport.connect(self._where)
        except OSError as e:
            self._why = (e.strerror or str(e)).lower()
            return
        self._callers.add(connection, Role.INITIATOR, now, is_open=False)

    def _look_for_peer(self, now: float) -> None:
        if self._listener is not None:
            self._callers.accept(self._listener, now)
        for caller in self._callers.advance(now):
            self.take(caller)
        if self._peer is None:
            self._why = self._callers.why if self._why in ("", "is not connected yet") else self._why

    def _tick(self, now: float) -> None:
        self._callers.tick(now)
        if not self._server and self._peer is None and not self._callers and now >= self._retry_at:
            self._why = self._callers.why
            self._call(now)
        super()._tick(now)

    def close(self) -> None:
        """End the session, stop listening. Idempotent."""
        self._callers.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        super().close()


class TCPDoor(Door[TCPPeerLink]):
    """Listens for any number of daemons."""

    def __init__(
        self, spec: str, address: Address, *, key: bytes, hello: Hello, config: SecureConfig | None = None
    ) -> None:
        super().__init__(spec)
        self._address = address
        self._listener: Listener | None = None
        self._callers = CallerTable(self.handle, key, config or SecureConfig(), hello)

    def connect(self) -> None:
        """Listen. Raises DeviceError, PermissionNeededError."""
        where = numeric(self.spec, self._address, socket.SOCK_STREAM)
        self._listener = TCPTransport(PathProfile()).listen(where)
        self.handle.watch(self._listener.fileno())
        self.handle.alarm(TICK_S)
        self.up = True

    def read(self) -> Batch:
        """Bring daemons that have arrived to their links."""
        now = time.monotonic()
        if self.handle.alarm_expired():
            self._callers.tick(now)
            self.handle.alarm(TICK_S)
        if self._listener is not None:
            self._callers.accept(self._listener, now)
        for caller in self._callers.advance(now):
            self._bring(caller)
        return self._nothing

    def _bring(self, caller: Caller) -> None:
        assert caller.session.remote is not None
        remote, buffer = caller.connection.remote, self._callers.buffer
        link = self.link_to(caller.session.remote, remote, lambda spec: TCPPeerLink(spec, buffer))
        if link is None:
            caller.session.end(NO_PLACE, say=True)
            caller.write()
            caller.connection.close()
            return
        link.take(caller)

    def close(self) -> None:
        """Stop listening. Idempotent."""
        self._callers.close()
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        super().close()


def numeric(spec: str, address: Address, kind: socket.SocketKind) -> Address:
    """Return the numeric address of a host and port. Raises DeviceError."""
    _, where = resolve(spec, address, kind)
    return str(where[0]), int(where[1])
