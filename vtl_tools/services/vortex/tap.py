"""The volunteer's interface, read beside its stack: frames to wormholed ports, and those that leave there."""

import socket
from collections.abc import Callable
from typing import Final

from vtl_tools.common.device import bpf
from vtl_tools.common.device.afpacket import PacketDevice
from vtl_tools.common.device.bpf import Ranges
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ip, vnet
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import RST
from vtl_tools.services.vortex.ports import Port, PortUse

RANGES_MAX: Final = 300
"""Ranges of ports in a filter, of which the kernel takes 4096 instructions."""
_ETH_P_ALL: Final = 3
_READS_MAX: Final = 64


def coarse(ranges: Ranges) -> list[tuple[int, int]]:
    """Return ranges with those between them joined until they are few: a filter may keep too much."""
    found = list(ranges)
    while len(found) > RANGES_MAX:
        found = [(pair[0][0], pair[-1][1]) for pair in (found[i : i + 2] for i in range(0, len(found), 2))]
    return found


class BesideStack(PacketDevice):
    """The interface as a link: receives what is for wormholed ports of the host, which receives it, too."""

    promiscuous = False

    def __init__(self, name: str, ports: PortUse, *, mark: int, echo: bool) -> None:
        super().__init__(name, mark=mark)
        self._ports, self._echo, self._is_open = ports, echo, True

    def refresh(self, *, is_open: bool) -> None:
        """Receive from now on what is for the ports that are wormholed now; is_open=False: nothing."""
        self._is_open = is_open
        if self._sock is not None:
            self._attach(self._sock)

    def _filter(self, index: int) -> None:
        assert self._sock is not None
        self._attach(self._sock)

    def _attach(self, sock: socket.socket) -> None:
        lists = [coarse(self._ports.open_ranges(protocol)) for protocol in (ip.TCP, ip.UDP)]
        bpf.attach(sock, bpf.port_filter(*lists, echo=self._echo) if self._is_open else bpf.NOTHING)


class Leaving:
    """A source of the stage: tells of wormholed ports from which the host sends, and which it thus uses.

    Sockets of UDP that have their port by connect() or sendto() show by nothing else.
    """

    def __init__(self, name: str, ports: PortUse, *, mark: int) -> None:
        """Open it. Raises OSError."""
        self.on_used: Callable[[Port, float], None] = lambda port, now: None
        self._ports, self._mark = ports, mark
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._sock = socket.socket(socket.AF_PACKET, kind, 0)
        self.refresh(is_open=True)
        self._sock.bind((name, _ETH_P_ALL))
        self.fileno = self._sock.fileno

    def refresh(self, *, is_open: bool) -> None:
        """Look at the ports that are wormholed now."""
        lists = [coarse(self._ports.open_ranges(protocol)) for protocol in (ip.TCP, ip.UDP)]
        bpf.attach(self._sock, bpf.leaving_filter(lists[0], lists[1], self._mark) if is_open else bpf.NOTHING)

    def poll(self, now: float) -> bool:
        """Tell the ports of frames that left."""
        moved = False
        for _ in range(_READS_MAX):
            try:
                frame = self._sock.recv(1 << 16)
            except OSError:  # there is none, or the interface is down
                break
            moved = True
            if (port := sending_port(bytearray(vnet.NONE + frame))) is not None:
                self.on_used(port, now)
        return moved

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


def sending_port(frame: bytearray) -> Port | None:
    """Return the port that a frame shows to be in use. A RST is sent for closed ports, too."""
    try:
        pkt = Packet.at(frame)
        flow, segment = pkt.flow, pkt.tcp
    except Malformed:
        return None
    if flow is None or (segment is not None and segment.flags & RST):
        return None
    return flow[0], flow[2]
