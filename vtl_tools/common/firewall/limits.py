"""How often, and how many at once: what the limits of rules allow."""

from collections import Counter, OrderedDict
from typing import Final

from vtl_tools.common.firewall.rule import Rule

BUCKETS_MAX: Final = 65_536
"""Sources whose rates are known. Beyond, the one that was quiet for longest is forgotten: it starts anew."""

_Key = tuple[Rule, bytes]


class Limits:
    """The state of all rules' limits. A source is an address, or what stands for a host's (Flow.source)."""

    def __init__(self) -> None:
        self._open: Counter[_Key] = Counter()
        self._buckets: OrderedDict[_Key, tuple[float, float]] = OrderedDict()

    def admit(self, rule: Rule, source: bytes, now: float) -> str:
        """Take one more connection from the rate, if it fits, and return ""; or which limit it breaks."""
        cap = rule.cap
        if cap is not None and self._open[rule, source if cap.per_source else b""] >= cap.count:
            return "limit-connections"
        if rule.rate is not None and not self._take(rule, source if rule.rate.per_source else b"", now):
            return "limit-rate"
        return ""

    def look(self, rule: Rule, source: bytes, now: float) -> dict[str, int]:
        """Return what is left of a rule's limits for a source; nothing changes."""
        left: dict[str, int] = {}
        if (cap := rule.cap) is not None:
            left["connections"] = max(0, cap.count - self._open[rule, source if cap.per_source else b""])
        if (rate := rule.rate) is not None:
            key = rule, source if rate.per_source else b""
            tokens, since = self._buckets.get(key, (float(rate.burst), now))
            left["new"] = int(min(float(rate.burst), tokens + (now - since) * rate.per_s))
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

    def _take(self, rule: Rule, source: bytes, now: float) -> bool:
        rate = rule.rate
        assert rate is not None
        tokens, since = self._buckets.pop((rule, source), (float(rate.burst), now))
        tokens = min(float(rate.burst), tokens + (now - since) * rate.per_s)
        if len(self._buckets) >= BUCKETS_MAX:
            self._buckets.popitem(last=False)
        enough = tokens >= 1.0
        self._buckets[rule, source] = tokens - enough, now
        return enough
