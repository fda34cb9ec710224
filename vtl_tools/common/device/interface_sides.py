"""The two sides of a VM's interface, for a service that sends in the VM's name without being inline.

VMSide and NetworkSide receive only while listen(True) holds, and only TCP, ARP and ICMPv6.
"""

import errno
import os
import socket
from collections.abc import Sequence
from typing import Final

from vtl_tools.common.device import bpf
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import Batch, Pieces
from vtl_tools.common.device.plain import Plain
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.host import privilege
from vtl_tools.common.packet.vnet import VNET

_SOL_PACKET: Final = 263
_IGNORE_OUTGOING: Final = 23
_ETH_P_LOOP: Final = 0x0060


class VMSide(PacketDevice):
    """The VM's side: reads the VM's frames, writes to the VM. The host receives as before."""

    capabilities = frozenset({privilege.NET_RAW})
    _outgoing = False

    def __init__(self, name: str, *, mark: int) -> None:
        super().__init__(name, mark=mark, receive=False)
        self.silent = False  # PacketDevice set it, but listen() may enable reception

    def listen(self, wanted: bool) -> None:
        """Enable or disable reception, from the next frame on.

        A disabled side costs nothing per frame: the socket is bound to another protocol, so that the kernel
        does not even run its filter.
        """
        self.receive = wanted
        if self._sock is None:
            return
        try:
            self._attach(self._sock)
            self._bind(socket.if_nametoindex(self.name))  # perhaps another index by now
            if not wanted:
                self._sock.bind((self.name, _ETH_P_LOOP))  # 0 would keep the previous one
        except OSError as e:
            self.went_down(e.strerror)

    def _open(self) -> socket.socket:
        sock = super()._open()
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, not self._outgoing)
        self._attach(sock)
        return sock

    def _attach(self, sock: socket.socket) -> None:
        heard = bpf.conversation_filter(outgoing=self._outgoing)
        bpf.attach(sock, heard if self.receive else bpf.NOTHING)


class NetworkSide(VMSide):
    """The network's side: reads the frames sent to the VM, writes as the VM would send."""

    capabilities = frozenset({privilege.NET_RAW, privilege.BPF})
    offload = False
    _outgoing = True

    def __init__(self, name: str, *, mark: int) -> None:
        super().__init__(name, mark=mark)
        self.spec = f"{name} (network)"
        self._plain = Plain(self)
        self._injector: bpf.Injector | None = None

    def connect(self) -> None:
        """Bind to the interface, and load the injector. Raises as every link does."""
        super().connect()
        try:
            self._injector = bpf.Injector()
        except PermissionError:
            raise PermissionNeededError(f"{self.name}: not permitted to inject frames; run as root") from None
        except OSError as e:
            raise DeviceError(f"{self.name}: {e.strerror or e}; needs Linux 5.2 with bpf(2)") from None

    def write(self, batch: Batch) -> int:
        """Inject frames into the host as received from the interface; at most 3,500 octets each."""
        if not self.up or self._injector is None:
            return self.refused(batch, Drop.LINK_DOWN)
        taken = 0
        for plain in self._plain(batch):
            for frame in plain:
                try:
                    sent = self._injector.send(frame[VNET:], self._index)
                except OSError as e:
                    if e.errno not in (errno.EINVAL, errno.ENOMEM):
                        self.went_down(os.strerror(e.errno or 0))
                    sent = False
                if sent:
                    taken += 1
                    self.tx_frames += 1
                    self.tx_octets += len(frame) - VNET
                else:
                    self.drops[Drop.REFUSED] += 1
        return taken

    def write_pieces(self, frames: Sequence[Pieces]) -> int:
        """Join the pieces of each frame, and write the frames."""
        return Device.write_pieces(self, frames)

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._injector is not None:
            self._injector.close()
            self._injector = None
        super().close()
