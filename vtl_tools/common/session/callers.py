"""Connections of which it is not known yet whether the other end has the key: a bounded number at a time.

A stranger pushes out only itself: when all slots are taken, the oldest connection of the address with the
most of them gives way.
"""

import array
import errno
import fcntl
import os
import select
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Final

from vtl_tools.common.device.batch import SLOTS
from vtl_tools.common.device.handle import Handle
from vtl_tools.common.model.source_shares import SourceShares
from vtl_tools.common.session.base import Listener
from vtl_tools.common.session.caller_limit import CallerLimit, source_of
from vtl_tools.common.session.items import Hello
from vtl_tools.common.session.peer_session import PeerSession
from vtl_tools.common.session.secure_channel import OUTBOX_MAX, Role, SecureConfig
from vtl_tools.common.session.tcp import TCPConnection

CALLERS_MAX: Final = 64
_ACCEPTED: Final = 32
"""Connections that are accepted at once."""
READ: Final = 1 << 18
"""Octets of a buffer to read into."""
_PIECES: Final = 256
_SIOCOUTQNSD: Final = 0x894B  # of linux/sockios.h
_UNSENT_MAX: Final = 2 << 20
"""Octets that wait in the kernel before frames are dropped: TCP within the frames needs to feel the link."""
_KEYS_SEEN: Final = 4096
_STRANGER_S: Final = 5.0


class Caller:
    """A connection with its session. share, before, behind: of SourceShares."""

    def __init__(self, connection: TCPConnection, session: PeerSession, *, is_open: bool) -> None:
        self.connection, self.session, self.is_open = connection, session, is_open
        self.source = source_of(connection.remote[0])
        self.share: Any = None
        self.before: Caller | None = None
        self.behind: Caller | None = None
        self.waits_to_write = True

    @property
    def is_ready(self) -> bool:
        """Whether the other end has the key and has told its name."""
        return self.session.is_up and self.session.remote is not None

    def advance(self, buffer: memoryview, now: float) -> str:
        """Read once and write; return why the connection is over, or ""."""
        connection, session = self.connection, self.session
        try:
            if not self.is_open:
                if not _is_connected(connection):
                    return ""
                self.is_open = True
            if not session.frames:
                size = connection.recv_into(buffer)
                if not size:
                    raise ConnectionResetError(errno.ECONNRESET, "closed the connection")
                session.receive(buffer[:size], now)
        except BlockingIOError:
            pass
        except OSError as e:
            session.end((e.strerror or str(e)).lower())
            return session.why
        self.write()
        return session.why if session.is_over else ""

    def write(self) -> None:
        """Write what the connection takes."""
        session = self.session
        try:
            while session.outbox:
                session.transmitted(self.connection.sendmsg(tuple(islice(session.outbox, _PIECES))))
        except BlockingIOError:
            pass
        except OSError as e:
            session.end((e.strerror or str(e)).lower())

    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Send frames that may pass so many links; return for how many there was room."""
        session, taken = self.session, 0
        if _unsent(self.connection) > _UNSENT_MAX:
            return 0
        while taken < len(frames) and session.pending < OUTBOX_MAX and session.is_up:
            taken += session.send(frames[taken : taken + SLOTS], hops)
            self.write()
        return taken


class CallerTable:
    """Connections until they are authenticated. One descriptor in `handle` tells of all of them.

    introduction: octets that we send in the clear before a handshake, if the other end expects any.
    """

    def __init__(
        self, handle: Handle, key: bytes, config: SecureConfig, hello: Hello, introduction: bytes = b""
    ) -> None:
        self._key, self._config, self._hello, self._introduction = key, config, hello, introduction
        self._seen: deque[bytes] = deque(maxlen=_KEYS_SEEN)
        self._callers: dict[int, Caller] = {}
        self._shares: SourceShares[Caller] = SourceShares()
        self._limit = CallerLimit()
        self._epoll = select.epoll()
        self.buffer = memoryview(bytearray(READ))
        self.why = "is not connected yet"
        """Why the last one that was lost was lost."""
        self.evicted = 0
        handle.watch(self._epoll.fileno())

    def __len__(self) -> int:
        return len(self._callers)

    def accept(self, listener: Listener, now: float) -> None:
        """Accept waiting connections, some at a time."""
        for _ in range(_ACCEPTED):
            try:
                connection = listener.accept()
            except OSError:
                return
            assert isinstance(connection, TCPConnection)
            if not self._limit.admits(connection.remote[0], now):
                connection.close()
                continue
            self.add(connection, Role.RESPONDER, now, is_open=True)
            if len(self._callers) > CALLERS_MAX and (victim := self._shares.victim()) is not None:
                self.evicted += 1
                self._end(victim, "made way for another")

    def add(self, connection: TCPConnection, role: Role, now: float, *, is_open: bool) -> None:
        """Begin a handshake over a connection."""
        session = PeerSession(
            role, self._config, psk=self._key, ephemeral=os.urandom(32), now=now, hello=self._hello,
            is_fresh=self._is_fresh,
        )  # fmt: skip
        if role is Role.INITIATOR and self._introduction:
            session.precede(self._introduction)
        caller = Caller(connection, session, is_open=is_open)
        self._callers[connection.fileno()] = caller
        self._shares.add(caller)
        self._epoll.register(connection.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)

    def _is_fresh(self, key: bytes) -> bool:
        if key in self._seen:
            return False
        self._seen.append(key)
        return True

    def advance(self, now: float) -> Iterator[Caller]:
        """Go on with those that have something; return the authenticated ones, which leave the table."""
        for fd, _ in self._epoll.poll(0):
            caller = self._callers.get(fd)
            while caller is not None and not caller.session.frames:
                received = caller.session.received
                if why := caller.advance(self.buffer, now):
                    self._end(caller, why)
                    break
                if caller.is_ready:
                    self._remove(caller)
                    yield caller
                    break
                if caller.session.received == received:
                    break  # edge-triggered: all was read

    def tick(self, now: float) -> None:
        """End the handshakes that take too long."""
        for caller in list(self._callers.values()):
            caller.session.wake(now)
            if caller.session.is_up and now >= caller.session.heard_at + _STRANGER_S:
                caller.session.end("does not tell its name")
            if caller.session.is_over:
                self._end(caller, caller.session.why)
            elif caller.is_open:
                caller.write()

    def _remove(self, caller: Caller) -> None:
        del self._callers[caller.connection.fileno()]
        self._shares.remove(caller)
        self._epoll.unregister(caller.connection.fileno())

    def _end(self, caller: Caller, why: str) -> None:
        caller.session.end(why)
        self._remove(caller)
        caller.connection.close()
        self.why = why

    def close(self) -> None:
        """Close all connections. Idempotent."""
        for caller in list(self._callers.values()):
            self._end(caller, "ends")
        self._epoll.close()


def _is_connected(connection: TCPConnection) -> bool:
    """Return whether connect() is complete. Raises OSError if it failed."""
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLOUT)
    if not poll.poll(0):
        return False
    if code := connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        raise OSError(code, os.strerror(code))
    return True


def _unsent(connection: TCPConnection) -> int:
    """Return the octets that wait in the kernel for their first transmission."""
    octets = array.array("i", [0])
    try:
        fcntl.ioctl(connection.fileno(), _SIOCOUTQNSD, octets)
    except OSError:
        return 0
    return octets[0]
