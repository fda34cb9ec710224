"""A link on an existing network interface: AF_PACKET with virtio_net_hdr, in batches (packet(7))."""

import ctypes
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from vtl_tools.common.device import mmsg
from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import FRAME_MAX, SLOTS, Batch
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.packet import vnet

_SOL_PACKET: Final = 263
_ADD_MEMBERSHIP: Final = 1
_AUXDATA: Final = 8
_VNET_HDR: Final = 15
_FANOUT: Final = 18
_IGNORE_OUTGOING: Final = 23
_MR_PROMISC: Final = 1
_FANOUT_HASH: Final = 0  # of the flow, and symmetric: both directions fall to the same worker
_ETH_P_ALL: Final = 3
_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFMTU: Final = 0x8921
_IFF_UP: Final = 1

BUFFER: Final = 32 << 20
"""Octets of socket buffer each way: a burst waits in the kernel while another link is served."""

# struct cmsghdr, then struct tpacket_auxdata: status, len, snaplen (u32), mac, net, vlan_tci, vlan_tpid.
_CONTROL: Final = 40
_AUX_TCI: Final = 16 + 16
_AUX_TPID: Final = 16 + 18  # 0 where there was no tag


class PacketDevice(Device):
    """An interface by name. Survives its being taken down, deleted and made anew.

    mark: SO_MARK of what is sent, by which the guard tells ours from the host's; 0 for none.
    fanout: a number that the processes which share this interface's flows agree on; 0 for none.
    receive: whether frames are wanted; a link that is only written to costs nothing for what it gets.
    """

    offload = True

    def __init__(self, name: str, *, mark: int = 0, fanout: int = 0, receive: bool = True) -> None:
        super().__init__(name)
        self.name, self.mark, self.fanout, self.receive = name, mark, fanout, receive
        self._batch = Batch()
        self._index = 0
        self._sock: socket.socket | None = None
        # Receiving has its own mmsghdr array, with room for the auxiliary data, over the batch's iovecs;
        # the batch's own array has none, so that what was received can be sent as it is.
        self._rx_address, self._rx = mmsg.words(mmsg.WORDS * SLOTS)
        self._rx[:] = self._batch.msgs
        control, view = mmsg.words(_CONTROL // 8 * SLOTS)
        self._control = view.cast("B")
        self._tpids = self._control.cast("H")[_AUX_TPID // 2 :: _CONTROL // 2]
        for i in range(SLOTS):
            self._rx[i * mmsg.WORDS + mmsg.CONTROL] = control + i * _CONTROL
        self._controllens = memoryview((ctypes.c_uint64 * SLOTS)(*([_CONTROL] * SLOTS))).cast("B").cast("Q")

    def connect(self) -> None:
        """Bind to the interface, promiscuously, for as long as this process lives."""
        if not 0 < len(os.fsencode(self.name)) < 16 or "/" in self.name:
            raise DeviceError(f"{self.name}: not an interface name; see vtl-tools(7) for how links are named")
        try:
            index = socket.if_nametoindex(self.name)
        except OSError:
            raise DeviceError(f"{self.name}: no such network interface; list them with 'ip link'") from None
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
        # Bound to no protocol until all is set up, so that no frame is queued in another form.
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
        self.handle.watch(sock.fileno())
        return sock

    def _bind(self, index: int) -> None:
        assert self._sock is not None
        self._sock.bind((self.name, _ETH_P_ALL if self.receive else 0))
        self._sock.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, struct.pack("iHH8s", index, _MR_PROMISC, 0, b""))
        if self.fanout and self.receive:
            self._sock.setsockopt(_SOL_PACKET, _FANOUT, self.fanout | _FANOUT_HASH << 16)
        self._index = index
        self.mtu = struct.unpack_from("i", self._ask(_SIOCGIFMTU), 16)[0]
        if self._is_up():
            self.went_up()
        else:
            self.up = True  # so that went_down says so
            self.went_down("the interface is down")

    def _ask(self, request: int) -> bytes:
        assert self._sock is not None
        return fcntl.ioctl(self._sock, request, struct.pack("16s24x", os.fsencode(self.name)))

    def _is_up(self) -> bool:
        return bool(struct.unpack_from("H", self._ask(_SIOCGIFFLAGS), 16)[0] & _IFF_UP)

    def _look_again(self) -> None:
        """The interface went down or away: see whether it is back, perhaps as another one."""
        assert self._sock is not None
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            index = socket.if_nametoindex(self.name)
            if index == self._index:
                if self._is_up():
                    self.went_up()
                    return
            else:
                if self.fanout:  # a socket in a fanout group cannot be bound anew
                    self.handle.forget(self._sock.fileno())
                    self._sock.close()
                    self._sock = self._open()
                self._bind(index)
                if self.up:
                    return
        except OSError as e:
            self.went_down(e.strerror)
        self.handle.alarm(0.25)

    def read(self) -> Batch:
        """Receive up to a batch of frames, VLAN tags put back where the kernel took them out."""
        batch = self._batch
        batch.clear()
        if not self.up:
            if self.handle.rang():
                self._look_again()
            return batch
        assert self._sock is not None
        rx = self._rx
        rx[mmsg.CONTROLLEN :: mmsg.WORDS] = self._controllens
        n = mmsg.recvmmsg(self._sock.fileno(), self._rx_address, SLOTS, mmsg.MSG_DONTWAIT, None)
        if n <= 0:
            if n < 0 and (code := mmsg.errno()) not in (errno.EAGAIN, errno.EINTR):
                self.went_down(os.strerror(code))
            return batch
        batch.count = n
        batch.lengths[:] = rx[mmsg.LEN : mmsg.WORDS * n : mmsg.WORDS]
        if _any(self._tpids[:n]):
            self._put_tags_back(batch)
        if _any(rx[mmsg.FLAGS : mmsg.WORDS * n : mmsg.WORDS]):
            whole = [i for i in range(n) if not rx[i * mmsg.WORDS + mmsg.FLAGS] & mmsg.MSG_TRUNC]
            self.drops[Drop.TOO_BIG] += n - len(whole)
            batch.pick(batch, whole)
        return self.received(batch)

    def _put_tags_back(self, batch: Batch) -> None:
        """The kernel takes the outer VLAN tag out of every frame that it receives, into the auxiliary data."""
        for i, tpid in enumerate(self._tpids[: batch.count]):
            if not tpid:
                continue
            frame = batch.resize(i, batch.lengths[i] + 4, front=-4)
            frame[: vnet.VNET + 12] = bytes(frame[4 : vnet.VNET + 16])
            (tci,) = struct.unpack_from("H", self._control, i * _CONTROL + _AUX_TCI)
            struct.pack_into("!HH", frame, vnet.VNET + 12, tpid, tci)
            flags, gso_type, hdr_len, gso_size, csum_start, csum_offset = vnet.HEADER.unpack_from(frame)
            if gso_type:
                hdr_len += 4
            if flags & vnet.F_NEEDS_CSUM:
                csum_start += 4
            vnet.HEADER.pack_into(frame, 0, flags, gso_type, hdr_len, gso_size, csum_start, csum_offset)

    def write(self, batch: Batch) -> int:
        """Send a batch; the kernel segments and sums what is marked so."""
        count = batch.count
        if not self.up:
            self.drops[Drop.LINK_DOWN] += count
            return 0
        assert self._sock is not None
        fd, address, done, lost = self._sock.fileno(), batch.msgs_address, 0, 0
        while done < count:
            n = mmsg.sendmmsg(fd, address + done * mmsg.MSGHDR_SIZE, count - done, mmsg.MSG_DONTWAIT)
            if n > 0:
                done += n
                continue
            code = mmsg.errno()
            if code == errno.EINTR:
                continue
            if code in (errno.EAGAIN, errno.ENOBUFS):
                self.drops[Drop.QUEUE_FULL] += count - done
                lost += count - done
                break
            if code in (errno.ENETDOWN, errno.ENXIO, errno.ENODEV):
                self.drops[Drop.LINK_DOWN] += count - done
                lost += count - done
                self.went_down(os.strerror(code))
                break
            # One frame is at fault, not the link: go on behind it.
            self.drops[Drop.TOO_BIG if code == errno.EMSGSIZE else Drop.REFUSED] += 1
            lost += 1
            done += 1
        self.tx_frames += count - lost
        self.tx_octets += batch.octets  # of what was offered: exact but for drops
        return count - lost

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        super().close()


def _any(column: memoryview) -> bool:
    """Whether any number of a strided view is not 0; 64 of them cost 0.3 us."""
    return bool(column.tobytes().strip(b"\0"))
