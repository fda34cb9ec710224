"""A link over a byte stream, framed as by QEMU's -netdev stream (QEMU net/net.c). Needs no root.

The length in octets precedes each Ethernet frame, four octets, most significant first. There is no
greeting. passt, gvproxy and libkrun use the same protocol. Over TCP there is no authentication: every host
that reaches the port is on the link, so listen on addresses that only the hypervisor reaches.
"""

import socket
import struct
from typing import Final

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import FRAME_MAX, SLOTS, Batch
from vtl_tools.common.device.peer import Address, SocketPeer
from vtl_tools.common.device.plain import ETHERNET, Plain
from vtl_tools.common.packet.vnet import VNET

LENGTH: Final = struct.Struct("!I")

LENGTH_MAX: Final = 4096 + 65536
"""Octets of the longest frame that QEMU accepts (NET_BUFSIZE). A longer one means a broken stream."""

BUFFER: Final = 256 << 10
"""Octets of the receive buffer."""


class StreamDevice(Device):
    """One end of QEMU's -netdev stream.

    server: listen instead of connecting. One client at a time; others wait until it disconnects.
    """

    def __init__(self, spec: str, address: Address, *, server: bool = False) -> None:
        super().__init__(spec)
        self._peer = SocketPeer(self, address, socket.SOCK_STREAM, server=server)
        self._batch = Batch()
        self._plain = Plain(self)
        self._buffer = memoryview(bytearray(BUFFER))
        self._at = self._end = 0  # the octets received and not yet returned
        self._more = False  # they contain whole frames
        self._unsent = b""  # the rest of a frame whose beginning was sent

    def connect(self) -> None:
        """Listen, or start to connect: an absent peer is waited for."""
        self._peer.open()

    def read(self) -> Batch:
        """Receive up to a batch of frames."""
        batch = self._batch
        batch.clear()
        sock = self._peer.sock
        if sock is None:
            if not self._peer.poll():
                return batch
            self._at = self._end = 0
            self._more, self._unsent = False, b""
            sock = self._peer.sock
            assert sock is not None
        if self._unsent:
            self._flush(sock)
        if not self._more and self._peer.sock and not self._fill(sock):
            return batch
        self._take_frames(batch)
        return self.received(batch)

    def occupant(self) -> str:
        """Return the process at the other end of a unix socket; see SocketPeer.process()."""
        return self._peer.process()

    def _fill(self, sock: socket.socket) -> bool:
        """Receive once; return whether something came."""
        if self._at == self._end:
            self._at = self._end = 0
        elif BUFFER - self._end < LENGTH.size + LENGTH_MAX:
            self._buffer[: self._end - self._at] = self._buffer[self._at : self._end]
            self._at, self._end = 0, self._end - self._at
        try:
            n = sock.recv_into(self._buffer[self._end :])
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as e:
            self._lose(e.strerror)
            return False
        if n == 0:
            self._lose("the other end closed it")
        self._end += n
        return n > 0

    def _take_frames(self, batch: Batch) -> None:
        """Copy whole frames from the buffer into the batch."""
        buffer, at, end = self._buffer, self._at, self._end
        rung, self._more = self._more, False
        while end - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(buffer, at)
            start = at + LENGTH.size
            if start + length > end:
                if length > LENGTH_MAX:
                    self.drops[Drop.TOO_BIG] += 1
                    self._lose(f"it announced a frame of {length} octets")
                    return
                break
            if batch.count == SLOTS:
                self._more = True
                break
            at = start + length
            if length < ETHERNET:
                self.drops[Drop.RUNT] += 1
            elif length > FRAME_MAX - VNET:
                self.drops[Drop.TOO_BIG] += 1
            else:
                batch.append_plain(buffer[start:at])
        self._at = at
        # The socket may have no more input, so the frames left here must wake the reader.
        if self._more and not rung:
            self.handle.wake()
        elif rung and not self._more:
            self.handle.alarm_expired()

    def write(self, batch: Batch) -> int:
        """Send as plain frames, as much as the socket has room for, in one system call per batch."""
        sock = self._peer.sock
        if sock is None:
            return self.refused(batch, Drop.LINK_DOWN)
        return sum(self._send(plain) for plain in self._plain(batch))

    def _send(self, batch: Batch) -> int:
        sock = self._peer.sock
        if sock is None:
            return self.refused(batch, Drop.LINK_DOWN)
        if self._unsent:
            self._flush(sock)
            if self._unsent or self._peer.sock is None:
                return self.refused(batch, Drop.QUEUE_FULL)
        pieces: list[bytes | memoryview] = []
        for frame in batch:
            pieces += (LENGTH.pack(len(frame) - VNET), frame[VNET:])
        try:
            sent = sock.sendmsg(pieces)
        except (BlockingIOError, InterruptedError):
            return self.refused(batch, Drop.QUEUE_FULL)
        except OSError as e:
            self._lose(e.strerror)
            return self.refused(batch, Drop.LINK_DOWN)
        if sent == batch.octets + LENGTH.size * batch.count:
            return self.sent(batch)
        return self._cut_off(batch, sent, sock)

    def _cut_off(self, batch: Batch, sent: int, sock: socket.socket) -> int:
        """Keep the rest of the frame that the socket took in part: it took only the first `sent` octets."""
        taken = octets = 0
        for frame in batch:
            if sent <= 0:
                break
            whole = LENGTH.size + len(frame) - VNET
            if sent < whole:
                self._unsent = (LENGTH.pack(len(frame) - VNET) + frame[VNET:])[sent:]
                self.handle.watch(sock.fileno(), write=True)
            sent -= whole
            taken += 1
            octets += len(frame) - VNET
        lost = batch.count - taken
        self.drops[Drop.QUEUE_FULL] += lost
        return self.sent(batch, lost, batch.octets - octets)

    def _flush(self, sock: socket.socket) -> None:
        try:
            self._unsent = self._unsent[sock.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            return
        except OSError as e:
            self._lose(e.strerror)
            return
        if not self._unsent:
            self.handle.watch(sock.fileno())

    def _lose(self, why: object) -> None:
        self._at = self._end = 0
        self._more, self._unsent = False, b""
        self._peer.disconnect(why)

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._peer.close()
        super().close()
