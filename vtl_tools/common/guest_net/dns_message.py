"""DNS messages: questions read, answers made. dnspython does the octets, and takes 0.1 s to import."""

import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.reversename
import dns.rrset
from dns.rcode import Rcode
from dns.rdatatype import RdataType
from dns.rdtypes.ANY.HINFO import HINFO
from dns.rdtypes.ANY.PTR import PTR
from dns.rdtypes.ANY.SOA import SOA
from dns.rdtypes.IN.A import A
from dns.rdtypes.IN.AAAA import AAAA

from vtl_tools.common.packet import address

# At once: a guest's query is not to have files read, which the service's user may not read anyway.
_load_all_types: Callable[[], None] = dns.rdata.load_all_types
_load_all_types()
_classes: dict[tuple[int, int], type[dns.rdata.Rdata]] = dns.rdata._rdata_classes  # type: ignore[assignment]
_known: Final = dict(_classes)
_CLASSES_MAX: Final = len(_known) + 4096
"""dnspython keeps an entry for each pair of class and type that it ever saw, of which a guest has 2**32."""

UDP_MAX: Final = 512  # octets, RFC 1035 section 4.2.1
EDNS_MAX: Final = 1232  # what passes every link unfragmented (RFC 9715 section 3)
STREAM_MAX: Final = 0xFFFF

QUERY_MAX: Final = 4096
"""Octets of a query that is read; real ones have a tenth of that."""

QUESTIONS_MAX: Final = 16
"""Of one message. RFC 9619 would allow one; each of several is answered, all in one message."""

RECORDS_MAX: Final = 4
"""Records that a query may bring; real ones have an OPT, and maybe a TSIG or a SOA.

Before dnspython sees a message its counts are looked at: it takes 0.2 ms for a name of 127 labels, and with
compression some hundred of these fit a datagram.
"""

NO_EDNS: Final = -1

_HEADER: Final = struct.Struct("!HHHHHH")  # ID, flags, QDCOUNT ANCOUNT NSCOUNT ARCOUNT

_IN: Final = dns.rdataclass.IN
_FORM: Final = Rcode.FORMERR
_MNAME, _RNAME = dns.name.from_text("localhost."), dns.name.from_text("nobody.invalid.")
_HINFO: Final[Callable[..., dns.rdata.Rdata]] = HINFO  # whose constructors bear no types
_PTR: Final[Callable[..., dns.rdata.Rdata]] = PTR
_SOA: Final[Callable[..., dns.rdata.Rdata]] = SOA
_RFC_8482: Final = _HINFO(_IN, RdataType.HINFO, b"RFC8482", b"")


class DNSQuestion(NamedTuple):
    """What is asked. name: as it was spelt; names compare without regard to case."""

    name: dns.name.Name
    rdtype: int
    rdclass: int

    @property
    def labels(self) -> tuple[bytes, ...]:
        """The name's labels in lower case, without the root's."""
        return tuple(label.lower() for label in self.name.labels[:-1])


class DNSQuery(NamedTuple):
    """A message that wants an answer. limit: octets that the answer may have. edns: version, or NO_EDNS.

    error: what it must be told instead, as FORMERR; NOERROR: nothing.
    """

    id: int
    flags: int
    opcode: dns.opcode.Opcode
    questions: tuple[DNSQuestion, ...]
    edns: int
    edns_flags: int
    limit: int
    error: Rcode


class DNSResult(NamedTuple):
    """What a question is answered with. rdata: none with NOERROR is NODATA. ttl: seconds, of either."""

    rcode: Rcode
    ttl: int
    rdata: tuple[dns.rdata.Rdata, ...] = ()


def weight(message: bytes) -> int:
    """Return how much work a message is, as questions and records to be read; at least one."""
    if len(message) < _HEADER.size:
        return 1
    _, _, qdcount, *counts = _HEADER.unpack_from(message)
    records = sum(counts)
    return max(1, qdcount + records) if qdcount <= QUESTIONS_MAX and records <= RECORDS_MAX else 1


