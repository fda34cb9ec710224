"""Chooses TCP connections by the conditions of the rule language, as in --only "out port 5001"."""

from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from vtl_tools.common.rules.clauses import take_conditions
from vtl_tools.common.rules.cursor import Cursor
from vtl_tools.common.rules.lexer import RuleSource
from vtl_tools.common.rules.position import RuleError
from vtl_tools.common.rules.rule import UNTAGGED, Direction, Rule
from vtl_tools.common.rules.sets import Sets
from vtl_tools.common.rules.values import holds


class FirstSegment(NamedTuple):
    """The fields of a connection's SYN that conditions test. Addresses and MACs are octets."""

    direction: Direction
    src: bytes
    dst: bytes
    sport: int
    dport: int
    src_mac: bytes
    dst_mac: bytes
    vlan: int = UNTAGGED


class ConnectionChoice:
    """The connections that at least one of several conditions matches; all of them if there is none."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)

    @classmethod
    def parse(cls, option: str, texts: Sequence[str]) -> "ConnectionChoice":
        """Return the choice that an option's values make. Raises RuleError, which names the option."""
        return cls([_parse(option, text) for text in texts])

    def __contains__(self, first: FirstSegment) -> bool:
        return not self.rules or any(_matches(rule, first) for rule in self.rules)


def _parse(option: str, text: str) -> Rule:
    def report(error: RuleError) -> NoReturn:
        raise error

    return take_conditions(Cursor(RuleSource(option, text.replace("\n", " ").encode()), 1), Sets(report))


def _matches(rule: Rule, first: FirstSegment) -> bool:
    return (
        first.direction in rule.directions
        and (rule.src is None or first.src in rule.src)
        and (rule.dst is None or first.dst in rule.dst)
        and (rule.sport is None or holds(rule.sport, first.sport))
        and (rule.dport is None or holds(rule.dport, first.dport))
        and (rule.src_mac is None or first.src_mac in rule.src_mac)
        and (rule.dst_mac is None or first.dst_mac in rule.dst_mac)
        and (rule.vlan is None or holds(rule.vlan, first.vlan))
    )
