"""Carries out what adapt.py decides: introductions, shortcuts, and the stations that these lead to.

The decisions of long_paths.py are left to carrying.py.
"""

import ipaddress
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from vtl_tools.common.bounded import BoundedTable
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed, VTLError
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.common.session.items import CARRY, DOOR, INTRODUCE, LINK_NAME, STATIONS
from vtl_tools.common.session.peer_link import PeerLink
from vtl_tools.services.vnet.adapt import AGAIN_S, IDLE_S, PAIRS_MAX, Advice, LinkView, Matchmaker, Shortcuts
from vtl_tools.services.vnet.carrying import PORT, Carrying, ServiceLinks
from vtl_tools.services.vnet.detours import Detours
from vtl_tools.services.vnet.fields import fields_of
from vtl_tools.services.vnet.keeper import ServiceKeeper
from vtl_tools.services.vnet.long_paths import LongPaths
from vtl_tools.services.vnet.stations import Key
from vtl_tools.services.vnet.switch import LinkKind, LinkSide, VnetSwitch

log = logging.getLogger(__name__)

MODES: Final = ("off", "suggest", "on")
_TOLD_MAX: Final = 1024
"""Stations that are told of over a shortcut."""
_KEY: Final = 8
_LAST: Final = 32
"""Things done that status shows."""


class AdaptableLinks(ServiceLinks, Protocol):
    """The links of the overlay, as adaptation needs them."""

    def make_shortcut(self, name: str, spec: str, over: str) -> None:
        """Add a shortcut beside a link. Raises VTLError."""
        ...

    event: Callable[..., object]
    """Tells an event."""


@dataclass(frozen=True, slots=True)
class AdaptablePeer:
    """A link to a daemon: its device, the link beside which it is a shortcut, octets in both directions."""

    device: PeerLink
    over: str
    octets: int


@dataclass(frozen=True)
class AdaptSettings:
    """Settings of a user. mode: one of MODES. port, idle_s: see Carrying."""

    mode: str = "off"
    port: int = PORT
    idle_s: float = IDLE_S


@dataclass
class Adapting:
    """Adaptation of an overlay. last: what was done, and why. name, key, keeper: see Carrying."""

    settings: AdaptSettings
    switch: VnetSwitch
    links: AdaptableLinks
    name: str
    key: bytes | None
    keeper: ServiceKeeper | None
    matchmaker: Matchmaker = field(default_factory=Matchmaker)
    shortcuts: Shortcuts = field(default_factory=Shortcuts)
    last: list[dict[str, str]] = field(default_factory=list)
    long_paths: LongPaths = field(default_factory=LongPaths)
    _told: dict[str, frozenset[Key]] = field(default_factory=dict)
    _suggested: BoundedTable[tuple[str, str, str], str] = field(
        default_factory=lambda: BoundedTable(PAIRS_MAX)
    )

    def __post_init__(self) -> None:
        self.mode = self.settings.mode
        self.detours = Detours(lambda mac: self.switch.stations.find(0, mac) is not None)
        self.carrying = Carrying(
            self.name, self.key, self.switch, self.links, self.keeper, self._write, self.long_paths,
            self.settings.port, self.settings.idle_s,
        )  # fmt: skip

    def note(self, ingress: str, targets: Sequence[LinkSide], batch: Batch) -> None:
        """Take frames that came from one link and leave at others. One stands for all: in sum it is fair."""
        fields = fields_of(batch[0])
        if fields is None:
            return
        links, octets = self.switch.links, batch.octets
        kind = links[ingress].kind
        if kind is LinkKind.LOCAL or fields.protocol < 0:
            self.detours.note(ingress, fields, octets)
        for target in targets:
            role = links.get(target.link)
            if role is not None and role.kind is not LinkKind.VNET:
                continue  # no role: a shortcut to a daemon
            if kind is LinkKind.VNET:
                self.matchmaker.note(ingress, target.link, octets)
            elif kind is LinkKind.LOCAL:
                self.long_paths.note(target.link, fields, batch[0], octets)

    def tick(self, peers: Mapping[str, AdaptablePeer], now: float) -> None:
        """Take what other daemons tell, and do what is advised."""
        self.carrying.tick({name: peer.device for name, peer in peers.items()}, now)
        for name, peer in peers.items():
            for kind, item in peer.device.messages():
                self._take(name, peer, kind, item, now)
        if self.mode == "off":
            return
        views = {name: _view(peer) for name, peer in peers.items()}
        for advice in self.matchmaker.tick(views, now):
            if self.mode == "on":
                self._introduce(peers[advice.link].device, advice)
                self._note(advice)
            else:
                self._suggest(advice.action, advice.link, advice.daemon, advice.door, advice.why)
        for advice in self.shortcuts.tick(views, now):
            if advice.action == "undo":
                self.forget(advice.link)
                with suppress(VTLError):
                    self.links.remove_link(advice.link)
            self._note(advice)
        for path in self.long_paths.tick(views, now):
            if self.mode == "on":
                self.carrying.begin(path, now)
            else:
                self._suggest(
                    "service", path.link, str(path.pair), "", f"{path.pair}: {path.why}: service:udt may pay"
                )
                self.long_paths.put_off(path.pair, now + AGAIN_S)
        for detour, why in self.detours.tick(now):
            self._suggest("subnet", detour.link, str(detour.source + detour.destination), detour.command, why)
        for name, peer in peers.items():
            if peer.over:
                self._tell_stations(name, peer)

    def _note(self, advice: Advice) -> None:
        self._write(advice.action, advice.link, advice.why)

    def _write(self, action: str, link: str, why: str) -> None:
        log.info("adapt: %s %s: %s", action, link, why)
        done = {"action": action, "changed": link, "why": why}
        self.last = [*self.last[1 - _LAST :], done]
        self.links.event("adapt", **done)

    def _suggest(self, action: str, link: str, subject: str, what: str, why: str) -> None:
        """Tell of something to do, unless the same was suggested before, whatever the figures in `why`."""
        key = action, link, subject
        if self._suggested.get(key) != what:
            self._write(action, link, why)
        self._suggested.put(key, what)

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
        elif kind == CARRY:
            with suppress(Malformed):
                self.carrying.take(name, item, now, is_on=self.mode == "on")

    def _take_introduction(self, over: str, told: dict[str, Any], now: float) -> None:
        daemon, door = told["daemon"], told["door"]
        rtt_ms, loss_percent = _number(told["rtt_ms"]), _number(told["loss_percent"])
        if not LINK_NAME.fullmatch(daemon) or not (match := DOOR.fullmatch(door)):
            return
        if not is_single_host(ipaddress.ip_address(match["host"].strip("[]")).packed):
            return  # else it would be looked up as a name, or be a port of this host
        name = shortcut_name(daemon)
        if not self.shortcuts.may_make(daemon, now):
            return
        why = f"{over} says that {daemon} is busy with this daemon, and is at {door}"
        if self.mode == "suggest":
            self._suggest("suggest", name, daemon, door, why)
            return
        try:
            self.links.make_shortcut(name, door, over)
        except VTLError as e:
            log.info("adapt: no shortcut to %s: %s", daemon, e)
            return
        self.shortcuts.made(name, over, rtt_ms, loss_percent, now)
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

    def status(self, now: float) -> dict[str, object]:
        """Return the traffic of pairs, the services for pairs, and what was done."""
        return {
            "mode": self.mode,
            "pairs": self.matchmaker.status(),
            "carried": self.carrying.status(now),
            "last": self.last,
        }


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
