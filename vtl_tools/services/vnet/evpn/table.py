"""The routes of BGP EVPN in one network, and our own stations. Sans-IO.

Of several routes to a MAC the one with the highest sequence number counts, and of equals that of the lowest
VTEP (RFC 7432 section 15). The same rule decides between a route and an own station.
"""

import ipaddress
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from vtl_tools.common.bounded import BoundedTable
from vtl_tools.services.vnet.evpn.gobgp_api import EvpnRoute, OwnNetwork

log = logging.getLogger(__name__)

ROUTES_MAX: Final = 65536
OWN_MAX: Final = 4096
"""Own stations that are announced: a guest that invents addresses fills no table of another host."""
MOVES_MAX: Final = 5
MOVES_S: Final = 180.0
"""A MAC that moved to us so often in this time is at two places; it is left alone (RFC 7432 section 15.1)."""
_MOVED_MAX: Final = 4096
_WAITING_MAX: Final = 2 * OWN_MAX
"""Own stations that gobgpd is yet to be told of: those of an earlier run, and ours."""
_NO_MOVE: Final = -1
_UNKNOWN: Final = -1
"""Sequence number of an own station that gobgpd has from an earlier connection."""


@dataclass(slots=True)
class _Route:
    rd: str
    ip: str
    vtep: bytes
    sequence: int
    epoch: int


