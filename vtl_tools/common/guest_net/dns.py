"""The guest's name server, which resolves through Tor. Tor knows A, AAAA and PTR only.

    asked = resolver.ask(message, source, now)
    if asked.reply: send it
    for lookup in asked.lookups:                    # ask Tor, and then:
        for source, reply in resolver.resolved(lookup, outcome, now): send it

Mode MAP answers at once with an address that stands for the name (name_map.py); Tor gets the name when the
guest connects. Mode RESOLVE asks Tor, as in the paper. A question that Tor cannot answer gets a negative
answer at once, so that a guest does not wait.

Import this module only where it is used: dnspython takes 0.1 s to import.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple

import dns.rdataclass
from dns.rcode import Rcode
from dns.rdatatype import RdataType

from vtl_tools.common.guest_net import dns_message as wire
from vtl_tools.common.guest_net import special_names
from vtl_tools.common.guest_net.dns_message import DNSQuestion, DNSResult
from vtl_tools.common.guest_net.lookups import CachedOutcome, Lookup, Lookups, Outcome, WaitingQuery
from vtl_tools.common.guest_net.name_map import MappedName, NameMap
from vtl_tools.common.packet.address import is_internal
from vtl_tools.common.socks import Command, Failed, Reason

TTL_S: Final = 60
"""TTL of answers in seconds."""

GRACE_S: Final = 240
"""Seconds that an address keeps its name beyond the TTL: programs keep addresses for longer."""

MAP4: Final = IPv4Network("198.18.0.0/15")
"""Range for benchmarks of network devices (RFC 2544): in no guest's network and not on the Internet."""

MAP6: Final = IPv6Network("fd76:746c:0:2::/64")
"""A ULA (RFC 4193) other than the link's. A guest with both uses IPv4 first (RFC 6724 section 2.1)."""

NAMES_MAX: Final = 65_536
ASKERS_MAX: Final = 1024
CLIENT_MAX: Final = 256
TIMEOUT_S: Final = 20.0

Reply = tuple[Hashable, bytes]

NODATA: Final = DNSResult(Rcode.NOERROR, TTL_S)
NXDOMAIN: Final = DNSResult(Rcode.NXDOMAIN, TTL_S)
SERVFAIL: Final = DNSResult(Rcode.SERVFAIL, 0)
REFUSED: Final = DNSResult(Rcode.REFUSED, 0)


class Mode(StrEnum):
    """How ordinary names are answered."""

    MAP = "map"
    RESOLVE = "resolve"


class QueryProgress(NamedTuple):
    """The result of a query: a reply to send, if there is one, and look-ups to start, if there are any.

    later: the reply follows when the look-ups are complete.
    """

    reply: bytes | None
    lookups: tuple[Lookup, ...] = ()
    later: bool = False


