"""A link of datagrams, compatible with QEMU's -netdev dgram: one Ethernet frame each, UDP or unix sockets.

Both ends have an address and know the other's. The socket is connected, so that the kernel passes on
only the peer's datagrams. Only the owner may open a unix socket's file.

Over unix sockets the receiver's queue is short: net.unix.max_dgram_qlen datagrams, 10 by default.
"""

import errno
import socket
from typing import Final

from vtl_tools.common.device.base import RETRY_S, Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.datagram import Inbox, Outbox, drop_frames
from vtl_tools.common.device.peer import (
    BUFFER,
    Address,
    SocketAddress,
    SocketFile,
    enlarge,
    resolve,
    translated_errors,
)
from vtl_tools.common.device.plain import ETHERNET, Plain
from vtl_tools.common.host import broker
from vtl_tools.common.packet.vnet import VNET

CHECK_S: Final = 1.0
"""Seconds between checks that a unix peer is still there, as one that only sends is not missed otherwise."""

UDP_MAX: Final = 65507
"""Size of the largest UDP datagram over IPv4 in octets."""


class DgramDevice(Device):
    """One end of QEMU's -netdev dgram.

    A unix peer is up while its socket exists. A UDP peer is down while there is no route to it, and once its
    host refuses a datagram, until a datagram comes from it. Frames are sent to it all the same.
    """

    def __init__(self, spec: str, remote: Address, local: Address) -> None:
        super().__init__(spec)
        self._remote, self._local = remote, local
        self._unix = isinstance(remote, str)
        if not self._unix:
            self.mtu = UDP_MAX - ETHERNET
        self._where: SocketAddress = remote
        self._door = broker.UnixTarget(remote) if isinstance(remote, str) else None
        self._is_connected = False
        self._sock: socket.socket | None = None
        self._file: SocketFile | None = None
        self._batch = Batch()
        self._inbox = Inbox(self._batch, VNET, ETHERNET)
        self._outbox = Outbox(VNET)
        self._plain = Plain(self)

    def connect(self) -> None:
        """Bind the own address. An absent unix peer is waited for."""
        with translated_errors(self.spec):
            family, self._where = resolve(self.spec, self._remote, socket.SOCK_DGRAM)
            _, local = resolve(self.spec, self._local, socket.SOCK_DGRAM)
            sock = self._sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            enlarge(sock, BUFFER)
            if isinstance(local, str):
                self._file = SocketFile(self.spec, sock, local)
            else:
                sock.bind(local)
            self.handle.watch(sock.fileno())
            self._reach()

    def _reach(self) -> None:
        """Connect, or connect again to the socket now at the peer's path. Raises PermissionError."""
        assert self._sock is not None
        code = self._sock.connect_ex(self._where) if self._door is None else self._door.connect_ex(self._sock)
        if code == 0 and not self.up:
            self._drain()
            self._is_connected = True
            self.went_up()
        elif code:
            if code == errno.EACCES and not self.up:
                raise PermissionError(code, "not permitted to send to the peer")
            self.went_down("the peer's socket does not exist")
        if self._unix or code:
            self.handle.alarm(CHECK_S if self.up else RETRY_S)

    def _drain(self) -> None:
        """Discard datagrams from before the socket was connected, when anybody could send to it."""
        assert self._sock is not None
        try:
            while True:
                self._sock.recv(1)
                self.drops[Drop.FOREIGN] += 1
        except OSError:
            return

    def read(self) -> Batch:
        """Receive up to a batch of frames."""
        assert self._sock is not None
        batch = self._batch
        if (
            (self._unix or not self.up)
            and self.handle.alarm_expired()
            and (self._unix or not self._is_connected)
        ):
            try:
                self._reach()
            except PermissionError:
                self.handle.alarm(RETRY_S)
        try:
            bad = self._inbox.receive(self._sock.fileno())
        except OSError as e:
            self.went_down(e.strerror)
            return batch
        if not batch:
            return batch
        if not self.up:
            if self._unix or not self._is_connected:
                bad = dict.fromkeys(range(batch.count), Drop.FOREIGN)
            else:
                self.went_up()
        batch.make_plain()
        drop_frames(self, batch, bad)
        return self.received(batch)

    def write(self, batch: Batch) -> int:
        """Send a batch as plain frames."""
        return sum(self._send(plain) for plain in self._plain(batch))

    def _send(self, batch: Batch) -> int:
        if self._sock is None or not self._is_connected or (self._unix and not self.up):
            return self.refused(batch, Drop.LINK_DOWN)
        return self._outbox.send(self, self._sock.fileno(), batch)

    def close(self) -> None:
        """Unbind, and remove a unix socket's file. Idempotent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        if self._file:
            self._file.remove()
        super().close()
