"""Connections of kernel TCP with BBR and buffers that the kernel's limits do not cap.

BBR does not take a lost packet for congestion. Any user may choose it (TCP_CONGESTION) where the host allows
it; elsewhere the host's default stays. SO_SNDBUFFORCE and SO_RCVBUFFORCE need CAP_NET_ADMIN:
without it the buffers are as large as net.core.wmem_max and rmem_max allow, and status says so.
"""

import errno
import logging
import socket
import struct
from contextlib import suppress
from typing import Final

from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.host.privilege import NET_ADMIN
from vtl_tools.common.relay.connector import FAILED, WRITABLE
from vtl_tools.common.session.base import Address, Listener, PacketCounts, PathProfile

log = logging.getLogger(__name__)

_BUFFER_MIN: Final = 64 << 20
"""Octets of a buffer: 500 Mbit/s over a second. It takes memory only as far as it is filled."""
_BUFFER_MAX: Final = 256 << 20
_UNSENT_S: Final = 0.25
"""Seconds for which the kernel has octets to send: enough for a service that must wait for a processor, and
not so many that a flow waits long behind those of others."""
_UNSENT_MIN: Final = 1 << 20
_UNSENT_MAX: Final = 1 << 24
_USER_TIMEOUT_MS: Final = 20_000
_BACKLOG: Final = 128
_NOTSENT_LOWAT: Final = 25  # TCP_NOTSENT_LOWAT, which socket lacks
_SEND_FORCE, _RECEIVE_FORCE = 32, 33  # SO_SNDBUFFORCE, SO_RCVBUFFORCE
_INFO: Final = struct.Struct("=100xI36xI12xI")
"""struct tcp_info: tcpi_total_retrans, tcpi_segs_in, tcpi_data_segs_out."""
_STARTED: Final = (0, errno.EINPROGRESS)


class TCPConnection(socket.socket):
    """A connection: a kernel socket as it is."""

    remote: Address = ("", 0)

    def connected(self, events: int) -> int | None:
        """Return the result of connect(), once there is one."""
        if events & FAILED or events & WRITABLE:
            return self.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return None

    def packets(self) -> PacketCounts:
        """Return the segments that were sent, sent again, and heard."""
        try:
            info = self.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
            again, heard, sent = _INFO.unpack(info)
        except (OSError, struct.error):
            return PacketCounts()
        return PacketCounts(sent, again, heard)

    def expect(self, rate: float) -> None:
        """Let the kernel hold as many octets unsent as leave in _UNSENT_S."""
        octets = max(_UNSENT_MIN, min(round(rate * _UNSENT_S), _UNSENT_MAX))
        with suppress(OSError):
            self.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, octets)


class TCPListener:
    """Accepts TCP connections. Raises OSError."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.address: Address = sock.getsockname()[:2]

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def accept(self) -> TCPConnection:
        """Return the next connection."""
        fd, address = self._sock._accept()  # type: ignore[attr-defined] # accept() would make another object
        connection = TCPConnection(fileno=fd)
        connection.setblocking(False)
        connection.remote = address[:2]
        return connection

    def close(self) -> None:
        """Stop listening."""
        self._sock.close()


class TCPTransport:
    """Kernel TCP. congestion: as in tcp(7); the host's default, if the host does not allow it."""

    name = "tcp"
    capabilities = frozenset({NET_ADMIN})

    def __init__(self, profile: PathProfile, congestion: str = "bbr") -> None:
        self._congestion = congestion.encode()
        self._buffer = max(_BUFFER_MIN, min(2 * profile.bdp, _BUFFER_MAX))
        self.notes: set[str] = set()
        """Settings that the kernel refused, for the log and status."""

    def check(self) -> None:
        """Every host has it."""

    def start(self) -> None:
        """Nothing is to be prepared."""

    def connect(self, address: Address, rtt_s: float | None = None) -> TCPConnection:
        """Begin a connection. Raises OSError."""
        connection = TCPConnection(_family(address[0]), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        connection.remote = address
        try:
            self._set_up(connection)
            code = connection.connect_ex(address)
        except OSError:
            connection.close()
            raise
        if code not in _STARTED:
            connection.close()
            raise OSError(code, "")
        return connection

    def window(self, rtt_s: float | None) -> int:
        """Return 0: the kernel fits its windows to the path."""
        return 0

    def listen(self, address: Address) -> Listener:
        """Listen. The connections inherit buffers and congestion control. Raises VTLError."""
        where = f"{address[0]}:{address[1]}"
        sock = socket.socket(_family(address[0]), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._set_up(sock)
            sock.bind(address)
            sock.listen(_BACKLOG)
        except PermissionError:
            sock.close()
            raise PermissionNeededError(f"{where}: not permitted; use a port above 1023, or root") from None
        except OSError as e:
            sock.close()
            raise DeviceError(
                f"{where}: cannot listen: {(e.strerror or str(e)).lower()}; see 'ss -lnp' and 'ip address'"
            ) from None
        return TCPListener(sock)

    def close(self) -> None:
        """Nothing is to be released."""

    def _set_up(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, _NOTSENT_LOWAT, 4 * _UNSENT_MIN)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._congestion)
        except OSError:
            self._note(f"the kernel does not allow {self._congestion.decode()}; modprobe tcp_bbr")
        for force, option in (_SEND_FORCE, socket.SO_SNDBUF), (_RECEIVE_FORCE, socket.SO_RCVBUF):
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, self._buffer)
            except OSError:
                sock.setsockopt(socket.SOL_SOCKET, option, self._buffer)
                self._note("buffers are limited by net.core.rmem_max and wmem_max, without CAP_NET_ADMIN")

    def _note(self, what: str) -> None:
        if what not in self.notes:
            self.notes.add(what)
            log.warning("tcp: %s", what)


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
