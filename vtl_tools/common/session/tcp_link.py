"""tcp: links of vtl-vnet: a session over one connection of kernel TCP, made again whenever it is lost.

tcp:HOST:PORT                 connects
tcp:ADDRESS:PORT,server       listens, for one other daemon; a new session of it replaces the old one
"""

import os
import socket
import time
from collections import deque
from typing import Final

from vtl_tools.common.device.base import RETRY_S, Device, Drop
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.device.peer import resolve
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.session.base import Address, Listener, PathProfile
from vtl_tools.common.session.peer_connection import READ, FramedConnection
from vtl_tools.common.session.peer_session import FRAME_MIN, HOPS_MAX, PeerSession
from vtl_tools.common.session.secure_channel import Role, SecureConfig
from vtl_tools.common.session.tcp import TCPConnection, TCPTransport

_TICK_S: Final = 0.25
_CALLERS_MAX: Final = 8
"""Connections that a server examines at once; the oldest of more is closed."""
_KEYS_SEEN: Final = 4096


class TCPLink(Device):
    """A link to another daemon. address: see the module. key: the pre-shared key.

    introduction: octets that a caller sends in the clear before the handshake, if the other end expects any.

    hops: of each frame of the last batch that was read: the VNET links that it may still pass.
    """

    offload = True

    def __init__(
        self,
        spec: str,
        address: Address,
        *,
        server: bool,
        key: bytes,
        introduction: bytes = b"",
        config: SecureConfig | None = None,
    ) -> None:
        super().__init__(spec)
        self._introduction = introduction
        self._address, self._server, self._key = address, server, key
        self._config = config or SecureConfig()
        self._transport = TCPTransport(PathProfile())
        self._where: Address = address
        self._listener: Listener | None = None
        self._callers: list[FramedConnection] = []
        self._peer: FramedConnection | None = None
        self._seen: deque[bytes] = deque(maxlen=_KEYS_SEEN)
        self._retry_at = 0.0
        self._why = "is not connected yet"
        self._batch = Batch()
        self._buffer = memoryview(bytearray(READ))
        self.hops: list[int] = []

    def connect(self) -> None:
        """Listen, or begin to connect. Raises DeviceError, PermissionNeededError."""
        _, where = resolve(self.spec, self._address, socket.SOCK_STREAM)
        self._where = str(where[0]), int(where[1])
        if self._server:
            self._listener = self._transport.listen(self._where)
            self.handle.watch(self._listener.fileno())
        else:
            self._call(time.monotonic())
        self.handle.alarm(_TICK_S)

    # --- connections

    def _call(self, now: float) -> None:
        self._retry_at = now + RETRY_S
        try:
            connection = self._transport.connect(self._where)
        except OSError as e:
            self._why = (e.strerror or str(e)).lower()
            return
        self._add(connection, Role.INITIATOR, now, is_open=False)

    def _accept(self, now: float) -> None:
        assert self._listener is not None
        for _ in range(_CALLERS_MAX):
            try:
                connection = self._listener.accept()
            except OSError:
                return
            assert isinstance(connection, TCPConnection)
            if len(self._callers) >= _CALLERS_MAX:
                self._end(self._callers[0], "made way for another")
            self._add(connection, Role.RESPONDER, now, is_open=True)

    def _add(self, connection: TCPConnection, role: Role, now: float, *, is_open: bool) -> None:
        session = PeerSession(
            role, self._config, psk=self._key, ephemeral=os.urandom(32), now=now, is_fresh=self._is_fresh
        )
        if role is Role.INITIATOR and self._introduction:
            session.precede(self._introduction)
        self._callers.append(FramedConnection(connection, session, self.handle.watch, is_open=is_open))

    def _is_fresh(self, key: bytes) -> bool:
        if key in self._seen:
            return False
        self._seen.append(key)
        return True

    def _end(self, caller: FramedConnection, why: str) -> None:
        caller.session.end(why)
        self.handle.forget(caller.connection.fileno())
        caller.connection.close()
        if caller in self._callers:
            self._callers.remove(caller)
            self._why = why
        if caller is self._peer:
            self._peer, self._why = None, why
            self.went_down(f"the other daemon {why}")
            self.handle.alarm(_TICK_S)

    def _take(self, caller: FramedConnection) -> None:
        """Make an authenticated connection the link's."""
        self._callers.remove(caller)
        if (old := self._peer) is not None:
            self._peer = None
            self.handle.forget(old.connection.fileno())
            old.connection.close()
        self._peer, self._why = caller, ""
        self.went_up()
        self.handle.alarm(_TICK_S)

    # --- octets

    def _advance(self, caller: FramedConnection, now: float) -> None:
        """Read once and write; find out that it is authenticated or lost."""
        if why := caller.advance(self._buffer, now):
            self._end(caller, why)
        elif caller.session.is_up and caller is not self._peer:
            self._take(caller)

    # --- a link

    def read(self) -> Batch:
        """Receive up to a batch of frames; keep the connection alive, or make it again."""
        now = time.monotonic()
        batch = self._batch
        batch.clear()
        self.hops = []
        if self.handle.alarm_expired():
            self._tick(now)
        if self._listener is not None:
            self._accept(now)
        for caller in list(self._callers):
            self._advance(caller, now)
        if (peer := self._peer) is not None:
            self._advance(peer, now)
        if (peer := self._peer) is None:
            return batch
        session = peer.session
        while session.frames and batch.count < SLOTS:
            hops, frame = session.frames.popleft()
            batch.append(frame)
            self.hops.append(hops)
        if session.malformed:
            self.drops[Drop.MALFORMED] += session.malformed
            session.malformed = 0
        if session.frames:
            self.handle.wake()
        return self.received(batch)

    def _tick(self, now: float) -> None:
        peers = () if self._peer is None else (self._peer,)
        for caller in (*self._callers, *peers):
            caller.session.wake(now)
            if caller.session.is_over:
                self._end(caller, caller.session.why)
            elif caller.is_open:
                caller.write()
        if not self._server and self._peer is None and not self._callers and now >= self._retry_at:
            self._call(now)
        self.handle.alarm(_TICK_S)

    def write(self, batch: Batch) -> int:
        """Send a batch of frames of this host."""
        return self.write_hops(batch, HOPS_MAX)

    def write_hops(self, batch: Batch, hops: int) -> int:
        """Send a batch of frames that may pass so many VNET links. Frames without room are dropped."""
        if (peer := self._peer) is None:
            return self.refused(batch, Drop.LINK_DOWN)
        frames = [frame for frame in batch if len(frame) >= FRAME_MIN]
        self.drops[Drop.RUNT] += batch.count - len(frames)
        taken = peer.send(frames, hops)
        lost = frames[taken:]
        if lost:
            self.drops[Drop.QUEUE_FULL] += len(lost)
        if peer.session.is_over:
            self.handle.wake()  # read() finds out
        runts = batch.count - len(frames)
        octets = sum(map(len, lost)) - VNET * len(lost)
        return self.sent(batch, runts + len(lost), octets)

    def status(self) -> dict[str, object]:
        """Return the link's part of --json."""
        rtt_s = None if self._peer is None else self._peer.session.rtt_s
        lost = None
        if self._peer is not None:
            counts = self._peer.connection.packets()
            lost = round(100 * counts.lost / counts.counted, 3) if counts.counted else None
        return {
            **super().status(),
            "rtt_ms": None if rtt_s is None else round(rtt_s * 1e3, 3),
            "loss_percent": lost,
            "why": self._why,
        }

    def close(self) -> None:
        """End the session. Idempotent."""
        for caller in (*self._callers, *(() if self._peer is None else (self._peer,))):
            caller.bid_farewell()
        self._callers, self._peer = [], None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        super().close()
