"""The state of the rules' limits: rates of new connections, and counts of open ones."""

from collections import Counter
from typing import Final

from vtl_tools.common.rate_limit import KeyedBuckets
from vtl_tools.services.fw.rule import IN, OUT, Direction, Rule

SOURCES_MAX: Final = 32_768
"""Sources of one side, and as many that their rate refused; see KeyedBuckets."""

_Key = tuple[Rule, bytes]


class RuleLimits:
    """The state of all rules' limits. A source is an address, or what stands for a host's (Flow.source).

    Neither side can make room among the sources of the other.
    """

    def __init__(self) -> None:
        self._open: Counter[_Key] = Counter()
        self._of_all: dict[Rule, float] = {}
        self._of_sources = {side: KeyedBuckets[_Key](SOURCES_MAX) for side in (OUT, IN)}

    def __len__(self) -> int:
        return sum(map(len, self._of_sources.values()))

    def admit(self, rule: Rule, direction: Direction, source: bytes, now: float) -> str:
        """Take one more connection from the rate, if it fits, and return ""; or which limit it breaks."""
        cap = rule.cap
        if cap is not None and self._open[rule, source if cap.per_source else b""] >= cap.count:
            return "limit-connections"
        if (rate := rule.rate) is None:
            return ""
        if rate.per_source:
            return "" if self._of_sources[direction].take((rule, source), rate, now) else "limit-rate"
        full_at = rate.take(self._of_all.get(rule, 0.0), now)
        if full_at is None:
            return "limit-rate"
        self._of_all[rule] = full_at
        return ""

    def look(self, rule: Rule, direction: Direction, source: bytes, now: float) -> dict[str, int]:
        """Return what is left of a rule's limits for a source; nothing changes."""
        left: dict[str, int] = {}
        if (cap := rule.cap) is not None:
            left["connections"] = max(0, cap.count - self._open[rule, source if cap.per_source else b""])
        if (rate := rule.rate) is not None:
            of_source = self._of_sources[direction].get((rule, source))
            left["new"] = rate.left(of_source if rate.per_source else self._of_all.get(rule, 0.0), now)
        return left

    def opened(self, rule: Rule, source: bytes) -> None:
        """Count a connection that is open from now on."""
        if rule.cap is not None:
            self._open[rule, source if rule.cap.per_source else b""] += 1

    def closed(self, rule: Rule, source: bytes) -> None:
        """Count a connection no longer."""
        if rule.cap is not None:
            key = rule, source if rule.cap.per_source else b""
            self._open[key] -= 1
            if self._open[key] <= 0:
                del self._open[key]
