"""Compiled rules: finds the verdict on a packet without testing every rule."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from vtl_tools.common.packet import ether, ip
from vtl_tools.common.rules.keywords import Protocol
from vtl_tools.common.rules.rule import (
    IN,
    NEIGHBOURS,
    NO_RULE,
    OUT,
    STACKED,
    UNTAGGED,
    Direction,
    Rule,
    Ruleset,
    Verdict,
)
from vtl_tools.common.rules.values import Addresses, Ranges, after, holds, ranges
from vtl_tools.services.fw.bitmaps import Spans, bitmap
from vtl_tools.services.fw.fields import Fields


class Judgement(NamedTuple):
    """The verdict of a rule. `rule` is one of the policy, or built in."""

    verdict: Verdict
    rule: Rule


class Policy:
    """All rules of a file, compiled. Immutable: a changed file gives a new policy.

    asks_macs, asks_roles: whether any rule tests Ethernet addresses or roles.
    """

    def __init__(self, ruleset: Ruleset) -> None:
        self.ruleset = ruleset
        self.asks_macs = any(rule.src_mac is not None or rule.dst_mac is not None for rule in ruleset.rules)
        self.asks_roles = any(rule.roles is not None for rule in ruleset.rules)
        vlans = _allowed_vlans(ruleset.rules)
        self._out = RuleTable([rule for rule in ruleset.rules if OUT in rule.directions], vlans)
        self._in = RuleTable([rule for rule in ruleset.rules if IN in rule.directions], vlans)

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules in order."""
        return self.ruleset.rules

    def table(self, direction: Direction) -> "RuleTable":
        """Return the rules of one direction."""
        return self._out if direction is OUT else self._in

    def judge(self, direction: Direction, fields: Fields) -> Judgement:
        """Return the judgement of the first rule that matches, without limits.

        If none matches, NO_RULE denies.
        """
        return (self._out if direction is OUT else self._in).judge(fields)


T = TypeVar("T")

_ANY: Final[Protocol] = (None, None)
_NEIGHBOURS: Final = Judgement(NEIGHBOURS.verdict, NEIGHBOURS)
_NO_RULE: Final = Judgement(NO_RULE.verdict, NO_RULE)


class RuleTable:
    """The rules of one direction: a map for each field that any of them tests.

    The catch-all rule and later rules are in no map. Else each bitmap would have its bit, and be as long as
    the number of rules. But a catch-all rule does not match ARP and neighbour discovery: if a later rule
    names these, all rules that do are in a table of their own.

    vlans: VLANs in which ARP and neighbour discovery pass without a rule.
    """

    __slots__ = (
        "_caught", "_dport", "_dst", "_dst_mac", "_icmp", "_judgements", "_kinds", "_last", "_naming",
        "_roles", "_sport", "_src", "_src_mac", "_untagged", "_vlan", "_vlans", "rules",
    )  # fmt: skip

    def __init__(self, rules: Sequence[Rule], vlans: Ranges) -> None:
        self.rules, self._vlans = rules, vlans
        last = (bit for bit, rule in enumerate(rules) if rule.is_catch_all and rule.vlan is None)
        self._last = next(last, len(rules))
        caught = Judgement(rules[self._last].verdict, rules[self._last]) if self._last < len(rules) else None
        self._caught = caught or _NO_RULE
        late = any(_names_neighbours(rule) for rule in rules[self._last :])
        self._naming = RuleTable([rule for rule in rules if _names_neighbours(rule)], vlans) if late else None
        rules = rules[: self._last]
        self._judgements = [Judgement(rule.verdict, rule) for rule in rules]
        self._kinds = _Kinds(rules)
        self._src = _address_maps(rules, lambda rule: rule.src)
        self._dst = _address_maps(rules, lambda rule: rule.dst)
        self._sport = _number_map(rules, lambda rule: rule.sport)
        self._dport = _number_map(rules, lambda rule: rule.dport)
        self._icmp = _number_map(rules, lambda rule: rule.icmp)
        self._src_mac = _mac_map(rules, lambda rule: rule.src_mac)
        self._dst_mac = _mac_map(rules, lambda rule: rule.dst_mac)
        self._vlan = _number_map(rules, lambda rule: rule.vlan)
        self._roles = _number_map(rules, lambda rule: rule.roles)
        self._untagged = -1 if self._vlan is None else self._vlan[UNTAGGED]

    def judge(self, fields: Fields) -> Judgement:
        """Return the judgement of the first rule that matches."""
        if self._naming is not None and fields.is_neighbour:
            return self._naming.judge(fields)
        found = self._find(fields)
        if found:
            return self._judgements[(found & -found).bit_length() - 1]
        return _NEIGHBOURS if fields.is_neighbour and holds(self._vlans, fields.vlan) else self._caught

    def matching(self, fields: Fields) -> int:
        """Return the rules that match, up to the catch-all rule; bit i for rules[i]."""
        found = self._find(fields)
        return found if fields.is_neighbour or self._last == len(self.rules) else found | 1 << self._last

    def _find(self, fields: Fields) -> int:
        found = self._kinds.find(fields)
        if src := fields.src:
            family = len(src)
            if (spans := self._dst.get(family)) is not None:
                found &= spans[fields.dst]
            if (spans := self._src.get(family)) is not None:
                found &= spans[src]
            if (port := fields.dport) >= 0:
                if self._dport is not None:
                    found &= self._dport[port]
                if self._sport is not None:
                    found &= self._sport[fields.sport]
            elif self._icmp is not None and fields.icmp >= 0:
                found &= self._icmp[fields.icmp]
        if self._vlan is not None:
            found &= self._untagged if fields.vlan == UNTAGGED else self._vlan[fields.vlan]
        if self._roles is not None:
            found &= self._roles[fields.roles]
        if self._src_mac is not None:
            found &= self._src_mac[fields.src_mac]
        if self._dst_mac is not None:
            found &= self._dst_mac[fields.dst_mac]
        return found


