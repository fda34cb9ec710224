"""Rules as data: the output of the parser, and the input of the compiler."""

from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from vtl_tools.common.rate_limit import RateLimit
from vtl_tools.common.rules.keywords import Protocol
from vtl_tools.common.rules.position import RulePosition, RuleWarning
from vtl_tools.common.rules.values import Addresses, Ranges


class Verdict(Enum):
    """The fate of a packet. REJECT: drop it and inform its sender."""

    ALLOW = "allow"
    DENY = "deny"
    REJECT = "reject"


class Direction(Enum):
    """The direction of a packet, seen from the VM."""

    __hash__ = object.__hash__  # see packet.tcp_state

    IN = "in"
    OUT = "out"

    @property
    def other(self) -> "Direction":
        """The opposite direction."""
        return OUT if self is IN else IN


IN: Final = Direction.IN
OUT: Final = Direction.OUT

UNTAGGED: Final = -1
"""VLAN number that stands for a frame without a tag."""
STACKED: Final = 4096
"""VLAN number that stands for a frame with several tags."""


@dataclass(frozen=True, slots=True)
class Rate(RateLimit):
    """`limit 10/s`: new connections, of all sources together or of each."""

    per_source: bool


@dataclass(frozen=True, slots=True)
class ConnectionLimit:
    """Limit of open connections."""

    count: int
    per_source: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A line with a verdict. None: not tested; an empty value matches nothing.

    protocols: any one of them; empty for any. icmp: ranges of type << 8 | code. vlan: with UNTAGGED and
    STACKED; None for all frames, tagged or not. rate, cap: connections beyond them are denied. roles: values
    of Fields.roles. part: its number among the rules of a preset; 0: it is a line of its own.
    """

    place: RulePosition
    text: str
    verdict: Verdict
    directions: tuple[Direction, ...]
    protocols: tuple[Protocol, ...] = ()
    src: Addresses | None = None
    dst: Addresses | None = None
    sport: Ranges | None = None
    dport: Ranges | None = None
    icmp: Ranges | None = None
    src_mac: frozenset[bytes] | None = None
    dst_mac: frozenset[bytes] | None = None
    vlan: Ranges | None = None
    log: bool = False
    pcap: bool = False
    rate: Rate | None = None
    cap: ConnectionLimit | None = None
    roles: Ranges | None = None
    part: int = 0

    @property
    def is_catch_all(self) -> bool:
        """Whether the rule tests nothing but the direction."""
        ends = (self.src, self.dst, self.sport, self.dport, self.src_mac, self.dst_mac)
        asked = (*ends, self.icmp, self.roles)
        bare = self.vlan is None or self.vlan == ((UNTAGGED, UNTAGGED),)
        return not self.protocols and bare and all(value is None for value in asked)

    @property
    def key(self) -> str:
        """FILE:LINE, by which all output names the rule; FILE:LINE.PART if it is one of a preset."""
        return f"{self.place.file}:{self.place.line}{f'.{self.part}' if self.part else ''}"

    def __str__(self) -> str:
        return f"{self.key}: {self.text}"


class Ruleset(NamedTuple):
    """All rules of a file and its included files, in order, and the warnings about them."""

    rules: tuple[Rule, ...]
    remarks: tuple[RuleWarning, ...] = ()
    files: tuple[str, ...] = ()


BUILT_IN: Final = RulePosition("(built in)", 0, 0)

NO_RULE: Final = Rule(BUILT_IN, "deny any", Verdict.DENY, (IN, OUT))
"""The rule for packets that no rule of a file matches, such as of a VLAN that none names."""

NEIGHBOURS: Final = Rule(
    RulePosition("(built in)", 1, 0), "allow ARP and neighbour discovery", Verdict.ALLOW, (IN, OUT)
)
"""The rule for ARP and neighbour discovery unless a rule names them: nothing works without them."""
