"""The ports that are wormholed: those of the scope that no process of the volunteer uses."""

from collections.abc import Iterable
from typing import Final

from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet.ip import TCP, UDP

Range = tuple[int, int]
Port = tuple[int, int]
"""Protocol and number."""

PROTOCOLS: Final = (TCP, UDP)
NAMES: Final = {TCP: "tcp", UDP: "udp"}


def parse_ranges(text: str) -> list[Range]:
    """Return the ranges of a list such as 1-1023,8080, in order and joined. Raises SpecError."""
    found = []
    for word in text.split(","):
        low, _, high = word.strip().partition("-")
        numbers = [int(w) if w.isascii() and w.isdecimal() else 0 for w in (low, high or low)]
        if not 0 < numbers[0] <= numbers[1] < 1 << 16:
            raise SpecError(f"{word!r}: not a range of ports; write 1-1023 or 8080")
        found.append((numbers[0], numbers[1]))
    joined: list[Range] = []
    for start, end in sorted(found):
        if joined and start <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


class PortUse:
    """The ports of the scope that are in use, which are never touched."""

    def __init__(self, scope: Iterable[Range]) -> None:
        self.scope = list(scope)
        self.used: set[Port] = set()

    def holds(self, port: int) -> bool:
        """Return whether the scope has a port."""
        return any(low <= port <= high for low, high in self.scope)

    def is_open(self, port: Port) -> bool:
        """Return whether a port is wormholed."""
        return port not in self.used and self.holds(port[1])

    def use(self, port: Port) -> bool:
        """Note a port that is in use now. Return whether it was wormholed."""
        if port[0] not in PROTOCOLS or not self.is_open(port):
            return False
        self.used.add(port)
        return True

    def free(self, in_use: Iterable[Port], most: int) -> list[Port]:
        """Return, and forget, ports that are not in use any more by a snapshot; at most so many."""
        gone = sorted(self.used - set(in_use))[:most]
        self.used.difference_update(gone)
        return gone

    def open_ranges(self, protocol: int) -> list[Range]:
        """Return the ranges of ports that are wormholed."""
        used = sorted(number for of, number in self.used if of == protocol)
        found = []
        for low, high in self.scope:
            start = low
            for number in used:
                if start <= number <= high:
                    if start < number:
                        found.append((start, number - 1))
                    start = number + 1
            if start <= high:
                found.append((start, high))
        return found
