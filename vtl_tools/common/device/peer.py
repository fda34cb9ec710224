"""The connection of a link to its one peer: connects until it succeeds, or listens and accepts."""

import contextlib
import errno
import logging
import os
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from vtl_tools.common.device.base import RETRY_S, Device
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.host import broker

log = logging.getLogger(__name__)

Address: TypeAlias = str | tuple[str, int]
"""The path of a unix socket, or host and port."""

SocketAddress: TypeAlias = str | tuple[Any, ...]
"""An argument of bind() and connect(): a path, or a numeric address."""

BUFFER = 8 << 20
"""Octets of a unix socket's buffer per direction. Without privilege, net.core.wmem_max is the limit."""

_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33


class SocketPeer:
    """Maintains the one connection of a device. The device's read() calls poll() while sock is None.

    A server takes one client at a time. As in QEMU, further ones wait in the backlog until it disconnects.
    """

    def __init__(self, device: Device, address: Address, kind: socket.SocketKind, *, server: bool) -> None:
        self.sock: socket.socket | None = None
        self._device, self._address, self._kind, self._server = device, address, kind, server
        self._family = socket.AF_UNIX
        self._where: SocketAddress = address
        self._waiting: socket.socket | None = None  # listening, or connecting
        self._door = broker.UnixTarget(address) if isinstance(address, str) and not server else None
        self._file: SocketFile | None = None

    def open(self) -> None:
        """Start. An absent peer is waited for. Raises DeviceError for errors that persist."""
        spec = self._device.spec
        try:
            with translated_errors(spec):
                self._family, self._where = resolve(spec, self._address, self._kind)
                if self._server:
                    self._listen()
                else:
                    self._connect()
        except BaseException:
            self.close()
            raise
        if self.sock is None:
            log.info("%s: waiting for the other end", spec)

    def _listen(self) -> None:
        sock = socket.socket(self._family, self._kind | socket.SOCK_NONBLOCK)
        self._waiting = sock
        if isinstance(self._where, str):
            self._file = SocketFile(self._device.spec, sock, self._where)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(self._where)
        sock.listen(1)
        self._device.handle.watch(sock.fileno())

    def _connect(self) -> None:
        sock = self._waiting or socket.socket(self._family, self._kind | socket.SOCK_NONBLOCK)
        self._waiting = sock
        handle = self._device.handle
        # A second connect() returns the result of the one in progress.
        code = sock.connect_ex(self._where) if self._door is None else self._door.connect_ex(sock)
        if code in (errno.EINPROGRESS, errno.EALREADY):
            handle.watch(sock.fileno(), write=True)
            return
        self._waiting = None
        with contextlib.suppress(FileNotFoundError):
            handle.forget(sock.fileno())
        if code == 0 and (self._family == socket.AF_UNIX or not _reached_itself(sock)):
            self._take(sock)
            return
        sock.close()
        handle.alarm(RETRY_S)
        if code in (errno.EACCES, errno.EPERM, errno.EPROTOTYPE, errno.ENOTSOCK):
            raise OSError(code, os.strerror(code))

    def poll(self) -> bool:
        """Accept or connect if the peer is there. Return whether it is. Never blocks or raises."""
        alarm_expired = self._device.handle.alarm_expired()
        try:
            if self._server:
                self._accept(alarm_expired)
            elif self._waiting or alarm_expired:
                self._connect()
        except BlockingIOError:
            pass
        except OSError:  # no permission for now, or out of descriptors: try again
            if self._server and self._waiting:
                self._device.handle.forget(self._waiting.fileno())
            self._device.handle.alarm(RETRY_S)
        return self.sock is not None

    def _accept(self, alarm_expired: bool) -> None:
        assert self._waiting is not None
        if alarm_expired:
            self._device.handle.watch(self._waiting.fileno())
        sock, _ = self._waiting.accept()
        sock.setblocking(False)
        self._device.handle.forget(self._waiting.fileno())
        self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        if self._family == socket.AF_UNIX:
            enlarge(sock, BUFFER)
        else:  # TCP buffers grow by themselves, unless they are set
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.sock = sock
        self._device.handle.watch(sock.fileno())
        self._device.went_up()

    def process(self) -> str:
        """Return the process at the other end of a unix socket; "": nothing tells.

        A guest may make its hypervisor connect again, but not from another process.
        """
        if self.sock is None or self._family != socket.AF_UNIX:
            return ""
        pid, _, _ = struct.unpack("iii", self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"process {pid}" if pid else ""  # 0: of a PID namespace that is not within ours

    def disconnect(self, why: object) -> None:
        """Close the connection and wait for another."""
        assert self.sock is not None
        self._device.handle.forget(self.sock.fileno())
        self.sock.close()
        self.sock = None
        if self._server and self._waiting:
            self._device.handle.watch(self._waiting.fileno())
        self._device.went_down(why)

    def close(self) -> None:
        """Disconnect, and remove a listening socket's file. Idempotent."""
        for sock in self.sock, self._waiting:
            if sock is not None:
                sock.close()
        self.sock = self._waiting = None
        if self._file:
            self._file.remove()


def _reached_itself(sock: socket.socket) -> bool:
    """Return whether a TCP socket is connected to itself, by a port of its own host, or disconnected."""
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return True


class SocketFile:
    """The file of a bound unix socket, of mode 0600, removed only while it is ours."""

    def __init__(self, spec: str, sock: socket.socket, path: str) -> None:
        """Bind. Replaces the file of a socket that no process serves any more, and no other file."""
        os.fchmod(sock.fileno(), 0o600)  # before bind(): the file never has another mode
        try:
            sock.bind(path)
        except OSError as e:
            if e.errno != errno.EADDRINUSE:
                raise
            self._clear_away(spec, sock.type, path)
            sock.bind(path)
        self._made = broker.OwnSocket(path)

    @staticmethod
    def _clear_away(spec: str, kind: socket.SocketKind, path: str) -> None:
        if not stat.S_ISSOCK(Path(path).lstat().st_mode):
            raise DeviceError(f"{spec}: {path} exists and is not a socket; name another path")
        with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
            if probe.connect_ex(path) != errno.ECONNREFUSED:
                raise DeviceError(f"{spec}: another process serves {path}; stop it or name another path")
        Path(path).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the file, unless it is gone or was replaced. Idempotent."""
        self._made.remove()


@contextlib.contextmanager
def translated_errors(spec: str) -> Iterator[None]:
    """Translate OSError to DeviceError or PermissionNeededError."""
    try:
        yield
    except PermissionError as e:
        raise PermissionNeededError(f"{spec}: {e.strerror}; run as root or as the socket's owner") from None
    except OSError as e:
        raise DeviceError(f"{spec}: {e.strerror or e}; check the address") from None


def resolve(
    spec: str, address: Address, kind: socket.SocketKind
) -> tuple[socket.AddressFamily, SocketAddress]:
    """Return the address family and the address to bind or connect to. May block in the resolver."""
    if isinstance(address, str):
        directory = Path(address).parent
        if not directory.is_dir():
            raise DeviceError(f"{spec}: there is no directory {directory}; create it first")
        return socket.AF_UNIX, address
    try:
        family, _, _, _, where = socket.getaddrinfo(*address, type=kind)[0]
    except OSError as e:
        raise DeviceError(f"{spec}: {address[0]}: {e.strerror}; write a known host or its address") from None
    return family, where


def enlarge(sock: socket.socket, octets: int) -> None:
    """Set a socket's buffers to so many octets, or to the system's limit."""
    for force, option in ((_SO_SNDBUFFORCE, socket.SO_SNDBUF), (_SO_RCVBUFFORCE, socket.SO_RCVBUF)):
        try:
            sock.setsockopt(socket.SOL_SOCKET, force, octets)
        except PermissionError:
            sock.setsockopt(socket.SOL_SOCKET, option, octets)
