"""The stage of vtl-vnet: sends the frames of all links as the switch decides; links and rules change."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.pcapng import INBOUND, OUTBOUND
from vtl_tools.common.errors import Malformed, SpecError, VTLError
from vtl_tools.common.packet.offload import bind, is_plain
from vtl_tools.common.session.items import HOPS_MAX, Hello
from vtl_tools.common.session.peer_link import Door, PeerLink
from vtl_tools.common.stage import Stage
from vtl_tools.services.vnet.adapting import AdaptablePeer, Adapting, AdaptSettings, shortcut_name
from vtl_tools.services.vnet.fields import FIXED
from vtl_tools.services.vnet.keeper import ServiceKeeper
from vtl_tools.services.vnet.links import LINKS_MAX, LinkPool, LinkSpec, door_of, make_link, parse_link
from vtl_tools.services.vnet.overlay_link import OverlayLink
from vtl_tools.services.vnet.route_cache import RouteCache
from vtl_tools.services.vnet.rule import VnetRule, parse_vnet_rule
from vtl_tools.services.vnet.switch import LinkKind, LinkRole, LinkSide, VnetSwitch

if TYPE_CHECKING:
    from vtl_tools.services.vnet.evpn.exchange import EvpnExchange

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
FORGET_S: Final = 300.0
"""After which a daemon that came through a door and is gone has no link any more."""
DRAIN_S: Final = 300.0
"""How long the connections of a removed rule keep their service, unless the user says otherwise."""
DRAIN_MAX_S: Final = 86_400
_Group = tuple[tuple[LinkSide, ...], int]


class Overlay(Stage):
    """vtl-vnet. ports: specs of the links that the runner has, in their order. key: of VNET links.

    keeper: runs services; None: there is none, and no service can be a link. name: of this daemon.
    """

    def __init__(
        self, ports: Sequence[str], key: bytes | None, keeper: ServiceKeeper | None, name: str = "vnet",
        adapt: AdaptSettings | None = None,
    ) -> None:  # fmt: skip
        super().__init__(len(ports))
        self.switch = VnetSwitch()
        self._adapting = Adapting(adapt or AdaptSettings(), self.switch, self, name, key, keeper)
        self._key, self._keeper = key, keeper
        self._doors: list[str] = []
        self._hello = Hello(name, self._doors)  # so that all sessions, and later ones, tell of all doors
        self._links: dict[str, OverlayLink] = {}
        self._pool = LinkPool(self._on_pool)
        self._owners: dict[Device, LinkSide] = {}
        self._routes = RouteCache(self.switch, self._tell_move)
        self._hits: Counter[str] = Counter()
        self._tick_at = 0.0
        self._ticked_at = 0.0
        self._scratch = Batch()
        self._exchange: EvpnExchange | None = None
        self._ingress: list[LinkSide] = []
        self.sources = [self._pool]
        if keeper is not None:
            keeper.on_change = self._on_service
            self.sources.append(keeper)
        for port, spec in enumerate(ports):
            self._links[spec] = OverlayLink(LinkSpec(spec, spec, LinkRole()), port)
            self.switch.add_link(spec, LinkRole())
            self._ingress.append(LinkSide(spec))

    # --- changes

    def add_link(self, name: str, spec: str, secret: bytes = b"") -> None:
        """Add a link. secret: what a service's --key-file is to have, if anything. Raises VTLError."""
        link = parse_link(name, spec)
        if name in self._links:
            raise SpecError(f"{name}: there is a link of this name; choose another")
        if len(self._links) >= LINKS_MAX:
            raise SpecError(f"{name}: there are {LINKS_MAX} links already; remove one")
        if link.role.told and self._exchange is not None:
            raise SpecError(
                f"{name}: {self._exchange.name} is an evpn: link, and two networks would be one; "
                "start another vtl-vnet for this one, with another local= address"
            )
        added = OverlayLink(link)
        try:
            for device in self._devices(link):
                self._pool.add(device)
                added.devices.append(device)
                added.up.append(device.up)
            if link.service is not None and self._keeper is not None:
                self._keeper.start(name, link.service, secret)
                added.control = self._keeper.places(name)[2]
            if link.role.told and self._keeper is not None:
                self._keeper.watch_routes(spec, wanted=True)
        except VTLError:
            for device in added.devices:
                self._pool.remove(device)
            raise
        self._enter(added)

    def _enter(self, added: OverlayLink) -> None:
        """Make a link whose devices are read one of the overlay."""
        name = added.spec.name
        self._links[name] = added
        if isinstance(door := added.devices[0], Door):
            door.on_peer = lambda hello, link: self._on_peer(name, hello, link)
            self._doors.append(door_of(added.spec.spec))
            self._say_hello()
            return
        for side, device in enumerate(added.devices):
            self._owners[device] = LinkSide(name, side)
        if not added.over:
            self.switch.add_link(name, added.spec.role)
        if added.spec.role.told:
            from vtl_tools.services.vnet.evpn.exchange import EvpnExchange

            self._exchange = EvpnExchange(name, added.devices[0], self.switch)
            self.switch.stations.keep_news(wanted=True)

    def _say_hello(self) -> None:
        for peer in self._peers().values():
            peer.device.say_hello()

    def make_shortcut(self, name: str, spec: str, over: str) -> None:
        """Add a shortcut beside the link to a daemon. Raises VTLError."""
        beside = self._links[over].devices[0]
        assert isinstance(beside, PeerLink)
        if name in self._links or beside.remote is None or len(self._links) >= LINKS_MAX:
            raise SpecError(f"{name}: no shortcut: there is one of this name, or too many links")
        link = parse_link(name, spec)
        device = make_link(link, self._key, replace(self._hello, over=beside.remote.name))
        self._pool.add(device)
        self._enter(OverlayLink(link, devices=[device], up=[False], over=over, up_at=self._ticked_at))

    def _on_peer(self, door: str, hello: Hello, device: PeerLink) -> bool:
        """Add the link of a daemon that came through a door. Return whether there can be one."""
        name = shortcut_name(hello.name) if hello.over else hello.name
        over = self._link_to(hello.over) if hello.over else ""
        is_wanted = not hello.over or (over and self._adapting.mode == "on")
        if name in self._links or len(self._links) >= LINKS_MAX or not is_wanted:
            log.warning("%s: no link for the daemon %s: there is one, too many, or no wish", door, name)
            return False
        role = self._links[door].spec.role
        added = OverlayLink(
            LinkSpec(name, device.spec, role),
            devices=[device],
            up=[False],
            door=door,
            over=over,
            up_at=self._ticked_at,
        )
        self._pool.add(device)
        self._enter(added)
        return True

    def _link_to(self, daemon: str) -> str:
        """Return the link to a daemon that is no shortcut; "": there is none."""
        for name, peer in self._peers().items():
            if not peer.over and peer.device.remote is not None and peer.device.remote.name == daemon:
                return name
        return ""

    def _peers(self) -> dict[str, AdaptablePeer]:
        """Return the links to daemons."""
        return {
            name: AdaptablePeer(device, link.over, link.octets_in + link.octets_out)
            for name, link in self._links.items()
            for device in link.devices
            if isinstance(device, PeerLink)
        }

    def _devices(self, link: LinkSpec) -> list[Device]:
        if link.service is None:
            return [make_link(link, self._key, self._hello)]
        if self._keeper is None:
            raise SpecError(f"{link.spec}: no service can be a link here")
        from vtl_tools.common.device.spec import open_device

        places = self._keeper.places(link.name)
        return [open_device(f"channel:{place}") for place in places[: link.role.sides]]

    def remove_link(self, name: str) -> None:
        """Remove a link. Raises VTLError."""
        link = self._links.get(name)
        if link is not None and link.port >= 0:
            raise SpecError(f"{name}: is a link from the start; end vtl-vnet to release it")
        if link is not None and link.spec.is_door:
            for each in [other for other, one in self._links.items() if one.door == name]:
                self.remove_link(each)
            self._doors.remove(door_of(link.spec.spec))
            self._say_hello()
        elif link is None or not link.over:
            self.switch.remove_link(name)
        assert link is not None
        self._adapting.forget(name)
        self._adapting.shortcuts.forget(name)
        if link.door and isinstance(door := self._links[link.door].devices[0], Door):
            door.forget(link.devices[0])
        del self._links[name]
        if link.spec.role.told:
            self._exchange = None
            self.switch.stations.keep_news(wanted=False)
        for device in link.devices:
            self._owners.pop(device, None)
            self._pool.remove(device)
        if link.spec.service is not None and self._keeper is not None:
            self._keeper.stop(name)
        if link.spec.role.told and self._keeper is not None:
            self._keeper.watch_routes(link.spec.spec, wanted=False)

    def add_rule(self, text: str, position: int | None = None) -> VnetRule:
        """Add a rule. Raises SpecError."""
        rule = parse_vnet_rule(text)
        self.switch.add_rule(rule, position)
        self._adapting.carrying.order_rules()
        return rule

    def remove_rule(self, text: str, drain_s: float = 0.0) -> None:
        """Remove a rule. drain_s: how long its connections keep their service at most. Raises SpecError."""
        rule = self.switch.find_rule(text)
        if self.switch.remove_rule(rule, self._ticked_at + drain_s if drain_s else None):
            del self._hits[rule.text]

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Process frames of a link of the runner."""
        ingress = self._ingress[port]
        self._links[ingress.link].octets_in += batch.octets
        self._pass(ingress, batch, now, ())

    def _on_pool(self, device: Device, batch: Batch, now: float) -> None:
        hops: Sequence[int] = ()
        if isinstance(device, PeerLink):
            hops = [h - 1 for h in device.hops]
        owner = self._owners[device]
        link = self._links[owner.link]
        link.octets_in += batch.octets
        if self.record is not None:
            self.record(link.name_of(owner.side), batch, INBOUND)
        if not link.over:
            self._pass(owner, batch, now, hops)
        elif link.over in self.switch.links:
            self._pass(LinkSide(link.over), batch, now, hops)  # as if it came by the longer way

    def _pass(self, ingress: LinkSide, batch: Batch, now: float, hops: Sequence[int]) -> None:
        self._routes.check()
        is_watched = self._adapting.mode != "off"
        groups: dict[_Group, list[int]] = {}
        for i, frame in enumerate(batch):
            if len(frame) < FIXED:
                self.drops["runt"] += 1
                continue
            if not is_plain(frame) and not self._bind(frame):
                continue
            left = hops[i] if hops else HOPS_MAX
            targets = self._targets(ingress, frame, now, left)
            if targets:
                groups.setdefault((targets, left), []).append(i)
        for (targets, left), indices in groups.items():
            part = batch if len(indices) == batch.count else self._scratch.pick(batch, indices)
            if is_watched:
                self._adapting.note(ingress.link, targets, part)
            for target in targets:
                self._send(target, part, now, left)

    def _bind(self, frame: memoryview) -> bool:
        """See to it that no checksum is written over what is judged. Return whether that can be."""
        try:
            bind(frame)
        except Malformed:
            self.drops["malformed"] += 1
            return False
        return True

    def _targets(self, ingress: LinkSide, frame: memoryview, now: float, hops: int) -> tuple[LinkSide, ...]:
        decision = self._routes.find(ingress, frame, now)
        for rule in decision.rules:
            self._hits[rule.text] += 1
        if not decision.targets:
            self.drops[decision.reason] += 1
        if hops > 0:
            return decision.targets
        local = tuple(t for t in decision.targets if self._links[t.link].spec.role.kind is not LinkKind.VNET)
        if len(local) < len(decision.targets):
            self.drops["hop-limit"] += 1
        return local

    def _send(self, target: LinkSide, batch: Batch, now: float, hops: int) -> None:
        link = self._links[target.link]
        link.octets_out += batch.octets
        if link.port >= 0:
            self.out[link.port](batch, now)
            return
        if self.record is not None:
            self.record(link.name_of(target.side), batch, OUTBOUND)
        device = link.devices[target.side]
        if isinstance(device, PeerLink):
            device.write_hops(batch, hops)
        else:
            device.write(batch)

    def _tell_move(self, address: bytes, before: str, link: str) -> None:
        mac = address.hex(":")
        self.event("station", mac=mac, before=before, at=link, cause=("station", mac))

    # --- what changes by itself

    def settle(self, now: float) -> None:
        """Tell which links went up or down; exchange stations with a control plane."""
        if self._exchange is not None:
            self._exchange_stations(self._exchange, now)
        for name, link in self._links.items():
            for side, device in enumerate(link.devices):
                if device.up != link.up[side]:
                    link.up[side] = device.up
                    if not device.up:
                        self._adapting.forget(name)
                    self.event("link", changed=link.name_of(side), up=device.up)

    def _exchange_stations(self, exchange: "EvpnExchange", now: float) -> None:
        for mac, before in exchange.run(now):
            text = mac.hex(":")
            self.event("station", mac=text, before=before, at=exchange.name, cause=("station", text))
        if (connected := exchange.news_of_control()) is not None:
            self.event("control-plane", name=exchange.name, connected=connected)

    def service_state(self, name: str) -> tuple[bool, int]:
        """Return whether a service's links are up, and how often it was started."""
        link = self._links.get(name)
        return (False, 0) if link is None else (all(link.up), link.starts)

    def _on_service(self, name: str, pid: int, status: int) -> None:
        link = self._links.get(name)
        if link is None:
            return
        link.pid = pid
        link.starts += bool(pid)
        if pid:
            self.event("service-link", name=name, pid=pid)
        else:
            log.warning("%s: its service ended with status %d; it is started again", name, status)
            self.event("service-link", name=name, pid=0, exit=status)

    def deadline(self) -> float:
        """Return when rates are due."""
        return self._tick_at

    def wake(self, now: float) -> None:
        """Compute rates, and let stations be confirmed."""
        if now < self._tick_at:
            return
        elapsed_s = max(now - self._ticked_at, 1e-3)
        self._ticked_at, self._tick_at = now, now + TICK_S
        for link in self._links.values():
            link.measure(elapsed_s, now)
        self._forget_daemons(now)
        self._adapting.tick(self._peers(), now)
        self._routes.clear()
        for rule, cut in self.switch.expire(now):
            del self._hits[rule.text]
            self.event("rule", rule=rule.text, drained=not cut, cut=cut)

    def _forget_daemons(self, now: float) -> None:
        """Remove the links of daemons that came through a door and are gone for long."""
        for name, link in list(self._links.items()):
            if link.door and now >= link.up_at + FORGET_S:
                with suppress(SpecError):  # a rule names it: it stays
                    self.remove_link(name)

    def status(self, now: float) -> dict[str, object]:
        """Return links, rules and stations."""
        return {
            "adapt": self._adapting.status(now),
            "overlay": {name: link.status() for name, link in self._links.items()},
            "rules": {
                rule.text: {
                    "number": number,
                    "via": rule.via,
                    "hits": self._hits[rule.text],
                    **self._flows_of(rule),
                }
                for number, rule in enumerate(self.switch.rules, 1)
            },
            "stations": self.switch.stations.status(
                now, lambda mac: "" if self._exchange is None else self._exchange.vtep_of(mac)
            ),
        }

    def _flows_of(self, rule: VnetRule) -> dict[str, object]:
        flows = self.switch.flows.get(rule.text)
        if flows is None:
            return {"draining": False, "connections": 0, "kept": 0}
        return {
            "draining": flows.drain_until is not None,
            "connections": flows.taken,
            "kept": flows.kept,
        }

    # --- verbs

    def verbs(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Return the verbs beside `status`."""
        return {"link": self._verb_link, "rule": self._verb_rule}

    def _verb_link(self, request: dict[str, Any]) -> dict[str, Any]:
        action, name, spec = request.get("action"), request.get("name"), request.get("spec")
        if action == "add" and isinstance(name, str) and isinstance(spec, str):
            self.add_link(name, spec)
        elif action == "remove" and isinstance(name, str):
            self.remove_link(name)
        elif action != "list":
            raise SpecError("link: not understood; see 'vtl-vnet link --help'")
        return {"links": {name: link.status() for name, link in self._links.items()}}

    def _verb_rule(self, request: dict[str, Any]) -> dict[str, Any]:
        action, text, position = request.get("action"), request.get("rule"), request.get("position")
        if position is not None and (not isinstance(position, int) or position < 1):
            raise SpecError("rule: the position is a number from 1")
        if action == "add" and isinstance(text, str):
            self.add_rule(text, position)
        elif action == "remove" and isinstance(text, str):
            drain_s = request.get("drain", DRAIN_S)
            if not isinstance(drain_s, int | float) or not 0 <= drain_s <= DRAIN_MAX_S:
                raise SpecError(f"rule: a drain is 0 to {DRAIN_MAX_S} seconds")
            self.remove_rule(text, drain_s)
        elif action != "list":
            raise SpecError("rule: not understood; see 'vtl-vnet rule --help'")
        return {"rules": self.status(0.0)["rules"]}
