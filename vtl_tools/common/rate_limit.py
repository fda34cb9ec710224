"""A token bucket: what is done for a stranger is done so often only."""


class TokenBucket:
    """per_s a second on average, and `burst` at once: as many, if not said. `now` is in seconds."""

    def __init__(self, per_s: float, burst: float | None = None) -> None:
        self._per_s = per_s
        self._tokens = self._burst = per_s if burst is None else burst
        self._since = 0.0
        self.refused = 0
        """How often there was none since there was one last."""

    def take(self, now: float) -> bool:
        """Say whether there is room for one more, and count it."""
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._per_s)
        self._since = now
        if self._tokens < 1.0:
            self.refused += 1
            return False
        self._tokens -= 1.0
        return True

    def waived(self) -> int:
        """Return how many were refused before this one, and forget it."""
        refused, self.refused = self.refused, 0
        return refused
