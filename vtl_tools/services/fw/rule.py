"""One rule, and the rules of a file: what the parser makes and the compiler takes."""

from dataclasses import dataclass
from enum import Enum
from typing import Final

from vtl_tools.common.rate_limit import RateLimit
from vtl_tools.services.fw.names import Protocol
from vtl_tools.services.fw.position import Remark, RulePosition
from vtl_tools.services.fw.values import Addresses, Ranges


class Verdict(Enum):
    """What becomes of a packet. REJECT: dropped, and its sender is told."""

    ALLOW = "allow"
    DENY = "deny"
    REJECT = "reject"


class Direction(Enum):
    """Which way a packet goes, as the VM sees it."""

    __hash__ = object.__hash__  # as packet.tcp_state has it, and for the same reason

    IN = "in"
    OUT = "out"

    @property
    def other(self) -> "Direction":
        """The way that the answer goes."""
        return OUT if self is IN else IN


IN: Final = Direction.IN
OUT: Final = Direction.OUT

UNTAGGED: Final = -1
"""Among the numbers of VLANs: a frame without a tag."""
STACKED: Final = 4096
"""Among the numbers of VLANs: a frame with several tags, which no single number names."""


@dataclass(frozen=True, slots=True)
class Rate(RateLimit):
    """`limit 10/s`: new connections, of all sources together or of each."""

    per_source: bool


@dataclass(frozen=True, slots=True)
class Cap:
    """At most so many connections that are open."""

    count: int
    per_source: bool


@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A line that judges. None: not asked for; an empty value matches nothing.

    protocols: any one of them; empty for any. icmp: ranges of type << 8 | code. vlan: with UNTAGGED and
    STACKED; None for all frames, tagged or not. rate, cap: beyond them, a connection is denied.
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
    cap: Cap | None = None

    @property
    def is_catch_all(self) -> bool:
        """Whether nothing is asked of a packet but its direction."""
        asked = (self.src, self.dst, self.sport, self.dport, self.icmp, self.src_mac, self.dst_mac)
        bare = self.vlan is None or self.vlan == ((UNTAGGED, UNTAGGED),)
        return not self.protocols and bare and all(value is None for value in asked)

    def __str__(self) -> str:
        return f"{self.place.file}:{self.place.line}: {self.text}"


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All rules of a file and of those that it includes, in order, and what is odd about them."""

    rules: tuple[Rule, ...]
    remarks: tuple[Remark, ...] = ()
    files: tuple[str, ...] = ()


BUILT_IN: Final = RulePosition("(built in)", 0, 0)

NO_RULE: Final = Rule(BUILT_IN, "deny any", Verdict.DENY, (IN, OUT))
"""What holds where no rule of a file matches, such as for a VLAN that none names."""

NEIGHBOURS: Final = Rule(BUILT_IN, "allow ARP and neighbour discovery", Verdict.ALLOW, (IN, OUT))
"""What holds for ARP and neighbour discovery, unless a rule names them: without them nothing else works."""
