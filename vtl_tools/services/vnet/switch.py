"""The decision of vtl-vnet: to which links a frame goes. Sans-IO.

First the rules, in their order; then, for a frame that no rule names, the station that was learned; then all
links. A service has two sides: VM and NET. A rule that names a service holds for both directions of a
conversation: a frame that it matches enters at the VM side, and an answer to such a frame at the NET side. A
frame that leaves at NET goes on behind the rule, one that leaves at VM goes on before it, so that each frame
passes each rule once in each direction, and never returns. A station behind a service is heard and reached
through it only; a service without the side NET lets nothing else to the station.

Between daemons: a frame of a VNET link is not sent to another VNET link, unless a rule names it or one of the
two is for transit. In a full mesh every daemon hears every frame, and none twice.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from vtl_tools.common.errors import SpecError
from vtl_tools.services.vnet.claims import ServiceClaims
from vtl_tools.services.vnet.fields import FrameFields
from vtl_tools.services.vnet.rule import VnetRule
from vtl_tools.services.vnet.service_flows import FlowSegment, ServiceFlows
from vtl_tools.services.vnet.stations import Key, StationTable

VM, NET = 0, 1
"""The sides of a service."""
RULES_MAX: Final = 1024


class LinkKind(Enum):
    """The kind of a link, for decisions."""

    LOCAL = "local"
    VNET = "vnet"
    """Leads to another daemon."""
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class LinkRole:
    """The properties of a link. sides: of a service. transit: floods between VNET links.

    told: a control plane tells which stations it leads to, so that a frame from it moves none. ends_tcp: of a
    service that ends TCP connections, or changes them: they do not outlast it.
    """

    kind: LinkKind = LinkKind.LOCAL
    sides: int = 1
    transit: bool = False
    told: bool = False
    ends_tcp: bool = False


class LinkSide(NamedTuple):
    """A link, and the side of a service at which a frame enters it."""

    link: str
    side: int = VM


class FrameRoute(NamedTuple):
    """The targets of a frame; without any, the reason. rules: those that matched.

    moved, at: the links that its station was at before, and is at now, if that has changed. by_flow: other
    connections with the same fields may have another route. tracked: where to note how connections begin and
    end.
    """

    targets: tuple[LinkSide, ...]
    reason: str = ""
    rules: tuple[VnetRule, ...] = ()
    moved: str = ""
    at: str = ""
    by_flow: bool = False
    tracked: tuple[ServiceFlows, ...] = ()


@dataclass(slots=True)
class _Question:
    """A frame to decide on. origin: the link that its sender is at; "": not known.

    by_flow: see FrameRoute. is_kept: it goes around a service as its connection was there before the rule.
    """

    fields: FrameFields
    ingress: LinkSide
    segment: FlowSegment | None
    now: float
    origin: str = ""
    by_flow: bool = False
    is_kept: bool = False


class VnetSwitch:
    """Links, rules and stations. generation: grows with each change that makes older decisions invalid.

    shortcuts: by station, a link to a daemon, and the shortcut that is taken in its place. flows: connections
    of the rules that name services, by their text.
    """

    def __init__(self) -> None:
        self.links: dict[str, LinkRole] = {}
        self.rules: list[VnetRule] = []
        self.stations = StationTable()
        self.claims = ServiceClaims()
        self.flows: dict[str, ServiceFlows] = {}
        self.shortcuts: dict[Key, tuple[str, str]] = {}
        self.generation = 0

    # --- changes

    def add_link(self, name: str, role: LinkRole) -> None:
        """Add a link. Raises SpecError."""
        if name in self.links:
            raise SpecError(f"{name}: there is a link of this name; choose another")
        self.links[name] = role
        self.generation += 1

    def remove_link(self, name: str) -> None:
        """Remove a link that no rule names. Raises SpecError."""
        if name not in self.links:
            raise SpecError(f"{name}: no such link; 'vtl-vnet link list' lists them")
        for rule in self.rules:
            flows = self.flows.get(rule.text)
            if rule.via == name and flows is not None and flows.drain_until is not None:
                raise SpecError(
                    f"{name}: {flows.taken} connections still have it; "
                    f"wait, or remove the rule '{rule.text}' with --drain 0"
                )
            if name in (rule.via, rule.on):
                raise SpecError(f"{name}: the rule '{rule.text}' names it; remove the rule first")
        del self.links[name]
        self.stations.forget_link(name)
        self.claims.forget_link(name)
        self._forget_service(name)
        self.generation += 1

    def _forget_service(self, name: str) -> None:
        self.stations.forget_service(name)
        self.claims.forget_service(name)

    def add_rule(self, rule: VnetRule, position: int | None = None) -> None:
        """Add a rule, at the end or before the one at a position, from 1. Raises SpecError."""
        role = self.links.get(rule.via)
        if role is None:
            raise SpecError(f"rule '{rule.text}': there is no link {rule.via}; add the link first")
        if rule.on and rule.on not in self.links:
            raise SpecError(f"rule '{rule.text}': there is no link {rule.on}; add the link first")
        if rule.on and self.links[rule.on].kind is LinkKind.SERVICE:
            raise SpecError(f"rule '{rule.text}': {rule.on} is a service; order the rules instead")
        if role.kind is LinkKind.SERVICE and not rule.has_direction:
            raise SpecError(
                f"rule '{rule.text}': a service has a VM's side; tell it by on, from-mac, to-mac, from or to"
            )
        if role.kind is not LinkKind.SERVICE and rule.keep_s:
            raise SpecError(f"rule '{rule.text}': {rule.via} is no service; leave out keep-flows")
        if any(rule.text == other.text for other in self.rules):
            raise SpecError(f"rule '{rule.text}': is there already, or has connections until it is gone")
        if len(self.rules) >= RULES_MAX:
            raise SpecError(f"rule '{rule.text}': there are {RULES_MAX} already; remove one")
        self.rules.insert(len(self.rules) if position is None else position - 1, rule)
        if role.kind is LinkKind.SERVICE:
            self.flows[rule.text] = ServiceFlows(rule.keep_s)
        self.generation += 1

    def put_behind_services(self, texts: Container[str]) -> None:
        """Let these rules follow all others that name services, and go before the rest."""
        moved = [rule for rule in self.rules if rule.text in texts]
        rest = [rule for rule in self.rules if rule.text not in texts]
        services = [n for n, rule in enumerate(rest, 1) if self.links[rule.via].kind is LinkKind.SERVICE]
        place = max(services, default=0)
        ordered = [*rest[:place], *moved, *rest[place:]]
        if ordered != self.rules:
            self.rules = ordered
            self.generation += 1

    def find_rule(self, text: str) -> VnetRule:
        """Return the rule of a text. Raises SpecError."""
        wanted = " ".join(text.split())
        for rule in self.rules:
            if rule.text == wanted:
                return rule
        raise SpecError(f"rule '{wanted}': no such rule; 'vtl-vnet rule list' lists them")

    def remove_rule(self, rule: VnetRule, drain_until: float | None = None) -> bool:
        """Remove a rule. Return whether it is gone.

        drain_until: until then, the connections that a service has keep it; expire() tells when it is gone.
        """
        self.generation += 1
        flows = self.flows.get(rule.text)
        if drain_until is not None and flows is not None and flows.taken and self.links[rule.via].ends_tcp:
            flows.drain_until = drain_until
            return False
        self.rules.remove(rule)
        self.flows.pop(rule.text, None)
        if all(other.via != rule.via for other in self.rules):
            self._forget_service(rule.via)
        return True

    def expire(self, now: float) -> list[tuple[VnetRule, int]]:
        """Forget what is old. Return the rules that are gone now, and how many connections they still had."""
        self.stations.expire(now)
        self.claims.expire(now)
        gone = []
        for rule in list(self.rules):
            flows = self.flows.get(rule.text)
            if flows is not None and flows.wake(now):
                gone.append((rule, flows.taken))
                self.remove_rule(rule)
        return gone

    def tell(self, mac: bytes, link: str, now: float) -> str:
        """Note the link of a station that a control plane told of. See StationTable.tell()."""
        self.generation += 1
        return self.stations.tell(mac, link, now)

    def forget_stations(self, link: str) -> None:
        """Forget the stations of a link that leads nowhere any more."""
        self.generation += 1
        self.stations.forget_link(link)

    # --- decisions

    def decide(
        self, fields: FrameFields, ingress: LinkSide, now: float, segment: FlowSegment | None = None
    ) -> FrameRoute:
        """Return where a frame goes. ingress: the link, and for a service the side, that it came from.

        segment: of TCP.
        """
        if fields.src[0] & 1:
            return FrameRoute((), "group-source")
        asked = _Question(fields, ingress, segment, now, ingress.link)
        is_service = self.links[ingress.link].kind is LinkKind.SERVICE
        route = self._leave(asked) if is_service else self._enter(asked)
        return route._replace(by_flow=True) if asked.by_flow else route

    def _enter(self, asked: _Question) -> FrameRoute:
        """Decide on a frame of a link. Its source is a station, unless a service is yet to judge it."""
        found = self._forward(asked, 0)
        if found is not None and self.links[found.targets[0].link].kind is LinkKind.SERVICE:
            self._claim(asked, found.targets[0].link, frozenset())
            return found
        moved = ""
        if not asked.is_kept or self._is_at_origin(asked):
            moved = self._learn(asked, asked.origin)
        if found is None:
            found = self._backward(asked, len(self.rules))
        return found._replace(moved=moved, at=asked.origin)

    def _leave(self, asked: _Question) -> FrameRoute:
        """Decide on a frame of a service. At NET, it has passed the service."""
        fields, (service, side) = asked.fields, asked.ingress
        places = [i for i, rule in enumerate(self.rules) if rule.via == service]
        station = self.stations.find(fields.vlan, fields.src)
        asked.origin = "" if station is None else station.link
        if side == VM or not places:
            route = self._backward(asked, places[0] if side == VM and places else len(self.rules))
            return route._replace(tracked=self._tracked(asked)) if side == VM else route
        claim = self.claims.take(service, fields.src)
        asked.origin = asked.origin if claim is None else claim.link
        found = self._forward(asked, places[-1] + 1)
        moved = ""
        passed = frozenset((service,)) if claim is None else claim.passed | {service}
        if found is not None and self.links[found.targets[0].link].kind is LinkKind.SERVICE:
            if asked.origin:
                self._claim(asked, found.targets[0].link, passed)
        elif claim is not None:
            moved = self._learn(asked, claim.link, passed)
        return (found or self._backward(asked, len(self.rules)))._replace(moved=moved, at=asked.origin)

    def _claim(self, asked: _Question, service: str, passed: frozenset[str]) -> None:
        """Note that a service is to judge the source of a frame, if it is not known to be at its link."""
        if self._is_at_origin(asked):
            self._learn(asked, asked.origin, passed | {service})
        else:
            self.claims.note(service, asked.fields.src, asked.origin, passed, asked.now)

    def _is_at_origin(self, asked: _Question) -> bool:
        """Return whether the sender of a frame is known to be at the link that it came from."""
        station = self.stations.find(asked.fields.vlan, asked.fields.src)
        return station is not None and station.link == asked.origin

    def _learn(self, asked: _Question, link: str, passed: frozenset[str] = frozenset()) -> str:
        """Note where a station is, and the services that its frames pass. Return its link before, or ""."""
        vlan, mac = asked.fields.vlan, asked.fields.src
        moved = ""
        if not (self.links[link].told and self.stations.find(vlan, mac)):
            moved = self.stations.learn(vlan, mac, link, asked.now)
            self.generation += bool(moved)
        for service in passed:
            self.stations.send_through(vlan, mac, service)
        return moved

    def _forward(self, asked: _Question, first: int) -> FrameRoute | None:
        for rule in self.rules[first:]:
            if not rule.matches(asked.fields, asked.origin) or not self._takes(rule, asked):
                continue
            if self.links[rule.via].kind is LinkKind.SERVICE:
                tracked = (self.flows[rule.text],) if self._is_tracked(rule) else ()
                return FrameRoute((LinkSide(rule.via, VM),), rules=(rule,), tracked=tracked)
            if rule.via != asked.origin:
                return FrameRoute((LinkSide(rule.via),), rules=(rule,))
        return None

    def _takes(self, rule: VnetRule, asked: _Question) -> bool:
        """Return whether a rule that matches holds for the connection of a frame."""
        flows = self.flows.get(rule.text)
        if flows is None or not flows.differ(asked.now):
            return True
        asked.by_flow = True
        takes = flows.takes(asked.segment, asked.now)
        asked.is_kept |= not takes and flows.drain_until is None
        return takes

    def _is_tracked(self, rule: VnetRule) -> bool:
        return self.links[rule.via].ends_tcp or rule.keep_s > 0

    def _tracked(self, asked: _Question) -> tuple[ServiceFlows, ...]:
        """Return where to note a segment of a service to the VM."""
        egress = self._egress(asked)
        return tuple(
            self.flows[rule.text]
            for rule in self.rules
            if rule.via == asked.ingress.link
            and self._is_tracked(rule)
            and rule.mirrors(asked.fields, egress)
        )

    def _egress(self, asked: _Question) -> str:
        """Return the link of the destination; "": a group, or not known."""
        fields, (link, side) = asked.fields, asked.ingress
        if fields.is_group:
            return ""
        station = self.stations.find(fields.vlan, fields.dst)
        if side == VM and self.links[link].kind is LinkKind.SERVICE:
            claimed = self.claims.link_of(link, fields.dst)
            if claimed and (station is None or link not in station.through):
                return claimed
        return "" if station is None else station.link

    def _backward(self, asked: _Question, before: int) -> FrameRoute:
        """Decide on a frame that no rule matches: it may be an answer, through services, or is delivered."""
        fields, egress = asked.fields, self._egress(asked)
        services: dict[str, VnetRule] = {}
        guarded: set[str] = set()
        for rule in reversed(self.rules[:before]):
            role = self.links[rule.via]
            if role.kind is not LinkKind.SERVICE or not rule.mirrors(fields, egress):
                continue
            if not self._takes(rule, asked):
                continue
            if egress or not (fields.is_group or rule.on):
                if role.sides < 2:
                    return FrameRoute((), "behind-service", (rule,))
                return FrameRoute((LinkSide(rule.via, NET),), rules=(rule,))
            behind = self._behind(rule, fields.vlan)
            if rule.via != asked.ingress.link and asked.origin not in behind and behind - guarded:
                guarded |= behind
                if role.sides > 1:
                    services[rule.via] = rule
        if egress:
            return self._to_station(asked.origin, egress, (fields.vlan, fields.dst))
        targets = [LinkSide(name) for name in self._flood(asked) if name not in guarded]
        targets += [LinkSide(name, NET) for name in services]
        return FrameRoute(tuple(targets), "" if targets else "nowhere", tuple(services.values()))

    def _behind(self, rule: VnetRule, vlan: int) -> set[str]:
        """Return the links of the stations that a rule has behind its service, as far as they are known."""
        if rule.on:
            return {rule.on}
        links = self.stations.behind(rule.via) | self.claims.behind(rule.via)
        station = self.stations.find(vlan, rule.from_mac)
        return links if station is None else links | {station.link}

    def _to_station(self, origin: str, egress: str, station: Key) -> FrameRoute:
        if egress == origin:
            return FrameRoute((), "same-link")
        if not self._may_pass(origin, egress):
            return FrameRoute((), "split-horizon")
        over, shortcut = self.shortcuts.get(station, ("", ""))
        return FrameRoute((LinkSide(shortcut if over == egress else egress),))

    def _flood(self, asked: _Question) -> list[str]:
        """Return the links for a frame to all; what a service passes to its VMs is for their links only.

        If nobody knows where it came from, it goes to no daemon: it may be the one that sent it.
        """
        link, side = asked.ingress
        within: set[str] = set()
        if side == VM and self.links[link].kind is LinkKind.SERVICE:
            rules = [rule for rule in self.rules if rule.via == link]
            within = within.union(*(self._behind(rule, asked.fields.vlan) for rule in rules))
        return [
            name
            for name, role in self.links.items()
            if role.kind is not LinkKind.SERVICE
            and name != asked.origin
            and (name in within if within else asked.origin or role.kind is not LinkKind.VNET)
            and self._may_pass(asked.origin, name)
        ]

    def _may_pass(self, origin: str, egress: str) -> bool:
        one, other = self.links.get(origin), self.links[egress]
        return (
            one is None
            or one.kind is not LinkKind.VNET
            or other.kind is not LinkKind.VNET
            or one.transit
            or other.transit
        )
