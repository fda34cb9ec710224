"""The stations of the overlay: which link each Ethernet address was last seen at, by VLAN."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

STATIONS_MAX: Final = 16384
STATIONS_OF_LINK: Final = 8192
"""Bound by link, so that a guest that invents addresses forgets no station of another link."""
AGE_S: Final = 300.0
"""Silence after which a station is forgotten, as IEEE 802.1D has it."""

Key = tuple[int, bytes]


@dataclass(slots=True)
class KnownStation:
    """A station. through: the services that its frames are sent through."""

    link: str
    seen_at: float
    through: set[str] = field(default_factory=set)


class StationTable:
    """A bounded table of stations, the one that was silent longest first."""

    def __init__(self) -> None:
        self._found: dict[Key, KnownStation] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._found)

    def learn(self, vlan: int, mac: bytes, link: str, now: float) -> str:
        """Note a frame of a station. Return the link that it was at before if it has moved, else ""."""
        key = vlan, mac
        station = self._found.pop(key, None)
        if station is None:
            if self._counts.get(link, 0) >= STATIONS_OF_LINK or len(self._found) >= STATIONS_MAX:
                self._evict(link)
            self._found[key] = KnownStation(link, now)
            self._counts[link] = self._counts.get(link, 0) + 1
            return ""
        before, station.link, station.seen_at = station.link, link, now
        self._found[key] = station
        if before == link:
            return ""
        station.through.clear()
        self._counts[before] -= 1
        self._counts[link] = self._counts.get(link, 0) + 1
        return before

    def _evict(self, link: str) -> None:
        is_full = self._counts.get(link, 0) >= STATIONS_OF_LINK
        oldest = next(key for key, one in self._found.items() if not is_full or one.link == link)
        self._remove(oldest)

    def _remove(self, key: Key) -> None:
        self._counts[self._found.pop(key).link] -= 1

    def find(self, vlan: int, mac: bytes) -> KnownStation | None:
        """Return the station of an address; None: not known."""
        return self._found.get((vlan, mac))

    def behind(self, service: str) -> set[str]:
        """Return the links of the stations whose frames are sent through a service."""
        return {one.link for one in self._found.values() if service in one.through}

    def expire(self, now: float) -> None:
        """Forget stations that were silent."""
        while self._found:
            key = next(iter(self._found))
            if now - self._found[key].seen_at < AGE_S:
                return
            self._remove(key)

    def forget_link(self, link: str) -> None:
        """Forget the stations of a link that is gone."""
        for key in [key for key, one in self._found.items() if one.link == link]:
            self._remove(key)

    def forget_service(self, service: str) -> None:
        """Forget which stations were behind a service."""
        for one in self._found.values():
            one.through.discard(service)

    def items(self) -> Iterator[tuple[Key, KnownStation]]:
        """Return all stations."""
        return iter(self._found.items())
