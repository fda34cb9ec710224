"""A link on the user side of a tap interface: reads what the host sends, and the reverse.

The interface is created if absent, and then removed with the device; an existing one is attached to. There
is no recvmmsg for taps: each frame takes a system call, but a super-segment is one frame.
"""

import contextlib
import errno
import fcntl
import os
import socket
import struct
from typing import Final

from vtl_tools.common.device.base import RETRY_S, Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.plain import ETHERNET
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.host import broker, privilege
from vtl_tools.common.packet.vnet import VNET

# linux/if_tun.h
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_TUN_F_CSUM: Final = 0x01
_TUN_F_TSO4: Final = 0x02
_TUN_F_TSO6: Final = 0x04
_TUN_F_TSO_ECN: Final = 0x08
_TUN_F_USO4: Final = 0x20
_TUN_F_USO6: Final = 0x40
_TCP: Final = _TUN_F_CSUM | _TUN_F_TSO4 | _TUN_F_TSO6 | _TUN_F_TSO_ECN
_OFFLOADS: Final = (_TCP | _TUN_F_USO4 | _TUN_F_USO6, _TCP)  # USO since Linux 6.2

_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_SIOCGIFMTU: Final = 0x8921
_IFF_UP: Final = 1

_GONE: Final = frozenset((errno.EBADFD, errno.EIO, errno.ENODEV))


class TapDevice(Device):
    """A tap by name. Creates it again when it is deleted."""

    offload = True
    capabilities = frozenset({privilege.NET_ADMIN})

    def __init__(self, name: str) -> None:
        super().__init__(f"tap:{name}")
        self.name = name
        self._fd = -1
        self._tun = broker.DeviceFile("/dev/net/tun")
        self._batch = Batch()

    def connect(self) -> None:
        """Create the interface, or attach to it, and set it up."""
        try:
            self._open()
        except PermissionError:
            raise PermissionNeededError(
                f"{self.spec}: not permitted to open the tap; run as root or with CAP_NET_ADMIN, or "
                f"'ip tuntap add {self.name} mode tap vnet_hdr user ...' beforehand"
            ) from None
        except FileNotFoundError:
            raise DeviceError(
                f"{self.spec}: there is no /dev/net/tun; load the module with 'modprobe tun'"
            ) from None
        except OSError as e:
            remedy = (
                "end the process that uses it"
                if e.errno == errno.EBUSY
                else f"see 'ip -d link show {self.name}': it must be a tap with vnet_hdr and one queue"
            )
            raise DeviceError(f"{self.spec}: {e.strerror}; {remedy}") from None

    def _open(self) -> None:
        fd = self._tun.open()
        try:
            name = os.fsencode(self.name)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name, _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR))
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("i", VNET))
            for offloads in _OFFLOADS:
                with contextlib.suppress(OSError):
                    fcntl.ioctl(fd, _TUNSETOFFLOAD, offloads)
                    break
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                request = struct.pack("16s24x", name)
                (self.mtu,) = struct.unpack_from("i", fcntl.ioctl(control, _SIOCGIFMTU, request), 16)
                (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
                if not flags & _IFF_UP:
                    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_UP))
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd
        self.handle.watch(fd)
        self.went_up()

    def _is_there(self) -> bool:
        """Return whether the interface is up."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            request = struct.pack("16s24x", os.fsencode(self.name))
            return bool(
                struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)[0] & _IFF_UP
            )

    def _look_again(self) -> None:
        try:
            if self._fd < 0:
                self._open()
            elif self._is_there():
                self.went_up()
        except OSError:
            pass  # not yet
        if not self.up:
            self.handle.alarm(RETRY_S)

    def _lose(self, code: int) -> None:
        if code != errno.EIO:  # EIO: the interface is down, but exists
            self.handle.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
        self.went_down("the interface is down" if code == errno.EIO else "the interface was deleted")

    def read(self) -> Batch:
        """Receive up to a batch of frames."""
        batch = self._batch
        batch.clear()
        if not self.up and self.handle.alarm_expired():
            self._look_again()
        if self._fd < 0:
            return batch
        n = 0
        while n < batch.slots:
            try:
                length = os.readv(self._fd, (batch.room(n),))
            except BlockingIOError:
                break
            except OSError as e:
                if e.errno in _GONE:
                    self._lose(e.errno)
                break
            if length < VNET + ETHERNET:
                self.drops[Drop.RUNT] += 1
                continue
            batch.count = n + 1
            batch.lengths[n] = length
            n += 1
        return self.received(batch)

    def write(self, batch: Batch) -> int:
        """Send a batch. The kernel segments super-segments and completes partial checksums."""
        if not self.up:
            return self.refused(batch, Drop.LINK_DOWN)
        lost = lost_octets = 0
        fd, limit = self._fd, VNET + ETHERNET + 4 + self.mtu
        for i, frame in enumerate(batch):
            if len(frame) > limit and not frame[1]:
                reason = Drop.TOO_BIG
            else:
                try:
                    os.write(fd, frame)
                    continue
                except OSError as e:
                    code = e.errno
                if code in _GONE:
                    self._lose(code)
                    rest = batch.lengths[i:].tolist()
                    self.drops[Drop.LINK_DOWN] += len(rest)
                    return self.sent(batch, lost + len(rest), lost_octets + sum(rest) - VNET * len(rest))
                reason = Drop.QUEUE_FULL if code in (errno.EAGAIN, errno.ENOBUFS) else Drop.REFUSED
            self.drops[reason] += 1
            lost += 1
            lost_octets += len(frame) - VNET
        return self.sent(batch, lost, lost_octets)

    def close(self) -> None:
        """Detach from the tap. The kernel removes it unless it is persistent. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        super().close()
