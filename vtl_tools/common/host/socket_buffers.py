"""Socket buffers beyond the host's limits (socket(7), SO_SNDBUFFORCE), which needs CAP_NET_ADMIN."""

import contextlib
import socket
from typing import Final

_FORCED: Final = {socket.SO_SNDBUF: 32, socket.SO_RCVBUF: 33}  # SO_SNDBUFFORCE, SO_RCVBUFFORCE


class BufferForcer:
    """Sets the size of sockets' buffers. most: octets of the largest."""

    def __init__(self, most: int) -> None:
        self._most = most

    def set(self, sock: socket.socket, option: int, octets: int) -> None:
        """Set SO_SNDBUF or SO_RCVBUF to so many octets of memory, or to what is allowed."""
        half = min(octets, self._most) // 2  # the kernel doubles it
        try:
            sock.setsockopt(socket.SOL_SOCKET, _FORCED[option], half)
        except PermissionError:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, option, half)
