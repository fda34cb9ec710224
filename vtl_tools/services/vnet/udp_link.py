"""udp: links of vtl-vnet: sessions over datagrams. One socket carries all sessions of a link or a door.

udp:HOST:PORT                 connects
udp:ADDRESS:PORT,server       waits for one other daemon; a new session of it replaces the old one
udp:ADDRESS:PORT,listen       waits for any number of daemons; each has a link of its name
"""

import time
from collections.abc import Sequence
from typing import Any, Final

from vtl_tools.common.device.base import RETRY_S, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet.joining import join
from vtl_tools.common.session.base import Address, PacketCounts
from vtl_tools.common.session.items import Conversation, Hello
from vtl_tools.common.session.peer_link import NO_PLACE, TICK_S, Door, PeerLink
from vtl_tools.services.vnet.udp_socket import DaemonEnd, UDPSocket

_JOINED_MAX: Final = 1024
"""Frames that are looked at in a reading: thousands may wait, and those that are left are looked at again."""


class UDPPeerLink(PeerLink):
    """A link over the session that it was given last: of a daemon that came through a door."""

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        self.sessions: UDPSocket | None = None
        self._peer: DaemonEnd | None = None

    def connect(self) -> None:
        """Do nothing: the session is there."""

    def take(self, peer: DaemonEnd, sessions: UDPSocket) -> None:
        """Make a session the link's, in place of the one before."""
        old, self._peer, self.sessions = self._peer, peer, sessions
        peer.link, self._why = self, ""
        if old is not None and old is not peer:
            old.link = None
            sessions.end(old, "was replaced")
        self.remote = peer.session.remote
        self.where = str(peer.way.address[0])
        self.went_up()
        self.frames_came()

    def lose(self, peer: DaemonEnd, why: str) -> None:
        """Note that a session of the link is over."""
        if peer is self._peer:
            self._peer, self._why = None, why
            self.went_down(f"the other daemon {why}")

    @property
    def session(self) -> Conversation | None:
        """The session that is up."""
        return None if self._peer is None else self._peer.session

    def flush(self) -> None:
        """Send what the session has made."""
        if self._peer is not None and self.sessions is not None:
            self.sessions.flush(self._peer)

    def frames_came(self) -> None:
        """Note that the session has frames."""
        self.handle.wake()

    def read(self) -> Batch:
        """Return up to a batch of frames."""
        now = time.monotonic()
        self._batch.clear()
        self.hops = []
        if self.handle.alarm_expired():
            self._tick(now)
        self._receive(now)
        if self._peer is not None:
            frames = self._peer.session.frames
            if len(frames) > 1:  # while the path loses datagrams, super-segments come in pieces
                some = [frames.popleft() for _ in range(min(len(frames), _JOINED_MAX))]
                frames.extendleft(reversed(list(join(some))))
            self.take_frames(self._peer.session)
        return self.received(self._batch)

    def _tick(self, now: float) -> None:
        """Do nothing: the door keeps the session alive."""

    def _receive(self, now: float) -> None:
        """Do nothing: the door reads the socket."""

    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Send frames."""
        assert self._peer is not None
        assert self.sessions is not None
        self.drops[Drop.MALFORMED] += self._peer.session.send(frames, hops)
        self.sessions.flush(self._peer)
        return len(frames)

    def packets(self) -> PacketCounts:
        """Return the records of the session."""
        session = None if self._peer is None else self._peer.session
        return PacketCounts() if session is None else PacketCounts(session.reported, session.lost_records)

    def close(self) -> None:
        """End the session. Idempotent."""
        if self._peer is not None and self.sessions is not None:
            peer, self._peer = self._peer, None
            peer.link = None
            self.sessions.end(peer, "ends")
        super().close()


class UDPLink(UDPPeerLink):
    """A link that connects to another daemon, or waits for one. address: see the module."""

    def __init__(self, spec: str, address: Address, *, server: bool, key: bytes, hello: Hello) -> None:
        super().__init__(spec)
        self._address, self._server = address, server
        self._where: Any = address
        self._own = UDPSocket(spec, self.handle, key, hello, self._on_ready)
        self._calling: DaemonEnd | None = None
        self._retry_at = 0.0

    def connect(self) -> None:
        """Open the socket, and begin to connect. Raises DeviceError, PermissionNeededError."""
        self._where = self._own.open(self._address, bind=self._server)
        if not self._server:
            self._calling = self._own.call(self._where, time.monotonic())
        self.handle.alarm(TICK_S)

    def _on_ready(self, peer: DaemonEnd) -> None:
        self.take(peer, self._own)
        self.handle.alarm(TICK_S)

    def frames_came(self) -> None:
        """Do nothing: frames come only while they are read."""

    def _receive(self, now: float) -> None:
        if self._peer is None or not self._peer.session.frames:
            self._own.receive(now)

    def _tick(self, now: float) -> None:
        self._own.tick(now)
        if self._calling is not None and self._calling.session.is_over:
            self._why, self._retry_at, self._calling = self._calling.session.why, now + RETRY_S, None
        if not self._server and self._calling is None and now >= self._retry_at:
            self._calling = self._own.call(self._where, now)
        self.handle.alarm(TICK_S)

    def close(self) -> None:
        """End the session. Idempotent."""
        super().close()
        self._own.close()


class UDPDoor(Door[UDPPeerLink]):
    """Waits for any number of daemons."""

    def __init__(self, spec: str, address: Address, *, key: bytes, hello: Hello) -> None:
        super().__init__(spec)
        self._address = address
        self._own = UDPSocket(spec, self.handle, key, hello, self._bring)

    def connect(self) -> None:
        """Open the socket. Raises DeviceError, PermissionNeededError."""
        self._own.open(self._address, bind=True)
        self.handle.alarm(TICK_S)
        self.up = True

    def read(self) -> Batch:
        """Receive for all links."""
        now = time.monotonic()
        if self.handle.alarm_expired():
            self._own.tick(now)
            self.handle.alarm(TICK_S)
        self._own.receive(now)
        return self._nothing

    def _bring(self, peer: DaemonEnd) -> None:
        assert peer.session.remote is not None
        link = self.link_to(peer.session.remote, peer.way.address, UDPPeerLink)
        if link is None:
            self._own.end(peer, NO_PLACE)
            return
        link.take(peer, self._own)

    def close(self) -> None:
        """End all sessions. Idempotent."""
        self._own.close()
        super().close()
