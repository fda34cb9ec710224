"""DNS from a guest: messages over UDP and TCP, with a Tor behind the resolver that answers anything.

Checked: nothing but Malformed of the stream; a reply is a message to its question, within its limit, that
another parser reads; each query gets one reply, when what it waits for is there or its time is up; a stream
cut anywhere brings the same messages and keeps a bounded part; the calls that a message costs are bounded.
"""

import dns.exception
import dns.flags
import dns.message
import dns.opcode

from tests.fuzz.effort import at_most
from tests.fuzz.octets import Octets, blob, pieces
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dns_message
from vtl_tools.common.guest_net.dns import Mode, Resolver
from vtl_tools.common.guest_net.dns_stream import DNSFramer
from vtl_tools.common.socks import Command, Failed, Reason, Resolved

CALLS_MAX = 100_000
"""Of functions, Python's and C's, that one message may cost: some tenths of a second."""
NAMES = (
    "a.test",
    "",
    ".",
    "x" * 64,
    "a..b",
    "\\",
    "\\300",
    "\x7f\x80",
    "ü",
    "a" * 255,
    "localhost",
    "a.\n[b]",
)
OUTCOMES = (
    Failed(Reason.HOST_UNREACHABLE),
    Failed(Reason.GENERAL),
    Resolved(b"\1\2\3\4"),
    Resolved(bytes(16)),
)


def check(reply: bytes, asked: bytes, stream: bool) -> None:
    """The reply is to the question, and no larger than may be."""
    query = dns_message.read(asked, stream=stream)
    assert query is not None
    assert len(reply) <= query.limit
    said = dns.message.from_wire(reply)
    assert said.id == query.id
    assert said.flags & dns.flags.QR
    assert said.opcode() == dns.opcode.from_flags(query.flags)
    assert len(said.question) <= len(query.questions)
    for found, question in zip(said.question, query.questions, strict=False):
        assert (found.name, found.rdtype, found.rdclass) == (question.name, question.rdtype, question.rdclass)


def ask(resolver: Resolver, message: bytes, take: Octets, now: float) -> None:
    """Ask, let Tor answer, and let time pass: one reply comes, or none to what is no query."""
    stream = take.flag()
    with at_most(CALLS_MAX):
        asked = resolver.ask(message, message, now, client="guest", stream=stream)
    wants = dns_message.read(message, stream=stream) is not None
    replies = [] if asked.reply is None else [(message, asked.reply)]
    assert not (replies and asked.lookups)
    assert wants or not (replies or asked.lookups)
    assert len(asked.lookups) <= dns_message.QUESTIONS_MAX
    for lookup in asked.lookups:
        assert lookup.command in (Command.RESOLVE, Command.RESOLVE_PTR)
        what = take.number()
        outcome = OUTCOMES[what] if what < len(OUTCOMES) else Resolved(
            take.rest().decode("latin-1") if what == 255 else NAMES[what % len(NAMES)])  # fmt: skip
        with at_most(CALLS_MAX):
            replies += resolver.resolved(lookup, outcome, now)
    if (due := resolver.deadline()) is not None:
        replies += resolver.wake(due)
    assert len(replies) == wants, "a query gets one reply"
    for source, reply in replies:
        check(reply, source, stream)


def one(data: bytes) -> None:
    take = Octets(data)
    mode, message = take.pick(list(Mode)), take.blob()
    resolver = Resolver(mode, names_max=4)
    ask(resolver, message, take, 0.0)
    ask(resolver, message, take, 1000.0)
    whole, cut = DNSFramer(), DNSFramer()
    try:
        messages = whole.receive(data)
    except Malformed:
        messages = None
    found: list[bytes] = []
    try:
        for piece in pieces(data, Octets(message)):
            found += cut.receive(piece)
            assert len(cut._held) <= dns_message.QUERY_MAX + 2
    except Malformed:
        assert messages is None
    else:
        assert found == messages


def query(name: str, kind: str, **more: object) -> bytes:
    return dns.message.make_query(name, kind, **more).to_wire()


def seeds() -> list[bytes]:
    several = dns.message.make_query("example.com", "A")
    several.question += dns.message.make_query("other.test", "AAAA").question
    messages = [
        query("example.com", "A"), query("Example.com", "AAAA", use_edns=0, payload=4096, want_dnssec=True),
        query("4.3.2.1.in-addr.arpa", "PTR"), query("x.onion", "A"), query("localhost", "A"),
        query(".", "NS"), query("example.com", "ANY"), query("a.example", "AXFR"), several.to_wire(),
        query("1.0.0.127.in-addr.arpa", "PTR"), query("a" * 63 + ".test", "TXT", use_edns=1),
        query("0." * 31 + "1.ip6.arpa", "PTR"),
    ]  # fmt: skip
    framed = b"".join(len(message).to_bytes(2, "big") + message for message in messages[:2])
    return [
        bytes((mode,)) + blob(m) + bytes((0, what)) for m in messages for mode in (0, 1) for what in (2, 5)
    ] + [framed]
