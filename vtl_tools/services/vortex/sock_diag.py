"""The ports that sockets of this network namespace use now, asked of the kernel (sock_diag(7))."""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from vtl_tools.common.packet.ip import TCP, UDP
from vtl_tools.services.vortex.ports import Port

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_REQUEST: Final = 1  # NLM_F_REQUEST
_DUMP: Final = 0x301  # with NLM_F_DUMP
_ERROR, _DONE = 2, 3
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_ASKS: Final = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2: family, protocol, extensions, states
_ASKS_ONE: Final = struct.Struct("!BBBxIHH16s16sI8s")  # with ports, addresses, interface, cookie
_ANY_COOKIE: Final = b"\xff" * 8
_SOCKET: Final = struct.Struct("!xBxxH")  # struct inet_diag_msg: state, the local port
_STATES: Final = 0xFFFF_FFFF & ~(1 << 6)
"""All but TIME-WAIT, of which a new connection to the port does not hear."""
_CLOSING: Final = frozenset((4, 5, 9, 11))
"""FIN-WAIT-1, FIN-WAIT-2, LAST-ACK, CLOSING: no event tells of the end of such a socket without process."""
_MOST: Final = 1 << 16


def sockets_of_host() -> tuple[set[Port], bool]:
    """Return the local port of each socket of TCP and UDP, and whether one is closing. Raises OSError."""
    used, is_closing = set(), False
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as sock:
        for protocol in TCP, UDP:
            for family in socket.AF_INET, socket.AF_INET6:
                for state, port in _dump(sock, family, protocol):
                    used.add((protocol, port))
                    is_closing |= protocol == TCP and state in _CLOSING
    return used, is_closing


def has_receiver(remote: bytes, remote_port: int, local: bytes, local_port: int) -> bool:
    """Return whether a socket of UDP would receive a datagram between these addresses. Raises OSError."""
    family = socket.AF_INET if len(local) == 4 else socket.AF_INET6
    # Source and destination are "swapped for historical reasons" (udp_dump_one).
    body = _ASKS_ONE.pack(
        family, UDP, 0, _STATES, remote_port, local_port, remote.ljust(16, b"\0"), local.ljust(16, b"\0"), 0,
        _ANY_COOKIE,
    )  # fmt: skip
    kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
    with socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG) as sock:
        sock.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _REQUEST, 1, 0) + body)
        octets = sock.recv(_MOST)
    if _HEADER.unpack_from(octets)[1] != _ERROR:
        return True
    code = -int.from_bytes(octets[16:20], "little", signed=True)
    if code != errno.ENOENT:
        raise OSError(code, os.strerror(code))
    return False


def _dump(sock: socket.socket, family: int, protocol: int) -> Iterator[tuple[int, int]]:
    body = _ASKS.pack(family, protocol, 0, _STATES)
    sock.send(_HEADER.pack(_HEADER.size + len(body), _BY_FAMILY, _DUMP, 1, 0) + body)
    while True:
        octets = sock.recv(_MOST)
        while len(octets) >= _HEADER.size:
            size, kind, _, _, _ = _HEADER.unpack_from(octets)
            if kind == _DONE:
                return
            if kind == _ERROR:
                code = -int.from_bytes(octets[16:20], "little", signed=True)
                if code == errno.ENOENT and family == socket.AF_INET6:
                    return  # a kernel without IPv6
                raise OSError(code, os.strerror(code))
            state, port = _SOCKET.unpack_from(octets, _HEADER.size)
            yield state, port
            octets = octets[(size + 3) & ~3 :]
