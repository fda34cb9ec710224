"""A link on an existing network interface: AF_PACKET with virtio_net_hdr, in batches (packet(7))."""

import errno
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Sequence
from typing import Final

from vtl_tools.common.device import bpf, mmsg
from vtl_tools.common.device.base import RETRY_S, Device, Drop
from vtl_tools.common.device.batch import SLOTS, Batch, PackedBatch, Pieces
from vtl_tools.common.device.gathered import GatheredSender
from vtl_tools.common.device.packet_io import PacketReceiver, send_each
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.host import interface, privilege
from vtl_tools.common.packet import vnet

log = logging.getLogger(__name__)

_SOL_PACKET: Final = 263
_ADD_MEMBERSHIP: Final = 1
_STATISTICS: Final = 6
_AUXDATA: Final = 8
_VNET_HDR: Final = 15
_FANOUT: Final = 18
_IGNORE_OUTGOING: Final = 23
_MR_PROMISC: Final = 1
_FANOUT_HASH: Final = 0  # of the flow, and symmetric: the same worker gets both directions
_ETH_P_ALL: Final = 3
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFMTU: Final = 0x8921
_IFF_UP: Final = 1

BUFFER: Final = 32 << 20
"""Octets of socket buffer per direction: a burst waits in the kernel while another link is served."""
_SOURCES_BATCHES: Final = 1000
"""Batches after the opening of a shared interface that are searched for a VM with its Ethernet address."""


