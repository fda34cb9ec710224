"""Tells the connections of a VM that are held from the others, and why these are not."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Final

from vtl_tools.services.freeze.connection import OPENING, HeldConnection
from vtl_tools.services.freeze.table import ConnectionTable

AT_ONCE: Final = 4096
"""Connections judged per step, in some two milliseconds."""

OBSTACLES: Final = {
    "half-open": "the handshake is not complete, and only the VM can complete it",
    "ended": "both ends have closed",
    "no-peer": "no segment of the peer was seen on this interface",
    "unsure": "the VM's last acknowledgement may have passed unseen; held once the peer has retransmitted",
}
"""By keyword: reasons why a connection is not held."""


def obstacle(table: ConnectionTable, connection: HeldConnection) -> str:
    """Return the keyword of the reason why a connection is not held at present; "" if it is."""
    if connection.is_proven:
        return "ended" if connection.is_closed else ""
    if connection.flags & OPENING or (connection.vm_ack is None and connection.vm_nxt is not None):
        return "half-open"
    if connection.is_closed:
        return "ended"
    if table.doubts(connection):
        return "unsure"
    return "" if connection.has_numbers else "no-peer"


class HoldingsCount:
    """Counts the connections of a table that are held, in steps, as frames wait meanwhile."""

    def __init__(self, table: ConnectionTable) -> None:
        self._table = table
        self._rest: Iterator[HeldConnection] = iter(table)
        self.held = 0
        self.not_held: Counter[str] = Counter()

    def step(self) -> bool:
        """Judge some connections. Return whether any may be left."""
        judged = 0
        for connection in islice(self._rest, AT_ONCE):
            judged += 1
            if connection.vm_nxt is None and not connection.is_proven:
                continue  # forged, perhaps: there is nothing but a segment in a peer's name
            if why := obstacle(self._table, connection):
                self.not_held[why] += 1
            else:
                self.held += 1
        return judged == AT_ONCE

    def result(self) -> dict[str, object]:
        """Return the counts, of all connections, of the held ones, and of the others by reason."""
        not_held = {why: self.not_held[why] for why in OBSTACLES if self.not_held[why]}
        return {
            "connections": self.held + sum(not_held.values()),
            "can_hold": self.held,
            "cannot_hold": not_held,
        }


def lines(result: dict[str, object]) -> Iterator[str]:
    """Yield the lines for people of a result, or of the answer to `start` that contains it."""
    not_held = result["cannot_hold"]
    assert isinstance(not_held, dict)
    yield f"{result['can_hold']} of {result['connections']} connections held"
    for why, count in not_held.items():
        yield f"not held: {count} {why}: {OBSTACLES.get(why, why)}"
