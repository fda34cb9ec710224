"""Packets that take a detour by a router, although their destination is a station of the overlay. Sans-IO.

A VM of one subnet sends packets for another by its router, which may be far away (paper section 3.2). Then
the Ethernet address that a packet is sent to is not that of its destination, which ARP has shown (IPv4).
A shortcut is only suggested: it would pass by whatever the router judges, so a user has to allow it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, NamedTuple

from vtl_tools.common.bounded import BoundedTable
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.services.vnet.adapt import AGAIN_S, BUSY_MBIT, BUSY_TICKS, PAIRS_MAX
from vtl_tools.services.vnet.fields import FrameFields

_IPV4: Final = 4


class Detour(NamedTuple):
    """Packets of a station at a link to another one, which is known at mac."""

    link: str
    source: bytes
    destination: bytes
    mac: bytes

    @property
    def command(self) -> str:
        """Return how a user would spare them the detour."""
        peer = f"{ip_address(self.destination)}={self.mac.hex(':')}"
        return (
            f"vtl-subnet --iface {self.link} --default channel:PATH,server --direct LAN --peer {peer}, "
            f"and vtl-vnet --iface channel:PATH in place of {self.link}"
        )


@dataclass
class _Packets:
    octets: int = 0
    ticks: int = 0
    told_at: float = -AGAIN_S


class Detours:
    """Finds busy pairs of stations whose packets take a detour. is_station: whether a station is known."""

    def __init__(self, is_station: Callable[[bytes], bool]) -> None:
        self._is_station = is_station
        self._owners: BoundedTable[bytes, bytes] = BoundedTable(PAIRS_MAX)
        self._packets: dict[Detour, _Packets] = {}
        self._at = 0.0

    def note(self, link: str, fields: FrameFields, octets: int) -> None:
        """Take frames of a station; all of them have these fields."""
        if fields.vlan or len(fields.source) != _IPV4:
            return
        if fields.protocol < 0:
            self._hear(fields)
            return
        mac = self._owners.get(fields.destination)
        if mac is None or mac == fields.dst or fields.dst[0] & 1 or not self._is_station(mac):
            return
        detour = Detour(link, fields.source, fields.destination, mac)
        packets = self._packets.get(detour)
        if packets is None:
            if len(self._packets) >= PAIRS_MAX:
                return
            packets = self._packets[detour] = _Packets()
        packets.octets += octets

    def _hear(self, fields: FrameFields) -> None:
        """Learn from ARP whose an address is."""
        if is_single_host(fields.source):
            self._owners.put(fields.source, fields.src)

    def tick(self, now: float) -> list[tuple[Detour, str]]:
        """Return detours of busy pairs that were not told of yet, each with the reason."""
        elapsed_s = max(now - self._at, 1e-3)
        self._at = now
        found = []
        for detour, packets in list(self._packets.items()):
            mbit = 8e-6 * packets.octets / elapsed_s
            packets.octets = 0
            packets.ticks = packets.ticks + 1 if mbit >= BUSY_MBIT else 0
            if packets.ticks >= BUSY_TICKS and now >= packets.told_at + AGAIN_S:
                packets.told_at = now
                ends = (
                    f"{ip_address(detour.source)} sends {mbit:.1f} Mbit/s to {ip_address(detour.destination)}"
                )
                found.append((detour, f"{ends} by a router, and both are in this overlay: {detour.command}"))
            elif not packets.ticks and now >= packets.told_at + AGAIN_S:
                del self._packets[detour]
        return found
