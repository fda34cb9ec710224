"""The two sides of a VM's interface, for a service that speaks in the VM's place without being in between.

VMSide and NetworkSide hear only while they are told to, and only what a filter keeps: TCP, ARP, ICMPv6.
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
    """The VM's side: read what the VM sends, write to the VM. The host gets what it got before."""

    capabilities = frozenset({privilege.NET_RAW})
    _outgoing = False

    def __init__(self, name: str, *, mark: int) -> None:
        super().__init__(name, mark=mark, receive=False)
        self.silent = False  # for now only

    def listen(self, wanted: bool) -> None:
        """Say whether frames are to be heard, from the next one on.

        What passes costs nothing while none is: not even the question, as it is asked of another protocol.
        """
        self.receive = wanted
        if self._sock is None:
            return
        try:
            self._attach(self._sock)
            self._bind(socket.if_nametoindex(self.name))  # it may have been made anew: only who hears is told
            if not wanted:
                self._sock.bind((self.name, _ETH_P_LOOP))  # 0 would mean: the one before
        except OSError as e:
            self.went_down(e.strerror)

    def _open(self) -> socket.socket:
        sock = super()._open()
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, not self._outgoing)
        self._attach(sock)
        return sock

    def _attach(self, sock: socket.socket) -> None:
        heard = bpf.conversation(self.mark, outgoing=self._outgoing)
        bpf.attach(sock, heard if self.receive else bpf.NOTHING)


class NetworkSide(VMSide):
    """The network's side: read what is on its way to the VM, write as the VM would have sent it."""

    capabilities = frozenset({privilege.NET_RAW, privilege.BPF})
    offload = False
    _outgoing = True

    def __init__(self, name: str, *, mark: int) -> None:
        super().__init__(name, mark=mark)
        self.spec = f"{name} (network)"
        self._plain = Plain(self)
        self._injector: bpf.Injector | None = None

    def connect(self) -> None:
        """Bind to the interface, and load what puts frames into the host. Raises as every link does."""
        super().connect()
        try:
            self._injector = bpf.Injector()
        except PermissionError:
            raise PermissionNeededError(
                f"{self.name}: not permitted to speak for the VM; run as root"
            ) from None
        except OSError as e:
            raise DeviceError(f"{self.name}: {e.strerror or e}; needs Linux 5.2 with bpf(2)") from None

    def write(self, batch: Batch) -> int:
        """Have the host receive the frames from the interface, which must not be larger than 3,500 octets."""
        if not self.up or self._injector is None:
            return self.refused(batch, Drop.LINK_DOWN)
        taken = 0
        for plain in self._plain(batch):
            for frame in plain:
                try:
                    sent = self._injector.send(frame[VNET:], self._index, self.mark)
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
        """Join the pieces, and write what they make."""
        return Device.write_pieces(self, frames)

    def close(self) -> None:
        """Disconnect. Idempotent."""
        if self._injector is not None:
            self._injector.close()
            self._injector = None
        super().close()
