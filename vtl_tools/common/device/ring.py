"""Passive capture of an interface: the headers of TCP segments, both directions, in a ring (packet(7)).

The kernel copies the octets that a filter keeps into shared memory (TPACKET_V3), a block at a time, so
that capture takes no system call and no wake-up per frame.
"""

import mmap
import socket
import struct
from collections.abc import Callable
from typing import Final

from vtl_tools.common.device import bpf
from vtl_tools.common.device.base import RETRY_S
from vtl_tools.common.device.handle import Handle
from vtl_tools.common.errors import DeviceError, PermissionNeededError
from vtl_tools.common.packet.vnet import VNET

OnSegment = Callable[[memoryview, bool, float], object]
"""Called with a frame, truncated to the snap length and borrowed; whether the VM sent it; now."""

SNAP: Final = 14 + 8 + 60 + 60
"""Octets captured of a frame: up to the end of TCP's options, after two tags and IP options."""

BLOCK: Final = 1 << 18
BLOCKS: Final = 16
HANDED_OVER_MS: Final = 40
"""Milliseconds until a block is handed over, full or not. Beside a stream of 11 Gbit/s each wake-up
costs 0.2 ms, most of it cold caches: at 8 ms all was three times what it is at 40."""

_SOL_PACKET: Final = 263
_RX_RING: Final = 5
_STATISTICS: Final = 6
_VERSION: Final = 10
_VNET_HDR: Final = 15
_TPACKET_V3: Final = 2
_ETH_P_ALL: Final = 3
_FRAME: Final = 2048  # unused by TPACKET_V3, but validated
_USER: Final = 1
_OUTGOING: Final = 4
_STATUS: Final = struct.Struct("=8xIII")  # a block's status, its number of frames, offset of the first
# struct tpacket3_hdr: next, octets captured, offset of Ethernet, the removed tag; then sockaddr_ll
_HEAD: Final = struct.Struct("=I8xI8xH6xIH20xB")
_TAG: Final = struct.Struct("!HH")


class Ring:
    """Captures an interface for a service (a stage.Source).

    Reopens it after it was deleted and created again. Injected frames are not captured.
    """

    def __init__(self, name: str, on_segment: OnSegment) -> None:
        """Open the ring. Raises DeviceError, PermissionNeededError."""
        self.name, self.on_segment = name, on_segment
        self.frames = self.missed = 0
        self._one_in = 1
        self._next = 0
        self._handle = Handle()
        self.fileno = self._handle.fileno
        try:
            self._index = socket.if_nametoindex(name)
        except OSError:
            raise DeviceError(f"{name}: no such network interface; list them with 'ip link'") from None
        try:
            self._open()
        except PermissionError:
            raise PermissionNeededError(
                f"{name}: not permitted to watch the interface; run as root or with CAP_NET_RAW"
            ) from None
        except OSError as e:
            raise DeviceError(f"{name}: {e.strerror}; check it with 'ip link show {name}'") from None

    def _open(self) -> None:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
        sock.setsockopt(_SOL_PACKET, _VERSION, _TPACKET_V3)
        sock.setsockopt(_SOL_PACKET, _VNET_HDR, 1)
        request = struct.pack("7I", BLOCK, BLOCKS, _FRAME, BLOCK // _FRAME * BLOCKS, HANDED_OVER_MS, 0, 0)
        sock.setsockopt(_SOL_PACKET, _RX_RING, request)
        self._sock, self._map = sock, mmap.mmap(sock.fileno(), BLOCK * BLOCKS)
        self._memory, self._next = memoryview(self._map), 0
        self.sample(self._one_in)
        sock.bind((self.name, _ETH_P_ALL))
        self._handle.watch(sock.fileno())

    def sample(self, one_in: int) -> None:
        """Capture one in so many segments, at random, and all with SYN, FIN or RST."""
        self._one_in = one_in
        bpf.attach(self._sock, bpf.segment_filter(SNAP, one_in))

    def poll(self, now: float) -> bool:
        """Hand on the frames of the next block. Return whether there was one."""
        start = self._next * BLOCK
        memory = self._memory
        status, count, offset = _STATUS.unpack_from(memory, start)
        if not status & _USER:
            self._look()
            return False
        on_segment, at = self.on_segment, start + offset
        self.frames += count
        for _ in range(count):
            following, kept, mac, tci, tpid, kind = _HEAD.unpack_from(memory, at)
            first = at + mac - VNET
            frame = memory[first : first + VNET + kept]
            on_segment(_tagged(frame, tpid, tci) if tpid else frame, kind != _OUTGOING, now)
            at += following
        struct.pack_into("=I", memory, start + 8, 0)  # return the block to the kernel
        self._next = (self._next + 1) % BLOCKS
        return True

    def _look(self) -> None:
        """Reopen the interface if it was deleted and exists again."""
        if not self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and not self._handle.alarm_expired():
            return
        try:
            index = socket.if_nametoindex(self.name)
            if index != self._index:
                self._sock.bind((self.name, _ETH_P_ALL))
                self._index = index
        except OSError:  # it does not exist yet
            self._handle.alarm(RETRY_S)

    def status(self) -> dict[str, object]:
        """Return how many frames were captured, and how many were lost while the ring was full."""
        # struct tpacket_stats_v3: packets, drops, queue freezes; all since the last query.
        stats = self._sock.getsockopt(_SOL_PACKET, _STATISTICS, 12)
        self.missed += struct.unpack("III", stats)[1]
        return {"frames": self.frames, "missed": self.missed, "one_in": self._one_in}

    def close(self) -> None:
        """Close the ring. Idempotent."""
        if not self._map.closed:
            self._memory.release()
            self._map.close()
            self._sock.close()
            self._handle.close()


def _tagged(frame: memoryview, tpid: int, tci: int) -> memoryview:
    """Insert the outer VLAN tag, which the kernel removed, as PacketDevice does."""
    kept = bytearray(frame)
    kept[VNET + 12 : VNET + 12] = _TAG.pack(tpid, tci)
    return memoryview(kept)
