"""Parser and encoder of DNS messages, by dnspython, which takes 0.1 s to import."""

import struct
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple, NoReturn

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.renderer
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


def _no_import(name: str) -> NoReturn:
    raise ImportError(name)


def _load_all_types() -> None:
    """Import at once: a query must cause no import, as the user of the service may not be able to read it."""
    load: Callable[[], None] | None = getattr(dns.rdata, "load_all_types", None)
    if load is not None:
        load()
        return
    get_rdata_class: Callable[[int, int], object] = dns.rdata.get_rdata_class  # dnspython before 2.4
    for rdclass in dns.rdataclass.IN, dns.rdataclass.CH:
        for rdtype in RdataType:
            get_rdata_class(rdclass, rdtype)
    setattr(dns.rdata, "import_module", _no_import)  # noqa: B010 - mypy knows the versions after


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

_OPCODE: Final = 0x7800  # of the flags; QUERY is 0
_OPT_OCTETS: Final = 11  # of an OPT record without options (RFC 6891 section 6.1.2)
_IN: Final = dns.rdataclass.IN
_FORM: Final = Rcode.FORMERR
_MNAME, _RNAME = dns.name.from_text("localhost."), dns.name.from_text("nobody.invalid.")
_Renderer: Final[Callable[..., Any]] = dns.renderer.Renderer
_HINFO: Final[Callable[..., dns.rdata.Rdata]] = HINFO  # these have no types
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
    limit = STREAM_MAX if stream else UDP_MAX
    query = DNSQuery(number, flags, (), NO_EDNS, 0, limit, _FORM)
    if flags & _OPCODE:  # other than QUERY
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
    return DNSQuery(number, flags, questions, found.edns, found.ednsflags, limit, error)


def render(query: DNSQuery, results: Iterable[tuple[DNSQuestion, DNSResult]]) -> bytes:
    """Return the response to a query. Records beyond its limit are left out, and TC is set (RFC 2181 9).

    A message has one code: SERVFAIL if any question has it, then REFUSED, and NXDOMAIN only if all have it.
    """
    given = list(results)
    code, high_bits = dns.rcode.to_flags(query.error or _code({result.rcode for _, result in given}))
    flags = dns.flags.QR | dns.flags.RA | query.flags & (dns.flags.RD | dns.flags.CD | _OPCODE) | code
    has_edns = query.edns != NO_EDNS
    # The message class has truncation since dnspython 2.4 only.
    answer = _Renderer(query.id, flags, query.limit - _OPT_OCTETS * has_edns)
    try:
        for question in query.questions:
            answer.add_question(question.name, _type(question), _class(question))
        for question, result in given:
            if result.rdata:
                records = dns.rrset.from_rdata_list(question.name, result.ttl, result.rdata)
                # want_shuffle: by default dnspython randomizes the order of records.
                answer.add_rrset(dns.renderer.ANSWER, records, want_shuffle=False)
        for question, result in given:
            if not result.rdata and result.rcode in (Rcode.NOERROR, Rcode.NXDOMAIN):
                answer.add_rrset(dns.renderer.AUTHORITY, _soa(question, result))
    except dns.exception.TooBig:
        answer.flags |= dns.flags.TC
    answer.max_size = query.limit
    if has_edns:
        answer.add_edns(0, query.edns_flags & dns.flags.DO | high_bits, EDNS_MAX)
    answer.write_header()
    octets: bytes = answer.get_wire()
    return octets


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