def read(message: bytes, *, stream: bool) -> DNSQuery | None:
    """Read a query; None: it cannot or must not be answered, being no message at all, or an answer."""
    if len(message) < _HEADER.size:
        return None
    number, flags, qdcount, ancount, nscount, arcount = _HEADER.unpack_from(message)
    if flags & dns.flags.QR:
        return None
    opcode, limit = dns.opcode.from_flags(flags), STREAM_MAX if stream else UDP_MAX
    query = DNSQuery(number, flags, opcode, (), NO_EDNS, 0, limit, _FORM)
    if opcode != dns.opcode.QUERY:
        return query._replace(error=Rcode.NOTIMP)
    records = ancount + nscount + arcount
    if len(message) > QUERY_MAX or not 1 <= qdcount <= QUESTIONS_MAX or records > RECORDS_MAX:
        return query
    found = dns.message.from_wire(message, continue_on_error=True)
    if len(_classes) > _CLASSES_MAX:
        _classes.clear()
        _classes.update(_known)
    if found.errors:
        return query
    questions = tuple(DNSQuestion(each.name, each.rdtype, each.rdclass) for each in found.question)
    if found.edns >= 0 and not stream:
        limit = max(UDP_MAX, min(found.payload, EDNS_MAX))
    error = Rcode.BADVERS if found.edns > 0 else Rcode.NOERROR  # RFC 6891 section 6.1.3
    return DNSQuery(number, flags, opcode, questions, found.edns, found.ednsflags, limit, error)


def render(query: DNSQuery, results: Iterable[tuple[DNSQuestion, DNSResult]]) -> bytes:
    """Return the answer to a query. What does not fit its limit is left out, and TC says so (RFC 2181 9).

    One message has one code: SERVFAIL if any question met it, then REFUSED, and NXDOMAIN only if all did.
    """
    answer = dns.message.QueryMessage(id=query.id)
    answer.flags = dns.flags.QR | dns.flags.RA | query.flags & (dns.flags.RD | dns.flags.CD)
    answer.set_opcode(query.opcode)
    if query.edns != NO_EDNS:
        answer.use_edns(0, query.edns_flags & dns.flags.DO, EDNS_MAX)
    codes = set()
    for question in query.questions:
        answer.question.append(dns.rrset.RRset(question.name, _class(question), _type(question)))
    for question, result in results:
        codes.add(result.rcode)
        if result.rdata:
            answer.answer.append(dns.rrset.from_rdata_list(question.name, result.ttl, result.rdata))
        elif result.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN):
            answer.authority.append(_soa(question, result))
    answer.set_rcode(query.error or _code(codes))
    # want_shuffle: left to itself, dnspython throws dice for the records' order.
    return answer.to_wire(max_size=query.limit, prefer_truncation=True, want_shuffle=False)


def addresses(rdtype: int, found: Iterable[bytes], ttl: int) -> DNSResult:
    """Answer a question for A or AAAA by those of the addresses that are of the type's version."""
    kind, size = (A, 4) if rdtype == RdataType.A else (AAAA, 16)
    octets = (each for each in found if len(each) == size)
    return DNSResult(
        Rcode.NOERROR, ttl, tuple(kind(_IN, RdataType(rdtype), address.format_ip(each)) for each in octets)
    )


def pointer(name: str, ttl: int) -> DNSResult:
    """Answer a question for PTR. SERVFAIL if the name, which somebody else gave, is none."""
    try:
        target = dns.name.from_text(name, dns.name.root)
    except (dns.exception.DNSException, UnicodeError):
        target = dns.name.root
    if target == dns.name.root:
        return DNSResult(Rcode.SERVFAIL, 0)
    return DNSResult(Rcode.NOERROR, ttl, (_PTR(_IN, RdataType.PTR, target),))


def anything(ttl: int) -> DNSResult:
    """Answer a question for ANY with next to nothing (RFC 8482 section 4.2)."""
    return DNSResult(Rcode.NOERROR, ttl, (_RFC_8482,))


def reversed_address(name: dns.name.Name) -> bytes | None:
    """Return the address that a name of in-addr.arpa or ip6.arpa is for; None: it is for no whole one."""
    try:
        text = dns.reversename.to_address(name)
    except (dns.exception.DNSException, ValueError):
        return None
    return address.ip(text)


def _code(codes: set[Rcode]) -> Rcode:
    for code in Rcode.SERVFAIL, Rcode.REFUSED:
        if code in codes:
            return code
    return Rcode.NXDOMAIN if codes == {Rcode.NXDOMAIN} else Rcode.NOERROR


def _soa(question: DNSQuestion, result: DNSResult) -> dns.rrset.RRset:
    """Return the SOA by which a negative answer may be cached (RFC 2308 section 3), of the zone above."""
    name = question.name
    if result.rcode == Rcode.NXDOMAIN and len(name) > 1:
        name = name.parent()
    record = _SOA(_IN, RdataType.SOA, _MNAME, _RNAME, 1, 3600, 1200, 604_800, result.ttl)
    return dns.rrset.from_rdata(name, result.ttl, record)


def _class(question: DNSQuestion) -> dns.rdataclass.RdataClass:
    return dns.rdataclass.RdataClass.make(question.rdclass)


def _type(question: DNSQuestion) -> RdataType:
    return RdataType.make(question.rdtype)
