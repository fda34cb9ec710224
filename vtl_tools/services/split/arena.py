"""Receives the datagrams that wait at a socket, many at once, into memory that all sockets share."""

import ctypes
import socket
import struct
from typing import Final

from vtl_tools.common.device import mmsg

COUNT: Final = 64
"""Datagrams of one system call."""
_DATAGRAM: Final = 65_536
_NAME: Final = 32
"""Octets of a slot for a struct sockaddr_in6 (28) or sockaddr_in (16)."""
_GRO: Final = struct.Struct("=QiiI4x")
"""A struct cmsghdr of UDP_GRO, with its number."""

Received = tuple[memoryview, bytes, int]
"""The octets of a datagram, borrowed until the next call; its sender as sender_of() makes it; and the size of
each datagram, if the kernel has joined several (UDP_GRO); else 0."""


class DatagramArena:
    """Room for COUNT datagrams of any size, with the addresses of their senders."""

    def __init__(self) -> None:
        octets, names = mmsg.room(COUNT * _DATAGRAM), bytearray(COUNT * _NAME)
        self._octets, self._names = memoryview(octets), memoryview(names)
        self._control = bytearray(COUNT * _GRO.size)
        control_at = ctypes.addressof(ctypes.c_char.from_buffer(self._control))
        octets_at = ctypes.addressof(ctypes.c_char.from_buffer(octets))
        names_at = ctypes.addressof(ctypes.c_char.from_buffer(names))
        iov_at, iov = mmsg.words(2 * COUNT)
        msgs_at, msgs = mmsg.words(mmsg.WORDS * COUNT)
        self._iov, self._msgs, self._pointer = iov, msgs, mmsg.pointer(msgs_at)
        for i in range(COUNT):
            iov[2 * i], iov[2 * i + 1] = octets_at + i * _DATAGRAM, _DATAGRAM
            word = i * mmsg.WORDS
            msgs[word + mmsg.NAME] = names_at + i * _NAME
            msgs[word + mmsg.IOV], msgs[word + mmsg.IOVLEN] = iov_at + i * 16, 1
            msgs[word + mmsg.CONTROL] = control_at + i * _GRO.size
        self._name_sizes = mmsg.column([_NAME] * COUNT)
        self._control_sizes = mmsg.column([_GRO.size] * COUNT)
        self._make_room(COUNT)

    def _make_room(self, count: int) -> None:
        """Tell the kernel the room for names and control messages, as it has written what it used."""
        msgs, end = self._msgs, count * mmsg.WORDS
        msgs[mmsg.NAMELEN : end : mmsg.WORDS] = self._name_sizes[:count]
        msgs[mmsg.CONTROLLEN : end : mmsg.WORDS] = self._control_sizes[:count]

    def receive(self, sock: socket.socket) -> list[Received]:
        """Return the datagrams that wait, at most COUNT. Never blocks; an error of the socket ends it."""
        msgs = self._msgs
        count = mmsg.recvmmsg(sock.fileno(), self._pointer, COUNT, mmsg.MSG_DONTWAIT, None)
        if count <= 0:
            return []
        end = count * mmsg.WORDS
        lengths = msgs[mmsg.LEN : end : mmsg.WORDS].tolist()
        controls = msgs[mmsg.CONTROLLEN : end : mmsg.WORDS].tolist()
        self._make_room(count)
        octets, names, received = self._octets, self._names, []
        for i, (length, control) in enumerate(zip(lengths, controls, strict=True)):
            at, name = i * _DATAGRAM, i * _NAME
            if names[name] == socket.AF_INET:
                sender = bytes(names[name + 2 : name + 8])
            else:
                sender = bytes(names[name + 2 : name + 4]) + bytes(names[name + 8 : name + 24])
            length &= 0xFFFF_FFFF
            size = _GRO.unpack_from(self._control, i * _GRO.size)[3] if control else 0
            received.append((octets[at : at + length], sender, size if size < length else 0))
        return received


def sender_of(host: str, port: int) -> bytes:
    """Return a socket address as receive() gives it: the port, then the IP address, in network order."""
    text, _, _ = host.partition("%")
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    return port.to_bytes(2, "big") + socket.inet_pton(family, text)
