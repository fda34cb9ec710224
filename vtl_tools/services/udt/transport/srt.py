"""Connections of SRT in file mode: libsrt by ctypes, in a process beside the service. Optional.

It descends from UDT, with a quicker recovery from losses. UDT and SRT cannot share a UDP port.
"""

import ctypes
import ctypes.util
import errno
import socket
import struct
from typing import Any, Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.session.base import Address, PacketCounts
from vtl_tools.services.udt.transport.blocking import (
    LISTENING,
    LISTENING_SENDS,
    BlockingConnection,
    BlockingLibrary,
    LibrarySizes,
)
from vtl_tools.services.udt.transport.companion import CompanionTransport
from vtl_tools.services.udt.transport.library_totals import LibraryTotals

_NAMES: Final = ("libsrt-gnutls.so.1.5", "libsrt-openssl.so.1.5", "libsrt.so.1.5", "libsrt.so.1")
_REMEDY: Final = "srt: libsrt is not installed; apt install libsrt1.5-gnutls"
_MSS, _FC, _SNDBUF, _RCVBUF, _NAKREPORT, _TRANSTYPE = 0, 4, 5, 6, 33, 50  # SRTO_*
_FILE: Final = 1  # SRTT_FILE
_BACKLOG: Final = 128
_ADDRESS: Final = 28  # struct sockaddr_in6, the longer one


def _load() -> Any:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise OSError(errno.ENOENT, _REMEDY)


class SRTLibrary:
    """libsrt, as the process uses it."""

    name = "srt"

    def __init__(self, sizes: LibrarySizes) -> None:
        self._sizes = sizes
        self._api: Any = None
        self._first = -1
        self._where = b""

    def open(self, udp: socket.socket) -> None:
        """Load it, and take over a UDP socket."""
        self._api = _load()
        self._api.srt_startup()
        self._where = _pack(udp.getsockname()[:2])
        self._first = self._make(LISTENING, LISTENING_SENDS)
        self._checked(self._api.srt_bind_acquire(self._first, udp.detach()))

    def _make(self, packets: int, sends: int) -> int:
        number = self._checked(self._api.srt_create_socket())
        sizes = self._sizes
        choices = {
            _TRANSTYPE: _FILE,  # first, since it sets all the others
            _MSS: sizes.mss, _FC: packets, _SNDBUF: sizes.octets(sends), _RCVBUF: sizes.octets(packets),
            _NAKREPORT: 1,  # else a packet that is lost twice waits for a time-out
        }  # fmt: skip
        for option, value in choices.items():
            held = ctypes.c_int(value)
            self._checked(self._api.srt_setsockflag(number, option, ctypes.byref(held), ctypes.sizeof(held)))
        return number

    def _checked(self, result: int) -> int:
        if result < 0:
            code = ctypes.c_int(0)
            self._api.srt_getlasterror(ctypes.byref(code))
            raise OSError(code.value or errno.EIO, "srt")
        return result

    def connect(self, address: Address, packets: int) -> BlockingConnection:
        """Connect."""
        number = self._make(packets, packets)
        name = _pack(address)
        try:
            if len(name) == len(self._where):  # of one family: share the port, its buffers and threads
                self._checked(self._api.srt_bind(number, self._where, len(self._where)))
            self._checked(self._api.srt_connect(number, name, len(name)))
        except OSError:
            self._api.srt_close(number)
            raise
        return _SRTConnection(self._api, number)

    def listen(self) -> None:
        """Listen on the port."""
        self._checked(self._api.srt_listen(self._first, _BACKLOG))

    def accept(self) -> tuple[BlockingConnection, Address]:
        """Return the next connection."""
        name, size = ctypes.create_string_buffer(_ADDRESS), ctypes.c_int(_ADDRESS)
        number = self._checked(self._api.srt_accept(self._first, name, ctypes.byref(size)))
        return _SRTConnection(self._api, number), _unpack(name.raw[: size.value])


class _SRTConnection:
    def __init__(self, api: Any, number: int) -> None:
        self._api, self._number = api, number

    def _checked(self, result: int) -> int:
        if result < 0:
            raise OSError(errno.ECONNRESET, "srt")
        return result

    def send(self, octets: memoryview) -> int:
        held = (ctypes.c_char * len(octets)).from_buffer(octets)
        return self._checked(self._api.srt_send(self._number, held, len(octets)))

    def recv_into(self, room: memoryview) -> int:
        held = (ctypes.c_char * len(room)).from_buffer(room)
        return self._checked(self._api.srt_recv(self._number, held, len(room)))

    def packets(self) -> PacketCounts:
        seen = LibraryTotals()
        if self._api.srt_bistats(self._number, ctypes.byref(seen), 0, 1):
            return PacketCounts()
        heard = seen.received + seen.acks_received + seen.naks_received
        return PacketCounts(seen.sent + seen.received, seen.send_loss + seen.receive_loss, heard)

    def close(self) -> None:
        self._api.srt_close(self._number)


def _pack(address: Address) -> bytes:
    """Return struct sockaddr_in or sockaddr_in6."""
    host, port = address
    if ":" in host:
        return (
            struct.pack("=H", socket.AF_INET6)
            + struct.pack("!HI", port, 0)
            + (socket.inet_pton(socket.AF_INET6, host) + bytes(4))
        )
    return struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host) + bytes(8)


def _unpack(name: bytes) -> Address:
    (family,), (port,) = struct.unpack_from("=H", name), struct.unpack_from("!H", name, 2)
    if family == socket.AF_INET6:
        return socket.inet_ntop(socket.AF_INET6, name[8:24]), port
    return socket.inet_ntoa(name[4:8]), port


class SRTTransport(CompanionTransport):
    """SRT."""

    name = "srt"

    def check(self) -> None:
        """Raise VTLError if the library is not installed."""
        try:
            _load()
        except OSError:
            raise VTLError(_REMEDY) from None

    def library(self) -> BlockingLibrary:
        """Return the library, for a process."""
        return SRTLibrary(self.sizes)
