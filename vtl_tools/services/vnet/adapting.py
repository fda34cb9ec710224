"""Carries out what adapt.py decides: introductions, shortcuts, and the stations that these lead to."""

import ipaddress
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from vtl_tools.common.errors import VTLError
from vtl_tools.common.session.items import DOOR, INTRODUCE, LINK_NAME, STATIONS
from vtl_tools.common.session.peer_link import PeerLink
from vtl_tools.services.vnet.adapt import Advice, LinkView, Matchmaker, Shortcuts
from vtl_tools.services.vnet.stations import Key
from vtl_tools.services.vnet.switch import LinkKind, VnetSwitch

log = logging.getLogger(__name__)

MODES: Final = ("off", "suggest", "on")
_TOLD_MAX: Final = 1024
"""Stations that are told of over a shortcut."""
_KEY: Final = 8
_LAST: Final = 32
"""Things done that status shows."""


class AdaptableLinks(Protocol):
    """The links of the overlay, as adaptation needs them."""

    def make_shortcut(self, name: str, spec: str, over: str) -> None:
        """Add a shortcut beside a link. Raises VTLError."""
        ...

    def remove_link(self, name: str) -> None:
        """Remove a link. Raises VTLError."""
        ...

    event: Callable[..., object]
    """Tells an event."""


@dataclass(frozen=True, slots=True)
class AdaptablePeer:
    """A link to a daemon: its device, the link beside which it is a shortcut, octets in both directions."""

    device: PeerLink
    over: str
    octets: int


@dataclass
class Adapting:
    """Adaptation of an overlay. mode: one of MODES. last: what was done, and why."""

    mode: str
    switch: VnetSwitch
    links: AdaptableLinks
    matchmaker: Matchmaker = field(default_factory=Matchmaker)
    shortcuts: Shortcuts = field(default_factory=Shortcuts)
    last: list[dict[str, str]] = field(default_factory=list)
    _told: dict[str, frozenset[Key]] = field(default_factory=dict)

    def tick(self, peers: Mapping[str, AdaptablePeer], now: float) -> None:
        """Take what other daemons tell, and do what is advised."""
        for name, peer in peers.items():
            for kind, item in peer.device.messages():
                self._take(name, peer, kind, item, now)
        if self.mode == "off":
            return
        views = {name: _view(peer) for name, peer in peers.items()}
        for advice in self.matchmaker.tick(views, now):
            if advice.action == "introduce" and self.mode == "on":
                self._introduce(peers[advice.link].device, advice)
            self._note(advice)
        for advice in self.shortcuts.tick(views, now):
            if advice.action == "undo":
                self.forget(advice.link)
                with suppress(VTLError):
                    self.links.remove_link(advice.link)
            self._note(advice)
        for name, peer in peers.items():
            if peer.over:
                self._tell_stations(name, peer)

    def _note(self, advice: Advice) -> None:
        log.info("adapt: %s %s: %s", advice.action, advice.link, advice.why)
        self._write(advice.action, advice.link, advice.why)

    def _write(self, action: str, link: str, why: str) -> None:
        done = {"action": action, "changed": link, "why": why}
        self.last = [*self.last[1 - _LAST :], done]
        self.links.event("adapt", **done)

    def _introduce(self, device: PeerLink, advice: Advice) -> None:
        told = {
            "daemon": advice.daemon, "door": advice.door, "rtt_ms": advice.rtt_ms,
            "loss_percent": advice.loss_percent,
        }  # fmt: skip
        device.tell(INTRODUCE, json.dumps(told).encode())

    # --- what other daemons tell

    def _take(self, name: str, peer: AdaptablePeer, kind: int, item: bytes, now: float) -> None:
        if kind == STATIONS and peer.over:
            self._take_stations(name, peer.over, item)
        elif kind == INTRODUCE and self.mode != "off" and not peer.over:
            with suppress(ValueError, KeyError, TypeError, RecursionError):
                self._take_introduction(name, json.loads(item), now)

    def _take_introduction(self, over: str, told: dict[str, Any], now: float) -> None:
        daemon, door = told["daemon"], told["door"]
        if not LINK_NAME.fullmatch(daemon) or not DOOR.fullmatch(door):
            return
        name = shortcut_name(daemon)
        if not self.shortcuts.may_make(daemon, now):
            return
        why = f"{over} says that {daemon} is busy with this daemon, and is at {door}"
        if self.mode == "suggest":
            self._write("suggest", name, why)
            return
        try:
            self.links.make_shortcut(name, door, over)
        except VTLError as e:
            log.info("adapt: no shortcut to %s: %s", daemon, e)
            return
        self.shortcuts.made(name, over, _number(told["rtt_ms"]), _number(told["loss_percent"]), now)
        self._write("make", name, why)

    # --- stations of shortcuts

    def _tell_stations(self, name: str, peer: AdaptablePeer) -> None:
        if not peer.device.up:
            self.forget(name)
            return
        links = self.switch.links
        ours = [
            key
            for key, station in self.switch.stations.items()
            if (role := links.get(station.link)) is not None and role.kind is LinkKind.LOCAL
        ]
        told = frozenset(ours[-_TOLD_MAX:])
        if self._told.get(name) != told:
            self._told[name] = told
            peer.device.tell(STATIONS, b"".join(vlan.to_bytes(2) + mac for vlan, mac in told))

    def _take_stations(self, name: str, over: str, item: bytes) -> None:
        self._clear(name)
        for at in range(0, min(len(item) // _KEY, _TOLD_MAX) * _KEY, _KEY):
            key = int.from_bytes(item[at : at + 2]), item[at + 2 : at + _KEY]
            self.switch.shortcuts[key] = over, name
        self.switch.generation += 1

    def _clear(self, name: str) -> None:
        kept = {key: way for key, way in self.switch.shortcuts.items() if way[1] != name}
        if len(kept) < len(self.switch.shortcuts):
            self.switch.shortcuts = kept
            self.switch.generation += 1

    def forget(self, name: str) -> None:
        """Send nothing over a shortcut any more: it is down, or gone."""
        self._told.pop(name, None)
        self._clear(name)

    def status(self) -> dict[str, object]:
        """Return the traffic of pairs, and what was done."""
        return {"mode": self.mode, "pairs": self.matchmaker.status(), "last": self.last}


def shortcut_name(daemon: str) -> str:
    """Return the name of the link that is a shortcut to a daemon."""
    return f"{daemon[:25]}-direct"


def _view(peer: AdaptablePeer) -> LinkView:
    device = peer.device
    state = device.status()
    rtt_ms, loss = state["rtt_ms"], state["loss_percent"]
    return LinkView(
        device.remote.name if device.remote else "", device.up, _number(rtt_ms), _number(loss),
        _door(device.doors, device.where), peer.octets,
    )  # fmt: skip


def _door(doors: Sequence[str], where: str) -> str:
    """Return the first door of a daemon, with the address that it is seen at in place of "any"."""
    for door in doors:
        if (match := DOOR.fullmatch(door)) is None:
            continue
        host = match["host"].strip("[]")
        try:
            if not ipaddress.ip_address(host).is_unspecified:
                return door
            seen = ipaddress.ip_address(where)
        except ValueError:
            continue
        shown = f"[{seen}]" if seen.version == 6 else str(seen)
        return f"{match['kind']}:{shown}:{match['port']}"
    return ""


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < 1e9 else None
