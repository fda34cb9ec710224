"""A token bucket, to limit how often an event is processed."""


class TokenBucket:
    """A token bucket: `per_s` tokens a second, at most `burst` (default: per_s). `now` is in seconds."""

    def __init__(self, per_s: float, burst: float | None = None) -> None:
        self._per_s = per_s
        self._tokens = self._burst = per_s if burst is None else burst
        self._since = 0.0
        self.refused = 0
        """Number of refusals since the last token."""

    def take(self, now: float) -> bool:
        """Take a token if there is one. Return whether there was."""
        self._tokens = min(self._burst, self._tokens + (now - self._since) * self._per_s)
        self._since = now
        if self._tokens < 1.0:
            self.refused += 1
            return False
        self._tokens -= 1.0
        return True

    def waived(self) -> int:
        """Return the number of refusals before the last token, and reset it."""
        refused, self.refused = self.refused, 0
        return refused
