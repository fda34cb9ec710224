"""State of the rules' limits: rates of new connections, and numbers of open ones."""

from collections import Counter, OrderedDict
from typing import Final

from vtl_tools.services.fw.rule import IN, OUT, Direction, RateLimit, Rule

SOURCES_MAX: Final = 32_768
"""Maximum sources of one side whose rates are stored, and as many refused ones. Beyond, the one that was
quiet for longest is evicted, which resets its rate."""

_Key = tuple[Rule, bytes]
_Level = tuple[float, float]
"""Tokens, and the time of their last update."""


class RuleLimits:
    """The state of all rules' limits.

    A source is an address, or a prefix that stands for a host (Flow.source).
    Neither side can evict the sources of the other.
    """

    def __init__(self) -> None:
        self._open: Counter[_Key] = Counter()
        self._of_all: dict[Rule, _Level] = {}
        self._of_sources = {OUT: _Sources(), IN: _Sources()}

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
            enough = self._of_sources[direction].take((rule, source), rate, now)
        else:
            tokens = _filled(self._of_all.get(rule), rate, now)
            enough = tokens >= 1.0
            self._of_all[rule] = tokens - enough, now
        return "" if enough else "limit-rate"

    def remaining(self, rule: Rule, direction: Direction, source: bytes, now: float) -> dict[str, int]:
        """Return the unused part of a rule's limits for a source. Changes nothing."""
        left: dict[str, int] = {}
        if (cap := rule.cap) is not None:
            left["connections"] = max(0, cap.count - self._open[rule, source if cap.per_source else b""])
        if (rate := rule.rate) is not None:
            of_source = self._of_sources[direction].get((rule, source))
            left["new"] = int(_filled(of_source if rate.per_source else self._of_all.get(rule), rate, now))
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


class _Sources:
    """Rates of the sources of one side.

    Refused sources are stored separately until their rate has recovered. So a flood of spoofed sources, each
    within its rate, cannot reset the rate of a source that exceeded its own.
    """

    def __init__(self) -> None:
        self._within: OrderedDict[_Key, _Level] = OrderedDict()
        self._refused: OrderedDict[_Key, _Level] = OrderedDict()

    def __len__(self) -> int:
        return len(self._within) + len(self._refused)

    def get(self, key: _Key) -> _Level | None:
        return self._within.get(key) or self._refused.get(key)

    def take(self, key: _Key, rate: RateLimit, now: float) -> bool:
        was_refused = key in self._refused
        level = (self._refused if was_refused else self._within).pop(key, None)
        tokens = _filled(level, rate, now)
        enough = tokens >= 1.0
        is_refused = not enough or (was_refused and tokens < rate.burst)
        levels = self._refused if is_refused else self._within
        if len(levels) >= SOURCES_MAX:
            levels.popitem(last=False)
        levels[key] = tokens - enough, now
        return enough


def _filled(level: _Level | None, rate: RateLimit, now: float) -> float:
    """Return the tokens at this time."""
    if level is None:
        return float(rate.burst)
    tokens, since = level
    return min(float(rate.burst), tokens + (now - since) * rate.per_s)
