"""The stage of vtl-vnet: sends the frames of all links as the switch decides; links and rules change."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed, SpecError, VTLError
from vtl_tools.common.packet.offload import bind, is_plain
from vtl_tools.common.session.peer_session import HOPS_MAX
from vtl_tools.common.session.tcp_link import TCPLink
from vtl_tools.common.stage import Stage
from vtl_tools.services.vnet.fields import FIXED, FrameFields, fields_of, key_of
from vtl_tools.services.vnet.keeper import ServiceKeeper
from vtl_tools.services.vnet.links import LINKS_MAX, LinkPool, LinkSpec, make_link, parse_link
from vtl_tools.services.vnet.rule import VnetRule, parse_vnet_rule
from vtl_tools.services.vnet.switch import NET, FrameRoute, LinkKind, LinkRole, LinkSide, VnetSwitch

log = logging.getLogger(__name__)

TICK_S: Final = 1.0
_DECISIONS_MAX: Final = 8192
_Group = tuple[tuple[LinkSide, ...], int]


@dataclass
class _Link:
    """A link. devices: by side; none of a link that the runner has. port: of such a link."""

    spec: LinkSpec
    port: int = -1
    devices: list[Device] = field(default_factory=list)
    up: list[bool] = field(default_factory=list)
    pid: int = 0
    starts: int = 0
    rates: tuple[float, float] = 0.0, 0.0
    octets: tuple[int, int] = 0, 0
    octets_in: int = 0
    octets_out: int = 0


class Overlay(Stage):
    """vtl-vnet. ports: specs of the links that the runner has, in their order. key: of VNET links.

    keeper: runs services; None: there is none, and no service can be a link.
    """

    def __init__(self, ports: Sequence[str], key: bytes | None, keeper: ServiceKeeper | None) -> None:
        super().__init__(len(ports))
        self.switch = VnetSwitch()
        self._key, self._keeper = key, keeper
        self._links: dict[str, _Link] = {}
        self._pool = LinkPool(self._on_pool)
        self._owners: dict[Device, LinkSide] = {}
        self._decisions: dict[tuple[LinkSide, bytes | FrameFields], FrameRoute] = {}
        self._generation = -1
        self._hits: Counter[str] = Counter()
        self._tick_at = 0.0
        self._ticked_at = 0.0
        self._scratch = Batch()
        self._ingress: list[LinkSide] = []
        self.sources = [self._pool]
        if keeper is not None:
            keeper.on_change = self._on_service
            self.sources.append(keeper)
        for port, spec in enumerate(ports):
            self._links[spec] = _Link(LinkSpec(spec, spec, LinkRole()), port)
            self.switch.add_link(spec, LinkRole())
            self._ingress.append(LinkSide(spec))

    # --- changes

    def add_link(self, name: str, spec: str) -> None:
        """Add a link. Raises VTLError."""
        link = parse_link(name, spec)
        if name in self._links:
            raise SpecError(f"{name}: there is a link of this name; choose another")
        if len(self._links) >= LINKS_MAX:
            raise SpecError(f"{name}: there are {LINKS_MAX} links already; remove one")
        added = _Link(link)
        try:
            for device in self._devices(link):
                self._pool.add(device)
                added.devices.append(device)
                added.up.append(device.up)
            if link.service is not None and self._keeper is not None:
                self._keeper.start(name, link.service)
        except VTLError:
            for device in added.devices:
                self._pool.remove(device)
            raise
        for side, device in enumerate(added.devices):
            self._owners[device] = LinkSide(name, side)
        self._links[name] = added
        self.switch.add_link(name, link.role)

    def _devices(self, link: LinkSpec) -> list[Device]:
        if link.service is None:
            return [make_link(link, self._key)]
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
        self.switch.remove_link(name)
        assert link is not None
        del self._links[name]
        for device in link.devices:
            del self._owners[device]
            self._pool.remove(device)
        if link.spec.service is not None and self._keeper is not None:
            self._keeper.stop(name)

    def add_rule(self, text: str, position: int | None = None) -> VnetRule:
        """Add a rule. Raises SpecError."""
        rule = parse_vnet_rule(text)
        self.switch.add_rule(rule, position)
        return rule

    def remove_rule(self, text: str) -> VnetRule:
        """Remove a rule. Raises SpecError."""
        rule = self.switch.remove_rule(text)
        del self._hits[rule.text]
        return rule

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Process frames of a link of the runner."""
        ingress = self._ingress[port]
        self._links[ingress.link].octets_in += batch.octets
        self._pass(ingress, batch, now, ())

    def _on_pool(self, device: Device, batch: Batch, now: float) -> None:
        hops: Sequence[int] = ()
        if isinstance(device, TCPLink):
            hops = [h - 1 for h in device.hops]
        self._links[self._owners[device].link].octets_in += batch.octets
        self._pass(self._owners[device], batch, now, hops)

    def _pass(self, ingress: LinkSide, batch: Batch, now: float, hops: Sequence[int]) -> None:
        if self._generation != self.switch.generation or len(self._decisions) > _DECISIONS_MAX:
            self._decisions.clear()
            self._generation = self.switch.generation
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
        key = ingress, key_of(frame)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self.switch.decide(fields_of(frame), ingress, now)
            if decision.moved:
                self._tell_move(frame, decision.moved, ingress.link)
            self._decisions[key] = decision._replace(moved="")
        for rule in decision.rules:
            self._hits[rule.text] += 1
        if not decision.targets:
            self.drops[decision.reason] += 1
        if hops > 0:
            return decision.targets
        local = tuple(t for t in decision.targets if self.switch.links[t.link].kind is not LinkKind.VNET)
        if len(local) < len(decision.targets):
            self.drops["hop-limit"] += 1
        return local

    def _send(self, target: LinkSide, batch: Batch, now: float, hops: int) -> None:
        link = self._links[target.link]
        link.octets_out += batch.octets
        if link.port >= 0:
            self.out[link.port](batch, now)
            return
        device = link.devices[target.side]
        if isinstance(device, TCPLink):
            device.write_hops(batch, hops)
        else:
            device.write(batch)

    def _tell_move(self, frame: memoryview, before: str, link: str) -> None:
        mac = bytes(frame[16:22]).hex(":")
        self.event("station", mac=mac, before=before, at=link, cause=("station", mac))

    # --- what changes by itself

    def settle(self, now: float) -> None:
        """Tell which links went up or down."""
        for name, link in self._links.items():
            for side, device in enumerate(link.devices):
                if device.up != link.up[side]:
                    link.up[side] = device.up
                    changed = f"{name}.{'net' if side == NET else 'vm'}" if link.spec.service else name
                    self.event("link", changed=changed, up=device.up)

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
            before, octets = link.octets, (link.octets_in, link.octets_out)
            link.octets = octets
            link.rates = (
                round(8e-6 * (octets[0] - before[0]) / elapsed_s, 3),
                round(8e-6 * (octets[1] - before[1]) / elapsed_s, 3),
            )
        self._decisions.clear()
        self.switch.stations.expire(now)

    def status(self, now: float) -> dict[str, object]:
        """Return links, rules and stations."""
        return {
            "overlay": {name: self._link_status(link) for name, link in self._links.items()},
            "rules": {
                rule.text: {"number": number, "via": rule.via, "hits": self._hits[rule.text]}
                for number, rule in enumerate(self.switch.rules, 1)
            },
            "stations": {
                mac.hex(":") if not vlan else f"{mac.hex(':')} vlan {vlan}": {
                    "link": station.link,
                    "through": " ".join(sorted(station.through)),
                    "idle_s": round(max(0.0, now - station.seen_at), 1),
                }
                for (vlan, mac), station in self.switch.stations.items()
            },
        }

    def _link_status(self, link: _Link) -> dict[str, object]:
        first = link.devices[0].status() if link.devices else {}
        drops: Counter[str] = Counter()
        for device in link.devices:
            drops.update({str(reason): count for reason, count in device.drops.items()})
        return {
            "spec": link.spec.spec,
            "kind": link.spec.role.kind.value,
            "up": all(device.up for device in link.devices),
            "in_mbit": link.rates[0],
            "out_mbit": link.rates[1],
            "octets_in": link.octets_in,
            "octets_out": link.octets_out,
            "rtt_ms": first.get("rtt_ms"),
            "loss_percent": first.get("loss_percent"),
            "why": first.get("why", ""),
            "dropped": sum(drops.values()),
            "losses": sum(device.losses for device in link.devices),
            "pid": link.pid,
            "starts": link.starts,
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
        return {"links": {name: self._link_status(link) for name, link in self._links.items()}}

    def _verb_rule(self, request: dict[str, Any]) -> dict[str, Any]:
        action, text, position = request.get("action"), request.get("rule"), request.get("position")
        if position is not None and (not isinstance(position, int) or position < 1):
            raise SpecError("rule: the position is a number from 1")
        if action == "add" and isinstance(text, str):
            self.add_rule(text, position)
        elif action == "remove" and isinstance(text, str):
            self.remove_rule(text)
        elif action != "list":
            raise SpecError("rule: not understood; see 'vtl-vnet rule --help'")
        return {"rules": self.status(0.0)["rules"]}
