"""Parser and encoder of DNS messages, by dnspython, which takes 0.1 s to import."""

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

# Import at once: a query must not cause imports, whose files the service's user may not be able to read.
_load_all_types: Callable[[], None] = dns.rdata.load_all_types
_load_all_types()
_classes: dict[tuple[int, int], type[dns.rdata.Rdata]] = dns.rdata._rdata_classes  # type: ignore[assignment]
_known: Final = dict(_classes)
_CLASSES_MAX: Final = len(_known) + 4096
"""dnspython stores an entry for each pair of class and type in a query, and a guest can send 2**32."""

UDP_MAX: Final = 512  # octets, RFC 1035 section 4.2.1
EDNS_MAX: Final = 1232  # passes every link unfragmented (RFC 9715 section 3)
STREAM_MAX: Final = 0xFFFF

QUERY_MAX: Final = 4096
"""Maximum octets of a query; real ones have a tenth of that."""

QUESTIONS_MAX: Final = 16
"""Maximum questions of a message. RFC 9619 allows one; several are all answered, in one message."""

RECORDS_MAX: Final = 4
"""Maximum records of a query; real ones have an OPT, and perhaps a TSIG or a SOA.

The counts are checked before dnspython parses a message: it takes 0.2 ms for a name of 127 labels, and with
compression a hundred of these fit a datagram.
"""

NO_EDNS: Final = -1

_HEADER: Final = struct.Struct("!HHHHHH")  # ID, flags, QDCOUNT ANCOUNT NSCOUNT ARCOUNT

_IN: Final = dns.rdataclass.IN
_FORM: Final = Rcode.FORMERR
_MNAME, _RNAME = dns.name.from_text("localhost."), dns.name.from_text("nobody.invalid.")
_HINFO: Final[Callable[..., dns.rdata.Rdata]] = HINFO  # their constructors have no types
_PTR: Final[Callable[..., dns.rdata.Rdata]] = PTR
_SOA: Final[Callable[..., dns.rdata.Rdata]] = SOA
_RFC_8482: Final = _HINFO(_IN, RdataType.HINFO, b"RFC8482", b"")


class DNSQuestion(NamedTuple):
    """A question. name: as it was spelt; names compare without regard to case."""

    name: dns.name.Name
    rdtype: int
    rdclass: int

    @property
    def labels(self) -> tuple[bytes, ...]:
        """The name's labels in lower case, without the root's."""
        return tuple(label.lower() for label in self.name.labels[:-1])


class DNSQuery(NamedTuple):
    """A message to answer. limit: maximum octets of the answer. edns: version, or NO_EDNS.

    error: the code to answer instead, such as FORMERR; NOERROR: none.
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
    """The answer to a question. rdata: none with NOERROR is NODATA. ttl: seconds, of either."""

    rcode: Rcode
    ttl: int
    rdata: tuple[dns.rdata.Rdata, ...] = ()


def weight(message: bytes) -> int:
    """Return the cost of a message, as number of questions and records to parse; at least one."""
    if len(message) < _HEADER.size:
        return 1
    _, _, qdcount, *counts = _HEADER.unpack_from(message)
    records = sum(counts)
    return max(1, qdcount + records) if qdcount <= QUESTIONS_MAX and records <= RECORDS_MAX else 1


def read(message: bytes, *, stream: bool) -> DNSQuery | None:
    """Parse a query. None: it must not be answered, as it is no DNS message, or a response."""
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
    """Return the response to a query. Records beyond its limit are left out, and TC is set (RFC 2181 9).

    A message has one code: SERVFAIL if any question has it, then REFUSED, and NXDOMAIN only if all have it.
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
    # want_shuffle: by default dnspython randomizes the order of records.
    return answer.to_wire(max_size=query.limit, prefer_truncation=True, want_shuffle=False)


def addresses(rdtype: int, found: Iterable[bytes], ttl: int) -> DNSResult:
    """Return the answer to a question for A or AAAA: the addresses of the type's IP version."""
    kind, size = (A, 4) if rdtype == RdataType.A else (AAAA, 16)
    octets = (each for each in found if len(each) == size)
    return DNSResult(
        Rcode.NOERROR, ttl, tuple(kind(_IN, RdataType(rdtype), address.format_ip(each)) for each in octets)
    )


def pointer(name: str, ttl: int) -> DNSResult:
    """Return the answer to a question for PTR. SERVFAIL if the name, which comes from outside, is invalid."""
    try:
        target = dns.name.from_text(name, dns.name.root)
    except (dns.exception.DNSException, UnicodeError):
        target = dns.name.root
    if target == dns.name.root:
        return DNSResult(Rcode.SERVFAIL, 0)
    return DNSResult(Rcode.NOERROR, ttl, (_PTR(_IN, RdataType.PTR, target),))


def anything(ttl: int) -> DNSResult:
    """Return a minimal answer to a question for ANY (RFC 8482 section 4.2)."""
    return DNSResult(Rcode.NOERROR, ttl, (_RFC_8482,))


def reversed_address(name: dns.name.Name) -> bytes | None:
    """Return the address of a name of in-addr.arpa or ip6.arpa; None: it is no complete address."""
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
    """Return the SOA that allows caching of a negative answer (RFC 2308 section 3), of the parent zone."""
    name = question.name
    if result.rcode == Rcode.NXDOMAIN and len(name) > 1:
        name = name.parent()
    record = _SOA(_IN, RdataType.SOA, _MNAME, _RNAME, 1, 3600, 1200, 604_800, result.ttl)
    return dns.rrset.from_rdata(name, result.ttl, record)


def _class(question: DNSQuestion) -> dns.rdataclass.RdataClass:
    return dns.rdataclass.RdataClass.make(question.rdclass)


def _type(question: DNSQuestion) -> RdataType:
    return RdataType.make(question.rdtype)
