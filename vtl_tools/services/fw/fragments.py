"""Fragments in both directions: held until the packet is whole, judged as that packet, and sent unchanged.

So rules and the table of connections see every packet whole.
"""

from vtl_tools.common.model.fragments import FragmentTable, ReassembledPacket
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.rules.rule import IN, OUT, Direction


class FragmentReassembler:
    """All incomplete packets, in both directions. Neither side can evict those of the other."""

    def __init__(self) -> None:
        self._sides = {OUT: FragmentTable(), IN: FragmentTable()}

    def __len__(self) -> int:
        return sum(len(side.partial) for side in self._sides.values())

    @property
    def octets(self) -> int:
        """Octets held."""
        return sum(side.octets for side in self._sides.values())

    def add(self, pkt: Packet, direction: Direction, now: float) -> ReassembledPacket | str | None:
        """Add a fragment; see FragmentTable.add()."""
        return self._sides[direction].add(pkt, now)

    def deadline(self) -> float | None:
        """Return when the oldest incomplete packet times out."""
        times = [due for side in self._sides.values() if (due := side.deadline()) is not None]
        return min(times, default=None)

    def wake(self, now: float) -> None:
        """Drop packets that are incomplete after their timeout."""
        for side in self._sides.values():
            side.wake(now)
