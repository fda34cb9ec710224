"""A process beside the service for a library whose calls block and whose sockets have no descriptors.

The service sees each connection as one end of a pair of unix sockets, which it polls like any other;
blocking.py has the process. So a library that blocks delays no frame, one that crashes takes no connection by
TCP with it, and its threads do not compete with the service for the interpreter.

The process is forked while the service has its privileges, with a UDP socket that is bound and has large
buffers. It ends when the service does.
"""

import contextlib
import errno
import mmap
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from vtl_tools.common.errors import DeviceError, PermissionNeededError, VTLError
from vtl_tools.common.relay.connector import READABLE
from vtl_tools.common.session.base import Address, PacketCounts, PathProfile
from vtl_tools.services.udt.transport.blocking import (
    CONNECTIONS_MAX,
    COUNTS,
    MESSAGE_MAX,
    READY,
    REQUEST,
    BlockingLibrary,
    CompanionProcess,
    LibrarySizes,
    keep_running,
    pair,
)

_UDP_BUFFER: Final = 8 << 20
_START_S: Final = 30.0
_TAKEN_S: Final = 3.0
"""Time for which an address may be in use: the process of a service that has just ended has last octets."""
_RETRY_S: Final = 0.05
_PATIENCE_S: Final = 2.0
"""Time that the process has to end."""


class CompanionConnection(socket.socket):
    """A connection: the service's end of a pair of unix sockets."""

    remote: Address = ("", 0)
    release: Callable[[], object] | None = None
    """Gives the connection's slot back."""
    counts: Callable[[], tuple[int, ...]] | None = None

    def connected(self, events: int) -> int | None:
        """Return the result of connect(): the first octet."""
        if not events & READABLE:
            return None
        try:
            octet = self.recv(1)
        except BlockingIOError:
            return None
        except OSError as e:
            return e.errno or errno.EIO
        return octet[0] if octet else errno.ECONNABORTED

    def packets(self) -> PacketCounts:
        """Return what the process has counted, half a second ago at most."""
        return PacketCounts() if self.counts is None else PacketCounts(*self.counts())

    def expect(self, rate: float) -> None:
        """Nothing follows from it: the library has one buffer for what is sent and what is not."""

    def close(self) -> None:
        """Close it; the process delivers what it has, and closes the connection."""
        super().close()
        if self.release is not None:
            self.release()
            self.release = None


class Companion:
    """A process with a library. address: where its UDP socket is bound. listens: whether it accepts.

    Raises VTLError if the address cannot be used, or the library not be imported.
    """

    def __init__(self, library: BlockingLibrary, address: Address, *, listens: bool) -> None:
        self._library = library
        self._counts = mmap.mmap(-1, CONNECTIONS_MAX * COUNTS.size)
        self._slots = deque(range(CONNECTIONS_MAX))
        udp = _bind(address)
        self.address: Address = udp.getsockname()[:2]
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._pid = os.fork()
        if not self._pid:
            try:
                keep_running(
                    CompanionProcess(library, udp, _UDP_BUFFER, theirs, self._counts, listens=listens)
                )
            finally:
                os._exit(1)
        theirs.close()
        udp.close()
        self._channel.settimeout(_START_S)
        try:
            answer = self._channel.recv(MESSAGE_MAX)
        except OSError:
            answer = b""
        if answer != READY:
            self.close()
            raise VTLError(f"{library.name}: {answer.decode() or 'its process did not start'}")
        self._channel.setblocking(False)

    def fileno(self) -> int:
        """Return a descriptor that is readable when accept() has something."""
        return self._channel.fileno()

    def connect(self, address: Address, packets: int) -> CompanionConnection:
        """Begin a connection. packets: of a window. Raises OSError."""
        if not self._slots:
            raise OSError(errno.EMFILE, "too many connections")
        slot = self._slots.popleft()
        ours, theirs = pair()
        connection = CompanionConnection(fileno=ours.detach())
        try:
            request = REQUEST.pack(slot, address[1], packets) + address[0].encode()
            socket.send_fds(self._channel, [request], [theirs.fileno()])
        except OSError:
            connection.close()
            self._slots.append(slot)
            raise
        finally:
            theirs.close()
        connection.release = lambda: self._slots.append(slot)
        return self._prepared(connection, slot, address)

    def accept(self) -> CompanionConnection:
        """Return the next connection. Raises BlockingIOError, OSError."""
        octets, fds, _, _ = socket.recv_fds(self._channel, MESSAGE_MAX, 1)
        if not octets:  # the process's parent has ended: nothing comes any more
            raise BlockingIOError
        if not fds:
            raise OSError(errno.ECONNABORTED, "")
        slot, port, _ = REQUEST.unpack_from(octets)
        connection = CompanionConnection(fileno=fds[0])
        return self._prepared(connection, slot, (octets[REQUEST.size :].decode(), port))

    def _prepared(self, connection: CompanionConnection, slot: int, address: Address) -> CompanionConnection:
        at = slot * COUNTS.size
        connection.setblocking(False)
        connection.remote = address
        connection.counts = lambda: COUNTS.unpack_from(self._counts, at)
        return connection

    def close(self) -> None:
        """End the process. Idempotent."""
        self._channel.close()
        if not self._pid:
            return
        with contextlib.suppress(ChildProcessError):
            pidfd = os.pidfd_open(self._pid)
            if select.select([pidfd], [], [], _PATIENCE_S)[0]:
                os.waitpid(self._pid, 0)
            os.close(pidfd)
        self._pid = 0


def _bind(address: Address) -> socket.socket:
    """Return a UDP socket. Raises VTLError."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM)
    deadline = time.monotonic() + _TAKEN_S
    try:
        while True:
            try:
                udp.bind(address)
                return udp
            except OSError as e:
                if e.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_S)
    except OSError as e:
        udp.close()
        where = f"{address[0]}:{address[1]}"
        if isinstance(e, PermissionError):
            raise PermissionNeededError(f"{where}: not permitted; use a port above 1023, or root") from None
        raise DeviceError(
            f"{where}: cannot listen: {(e.strerror or str(e)).lower()}; see 'ss -lnp' and 'ip address'"
        ) from None


class CompanionTransport:
    """Base of a transport by such a library."""

    name = ""
    capabilities: frozenset[int] = frozenset()

    def __init__(self, profile: PathProfile) -> None:
        self.sizes = LibrarySizes(profile)
        self._companion: Companion | None = None

    def check(self) -> None:
        """Raise VTLError if the library is not installed."""
        raise NotImplementedError

    def library(self) -> BlockingLibrary:
        """Return the library, for a process."""
        raise NotImplementedError

    def check_address(self, address: Address) -> None:
        """Raise SpecError if the library cannot use an address."""

    def start(self) -> None:
        """Start the process for connect(). Idempotent."""
        self.check()
        if self._companion is None:
            self._companion = Companion(self.library(), ("0.0.0.0", 0), listens=False)  # noqa: S104 - any interface

    def connect(self, address: Address, rtt_s: float | None = None) -> CompanionConnection:
        """Begin a connection. Raises OSError."""
        self.check_address(address)
        assert self._companion is not None
        return self._companion.connect(address, self.window(rtt_s))

    def window(self, rtt_s: float | None) -> int:
        """Return the packets of a window."""
        return self.sizes.packets(rtt_s)

    def listen(self, address: Address) -> Companion:
        """Start a process that listens."""
        self.check()
        self.check_address(address)
        return Companion(self.library(), address, listens=True)

    def close(self) -> None:
        """End the process. Idempotent."""
        if self._companion is not None:
            self._companion.close()
            self._companion = None
