"""State of the rules' limits: rates of new connections, and numbers of open ones."""

from collections import Counter
from typing import Final

from vtl_tools.common.rate_limit import KeyedBuckets
from vtl_tools.common.rules.rule import IN, OUT, Direction, Rule

SOURCES_MAX: Final = 32_768
"""Sources of one side, and as many that their rate refused; see KeyedBuckets."""

_Key = tuple[Rule, bytes]


class RuleLimits:
    """The state of all rules' limits.

    A source is an address, or a prefix that stands for a host (Flow.source).
    Neither side can evict the sources of the other.
    """

    def __init__(self) -> None:
        self._open: Counter[_Key] = Counter()
        self._of_all: dict[Rule, float] = {}
        self._of_sources = {side: KeyedBuckets[_Key](SOURCES_MAX) for side in (OUT, IN)}

    def __len__(self) -> int:
        return sum(map(len, self._of_sources.values()))

    def admit(self, rule: Rule, direction: Direction, source: bytes, now: float) -> str:
        """Take one connection from the rate, if it permits, and return ""; else the limit that it exceeds."""
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

    def remaining(self, rule: Rule, direction: Direction, source: bytes, now: float) -> dict[str, int]:
        """Return the unused part of a rule's limits for a source. Changes nothing."""
        left: dict[str, int] = {}
        if (cap := rule.cap) is not None:
            left["connections"] = max(0, cap.count - self._open[rule, source if cap.per_source else b""])
        if (rate := rule.rate) is not None:
            of_source = self._of_sources[direction].get((rule, source))
            left["new"] = rate.left(of_source if rate.per_source else self._of_all.get(rule, 0.0), now)
        return left

    def opened(self, rule: Rule, source: bytes) -> None:
        """Count a connection as open."""
        if rule.cap is not None:
            self._open[rule, source if rule.cap.per_source else b""] += 1

    def closed(self, rule: Rule, source: bytes) -> None:
        """Count a connection as closed."""
        if rule.cap is not None:
            key = rule, source if rule.cap.per_source else b""
            self._open[key] -= 1
            if self._open[key] <= 0:
                del self._open[key]
