"""What came of a class of traffic."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class TrialResult:
    """What came of a class of traffic. calls: of so much that had to pass, so much was carried.

    asked: of the proxy. leaks: as lines; leaked: how many there were.
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
        """Return "held", "leaked", or "not carried": then nothing is proved, since nothing works."""
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
