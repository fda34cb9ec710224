"""A link on an interface through libpcap (Npcap on Windows) and scapy, for systems without AF_PACKET.

It is slower than afpacket.py and has libpcap's limits: a system call or two and a copy per frame; frames
may arrive up to 0.1 s late (its buffer's timeout); frames that the host itself sends on the interface are
seen too, unless it is shared; and there is no virtio_net_hdr, so that an interface with offloads shows
super-segments and incomplete checksums. On Linux, switch these off by
'ethtool -K NAME tso off gso off gro off tx off'.
"""

import errno
import fcntl
import os
import socket
import struct
from typing import Any, Final

from vtl_tools.common.device.base import RETRY_S, Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.capture import quiet_scapy
from vtl_tools.common.device.plain import ETHERNET, Plain
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.host import interface, privilege
from vtl_tools.common.packet.vnet import VNET

_ETHERNET: Final = 1  # DLT_EN10MB
_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFINDEX: Final = 0x8933
_IFF_UP: Final = 1


class LibpcapDevice(Device):
    """An interface by name. Reopens it after it was set down, or deleted and created again."""

    capabilities = frozenset({privilege.NET_ADMIN, privilege.NET_RAW})

    def __init__(self, name: str) -> None:
        super().__init__(f"libpcap:{name}")
        self.name = self.interface = name
        self._batch = Batch()
        self._plain = Plain(self)
        self._socket: Any = None
        self._index = 0

    def connect(self) -> None:
        """Open the interface in promiscuous mode."""
        names = [name for _, name in socket.if_nameindex()]
        if self.name not in names:
            raise DeviceError(f"{self.spec}: no such network interface; choose one of {', '.join(names)}")
        try:
            self._open()
        except OSError as e:
            text = " ".join(str(e).split())
            if "ermission" in text or "permitted" in text:
                raise PermissionNeededError(
                    f"{self.spec}: not permitted to open the interface; run as root"
                ) from None
            raise DeviceError(f"{self.spec}: {text}; check the interface") from None

    def _open(self) -> None:
        with quiet_scapy():
            from scapy.config import conf

            try:
                conf.use_pcap = True
                from scapy.arch.libpcap import L2pcapSocket
            except Exception:  # scapy raises different exceptions per platform
                remedy = "install it (Debian: libpcap0.8)"
                raise DeviceError(f"{self.spec}: libpcap is missing; {remedy}") from None
            link = L2pcapSocket(iface=self.name, promisc=True, nofilter=1)
        try:
            if link.pcap_fd.datalink() != _ETHERNET:
                raise DeviceError(f"{self.spec}: its frames are not Ethernet; choose another interface")
            link.pcap_fd.setnonblock(True)
            index = socket.if_nametoindex(self.name)
            if self.shared:  # libpcap also filters what has arrived before the kernel does
                if not (own := interface.mac_of(index)):
                    raise DeviceError(f"{self.spec}: was deleted; create it and start again")
                link.pcap_fd.setfilter(
                    "inbound" if own == self.vm_mac else f"inbound and not ether dst {own.hex(':')}"
                )
            if self.mark:
                with socket.socket(fileno=os.dup(link.fileno())) as sock:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, self.mark)
            self.handle.watch(link.fileno())
        except BaseException:
            link.close()
            raise
        self._socket, self._index = link, index
        self.went_up()

    def read(self) -> Batch:
        """Receive up to a batch of frames."""
        batch = self._batch
        batch.clear()
        if self._socket is None:
            if self.handle.alarm_expired():
                self._look_again()
            return batch
        while batch.count < batch.slots:
            _, frame, _ = self._socket.recv_raw()
            if frame is None:
                if not batch and (why := self._error()):
                    self._lose(why)
                break
            if len(frame) < ETHERNET:
                self.drops[Drop.RUNT] += 1
            else:
                batch.append_plain(frame)
        return self.received(batch)

    def _look_again(self) -> None:
        try:
            self._open()
        except (OSError, DeviceError):
            self.handle.alarm(RETRY_S)

    def _error(self) -> str:
        """Return why nothing was read although input was announced; "" if there is no error.

        libpcap clears the error of its socket silently, so the interface is queried (on Linux).
        """
        request = struct.pack("16s24x", os.fsencode(self.name))
        try:
            (index,) = struct.unpack_from("i", fcntl.ioctl(self._socket.fileno(), _SIOCGIFINDEX, request), 16)
            (flags,) = struct.unpack_from("H", fcntl.ioctl(self._socket.fileno(), _SIOCGIFFLAGS, request), 16)
        except OSError as e:
            return "the interface was deleted" if e.errno == errno.ENODEV else ""
        if index != self._index:
            return "the interface was deleted and created again"
        return "" if flags & _IFF_UP else "the interface is down"

    def occupant(self) -> str:
        """Return who is behind the interface; see interface.occupant()."""
        return interface.occupant(self._index)

    def _lose(self, why: str) -> None:
        self.handle.forget(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self.went_down(why)

    def write(self, batch: Batch) -> int:
        """Send a batch as plain frames, one by one."""
        return sum(self._send(plain) for plain in self._plain(batch))

    def _send(self, batch: Batch) -> int:
        if self._socket is None:
            return self.refused(batch, Drop.LINK_DOWN)
        lost = lost_octets = 0
        for frame in batch:
            if self._socket.pcap_fd.send(bytes(frame[VNET:])) < 0:
                self.drops[Drop.REFUSED] += 1
                lost += 1
                lost_octets += len(frame) - VNET
        return self.sent(batch, lost, lost_octets)

    def close(self) -> None:
        """Close the interface. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        super().close()
