"""Congestion control and buffers of a connection's socket, from the bandwidth-delay product of its path.

The kernel sizes buffers itself, up to net.ipv4.tcp_wmem and tcp_rmem. A path whose product is greater gets
more by SO_SNDBUFFORCE and SO_RCVBUFFORCE (socket(7)); without CAP_NET_ADMIN, what net.core.wmem_max allows.
"""

import contextlib
import errno
import socket
import struct
from pathlib import Path
from typing import Final

from vtl_tools.common.bounded import BoundedTable
from vtl_tools.common.errors import SpecError
from vtl_tools.common.host.socket_tuner import RECEIVE, SEND, SocketTuner
from vtl_tools.common.relay.connector import Stream, is_unpaced

_BUF_LOCK: Final = 72  # SO_BUF_LOCK, Linux 5.14: which buffers are of a fixed size
_RTT: Final = struct.Struct("=68xI")  # tcpi_rtt of struct tcp_info, in microseconds
_WINDOWS: Final = 2
"""Products that are under way at most: BBR's window is so large (draft-cardwell-iccrg-bbr 4.6.4.2)."""
_OVERHEAD: Final = 2
"""Memory of a segment in a socket's buffer over its octets, as the kernel reckons too (socket(7))."""
_RTT_MAX_S: Final = 1.0
"""The round-trip time for which the window scale is chosen, which is before the first round trip."""
_HOSTS_MAX: Final = 1024


class Tuning:
    """Settings for the sockets of all connections.

    congestion: name of the congestion control; None: BBR where the kernel has it, else the host's own, and
    not to an end within the host that has had bulk data.
    bandwidth_bps: of the path to the network. budget: octets of memory that all enlarged buffers may take
    together; connections beyond get what the kernel allows by itself. Raises SpecError.
    """

    def __init__(self, congestion: str | None, bandwidth_bps: float, budget: int) -> None:
        self._tuner = SocketTuner(budget, _choose(congestion))
        self._is_chosen = congestion is not None
        self.congestion = self._tuner.congestion
        self._bandwidth = bandwidth_bps / 8
        self._wanted_first = self._wanted(_RTT_MAX_S)
        self._budget, self.enlarged = budget, 0
        self._taken: dict[Stream, int] = {}
        self._automatic = _limit("tcp_wmem"), _limit("tcp_rmem")
        self._near = BoundedTable[object, bool](_HOSTS_MAX)  # hosts whose product is within these

    def prepare(self, sock: socket.SocketType, address: tuple[object, ...]) -> bool:
        """Set the congestion control before connect(), and a receive buffer for the window scale.

        Returns whether it has set the buffer: not for a host that was near at its last connection.
        """
        if self._is_chosen or not is_unpaced(address):
            with contextlib.suppress(OSError):  # the module was unloaded: the host's own then
                self._tuner.set_congestion(sock)
        wanted = min(self._wanted_first, self._budget - self.enlarged)
        is_set = wanted > self._automatic[1] and address[0] not in self._near
        if is_set:
            self._tuner.set_buffer(sock, RECEIVE, wanted)
        return is_set

    def fit(self, sock: socket.SocketType, address: tuple[object, ...], is_set: bool) -> None:
        """Size the buffers of a connection that is established, by its round-trip time.

        is_set: what prepare() has returned.
        """
        wanted = self._wanted(_rtt_s(sock))
        if wanted > min(self._automatic):
            self._near.pop(address[0], None)
        elif address[0] not in self._near:
            self._near.put(address[0], True)
        grown = 0
        for kind, automatic in zip((SEND, RECEIVE), self._automatic, strict=True):
            if automatic < wanted <= self._budget - self.enlarged - grown:
                self._tuner.set_buffer(sock, kind, wanted)
                grown += wanted
            elif kind == RECEIVE and is_set:
                self._let_grow(sock)
        if grown:
            self._taken[sock] = grown
            self.enlarged += grown

    def _let_grow(self, sock: socket.SocketType) -> None:
        """Leave the receive buffer, which prepare() has enlarged, to the kernel."""
        with contextlib.suppress(OSError):  # an older kernel leaves it at that
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            sock.setsockopt(socket.SOL_SOCKET, _BUF_LOCK, 0)

    def _wanted(self, rtt_s: float) -> int:
        """Return the octets of a buffer for a round-trip time."""
        return int(self._bandwidth * rtt_s * _WINDOWS * _OVERHEAD)

    def release(self, stream: Stream) -> None:
        """Take back the memory of a connection that has ended."""
        self.enlarged -= self._taken.pop(stream, 0)


def _rtt_s(sock: socket.SocketType) -> float:
    rtt_us: int = _RTT.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _RTT.size))[0]
    return rtt_us / 1e6


def _choose(congestion: str | None) -> str | None:
    name = "reno" if congestion == "newreno" else congestion  # as the kernel calls it
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, (name or "bbr").encode())
        except OSError as e:
            if name is None:
                return None
            why = "not in this kernel" if e.errno == errno.ENOENT else str(e.strerror)
            raise SpecError(
                f"--congestion {congestion}: {why}; load the module tcp_{name}, or choose another"
            ) from None
    return name or "bbr"


def _limit(variable: str) -> int:
    """Return the octets up to which the kernel enlarges a buffer by itself."""
    try:
        return int(Path("/proc/sys/net/ipv4", variable).read_text().split()[2])
    except (OSError, ValueError, IndexError):
        return 4 << 20
