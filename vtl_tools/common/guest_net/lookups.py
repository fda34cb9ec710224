"""Pending look-ups through Tor with the questions that wait for them, and a cache of results."""

from collections import Counter, OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vtl_tools.common.guest_net.dns_message import DNSQuery, DNSQuestion, DNSResult
from vtl_tools.common.socks import Address, Command, Failed, Reason, Resolved

Outcome = Resolved | Failed

POSITIVE_S: Final = 60  # Tor gives no TTL
NEGATIVE_S: Final = 10
FAILED_S: Final = 5  # RFC 9520 section 3.2 requires at least one second
CACHE_MAX: Final = 8192

TIMED_OUT: Final = Failed(Reason.TTL_EXPIRED)


class Lookup(NamedTuple):
    """A request to Tor: the arguments of Client.request() of socks.py. Equal ones are merged."""

    command: Command
    target: Address


class CachedOutcome(NamedTuple):
    """A result, and the time until which it is valid, on the caller's clock."""

    outcome: Outcome
    until: float


@dataclass(slots=True)
class WaitingQuery:
    """A query that waits. parts: each question with its result, or with the look-up that it needs.

    waiting: the look-ups without a result yet, each once.
    """

    source: Hashable
    client: Hashable
    query: DNSQuery
    parts: list[tuple[DNSQuestion, DNSResult | Lookup]]
    waiting: list[Lookup]
    found: dict[Lookup, CachedOutcome] = field(default_factory=dict)

    @property
    def key(self) -> Hashable:
        """A key that is the same for a retransmitted query."""
        return self.source, self.query.id, self.query.questions


@dataclass(slots=True)
class _Pending:
    due: float
    askers: list[WaitingQuery]


class Lookups:
    """Pending look-ups and their cached results.

    askers_max, client_max: maximum waiting questions, in all and per client. A message may have several.
    """

    def __init__(self, *, askers_max: int, client_max: int, timeout_s: float) -> None:
        self._askers_max, self._client_max, self._timeout_s = askers_max, client_max, timeout_s
        self._askers: dict[Hashable, WaitingQuery] = {}
        self._of_client: Counter[Hashable] = Counter()
        self._questions = 0
        self._pending: OrderedDict[Lookup, _Pending] = OrderedDict()  # in the order of their timeouts
        self._cache: OrderedDict[Lookup, CachedOutcome] = OrderedDict()

    def cached(self, lookup: Lookup, now: float) -> CachedOutcome | None:
        """Return a result that is still valid."""
        found = self._cache.get(lookup)
        return found if found is not None and found.until > now else None

    def is_waiting(self, asker: WaitingQuery) -> bool:
        """Return whether the same question of the same source waits already."""
        return asker.key in self._askers

    def add(self, asker: WaitingQuery, now: float) -> list[Lookup] | None:
        """Add a query; return its look-ups that are not pending yet. None: there is no room."""
        fresh = [lookup for lookup in asker.waiting if lookup not in self._pending]
        questions, of_client = len(asker.parts), self._of_client[asker.client]
        if self._questions + questions > self._askers_max or of_client + questions > self._client_max:
            return None
        self._askers[asker.key] = asker
        self._of_client[asker.client] = of_client + questions
        self._questions += questions
        for lookup in fresh:
            self._pending[lookup] = _Pending(now + self._timeout_s, [])
        for lookup in asker.waiting:
            self._pending[lookup].askers.append(asker)
        return fresh

    def resolved(self, lookup: Lookup, outcome: Outcome, now: float) -> list[WaitingQuery]:
        """Store a result; return the queries that are now complete."""
        seconds = POSITIVE_S
        if isinstance(outcome, Failed):
            seconds = NEGATIVE_S if outcome.reason is Reason.HOST_UNREACHABLE else FAILED_S
        found = self._cache[lookup] = CachedOutcome(outcome, now + seconds)
        self._cache.move_to_end(lookup)
        if len(self._cache) > CACHE_MAX:
            self._cache.popitem(last=False)
        pending = self._pending.pop(lookup, None)
        if pending is None:
            return []
        done = []
        for asker in pending.askers:
            asker.waiting.remove(lookup)
            asker.found[lookup] = found
            if not asker.waiting:
                self._forget(asker)
                done.append(asker)
        return done

    def forget(self) -> None:
        """Clear the cache."""
        self._cache.clear()

    def deadline(self) -> float | None:
        """Return when the first pending look-up times out; None: none is pending."""
        return next((pending.due for pending in self._pending.values()), None)

    def wake(self, now: float) -> list[WaitingQuery]:
        """Cancel look-ups that took too long; return the queries that are now complete."""
        late: list[Lookup] = []
        for lookup, pending in self._pending.items():
            if pending.due > now:
                break
            late.append(lookup)
        return [asker for lookup in late for asker in self.resolved(lookup, TIMED_OUT, now)]

    def _forget(self, asker: WaitingQuery) -> None:
        del self._askers[asker.key]
        self._questions -= len(asker.parts)
        self._of_client[asker.client] -= len(asker.parts)
        if not self._of_client[asker.client]:
            del self._of_client[asker.client]
