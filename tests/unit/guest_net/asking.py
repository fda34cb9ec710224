"""A stub resolver for the tests, with dnspython as it is meant to be used: the oracle of our messages."""

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from vtl_tools.common.guest_net.lookups import Lookup
from vtl_tools.common.packet import address
from vtl_tools.common.socks import Command, Failed, Reason, Resolved

SOURCE = ("10.0.2.15", 40000)
NO_NAME = Failed(Reason.HOST_UNREACHABLE, 4)
BROKEN = Failed(Reason.GENERAL, 1)


def forward(name):
    return Lookup(Command.RESOLVE, name)


def reverse(text):
    return Lookup(Command.RESOLVE_PTR, address.ip(text))


def at(text):
    return Resolved(address.ip(text))


def query(*questions, number=7, edns=True, payload=1232, rdclass="IN"):
    """questions: as "www.example.com A"."""
    message = dns.message.QueryMessage(id=number)
    message.flags = dns.flags.RD
    for question in questions:
        name, rdtype = question.split()
        message.find_rrset(
            message.question, dns.name.from_text(name), dns.rdataclass.from_text(rdclass),
            dns.rdatatype.from_text(rdtype), create=True, force_unique=True,
        )  # fmt: skip
    if edns:
        message.use_edns(0, payload=payload)
    return message


def octets(*questions, **fields):
    """The query as it is sent; dnspython would by itself keep it within what it says it can receive."""
    return query(*questions, **fields).to_wire(max_size=65535)


class Stub:
    """Asks a resolver; time is a number to set."""

    def __init__(self, resolver):
        self.resolver, self.now = resolver, 0.0

    def ask(self, *questions, source=SOURCE, client=None, stream=False, **fields):
        return self.resolver.ask(octets(*questions, **fields), source, self.now, client=client, stream=stream)

    def get(self, *questions, **fields):
        """The answer that comes at once; it is one to the question."""
        asked = self.ask(*questions, **fields)
        assert asked.lookups == ()
        return self.check(asked.reply, query(*questions))

    def waits(self, *questions, **fields):
        """The look-ups that an answer waits for."""
        asked = self.ask(*questions, **fields)
        assert asked.reply is None
        return list(asked.lookups)

    def told(self, lookup, outcome):
        """The answers that a look-up's outcome brings, by source."""
        return [(source, read(reply)) for source, reply in self.resolver.resolved(lookup, outcome, self.now)]

    def check(self, reply, asked):
        answer = read(reply)
        assert asked.is_response(answer)
        assert answer.flags & dns.flags.RA
        assert answer.flags & dns.flags.RD
        return answer


def read(reply):
    assert reply is not None
    return dns.message.from_wire(reply)


def code(answer):
    return dns.rcode.to_text(answer.rcode())


def records(answer):
    """The answer section as ["www.example.com. A 192.0.2.1"]."""
    return [
        f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)} {rdata}"
        for rrset in answer.answer
        for rdata in rrset
    ]


def is_negative(answer):
    """Whether it may be cached as one (RFC 2308)."""
    return not answer.answer and [rrset.rdtype for rrset in answer.authority] == [dns.rdatatype.SOA]
