"""The fast full-duplex channel between VTL processes (paper section 2.2): one frame a message.

A unix SEQPACKET socket that carries frames with their virtio_net_hdr, so that super-segments pass whole.
One end listens (channel:PATH,server), the other connects. An empty message ends the connection.

The other end is a process of the same user or of root: the socket's file is for its owner only. Still,
what it says of a frame is checked, since links further on would trip over it.

Without privilege the socket's buffer holds net.core.wmem_max octets; 8 MiB keep bursts of large frames.
"""

import socket
from typing import Final

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.datagram import Inbox, leave_out, send_messages
from vtl_tools.common.device.peer import SocketPeer
from vtl_tools.common.device.plain import ETHERNET
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.vnet import VNET

_MINIMUM: Final = VNET + ETHERNET

_GSO_TYPES: Final = frozenset(
    (
        vnet.GSO_TCPV4,
        vnet.GSO_TCPV6,
        vnet.GSO_TCPV4 | vnet.GSO_ECN,
        vnet.GSO_TCPV6 | vnet.GSO_ECN,
        vnet.GSO_UDP,
        vnet.GSO_UDP_L4,
    )
)


class ChannelDevice(Device):
    """One end of a channel.

    server: listen rather than connect; one client at a time, others wait until it leaves.
    """

    offload = True

    def __init__(self, spec: str, path: str, *, server: bool = False) -> None:
        super().__init__(spec)
        self._peer = SocketPeer(self, path, socket.SOCK_SEQPACKET, server=server)
        self._batch = Batch()
        self._inbox = Inbox(self._batch, 0, _MINIMUM)

    def connect(self) -> None:
        """Listen, or begin to connect: a peer that is not there yet is waited for."""
        self._peer.open()

    def read(self) -> Batch:
        """Receive up to a batch of frames."""
        batch = self._batch
        if self._peer.sock is None and not self._peer.look():
            batch.clear()
            return batch
        assert self._peer.sock is not None
        try:
            bad = self._inbox.receive(self._peer.sock.fileno())
        except OSError as e:
            self._peer.lose(e.strerror)
            return batch
        if Drop.RUNT in bad.values() and 0 in (lengths := batch.lengths.tolist()):
            batch.count = lengths.index(0)
            bad = {i: reason for i, reason in bad.items() if i < batch.count}
            self._peer.lose("the other end closed it")
        if not batch.is_plain:
            for i, frame in enumerate(batch):
                if i not in bad and not _is_sane(frame):
                    bad[i] = Drop.MALFORMED
        leave_out(self, batch, bad)
        return self.received(batch)

    def write(self, batch: Batch) -> int:
        """Send a batch as it is."""
        if self._peer.sock is None:
            return self.refused(batch, Drop.LINK_DOWN)
        if batch and min(lengths := batch.lengths.tolist()) < _MINIMUM:
            whole = [i for i, length in enumerate(lengths) if length >= _MINIMUM]
            self.drops[Drop.RUNT] += batch.count - len(whole)
            if not whole:
                return 0
            batch = Batch.of(batch[i] for i in whole)
        taken = send_messages(self, self._peer.sock.fileno(), batch, batch.msgs_address)
        if not self.up:
            self._peer.lose("the other end closed it")
        return taken

    def close(self) -> None:
        """Hang up. Idempotent."""
        self._peer.close()
        super().close()


def _is_sane(frame: memoryview) -> bool:
    """Whether a virtio_net_hdr is one that Linux takes for a frame of this size (virtio_net_hdr_to_skb)."""
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = vnet.HEADER.unpack_from(frame)
    size = len(frame) - VNET
    if flags & ~(vnet.F_NEEDS_CSUM | vnet.F_DATA_VALID):
        return False
    if flags & vnet.F_NEEDS_CSUM and not ETHERNET <= csum_start <= size - csum_offset - 2:
        return False
    return not gso_type or (gso_type in _GSO_TYPES and gso_size > 0 and hdr_len <= size)
