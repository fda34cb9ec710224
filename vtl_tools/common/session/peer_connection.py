"""One connection of kernel TCP with the session over it: octets are read and written, and frames sent."""

import array
import errno
import fcntl
import os
import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from typing import Final, Protocol

from vtl_tools.common.device.batch import SLOTS
from vtl_tools.common.session.peer_session import PeerSession
from vtl_tools.common.session.secure_channel import OUTBOX_MAX
from vtl_tools.common.session.tcp import TCPConnection

READ: Final = 1 << 18
"""Octets of a buffer to read into."""
_PIECES: Final = 256
_SIOCOUTQNSD: Final = 0x894B  # of linux/sockios.h
_UNSENT_MAX: Final = 2 << 20
"""Octets that wait in the kernel before frames are dropped: TCP within the frames needs to feel the link."""


class WatchDescriptor(Protocol):
    """Wakes the owner for input of a descriptor and, with `write`, for room in its output."""

    def __call__(self, fd: int, *, write: bool) -> None:
        """Wake for these events from now on."""
        ...


class FramedConnection:
    """A connection with its session. watch: is told which events it waits for."""

    def __init__(
        self, connection: TCPConnection, session: PeerSession, watch: WatchDescriptor, *, is_open: bool
    ) -> None:
        self.connection, self.session, self.is_open = connection, session, is_open
        self._watch, self._waits_to_write = watch, True
        watch(connection.fileno(), write=True)

    def advance(self, buffer: memoryview, now: float) -> str:
        """Read once and write. Return why the connection has ended; "" if it goes on."""
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
            return (e.strerror or str(e)).lower()
        self.write()
        return session.why if session.is_over else ""

    def write(self) -> None:
        """Write as much of the session's outbox as there is room for."""
        session = self.session
        try:
            while session.outbox:
                sent = self.connection.sendmsg(tuple(islice(session.outbox, _PIECES)))
                session.transmitted(sent)
        except BlockingIOError:
            pass
        except OSError as e:
            session.end((e.strerror or str(e)).lower())
        if self._waits_to_write != bool(session.outbox):
            self._waits_to_write = not self._waits_to_write
            self._watch(self.connection.fileno(), write=self._waits_to_write)

    def send(self, frames: Sequence[memoryview], hops: int) -> int:
        """Send frames that may pass so many links. Return for how many there was room."""
        session, taken = self.session, 0
        if _unsent(self.connection) > _UNSENT_MAX:
            return 0
        while taken < len(frames) and session.pending < OUTBOX_MAX and session.is_up:
            taken += session.send(frames[taken : taken + SLOTS], hops)
            self.write()
        return taken

    def bid_farewell(self) -> None:
        """Tell the other end that the session ends, and close the connection."""
        if self.session.is_up:
            self.session.end("ends", say=True)
            with suppress(OSError):
                self.connection.sendmsg(tuple(islice(self.session.outbox, _PIECES)))
        self.connection.close()


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
