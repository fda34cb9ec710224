"""The Open stage (paper section 3.1): reaching where a guest wants to go, while its SYN waits.

A call makes a stream. The stream is a non-blocking socket, or what behaves as one.
"""

import errno
import select
import socket
from collections.abc import Sequence
from typing import Final, Protocol

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
"""Octets of a proxy's answer that are read at once; it has 262 at most."""

READABLE: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
"""Events of a stream; a poller tells of them once, as they come about."""
WRITABLE: Final = select.EPOLLOUT
FAILED: Final = select.EPOLLHUP | select.EPOLLERR
HUNG_UP: Final = select.EPOLLRDHUP | FAILED
"""Nothing will tell of what waits behind the octets that came: read on until the end."""

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
    """What carries a flow's octets: of a socket, these. BlockingIOError: not now; OSError: it broke."""

    def send(self, octets: bytes | bytearray | memoryview, /) -> int:
        """Take some octets, at least one."""
        ...

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview], /) -> int:
        """Likewise of several pieces."""
        ...

    def recv_into(self, room: memoryview, octets: int, /) -> int:
        """Put at most so many octets into the room; return how many; 0: there will be no more."""
        ...

    def shutdown(self, how: int, /) -> None:
        """Say that no more will be sent (socket.SHUT_WR)."""
        ...

    def close(self) -> None:
        """Give it back."""
        ...

    def fileno(self) -> int:
        """Return a descriptor to wait on; -1: there is none, and it tells its `owner` of events itself."""
        ...


class InternalStream:
    """Base of a stream within the process."""

    @property
    def kept(self) -> int:
        """Octets of memory that wait in it, in either direction."""
        raise NotImplementedError


class Connector(Protocol):
    """One attempt. Its stream exists from the first, so that it can be waited on."""

    @property
    def stream(self) -> Stream:
        """What the call is made on."""
        ...

    def step(self, events: int) -> bytes | Reason | None:
        """Go on. Octets: it stands, and this is what it brought already; None: wait.

        Called at first (events: 0), and with the events of the stream, as the poller has them. Raises
        BlockingIOError if it is to be tried again in a while, and nothing else.
        """
        ...


class TCPConnector:
    """A TCP connection to the very address that the guest called."""

    def __init__(self, address: tuple[str, int], family: int = socket.AF_INET) -> None:
        self.stream = _tcp(family)
        self._address = address
        self._started = False

    def step(self, events: int) -> bytes | Reason | None:
        """Connect, then see how it ended."""
        if not self._started:
            self._started = True
            code = self.stream.connect_ex(self._address)
            return None if code in _STARTED else _REASONS.get(code, Reason.HOST_UNREACHABLE)
        if events & FAILED and (code := self.stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)):
            return _REASONS.get(code, Reason.HOST_UNREACHABLE)
        return b"" if events & WRITABLE else None


class SocksConnector:
    """A stream through a SOCKS 5 proxy. proxy: (host, port), or a unix socket's path, or the door to one.

    pipelined: as of socks.Client; Tor takes it, others may not.
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
        if isinstance(proxy, str | UnixTarget):
            self.stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        else:
            self.stream = _tcp(socket.AF_INET6 if ":" in proxy[0] else socket.AF_INET)

    def step(self, events: int) -> bytes | Reason | None:
        """Connect to the proxy, ask, and hear its answer."""
        answer = self.answer()
        if isinstance(answer, Failed):
            return answer.reason
        return None if answer is None else self._client.rest

    def answer(self) -> Connected | Resolved | Failed | None:
        """Go on; return what the proxy answered, once it has."""
        try:
            if not self._started:
                if isinstance(self._proxy, UnixTarget):
                    code = self._proxy.connect_ex(self.stream)
                else:
                    code = self.stream.connect_ex(self._proxy)
                if code == errno.EAGAIN:  # a unix socket whose queue of callers is full
                    raise BlockingIOError(code, "the proxy is busy")
                if code not in _STARTED:
                    return Failed(Reason.CLOSED)
                self._started = True
            if self._request:
                self._request = self._request[self.stream.send(self._request) :]
                return None  # nothing can have come before it was asked for
            while not self._request:  # more than once if the answer is in pieces: the end may be behind them
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


def _tcp(family: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
