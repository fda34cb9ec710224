"""The Open stage (paper section 3.1): opens the stream of a flow while the guest's SYN waits.

A connector opens one stream. A stream is a non-blocking socket, or an object that behaves like one.
"""

import errno
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, Protocol

from vtl_tools.common.bounded import BoundedTable
from vtl_tools.common.errors import Malformed
from vtl_tools.common.host.broker import UnixTarget
from vtl_tools.common.socks import (
    Address,
    Client,
    Command,
    Connected,
    Credentials,
    Failed,
    Reason,
    Resolved,
    Send,
)

_ANSWER_MAX: Final = 512
"""Octets of a proxy's answer that are read at once; an answer has 262 at most."""

READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Events of a stream; a poller reports each once, when it happens."""
WRITABLE: Final = select.EPOLLOUT
FAILED: Final = select.EPOLLHUP | select.EPOLLERR
HUNG_UP: Final = select.EPOLLRDHUP | FAILED
"""The stream's last events: no later one reports the octets that are left, so read on until the end."""

_STREAM: Final[int] = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
_TCP: Final[int] = socket.IPPROTO_TCP
_Socket: Final = socket.SocketType
"""The type beneath socket.socket, which is made and closed without Python code."""
_NO_DELAY: Final[int] = socket.TCP_NODELAY
_IN_PROGRESS: Final[int] = errno.EINPROGRESS
_CONGESTION: Final[int] = socket.TCP_CONGESTION
_RENO: Final = b"reno"  # which each kernel has
_BULK: Final = 4 << 20
_UNPACED_MAX: Final = 1024

_STARTED: Final = (0, errno.EINPROGRESS)
_REASONS: Final = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.REFUSED,
    errno.ENETUNREACH: Reason.NET_UNREACHABLE,
    errno.EACCES: Reason.PROHIBITED,
    errno.EPERM: Reason.PROHIBITED,
    errno.ETIMEDOUT: Reason.TTL_EXPIRED,
}


class Stream(Protocol):
    """The far half of a relayed flow: these methods of a socket.

    They raise BlockingIOError if nothing can be done now, and OSError if the stream is broken.
    """

    def send(self, octets: bytes | bytearray | memoryview, /) -> int:
        """Take some of the octets, at least one; return how many."""
        ...

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview], /) -> int:
        """Take some octets of several pieces."""
        ...

    def recv_into(self, room: memoryview, octets: int, /) -> int:
        """Write at most so many octets into the room; return how many; 0: the stream has ended."""
        ...

    def shutdown(self, how: int, /) -> None:
        """Close the sending side (socket.SHUT_WR)."""
        ...

    def close(self) -> None:
        """Release it."""
        ...

    def fileno(self) -> int:
        """Return a descriptor to wait on; -1: none, it is an InternalStream."""
        ...


class InternalStream:
    """Base of a stream within the process."""

    on_event: Callable[[int, float], object] | None = None
    """Called with events and time when the stream has something new; set by the poller."""

    @property
    def buffered(self) -> int:
        """Octets of memory that wait in it, in either direction."""
        raise NotImplementedError


class Connector(Protocol):
    """Opens one stream. The stream exists from the start, so that it can be waited on."""

    @property
    def stream(self) -> Stream:
        """The stream, which is not open before step() says so."""
        ...

    def step(self, events: int) -> bytes | Reason | None:
        """Go on. Returns octets if the stream is open: the first that it brought; None if it is to wait.

        Called first with no events, then with those of the stream. Raises BlockingIOError if it should be
        called again later, and nothing else.
        """
        ...


