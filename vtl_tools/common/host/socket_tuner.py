"""Settings of TCP sockets that need CAP_NET_ADMIN: buffers beyond the host's limits, congestion control."""

import contextlib
import errno
import socket
from typing import Final

from vtl_tools.common.host import privilege
from vtl_tools.common.host.broker import BrokeredResource

SEND, RECEIVE, CONGESTION = range(3)
_BUFFERS: Final = {SEND: (32, socket.SO_SNDBUF), RECEIVE: (33, socket.SO_RCVBUF)}
"""SO_SNDBUFFORCE and SO_RCVBUFFORCE, which pass the limits of net.core, and the options that do not."""
_UNIT: Final = 1024


class SocketTuner(BrokeredResource):
    """Sets them, by the broker if the service may not.

    most: octets of memory of the largest buffer. congestion: the congestion control (tcp(7)); None: the
    host's own.
    """

    capabilities = frozenset((privilege.NET_ADMIN,))

    def __init__(self, most: int, congestion: str | None = None) -> None:
        super().__init__("/")
        self._most, self.congestion = most, congestion
        self._name = (congestion or "").encode()
        self._is_denied = [False] * 3

    def set_congestion(self, sock: socket.SocketType) -> None:
        """Have a socket use the congestion control. Raises OSError if there is none of the name by now."""
        if self.congestion is not None:
            self._set(sock, CONGESTION, 0)

    def set_buffer(self, sock: socket.SocketType, kind: int, octets: int) -> None:
        """Give a buffer, SEND or RECEIVE, so many octets of memory, or as many as are allowed."""
        try:
            self._set(sock, kind, min(octets, self._most))
        except OSError:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, _BUFFERS[kind][1], min(octets, self._most) // 2)

    def _set(self, sock: socket.SocketType, kind: int, octets: int) -> None:
        if not self._is_denied[kind] or self._channel is None:
            try:
                self._apply(sock, kind, octets)
                return
            except PermissionError:
                self._is_denied[kind] = True
                if self._channel is None:
                    raise
        code, _ = self._ask(sock.fileno(), word=octets // _UNIT * 4 + kind)
        if code:
            raise OSError(code, "refused by the broker")

    def _apply(self, sock: socket.SocketType, kind: int, octets: int) -> None:
        if kind != CONGESTION:
            sock.setsockopt(socket.SOL_SOCKET, _BUFFERS[kind][0], octets // 2)  # the kernel doubles it
        elif self._name:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, self._name)

    def _serve(self, fd: int) -> tuple[int, int]:
        units, kind = divmod(self.word, 4)
        if fd < 0 or kind > CONGESTION or units * _UNIT > self._most:
            return errno.EINVAL, -1
        sock = socket.socket(fileno=fd)
        try:
            if sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
                return errno.EINVAL, -1
            self._apply(sock, kind, units * _UNIT)
        finally:
            sock.detach()
        return 0, -1
