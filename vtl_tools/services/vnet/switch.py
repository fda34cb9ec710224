"""The decision of vtl-vnet: to which links a frame goes. Sans-IO.

First the rules, in their order; then, for a frame that no rule names, the station that was learned; then all
links. A service has two sides: VM and NET. A rule that names a service holds for both directions of a
conversation: a frame that it matches enters at the VM side, and an answer to such a frame at the NET side. A
frame that leaves at NET goes on behind the rule, one that leaves at VM goes on before it, so that each frame
passes each rule once in each direction, and never returns.

Between daemons: a frame of a VNET link is not sent to another VNET link, unless a rule names it or one of the
two is for transit. In a full mesh every daemon hears every frame, and none twice.
"""

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from vtl_tools.common.errors import SpecError
from vtl_tools.services.vnet.fields import FrameFields
from vtl_tools.services.vnet.rule import VnetRule
from vtl_tools.services.vnet.stations import Key, KnownStation, StationTable

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

    told: a control plane tells which stations it leads to, so that a frame from it moves none.
    """

    kind: LinkKind = LinkKind.LOCAL
    sides: int = 1
    transit: bool = False
    told: bool = False


class LinkSide(NamedTuple):
    """A link, and the side of a service at which a frame enters it."""

    link: str
    side: int = VM


class FrameRoute(NamedTuple):
    """The targets of a frame; without any, the reason. rules: those that matched. moved: its link before."""

    targets: tuple[LinkSide, ...]
    reason: str = ""
    rules: tuple[VnetRule, ...] = ()
    moved: str = ""


class VnetSwitch:
    """Links, rules and stations. generation: grows with each change that makes older decisions invalid.

    shortcuts: by station, a link to a daemon, and the shortcut that is taken in its place.
    """

    def __init__(self) -> None:
        self.links: dict[str, LinkRole] = {}
        self.rules: list[VnetRule] = []
        self.stations = StationTable()
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
            if name in (rule.via, rule.on):
                raise SpecError(f"{name}: the rule '{rule.text}' names it; remove the rule first")
        del self.links[name]
        self.stations.forget_link(name)
        self.stations.forget_service(name)
        self.generation += 1

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
        if any(rule.text == other.text for other in self.rules):
            raise SpecError(f"rule '{rule.text}': is there already")
        if len(self.rules) >= RULES_MAX:
            raise SpecError(f"rule '{rule.text}': there are {RULES_MAX} already; remove one")
        self.rules.insert(len(self.rules) if position is None else position - 1, rule)
        self.generation += 1

    def remove_rule(self, text: str) -> VnetRule:
        """Remove the rule of a text. Raises SpecError."""
        wanted = " ".join(text.split())
        for rule in self.rules:
            if rule.text == wanted:
                self.rules.remove(rule)
                if all(other.via != rule.via for other in self.rules):
                    self.stations.forget_service(rule.via)
                self.generation += 1
                return rule
        raise SpecError(f"rule '{wanted}': no such rule; 'vtl-vnet rule list' lists them")

    def tell(self, mac: bytes, link: str, now: float) -> str:
        """Note the link of a station that a control plane told of. See StationTable.tell()."""
        self.generation += 1
        return self.stations.tell(mac, link, now)

    def forget_stations(self, link: str) -> None:
        """Forget the stations of a link that leads nowhere any more."""
        self.generation += 1
        self.stations.forget_link(link)

    # --- decisions

    def decide(self, fields: FrameFields, ingress: LinkSide, now: float) -> FrameRoute:
        """Return where a frame goes. ingress: the link, and for a service the side, that it came from."""
        if fields.src[0] & 1:
            return FrameRoute((), "group-source")
        moved = ""
        role = self.links[ingress.link]
        is_service = role.kind is LinkKind.SERVICE
        if not is_service and not (role.told and self.stations.find(fields.vlan, fields.src)):
            moved = self.stations.learn(fields.vlan, fields.src, ingress.link, now)
            if moved:
                self.generation += 1
        sender = self.stations.find(fields.vlan, fields.src)
        origin = ingress.link if not is_service else "" if sender is None else sender.link
        places = [i for i, rule in enumerate(self.rules) if rule.via == ingress.link] if is_service else []
        if not is_service or (ingress.side == NET and places):
            first = places[-1] + 1 if places else 0
            if (found := self._forward(fields, origin, sender, first)) is not None:
                return found._replace(moved=moved)
        before = places[0] if places and ingress.side == VM else len(self.rules)
        return self._backward(fields, ingress, origin, before)._replace(moved=moved)

    def _forward(
        self, fields: FrameFields, origin: str, sender: KnownStation | None, first: int
    ) -> FrameRoute | None:
        for rule in self.rules[first:]:
            if not rule.matches(fields, origin):
                continue
            if self.links[rule.via].kind is LinkKind.SERVICE:
                if sender is not None:
                    self.stations.send_through(sender, rule.via)
                return FrameRoute((LinkSide(rule.via, VM),), rules=(rule,))
            if rule.via != origin:
                return FrameRoute((LinkSide(rule.via),), rules=(rule,))
        return None

    def _backward(self, fields: FrameFields, ingress: LinkSide, origin: str, before: int) -> FrameRoute:
        """Decide on a frame that no rule matches: it may be an answer, through services, or is delivered."""
        station = None if fields.is_group else self.stations.find(fields.vlan, fields.dst)
        egress = "" if station is None else station.link
        services: dict[str, VnetRule] = {}
        for rule in reversed(self.rules[:before]):
            role = self.links[rule.via]
            if role.kind is LinkKind.SERVICE and role.sides > 1 and rule.mirrors(fields, egress):
                if not fields.is_group:
                    return FrameRoute((LinkSide(rule.via, NET),), rules=(rule,))
                if rule.via != ingress.link and origin not in self.stations.behind(rule.via):
                    services.setdefault(rule.via, rule)
        if egress:
            return self._to_station(origin, egress, (fields.vlan, fields.dst))
        targets = [LinkSide(name) for name in self._flood(ingress, origin, services)]
        targets += [LinkSide(name, NET) for name in services]
        return FrameRoute(tuple(targets), "" if targets else "nowhere", tuple(services.values()))

    def _to_station(self, origin: str, egress: str, station: Key) -> FrameRoute:
        if egress == origin:
            return FrameRoute((), "same-link")
        if not self._may_pass(origin, egress):
            return FrameRoute((), "split-horizon")
        over, shortcut = self.shortcuts.get(station, ("", ""))
        return FrameRoute((LinkSide(shortcut if over == egress else egress),))

    def _flood(self, ingress: LinkSide, origin: str, services: dict[str, VnetRule]) -> list[str]:
        """Return the links for a frame to all: those behind a service get it from the service."""
        behind = set().union(*(self.stations.behind(name) for name in services))
        within: set[str] = set()
        if self.links[ingress.link].kind is LinkKind.SERVICE and ingress.side == VM:
            within = self.stations.behind(ingress.link)
        return [
            name
            for name, role in self.links.items()
            if role.kind is not LinkKind.SERVICE
            and name != origin
            and name not in behind
            and (not within or name in within)
            and self._may_pass(origin, name)
        ]

    def _may_pass(self, origin: str, egress: str) -> bool:
        one, other = self.links.get(origin), self.links[egress]
        if one is not None and one.told and other.told:
            return False  # networks of EVPN stay apart
        return (
            one is None
            or one.kind is not LinkKind.VNET
            or other.kind is not LinkKind.VNET
            or one.transit
            or other.transit
        )