class TCPConnector:
    """Opens a TCP connection to the address that the guest connects to. The flow calls send_at_once()."""

    __slots__ = ("_address", "_started", "stream")

    def __init__(self, address: tuple[object, ...], family: int = socket.AF_INET) -> None:
        self.stream = _take_socket(family)
        if _unpaced:
            _prepare(self.stream, address)
        self._address = address
        self._started = False

    def step(self, events: int) -> bytes | Reason | None:
        """Connect, then report the result."""
        if not self._started:
            self._started = True
            code: int = self.stream.connect_ex(self._address)
            if code == _IN_PROGRESS or not code:
                return None
            return _REASONS.get(code, Reason.HOST_UNREACHABLE)
        if events & FAILED and (code := self.stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            return _REASONS.get(code, Reason.HOST_UNREACHABLE)
        return b"" if events & WRITABLE else None


_spares: Final[dict[int, socket.SocketType | None]] = {}
"""By family that was asked for: a socket for the next stream, or None before make_spares() has made it."""


def _take_socket(family: int) -> socket.SocketType:
    spare = _spares.get(family)
    _spares[family] = None
    return _Socket(family, _STREAM) if spare is None else spare


def make_spares() -> None:
    """Make a socket for the next stream while there is nothing else to do, so that no guest waits for it."""
    for family, spare in _spares.items():
        if spare is None:
            with suppress(OSError):  # no descriptor is left
                _spares[family] = _Socket(family, _STREAM)


def close_spares() -> None:
    """Close the sockets that nobody took."""
    for spare in _spares.values():
        if spare is not None:
            spare.close()
    _spares.clear()


class SocksConnector:
    """Opens a stream through a SOCKS 5 proxy. proxy: (host, port), a unix socket's path, or a UnixTarget.

    pipelined: see socks.Client; Tor supports it, other proxies may not.
    """

    def __init__(
        self,
        proxy: tuple[str, int] | str | UnixTarget,
        target: Address,
        port: int,
        credentials: Credentials | None = None,
        command: Command = Command.CONNECT,
        *,
        pipelined: bool = False,
    ) -> None:
        self._proxy = proxy
        self._client = Client(credentials=credentials, pipelined=pipelined)
        self._request = self._client.request(command, target, port)
        self._started = False
        self.stream: socket.SocketType
        if isinstance(proxy, str | UnixTarget):
            self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        else:
            self.stream = _tcp(socket.AF_INET6 if ":" in proxy[0] else socket.AF_INET)
            if _unpaced:
                _prepare(self.stream, proxy)

    def step(self, events: int) -> bytes | Reason | None:
        """Connect to the proxy, send the request, and read its answer."""
        answer = self.answer()
        if isinstance(answer, Failed):
            return answer.reason
        return None if answer is None else self._client.rest

    def answer(self) -> Connected | Resolved | Failed | None:
        """Go on; return the proxy's answer once it is complete."""
        try:
            if not self._started:
                if isinstance(self._proxy, UnixTarget):
                    code = self._proxy.connect_ex(self.stream)
                else:
                    code = self.stream.connect_ex(self._proxy)
                if code == errno.EAGAIN:  # a unix socket whose backlog is full
                    raise BlockingIOError(code, "the proxy is busy")
                if code not in _STARTED:
                    return Failed(Reason.CLOSED)
                self._started = True
            if self._request:
                self._request = self._request[self.stream.send(self._request) :]
                return None  # no answer can be here before the request was sent
            while not self._request:  # the answer may come in pieces, with the end of the stream behind them
                octets = self.stream.recv(_ANSWER_MAX)
                for event in self._client.receive(octets) if octets else self._client.eof():
                    if not isinstance(event, Send):
                        return event
                    self._request += event.octets
            self._request = self._request[self.stream.send(self._request) :]
        except BlockingIOError:
            if not self._started:
                raise
        except (OSError, Malformed):
            return Failed(Reason.CLOSED)
        return None


def send_at_once(stream: Stream) -> None:
    """Have no small write wait for the acknowledgement of an earlier one."""
    with suppress(OSError, AttributeError):  # a broken one, or no socket
        stream.setsockopt(_TCP, _NO_DELAY, 1)  # type: ignore[attr-defined]


_unpaced: Final = BoundedTable[object, bool](_UNPACED_MAX)
"""Addresses and ports that bulk data went to, and whether streams to them are not to be paced."""


def note_bulk(stream: Stream, octets: int) -> None:
    """Note by an open stream, and the octets that went to it, whether those to its end are paced for nothing.

    Within this host, where both addresses of a stream are the same, there is no bottleneck that BBR could
    model, and its pacing costs a timer for each super-segment: a fifth of what the relay takes. A stream that
    has begun with BBR stays paced, and for a short one another congestion control would not pay.
    """
    if octets < _BULK or not isinstance(stream, _Socket):
        return
    with suppress(OSError, ValueError):  # it is broken, or no TCP: then its name may be of any length
        host, port = stream.getpeername()[:2]
        if (host, port) in _unpaced:
            return
        is_paced = stream.getsockopt(_TCP, _CONGESTION, 16).startswith(b"bbr")
        own: str = stream.getsockname()[0]
        _unpaced.put((host, port), is_paced and (own == host or own.startswith("127.")))


def is_unpaced(address: tuple[object, ...]) -> bool:
    """Return whether a stream to the same address has shown that to pace one is in vain."""
    return _unpaced.get(address[:2], False)


def _prepare(sock: socket.SocketType, address: tuple[object, ...]) -> None:
    """Have a stream not be paced in vain."""
    if is_unpaced(address):
        with suppress(OSError):  # tcp_allowed_congestion_control lacks it
            sock.setsockopt(_TCP, _CONGESTION, _RENO)


def _tcp(family: int) -> socket.SocketType:
    """Return a socket for TCP whose small writes leave at once."""
    sock = _Socket(family, _STREAM)
    sock.setsockopt(_TCP, _NO_DELAY, 1)
    return sock
