"""Two links as a cable, or more as a switch that learns. Paper section 2.3, Figure 1."""

from collections.abc import Sequence
from typing import Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.stage import Stage

AGE_S: Final = 300.0
"""Ageing time: seconds without a frame after which a station is removed (IEEE 802.1Q-2022 table 8-6)."""
STATIONS_MAX: Final = 8192
"""Size of the table. When it is full, the port with most stations loses its oldest one."""
SHARED_PER_S: Final = 1000.0
"""Stations that a worker announces to the others. They flood frames for stations that they do not know."""

_DST = slice(VNET, VNET + 6)
_SRC = slice(VNET + 6, VNET + 12)
_ETHERNET_END: Final = VNET + 14
_FLOOD: Final = -1
_NOWHERE: Final = -2


class Bridge(Stage):
    """Two ports: a cable that carries frames unchanged, in both directions or in one."""

    def __init__(self, *, half_duplex: bool = False) -> None:
        super().__init__()
        self.half_duplex = half_duplex

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Pass a batch on as it is: no Python per frame."""
        if port and self.half_duplex:
            self.drops["other-direction"] += batch.count
            return
        self.out[1 - port](batch, now)


class Switch(Stage):
    """Two ports or more: a switch that learns the port of each station. names: of the links."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(len(names))
        self.names = names
        self.stations: dict[bytes, tuple[int, float]] = {}
        self._behind: list[dict[bytes, None]] = [{} for _ in names]  # in the order of last sight
        self._shared = TokenBucket(SHARED_PER_S)
        self._due = 0.0
        self._picked = Batch()

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Learn from each frame, and forward the frames of one destination port together."""
        groups: dict[int, list[int]] = {}
        for i, frame in enumerate(batch):
            groups.setdefault(self._port_for(port, bytes(frame[:_ETHERNET_END]), now), []).append(i)
        for target, indices in groups.items():
            if target == port:
                self.drops["local"] += len(indices)
                continue
            part = batch if len(indices) == batch.count else self._picked.pick(batch, indices)
            if target >= 0:
                self.out[target](part, now)
            elif target == _FLOOD:
                for other in range(len(self.out)):
                    if other != port:
                        self.out[other](part, now)
            else:
                self.drops["malformed"] += len(indices)

    def _port_for(self, port: int, ethernet: bytes, now: float) -> int:
        if len(ethernet) < _ETHERNET_END:
            return _NOWHERE
        source = ethernet[_SRC]
        if not source[0] & 1:  # a group address sends nothing
            known = self.stations.get(source)
            if known is None or known[0] != port or now - known[1] > 1.0:
                self._learn(source, port, now)
                if self._shared.take(now):
                    self.broadcast(bytes([port]) + source)
        if ethernet[VNET] & 1:
            return _FLOOD
        known = self.stations.get(ethernet[_DST])
        return _FLOOD if known is None or now - known[1] > AGE_S else known[0]

    def _learn(self, station: bytes, port: int, now: float) -> None:
        self._forget(station)
        if len(self.stations) >= STATIONS_MAX:
            fullest = max(self._behind, key=len)
            self._forget(next(iter(fullest)))
        self.stations[station] = (port, now)
        self._behind[port][station] = None

    def _forget(self, station: bytes) -> None:
        if (known := self.stations.pop(station, None)) is not None:
            del self._behind[known[0]][station]

    def on_message(self, message: bytes, now: float) -> None:
        """Learn a station that another worker has learnt."""
        if len(message) == 7 and message[0] < len(self.out):
            self._learn(message[1:], message[0], now)

    def on_link(self, port: int, up: bool, now: float) -> None:
        """Forget the stations of a link that failed."""
        if not up:
            for station in list(self._behind[port]):
                self._forget(station)

    def deadline(self) -> float | None:
        """Return when the table is next searched for old stations; None: it is empty."""
        return self._due if self.stations else None

    def wake(self, now: float) -> None:
        """Forget stations that have sent nothing for AGE_S."""
        if now < self._due:
            return
        self._due = now + AGE_S / 4
        for station in [mac for mac, (_, seen) in self.stations.items() if now - seen > AGE_S]:
            self._forget(station)

    def status(self, now: float) -> dict[str, object]:
        """Return the table of stations."""
        return {
            "stations": {
                mac.hex(":"): {"link": self.names[port], "age_s": round(now - seen, 1)}
                for mac, (port, seen) in self.stations.items()
            }
        }