def _allowed_vlans(rules: Sequence[Rule]) -> Ranges:
    """Return the VLANs in which any rule allows packets: they all need neighbour discovery."""
    found = {(UNTAGGED, UNTAGGED)}
    for rule in rules:
        if rule.verdict is Verdict.ALLOW:
            found.update([(UNTAGGED, STACKED)] if rule.vlan is None else rule.vlan)
    return ranges(found)


def _names_neighbours(rule: Rule) -> bool:
    return (ether.ARP, None) in rule.protocols or (
        (ether.IPV6, ip.ICMPV6) in rule.protocols and rule.icmp is not None
    )


class _Kinds:
    """Maps from protocols to rules."""

    __slots__ = ("_arp", "_ip4", "_ip6", "_named", "_other")

    def __init__(self, rules: Sequence[Rule]) -> None:
        size = len(rules)
        asked: dict[Protocol, list[int]] = {}
        for bit, rule in enumerate(rules):
            for protocol in rule.protocols or (_ANY,):
                asked.setdefault(protocol, []).append(bit)
        anything = asked.pop(_ANY, [])
        base = bitmap(anything, size)
        self._ip4 = _numbers(asked, base, ether.IPV4, size)
        self._ip6 = _numbers(asked, base, ether.IPV6, size)
        off_ip = bitmap((bit for bit in anything if rules[bit].src is None and rules[bit].dst is None), size)
        kinds = [([(kind, kind + 1)], bits) for (kind, _), bits in asked.items() if kind is not None]
        self._other = Spans(off_ip, kinds, size)
        self._arp = bitmap(asked.get((ether.ARP, None), ()), size)
        typed = (bit for bit in asked.get((ether.IPV6, ip.ICMPV6), ()) if rules[bit].icmp is not None)
        self._named = bitmap(typed, size)

    def find(self, fields: Fields) -> int:
        """Return the rules for a packet's protocol or for any protocol. ARP must be named."""
        if fields.is_neighbour:
            return self._named if fields.src else self._arp
        if fields.src:
            numbers = self._ip4 if len(fields.src) == 4 else self._ip6
            return numbers.get(fields.protocol, numbers[-1])
        return self._other[fields.ethertype]


def _numbers(asked: dict[Protocol, list[int]], base: int, version: int, size: int) -> dict[int, int]:
    """Return the rules for each protocol number of an IP version; key -1: for any other number."""
    base |= bitmap(asked.get((version, None), ()), size)
    out = {-1: base}
    for (kind, number), bits in asked.items():
        if number is not None and kind in (None, version):
            out[number] = out.get(number, base) | bitmap(bits, size)
    return out


def _address_maps(rules: Sequence[Rule], side: Callable[[Rule], Addresses | None]) -> dict[int, Spans]:
    """Return maps for addresses of 4 and of 16 octets, if any rule tests addresses."""
    rest, groups = _grouped(rules, side)
    if not groups:
        return {}
    spans = {
        octets: [
            ([(first, after(last)) for first, last in asked.family(octets)], bits) for asked, bits in groups
        ]
        for octets in (4, 16)
    }
    return {octets: Spans(rest, found, len(rules)) for octets, found in spans.items()}


def _number_map(rules: Sequence[Rule], field: Callable[[Rule], Ranges | None]) -> Spans | None:
    rest, groups = _grouped(rules, field)
    found = [([(first, last + 1) for first, last in asked], bits) for asked, bits in groups]
    return Spans(rest, found, len(rules)) if groups else None


def _mac_map(rules: Sequence[Rule], field: Callable[[Rule], frozenset[bytes] | None]) -> Spans | None:
    rest, groups = _grouped(rules, field)
    found = [([(address, after(address)) for address in sorted(asked)], bits) for asked, bits in groups]
    return Spans(rest, found, len(rules)) if groups else None


def _grouped(
    rules: Sequence[Rule], field: Callable[[Rule], T | None]
) -> tuple[int, list[tuple[T, list[int]]]]:
    """Return the rules that do not test a field, and the others grouped by the tested value."""
    base: list[int] = []
    groups: dict[T, list[int]] = {}
    for bit, rule in enumerate(rules):
        asked = field(rule)
        (base if asked is None else groups.setdefault(asked, [])).append(bit)
    return bitmap(base, len(rules)), list(groups.items())
