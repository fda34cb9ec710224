"""A raw socket on an interface: sends any frame, and receives the frames of the other end only."""

import socket
import struct
from typing import Final

_SOL_PACKET: Final = 263  # linux/socket.h, linux/if_packet.h
_AUXDATA: Final = 8
_IGNORE_OUTGOING: Final = 23
_ETH_P_ALL: Final = 3
_RECEIVE_OCTETS: Final = 32 << 20
_SO_RCVBUFFORCE: Final = 33
_FRAME_MAX: Final = 1 << 17
_HEADER: Final = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata; the last two: tp_vlan_tci, tp_vlan_tpid
_VLAN_VALID: Final = 1 << 4  # TP_STATUS_VLAN_VALID
_ROOM: Final = socket.CMSG_SPACE(_HEADER.size)


def open_raw_socket(interface: str) -> socket.socket:
    """Open a non-blocking socket on an interface of the calling thread's network. Raises OSError."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, 0)
    try:
        sock.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
        sock.setsockopt(_SOL_PACKET, _AUXDATA, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_OCTETS)
        sock.bind((interface, _ETH_P_ALL))
    except BaseException:
        sock.close()
        raise
    return sock


def receive(sock: socket.socket, flags: int = 0) -> bytes:
    """Return the next frame, with the VLAN tag that the kernel took out of it. Raises OSError."""
    frame, ancillary, _, _ = sock.recvmsg(_FRAME_MAX, _ROOM, flags)
    for level, kind, octets in ancillary:
        if (level, kind) == (_SOL_PACKET, _AUXDATA):
            status, _, _, _, _, tci, tpid = _HEADER.unpack(octets)
            if status & _VLAN_VALID:
                return frame[:12] + struct.pack("!HH", tpid, tci) + frame[12:]
    return frame


def receive_all(sock: socket.socket) -> list[bytes]:
    """Return the frames that have arrived since the last call, without waiting."""
    frames = []
    while True:
        try:
            frames.append(receive(sock, socket.MSG_DONTWAIT))
        except BlockingIOError:
            return frames
