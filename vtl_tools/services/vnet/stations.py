"""The stations of the overlay: which link each Ethernet address was last seen at, by VLAN."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final

from vtl_tools.common.bounded import silent

STATIONS_MAX: Final = 16384
STATIONS_OF_LINK: Final = 8192
"""Bound by link, so that a guest that invents addresses forgets no station of another link."""
AGE_S: Final = 300.0
"""Silence after which a station is forgotten, as IEEE 802.1D has it."""

_TOLD_SHOWN: Final = 1024
"""Stations of a control plane that the status lists."""

Key = tuple[int, bytes]


@dataclass(slots=True)
class KnownStation:
    """A station. through: the services that its frames are sent through."""

    link: str
    seen_at: float
    through: set[str] = field(default_factory=set)


class StationTable:
    """A bounded table of stations, the one that was silent longest first.

    Nothing that a frame causes takes longer when the table is full. Beside the stations that frames show
    there are those that a control plane tells of, by their Ethernet address alone. The later of both counts.
    """

    def __init__(self) -> None:
        self._told: dict[bytes, KnownStation] = {}
        self._vlans: dict[bytes, set[int]] = {}
        self._news: dict[bytes, None] | None = None
        self._found: dict[Key, KnownStation] = {}
        self._of_link: dict[str, dict[Key, None]] = {}
        self._behind: dict[str, Counter[str]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def learn(self, vlan: int, mac: bytes, link: str, now: float) -> str:
        """Note a frame of a station. Return the link that it was at before if it has moved, else ""."""
        key = vlan, mac
        station = self._found.pop(key, None)
        of_link = self._of_link.setdefault(link, {})
        told = self._told.get(mac)
        if told is not None and told.link != link:
            self._untell(mac)
        else:
            told = None
        if station is None:
            if len(of_link) >= STATIONS_OF_LINK:
                self._remove(next(iter(of_link)))
            elif len(self._found) >= STATIONS_MAX:  # who has most gives way, not who is quiet
                most = max(self._of_link, key=lambda name: len(self._of_link[name]))
                self._remove(next(iter(self._of_link[most])))
            self._found[key] = KnownStation(link, now)
            of_link[key] = None
            self._vlans.setdefault(mac, set()).add(vlan)
            self._note(mac)
            return "" if told is None else told.link
        before, station.link, station.seen_at = station.link, link, now
        self._found[key] = station
        del self._of_link[before][key]
        of_link[key] = None
        if before == link:
            return ""
        self._leave(station, before)
        self._note(mac)
        return before

    def send_through(self, vlan: int, mac: bytes, service: str) -> None:
        """Note that frames of a station are sent through a service."""
        station = self.find(vlan, mac)
        if station is not None and service not in station.through:
            station.through.add(service)
            self._behind.setdefault(service, Counter())[station.link] += 1

    def _leave(self, station: KnownStation, link: str) -> None:
        for service in station.through:
            links = self._behind[service]
            links[link] -= 1
            if not links[link]:
                del links[link]
        station.through.clear()

    def _untell(self, mac: bytes) -> KnownStation | None:
        station = self._told.pop(mac, None)
        if station is not None:
            self._leave(station, station.link)
        return station

    def _remove(self, key: Key) -> None:
        station = self._found.pop(key)
        del self._of_link[station.link][key]
        self._leave(station, station.link)
        vlan, mac = key
        self._vlans[mac].discard(vlan)
        if not self._vlans[mac]:
            del self._vlans[mac]
        self._note(mac)

    def find(self, vlan: int, mac: bytes) -> KnownStation | None:
        """Return the station of an address; None: not known."""
        return self._found.get((vlan, mac)) or self._told.get(mac)

    # --- a control plane

    def keep_news(self, *, wanted: bool) -> None:
        """Note from now on which addresses are learned, moved or forgotten. At first, all are news."""
        self._news = dict.fromkeys(self._vlans) if wanted else None

    def _note(self, mac: bytes) -> None:
        if self._news is not None:
            self._news[mac] = None

    def take_news(self) -> list[bytes]:
        """Return the addresses that are news since the last call."""
        news = list(self._news or ())
        if self._news:
            self._news.clear()
        return news

    def link_of(self, mac: bytes) -> str:
        """Return the link that frames of an address came from last, in any VLAN; "": none is known."""
        for vlan in self._vlans.get(mac, ()):
            return self._found[vlan, mac].link
        return ""

    def tell(self, mac: bytes, link: str, now: float) -> str:
        """Note that a station is at a link; "": no longer there. Return another link that it was seen at."""
        old = self._untell(mac)
        if link:
            self._told[mac] = KnownStation(link, now)
        before = ""
        for vlan in list(self._vlans.get(mac, ())):
            seen_at = self._found[vlan, mac].link
            if (seen_at != link) if link else (old is not None and seen_at == old.link):
                before = seen_at
                self._remove((vlan, mac))
        return before

    def behind(self, service: str) -> set[str]:
        """Return the links of the stations whose frames are sent through a service."""
        return set(self._behind.get(service, ()))

    def expire(self, now: float) -> None:
        """Forget stations that were silent."""
        for key in silent(self._found, now - AGE_S):
            self._remove(key)

    def forget_link(self, link: str) -> None:
        """Forget the stations of a link that is gone."""
        for key in list(self._of_link.get(link, ())):
            self._remove(key)
        self._of_link.pop(link, None)
        for mac in [mac for mac, station in self._told.items() if station.link == link]:
            self._untell(mac)

    def forget_service(self, service: str) -> None:
        """Forget which stations were behind a service."""
        for one in chain(self._found.values(), self._told.values()):
            one.through.discard(service)
        self._behind.pop(service, None)

    def items(self) -> Iterator[tuple[Key, KnownStation]]:
        """Return all stations."""
        return iter(self._found.items())

    def status(self, now: float, vtep_of: Callable[[bytes], str]) -> dict[str, dict[str, object]]:
        """Return what --json says of each station. vtep_of: returns the VTEP of one that is told."""

        def shown(station: KnownStation, vtep: str) -> dict[str, object]:
            return {
                "link": station.link,
                "through": " ".join(sorted(station.through)),
                "vtep": vtep,
                "idle_s": round(max(0.0, now - station.seen_at), 1),
            }

        return {
            mac.hex(":") if not vlan else f"{mac.hex(':')} vlan {vlan}": shown(station, "")
            for (vlan, mac), station in self._found.items()
        } | {
            mac.hex(":"): shown(station, vtep_of(mac))
            for mac, station in islice(self._told.items(), _TOLD_SHOWN)
        }
