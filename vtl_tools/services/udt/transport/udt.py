"""Connections of UDT: udt4py over libudt, in a process beside the service. IPv4 only.

The library is handled with care, since it has traps:

* All connections of a process are bound to one UDP port: they share two threads instead of having two each.
* UDT_LINGER is never set: with any value, close() discards what was not sent yet.
* UDT_CC is never set: it crashes. So the congestion control is UDT's own, which slows down at each loss.
* Its epoll raises error 6003 on a time-out, and tells of no closed or dead peer: each direction of a
  connection has a blocking thread instead.
* It takes 48 seconds to notice a dead peer: the heartbeat of the session notices it.
* It has no half-close: END of a flow is a frame of the session.
* perfmon() of udt4py always fails: the function of libudt is called by ctypes.
* A call on a socket that another thread closed raises TypeError or EINVSOCK.
"""

import ctypes
import errno
import importlib.util
import socket
from typing import Any, Final

from vtl_tools.common.errors import SpecError, VTLError
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

_REMEDY: Final = "udt: udt4py is not installed; apt install libudt-dev, then pip install 'vtl-tools[udt]'"
_PERFMON: Final = "_ZN3UDT7perfmonEiP8CPerfMonb"  # UDT::perfmon(int, CPerfMon*, bool)
_ERRNO: Final = {1001: errno.ETIMEDOUT, 1002: errno.ECONNREFUSED, 2001: errno.ECONNRESET}


class UDTLibrary:
    """libudt, as the process uses it."""

    name = "udt"

    def __init__(self, sizes: LibrarySizes) -> None:
        self._sizes = sizes
        self._api: Any = None
        self._perfmon: Any = None
        self._where: Address = ("", 0)
        self._first: Any = None

    def open(self, udp: socket.socket) -> None:
        """Import it, and take over a UDP socket."""
        import udt4py

        self._api = udt4py
        try:
            self._perfmon = getattr(ctypes.CDLL("libudt.so.0"), _PERFMON)
            self._perfmon.argtypes = [ctypes.c_int, ctypes.POINTER(LibraryTotals), ctypes.c_bool]
        except (OSError, AttributeError):
            pass  # another libudt: loss is not known
        self._where = udp.getsockname()
        self._first = self._make(LISTENING, LISTENING_SENDS)  # holds the port, and listens if asked to
        _checked(self._first.bind, udp.detach())

    def _make(self, packets: int, sends: int) -> Any:
        sizes, sock = self._sizes, self._api.UDTSocket()
        sock.UDT_MSS = sizes.mss
        sock.UDT_FC = packets
        sock.UDT_SNDBUF = sizes.octets(sends)
        sock.UDT_RCVBUF = sizes.octets(packets)
        return sock

    def connect(self, address: Address, packets: int) -> BlockingConnection:
        """Connect from the common port."""
        sock = self._make(packets, packets)
        _checked(sock.bind, self._where)
        _checked(sock.connect, address)
        return _UDTConnection(sock, self._perfmon)

    def listen(self) -> None:
        """Listen on the port."""
        _checked(self._first.listen)

    def accept(self) -> tuple[BlockingConnection, Address]:
        """Return the next connection."""
        sock, address = _checked(self._first.accept)
        return _UDTConnection(sock, self._perfmon), address


class _UDTConnection:
    def __init__(self, sock: Any, perfmon: Any) -> None:
        self._sock, self._perfmon = sock, perfmon

    def send(self, octets: memoryview) -> int:
        return int(_checked(self._sock.send, octets))

    def recv_into(self, room: memoryview) -> int:
        return int(_checked(self._sock.recv, room))

    def packets(self) -> PacketCounts:
        number, seen = self._sock.socket, LibraryTotals()
        if self._perfmon is None or number is None or self._perfmon(number, ctypes.byref(seen), False):
            return PacketCounts()
        heard = seen.received + seen.acks_received + seen.naks_received
        return PacketCounts(seen.sent + seen.received, seen.send_loss + seen.receive_loss, heard)

    def close(self) -> None:
        _checked(self._sock.close)


def _checked(function: Any, *args: Any) -> Any:
    """Call a function of udt4py; its errors become OSError."""
    try:
        return function(*args)
    except (TypeError, ValueError) as e:
        raise OSError(errno.EBADF, str(e)) from None
    except Exception as e:
        code = getattr(e, "error_code", None)
        if code is None:
            raise
        raise OSError(_ERRNO.get(code, errno.EIO), str(e)) from None


class UDTTransport(CompanionTransport):
    """UDT."""

    name = "udt"

    def check(self) -> None:
        """Raise VTLError if the library is not installed."""
        if importlib.util.find_spec("udt4py") is None:
            raise VTLError(_REMEDY)

    def library(self) -> BlockingLibrary:
        """Return the library, for a process."""
        return UDTLibrary(self.sizes)

    def check_address(self, address: Address) -> None:
        """Raise SpecError for IPv6."""
        if ":" in address[0]:
            raise SpecError(f"[{address[0]}]:{address[1]}: udt carries IPv4 only; use --transport tcp")
