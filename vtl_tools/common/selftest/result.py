"""The result of one kind of traffic in a self-test."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class TrialResult:
    """The result of one kind of traffic. calls: connections that must be carried; carried: those that were.

    asked: the proxy's requests. leaks: as lines; leaked: their number.
    """

    kind: str
    sent: int = 0
    calls: int = 0
    carried: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    asked: list[str] = field(default_factory=list)
    leaked: int = 0
    leaks: list[str] = field(default_factory=list)

    @property
    def verdict(self) -> str:
        """ "held", "leaked", or "not carried": the last proves nothing, since nothing works."""
        if self.leaked:
            return "leaked"
        return "held" if self.carried == self.calls else "not carried"

    def as_json(self) -> dict[str, object]:
        """Return what --json prints."""
        return {
            "class": self.kind, "sent": self.sent, "connections": self.calls, "carried": self.carried,
            "answered": dict(self.answered), "asked": self.asked, "leaked": self.leaked, "leaks": self.leaks,
            "verdict": self.verdict,
        }  # fmt: skip