class Resolver:
    """Answers DNS queries. ipv4, ipv6: the ranges of mode MAP; ipv6=None: names have no AAAA records.

    onions: the proxy is Tor, so that onion services have names that a guest can connect to (RFC 7686). key,
    keep: see NameMap. askers_max, client_max: maximum questions that wait for Tor, in all and per client.
    Further ones get SERVFAIL, and so do those that wait for timeout_s.
    """

    def __init__(
        self,
        mode: Mode = Mode.MAP,
        *,
        ipv4: IPv4Network = MAP4,
        ipv6: IPv6Network | None = MAP6,
        names_max: int = NAMES_MAX,
        askers_max: int = ASKERS_MAX,
        client_max: int = CLIENT_MAX,
        timeout_s: float = TIMEOUT_S,
        onions: bool = True,
        key: bytes = b"",
        keep: Callable[[MappedName], object] | None = None,
    ) -> None:
        self.mode, self._onions = mode, onions and mode is Mode.MAP
        self.names = NameMap(ipv4, ipv6, names_max=names_max, keep_s=TTL_S + GRACE_S, key=key, keep=keep)
        self._lookups = Lookups(askers_max=askers_max, client_max=client_max, timeout_s=timeout_s)

    def ask(
        self,
        message: bytes,
        source: Hashable,
        now: float,
        *,
        client: Hashable | None = None,
        stream: bool = False,
    ) -> QueryProgress:
        """Process a query. source: returned with its reply. client: the client for client_max, such as the
        guest; the default is source.

        stream: the query came over TCP, where an answer may be long. A message that is no query gets no
        reply.
        """
        query = wire.read(message, stream=stream)
        if query is None:
            return QueryProgress(None)
        if query.error:
            return QueryProgress(wire.render(query, ()))
        parts = [(question, self._answer(question, now)) for question in dict.fromkeys(query.questions)]
        waiting = list(dict.fromkeys(part for _, part in parts if isinstance(part, Lookup)))
        if not waiting:
            return QueryProgress(wire.render(query, _results(parts, {}, now)))
        asker = WaitingQuery(source, source if client is None else client, query, parts, waiting)
        if self._lookups.is_waiting(asker):
            return QueryProgress(None)
        fresh = self._lookups.add(asker, now)
        if fresh is None:
            return QueryProgress(wire.render(query, [(question, SERVFAIL) for question, _ in parts]))
        return QueryProgress(None, tuple(fresh), later=True)

    def resolved(self, lookup: Lookup, outcome: Outcome, now: float) -> Iterator[Reply]:
        """Process Tor's answer; yield the replies that it completes, with their sources.

        Each reply is made when the caller asks for the next, which it may delay.
        """
        return _replies(self._lookups.resolved(lookup, outcome, now), now)

    def forget(self) -> None:
        """Discard Tor's answers. Mapped names stay."""
        self._lookups.forget()

    def deadline(self) -> float | None:
        """Return when wake() is due; None: no question waits."""
        return self._lookups.deadline()

    def wake(self, now: float) -> Iterator[Reply]:
        """Yield the replies to questions that waited for too long, as resolved() does."""
        return _replies(self._lookups.wake(now), now)

    def name_of(self, address: bytes) -> str | None:
        """Return the name that an address stands for, in lower case; None: no name."""
        return self.names.name_of(address)

    def _answer(self, question: DNSQuestion, now: float) -> DNSResult | Lookup:
        """Return the answer to a question, or the look-up that it needs."""
        rdtype, labels = question.rdtype, question.labels
        if question.rdclass != dns.rdataclass.IN or rdtype in (RdataType.AXFR, RdataType.IXFR):
            return REFUSED
        if special_names.is_reverse(labels):
            return self._answer_reverse(question, now) if rdtype == RdataType.PTR else NODATA
        if not self._onions and labels and labels[-1] == special_names.ONION:
            return NXDOMAIN
        known = special_names.known(labels)
        if known is not None and not known.exists:
            return NXDOMAIN
        if rdtype == RdataType.ANY:
            return wire.anything(TTL_S)
        if rdtype not in (RdataType.A, RdataType.AAAA):
            return NODATA
        if known is not None:
            return wire.addresses(rdtype, known.addresses, TTL_S)
        name = b".".join(labels).decode("ascii")
        if self.mode is Mode.MAP:
            return self._map(name, rdtype, now)
        return self._look_up(question, Lookup(Command.RESOLVE, name), now)

    def _answer_reverse(self, question: DNSQuestion, now: float) -> DNSResult | Lookup:
        address = wire.reversed_address(question.name)
        if address is None:
            return NODATA  # NXDOMAIN would mean that no name below exists (RFC 8020)
        if special_names.is_loopback(address):
            return wire.pointer("localhost", TTL_S)
        if (name := self.names.name_of(address)) is not None:
            return wire.pointer(name, TTL_S)
        if self.names.owns(address) or not special_names.is_public(address):
            return NXDOMAIN
        return self._look_up(question, Lookup(Command.RESOLVE_PTR, address), now)

    def _map(self, name: str, rdtype: int, now: float) -> DNSResult:
        ipv6 = rdtype == RdataType.AAAA
        if ipv6 and not self.names.has_ipv6:
            return NODATA
        address = self.names.address_of(name, now, ipv6=ipv6)
        return SERVFAIL if address is None else wire.addresses(rdtype, (address,), TTL_S)

    def _look_up(self, question: DNSQuestion, lookup: Lookup, now: float) -> DNSResult | Lookup:
        found = self._lookups.cached(lookup, now)
        return lookup if found is None else _result(question, found, now)


def _result(question: DNSQuestion, found: CachedOutcome, now: float) -> DNSResult:
    """Return the DNS result of a look-up. An address of the other IP version is NODATA."""
    outcome, ttl = found.outcome, max(1, round(found.until - now))
    if isinstance(outcome, Failed):
        return DNSResult(Rcode.NXDOMAIN, ttl) if outcome.reason is Reason.HOST_UNREACHABLE else SERVFAIL
    if question.rdtype == RdataType.PTR:
        return wire.pointer(outcome.address, ttl) if isinstance(outcome.address, str) else SERVFAIL
    if isinstance(outcome.address, str):
        return SERVFAIL
    if is_internal(outcome.address):  # the owner of the name does not control that network
        return DNSResult(Rcode.NOERROR, ttl)
    return wire.addresses(question.rdtype, (outcome.address,), ttl)


def _results(
    parts: Iterable[tuple[DNSQuestion, DNSResult | Lookup]], found: dict[Lookup, CachedOutcome], now: float
) -> Iterable[tuple[DNSQuestion, DNSResult]]:
    for question, part in parts:
        yield question, _result(question, found[part], now) if isinstance(part, Lookup) else part


def _replies(askers: Iterable[WaitingQuery], now: float) -> Iterator[Reply]:
    return ((each.source, wire.render(each.query, _results(each.parts, each.found, now))) for each in askers)