class EvpnTable:
    """Remote stations with their VTEPs, and own stations with their sequence numbers.

    changed: MACs whose VTEP is another since take_changes(). duplicates: MACs that are at two places, with
    the time until which they are not announced.
    """

    def __init__(self, network: OwnNetwork) -> None:
        self._network = network
        self._vtep = ipaddress.ip_address(network.vtep).packed
        self._any_as = not network.target
        self._macs: dict[bytes, list[_Route]] = {}
        self._vteps: dict[bytes, int] = {}
        self._flood: tuple[bytes, ...] | None = ()
        self._own: dict[bytes, int] = {}
        self._told: dict[bytes, int] = {}
        self._dirty: dict[bytes, None] = {}
        self._changed: dict[bytes, None] = {}
        self._moves: BoundedTable[bytes, list[float]] = BoundedTable(_MOVED_MAX)
        self._epoch = 0
        self.routes = 0
        self.refused = 0
        self.duplicates: BoundedTable[bytes, float] = BoundedTable(_MOVED_MAX)

    def join(self, asn: int) -> OwnNetwork:
        """Return our network, with the route target that FRR makes by itself if none was given.

        That one has two octets of the AS, and those of other AS are as good (RFC 8365 section 5.1.2.1).
        """
        if not self._network.target:
            self._network = replace(self._network, target=f"{asn & 0xFFFF}:{self._network.vni}")
        return self._network

    # --- for frames

    def find(self, mac: bytes) -> bytes | None:
        """Return the VTEP of a MAC; None: not known."""
        routes = self._macs.get(mac)
        return None if routes is None else routes[0].vtep

    @property
    def flood(self) -> tuple[bytes, ...]:
        """The VTEPs that take frames for all, in the order of their addresses."""
        if self._flood is None:
            self._flood = tuple(sorted({route.vtep for route in self._macs.get(b"", ())}))
        return self._flood

    def knows(self, vtep: bytes) -> bool:
        """Return whether a route leads to a VTEP."""
        return vtep in self._vteps

    def counts(self) -> dict[str, int]:
        """Return the part of the status that is numbers."""
        return {
            "vteps": len(self._vteps), "routes": self.routes, "own": len(self._own),
            "waiting": len(self._dirty), "refused": self.refused, "duplicates": len(self.duplicates),
        }  # fmt: skip

    # --- routes that are told

    def learn(self, route: EvpnRoute) -> None:
        """Take a route, or its withdrawal."""
        if route.rd == self._network.rd:
            self._on_echo(route)
            return
        if not route.is_withdrawn and not self._is_ours(route):
            if self._of(route) is None:
                return
            route = route._replace(is_withdrawn=True)  # it was of our network before
        before = self.find(route.mac)
        self._replace(route)
        if route.mac:
            self._contest(route.mac)
        if self.find(route.mac) != before:
            self._note(route.mac)

    def _is_ours(self, route: EvpnRoute) -> bool:
        if route.vni != self._network.vni or route.vtep == self._vtep or len(route.vtep) != len(self._vtep):
            return False
        if self._any_as:
            number = self._network.target.partition(":")[2]
            return any(target.partition(":")[2] == number for target in route.targets)
        return self._network.target in route.targets

    def _on_echo(self, route: EvpnRoute) -> None:
        """Note an own route that gobgpd has. One of an earlier run is withdrawn.

        One that was withdrawn in the name of an earlier run is announced again.
        """
        mac, is_wanted = route.mac, not route.mac or route.mac in self._own
        if route.is_withdrawn and is_wanted:
            self._told.pop(mac, None)
            self._dirty[mac] = None
        elif is_wanted and mac in self._dirty:  # it may be gone before it is told again
            self._told.setdefault(mac, _UNKNOWN)
        elif not route.is_withdrawn and not is_wanted:
            if len(self._dirty) >= _WAITING_MAX:  # no earlier run had so many: they are forged
                self.refused += 1
                return
            self._told[mac] = route.sequence
            self._dirty[mac] = None

    def _of(self, route: EvpnRoute) -> _Route | None:
        for one in self._macs.get(route.mac, ()):
            if one.rd == route.rd and one.ip == route.ip:
                return one
        return None

    def _replace(self, route: EvpnRoute) -> None:
        if (old := self._of(route)) is not None:
            self._drop(route.mac, old)
        if route.is_withdrawn:
            return
        if self.routes >= ROUTES_MAX:
            self.refused += 1
            return
        new = _Route(route.rd, route.ip, route.vtep, route.sequence, self._epoch)
        routes = self._macs.setdefault(route.mac, [])
        routes.append(new)
        if route.mac:
            routes.sort(key=lambda one: (-one.sequence, one.vtep))
        else:
            self._flood = None
        self._vteps[new.vtep] = self._vteps.get(new.vtep, 0) + 1
        self.routes += 1

    def _drop(self, mac: bytes, route: _Route) -> None:
        routes = self._macs[mac]
        routes.remove(route)
        if not routes:
            del self._macs[mac]
        if not mac:
            self._flood = None
        self._vteps[route.vtep] -= 1
        if not self._vteps[route.vtep]:
            del self._vteps[route.vtep]
        self.routes -= 1

    def _contest(self, mac: bytes) -> None:
        """Give up an own station that a route is better than."""
        sequence, routes = self._own.get(mac), self._macs.get(mac)
        if sequence is None or routes is None:
            return
        best = routes[0]
        if best.sequence > sequence or (best.sequence == sequence and best.vtep < self._vtep):
            self.disown(mac)

    def _note(self, mac: bytes) -> None:
        if mac:
            self._changed[mac] = None

    def take_changes(self, most: int) -> list[tuple[bytes, bool]]:
        """Return some MACs whose VTEP is another, and whether they have one that is not us."""
        changes: list[tuple[bytes, bool]] = []
        while self._changed and len(changes) < most:
            mac = next(iter(self._changed))
            del self._changed[mac]
            changes.append((mac, mac in self._macs and mac not in self._own))
        return changes

    @property
    def has_changes(self) -> bool:
        """Whether take_changes() has something."""
        return bool(self._changed)

    # --- the control plane is lost, and back

    def begin(self) -> None:
        """A connection begins: routes and own stations are told from the start."""
        self._epoch += 1
        self._told.clear()
        self._dirty = dict.fromkeys(self._own)

    def sweep(self, *, everything: bool) -> None:
        """Forget the routes that were not told in this connection; or all."""
        for mac, routes in list(self._macs.items()):
            for route in list(routes):
                if everything or route.epoch != self._epoch:
                    self._drop(mac, route)
                    self._note(mac)

    # --- own stations

    def own(self, mac: bytes, now: float) -> None:
        """Announce a station that is here now, with a higher number than the VTEP that it comes from."""
        if mac in self._own:
            return
        routes = self._macs.get(mac)
        sequence = _NO_MOVE if routes is None else routes[0].sequence
        if len(self._own) >= OWN_MAX or (routes is not None and not self._may_move(mac, now)):
            self.refused += 1
            return
        self._own[mac] = min(sequence + 1, 0xFFFFFFFF)
        self._dirty[mac] = None

    def disown(self, mac: bytes) -> None:
        """Withdraw a station that is gone."""
        if self._own.pop(mac, None) is not None:
            if mac in self._told:
                self._dirty[mac] = None
            else:
                self._dirty.pop(mac, None)  # gobgpd never heard of it
            if mac in self._macs:
                self._note(mac)

    def _may_move(self, mac: bytes, now: float) -> bool:
        if self.duplicates.get(mac, 0.0) > now:
            return False
        times = [at for at in self._moves.pop(mac, ()) if now - at < MOVES_S]
        if len(times) >= MOVES_MAX:
            self.duplicates.put(mac, now + MOVES_S)
            log.warning(
                "%s: is at two places and came here %d times; it is not announced for %g s",
                mac.hex(":"), MOVES_MAX, MOVES_S,
            )  # fmt: skip
            return False
        self._moves.put(mac, [*times, now])
        return True

    def freed(self, now: float) -> list[bytes]:
        """Return MACs that may be announced again."""
        free = [mac for mac, until in self.duplicates.items() if until <= now]
        for mac in free:
            del self.duplicates[mac]
        return free

    @property
    def has_update(self) -> bool:
        """Whether next_update() may have something."""
        return bool(self._dirty)

    def next_update(self) -> tuple[bytes, int | None] | None:
        """Return an own station that gobgpd is told of now, with its sequence number; None: withdrawn."""
        while self._dirty:
            mac = next(iter(self._dirty))
            del self._dirty[mac]
            wanted, told = self._own.get(mac) if mac else 0, self._told.pop(mac, None)
            if wanted is not None:
                self._told[mac] = wanted
            if wanted != told:
                return mac, wanted
        return None

    def told(self) -> Iterator[bytes]:
        """Return the own stations that gobgpd has."""
        return iter(self._told)
