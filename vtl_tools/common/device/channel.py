"""Full-duplex channel between two VTL processes (paper section 2.2): one frame per message.

A unix SEQPACKET socket that carries frames with their virtio_net_hdr, so that super-segments stay whole.
One end listens (channel:PATH,server), the other connects. An empty message ends the connection.

The other end is a process of the same user or of root: only the owner may open the socket's file. Its
virtio_net_hdr is validated all the same, since links further on rely on it.

Without privilege the socket's buffer is limited to net.core.wmem_max octets; 8 MiB hold bursts of large
frames.
"""

import socket
from typing import Final

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.datagram import Inbox, drop_frames, send_messages
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

    server: listen instead of connecting. One client at a time; others wait until it disconnects.
    """

    offload = True

    def __init__(self, spec: str, path: str, *, server: bool = False) -> None:
        super().__init__(spec)
        self._peer = SocketPeer(self, path, socket.SOCK_SEQPACKET, server=server)
        self._batch = Batch()
        self._inbox = Inbox(self._batch, 0, _MINIMUM)

    def connect(self) -> None:
        """Listen, or start to connect: an absent peer is waited for."""
        self._peer.open()

    def read(self) -> Batch:
        """Receive up to a batch of frames."""
        batch = self._batch
        if self._peer.sock is None and not self._peer.poll():
            batch.clear()
            return batch
        assert self._peer.sock is not None
        try:
            bad = self._inbox.receive(self._peer.sock.fileno())
        except OSError as e:
            self._peer.disconnect(e.strerror)
            return batch
        if Drop.RUNT in bad.values() and 0 in (lengths := batch.lengths.tolist()):
            batch.count = lengths.index(0)
            bad = {i: reason for i, reason in bad.items() if i < batch.count}
            self._peer.disconnect("the other end closed it")
        if not batch.is_plain:
            for i, frame in enumerate(batch):
                if i not in bad and not is_sane(frame):
                    bad[i] = Drop.MALFORMED
        drop_frames(self, batch, bad)
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
            self._peer.disconnect("the other end closed it")
        return taken

    def close(self) -> None:
        """Disconnect. Idempotent."""
        self._peer.close()
        super().close()


def is_sane(frame: memoryview) -> bool:
    """Return whether Linux accepts this virtio_net_hdr for a frame of this size (virtio_net_hdr_to_skb)."""
    flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = vnet.HEADER.unpack_from(frame)
    size = len(frame) - VNET
    if flags & ~(vnet.F_NEEDS_CSUM | vnet.F_DATA_VALID):
        return False
    if flags & vnet.F_NEEDS_CSUM and not ETHERNET <= csum_start <= size - csum_offset - 2:
        return False
    return not gso_type or (gso_type in _GSO_TYPES and gso_size > 0 and hdr_len <= size)