class PacketDevice(Device):
    """An interface by name. Reopens it after it was set down, or deleted and created again.

    mark: SO_MARK of sent frames, by which the guard tells them from the host's; 0 for none.
    fanout: number of the fanout group of the processes that share this interface's flows; 0 for none.
    receive: False for a link that is only written to, which then spends nothing on incoming frames.
    """

    offload = True
    promiscuous = True
    """Whether frames for other stations are received, too."""

    def __init__(self, name: str, *, mark: int = 0, fanout: int = 0, receive: bool = True) -> None:
        super().__init__(name)
        self.name, self.mark, self.fanout, self.receive = name, mark, fanout, receive
        self.interface = name
        self.silent = not receive
        if fanout:
            self.capabilities = frozenset({privilege.NET_RAW})
        self._receiver = PacketReceiver()
        self._packed, self._gathered = PackedBatch(), GatheredSender()
        self._index = 0
        self._sock: socket.socket | None = None
        self._fd = -1
        self._own_mac = b""
        self._sources_left = 0

    def connect(self) -> None:
        """Bind to the interface in promiscuous mode."""
        if not 0 < len(os.fsencode(self.name)) < 16 or "/" in self.name:
            raise DeviceError(f"{self.name}: not an interface name; see vtl-tools(7) for how links are named")
        index, _ = interface.find(self.name)
        try:
            self._sock = self._open()
            self._bind(index)
        except PermissionError:
            raise PermissionNeededError(
                f"{self.name}: not permitted to open the interface; run as root or with CAP_NET_RAW"
            ) from None
        except OSError as e:
            raise DeviceError(
                f"{self.name}: {e.strerror}; check it with 'ip link show {self.name}'"
            ) from None

    def _open(self) -> socket.socket:
        # Bound to no protocol until all options are set, so that no frame is queued without them.
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        for force, option in ((_SO_RCVBUFFORCE, socket.SO_RCVBUF), (_SO_SNDBUFFORCE, socket.SO_SNDBUF)):
            try:
                sock.setsockopt(socket.SOL_SOCKET, force, BUFFER)
            except PermissionError:
                sock.setsockopt(socket.SOL_SOCKET, option, BUFFER)
        if self.mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
        self._fd = sock.fileno()
        self.handle.watch(self._fd)
        return sock

    def _bind(self, index: int) -> None:
        assert self._sock is not None
        if self.receive:
            self._filter(index)
        self._sock.bind((socket.if_indextoname(index), _ETH_P_ALL if self.receive else 0))
        if self.promiscuous:
            member = struct.pack("iHH8s", index, _MR_PROMISC, 0, b"")
            self._sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, member)
        if self.fanout and self.receive:
            self._sock.setsockopt(_SOL_PACKET, _FANOUT, self.fanout | _FANOUT_HASH << 16)
        self._index = index
        self.mtu = struct.unpack_from("i", self._ask(_SIOCGIFMTU), 16)[0]
        if self._is_up():
            self.went_up()
        else:
            self.up = True  # so that went_down() logs it
            self.went_down("the interface is down")

    def _filter(self, index: int) -> None:
        """Leave out frames that the host sends, since a fanout group hears them, and those for the host."""
        assert self._sock is not None
        if self.shared:
            self._own_mac = interface.mac_of(index)
            own = self._own_mac if interface.is_macvlan(index) else b""
            bpf.attach(self._sock, bpf.incoming_filter(shared=True, own=own, vm=self.vm_mac))
            self._sources_left = 0 if self._own_mac == self.vm_mac else _SOURCES_BATCHES
        elif self.fanout:
            bpf.attach(self._sock, bpf.incoming_filter(shared=False))

    def _ask(self, request: int) -> bytes:
        assert self._sock is not None
        name = socket.if_indextoname(self._index)  # which may have changed
        return fcntl.ioctl(self._sock, request, struct.pack("16s24x", os.fsencode(name)))

    def _is_up(self) -> bool:
        return bool(struct.unpack_from("H", self._ask(_SIOCGIFFLAGS), 16)[0] & _IFF_UP)

    def _look_again(self) -> None:
        """Reopen the interface if it is back after it went down or was deleted."""
        assert self._sock is not None
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            is_renamed = interface.name_of(self._index) is not None
            index = self._index if is_renamed else socket.if_nametoindex(self.name)
            if index == self._index:
                if self._is_up():
                    self.went_up()
                    return
            else:
                if self.fanout:  # a socket in a fanout group cannot be bound again
                    past, self._sock = self._sock, self._open()
                    self.handle.forget(past.fileno())
                    past.close()
                self._bind(index)
                if self.up:
                    return
        except OSError as e:
            self.went_down(e.strerror)
        self.handle.alarm(RETRY_S)

    def read(self) -> Batch:
        """Receive up to a batch of frames. Restores VLAN tags that the kernel has removed."""
        receiver = self._receiver
        batch = receiver.batch
        if not self.up:
            batch.clear()
            if self.handle.alarm_expired():
                self._look_again()
            return batch
        code = receiver.receive(self._fd)
        if code:
            self.went_down(os.strerror(code))
        if receiver.truncated:
            self.drops[Drop.TOO_BIG] += receiver.truncated
            receiver.truncated = 0
        if batch.count:
            self.rx_frames += batch.count
            self.rx_octets += batch.octets
        return batch

    def write(self, batch: Batch) -> int:
        """Send a batch. The kernel segments super-segments and completes partial checksums."""
        count = batch.count
        if not self.up:
            return self.refused(batch, Drop.LINK_DOWN)
        if self._sources_left:
            self._check_sources(batch)
        done = mmsg.sendmmsg(self._fd, batch.msgs_pointer, count, mmsg.MSG_DONTWAIT)
        return self.sent(batch) if done == count else self._write_rest(batch, done, mmsg.errno())

    def _check_sources(self, batch: Batch) -> None:
        """Warn of a VM that has the interface's own Ethernet address: what is for that is the host's."""
        self._sources_left -= 1
        if any(frame[vnet.VNET + 6 : vnet.VNET + 12] == self._own_mac for frame in batch):
            self._sources_left = 0
            log.warning(
                "%s: a VM sends from the interface's own Ethernet address, and frames for that are left to "
                "the host; give the VM an address of its own, or see 'Uplinks' in vtl-tools(7)", self.spec,
            )  # fmt: skip

    def write_pieces(self, frames: Sequence[Pieces]) -> int:
        """Send frames in pieces, which the kernel joins. Frames of one piece go out by one call."""
        count = len(frames)
        if count > 1 and max(map(len, frames)) == 1:
            return sum(self.write(self._packed.pack(frames[i : i + SLOTS])) for i in range(0, count, SLOTS))
        if self._sock is None or not self.up:
            self.drops[Drop.LINK_DOWN] += count
            return 0
        sent = octets = 0
        if 1 < count <= SLOTS:
            together = self._gathered.send(self._fd, frames)
            for result in together:
                if result > 0:
                    octets += result - vnet.VNET
                    sent += 1
                else:
                    self._refuse(-result)
            if together:
                frames = frames[len(together) :]
        if frames:
            more, more_octets = send_each(self._sock, frames, self._refuse)
            sent += more
            octets += more_octets
        self.tx_frames += sent
        self.tx_octets += octets
        return sent

    def _refuse(self, code: int) -> None:
        """Count a frame that was not sent."""
        self.drops[self._why(code)[0]] += 1

    def _write_rest(self, batch: Batch, n: int, code: int) -> int:
        """Continue after sendmmsg stopped early: it sent n frames, or failed at the first (-1) by a code."""
        fd, address, count = self._fd, batch.msgs_address, batch.count
        lost: list[int] = []
        done = max(n, 0)
        while done < count:
            if n < 0:
                reason, at_fault = self._why(code)
                gone = range(done, done + 1 if at_fault else count)
                self.drops[reason] += len(gone)
                lost += gone
                done = gone.stop
                if done == count:
                    break
            rest = mmsg.pointer(address + done * mmsg.MSGHDR_SIZE)
            n, code = mmsg.sendmmsg(fd, rest, count - done, mmsg.MSG_DONTWAIT), mmsg.errno()
            done += max(n, 0)
        return self.sent(batch, len(lost), sum(batch.lengths[i] - vnet.VNET for i in lost))

    def _why(self, code: int) -> tuple[Drop, bool]:
        """Return why a frame was not sent, and whether the frame is the cause; if not, the link is."""
        if code in (errno.EAGAIN, errno.ENOBUFS):
            return Drop.QUEUE_FULL, False
        if code in (errno.ENETDOWN, errno.ENXIO, errno.ENODEV):
            self.went_down(os.strerror(code))
            return Drop.LINK_DOWN, False
        return Drop.TOO_BIG if code == errno.EMSGSIZE else Drop.REFUSED, True

    def occupant(self) -> str:
        """Return who is behind the interface; see interface.occupant()."""
        return interface.occupant(self._index)

    def status(self) -> dict[str, object]:
        """Return what --json prints of the link."""
        if self._sock is not None:
            # struct tpacket_stats: packets, drops; both since the last query.
            stats = self._sock.getsockopt(_SOL_PACKET, _STATISTICS, 8)
            if overrun := struct.unpack("II", stats)[1]:
                self.drops[Drop.OVERRUN] += overrun
        return super().status()

    def signal(self, wanted: bool) -> None:
        """Enable or disable wake-ups by fileno()."""
        if wanted:
            self.handle.watch(self._fd)
        else:
            self.handle.forget(self._fd)

    def close(self) -> None:
        """Close the link. The interface leaves promiscuous mode. Idempotent."""
        self._gathered.close()
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        super().close()
