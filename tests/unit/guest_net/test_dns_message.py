"""What any name server owes to those who ask: codes, EDNS, sizes; and names that stay here."""

import random
import struct
import sys

import dns.edns
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdata
import dns.update
import pytest

from tests.unit.guest_net.asking import SOURCE, Stub, code, is_negative, octets, query, read, records
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dns_message
from vtl_tools.common.guest_net.dns import Mode, QueryProgress, Resolver
from vtl_tools.common.guest_net.dns_message import EDNS_MAX, QUERY_MAX
from vtl_tools.common.guest_net.dns_stream import DNSFramer, framed

MANY = [f"{'x' * 60}.{'y' * 60}.{number}.example A" for number in range(16)]


@pytest.fixture(params=[Mode.MAP, Mode.RESOLVE])
def stub(request):
    return Stub(Resolver(request.param))


@pytest.fixture
def mapping():
    return Stub(Resolver())


def ask(stub, message):
    return stub.resolver.ask(bytes(message), SOURCE, 0.0)


# --- what Tor cannot tell


@pytest.mark.parametrize(
    "rdtype", ["MX", "TXT", "SRV", "HTTPS", "SVCB", "SOA", "NS", "CNAME", "DNSKEY", "TYPE65280"]
)
def test_other_types_have_no_data_at_once(stub, rdtype):
    answer = stub.get(f"www.example.com {rdtype}")
    assert code(answer) == "NOERROR"
    assert is_negative(answer)
    assert answer.authority[0].ttl > 0


def test_any_is_answered_with_next_to_nothing(stub):
    assert records(stub.get("www.example.com ANY")) == ['www.example.com. HINFO "RFC8482" ""']


@pytest.mark.parametrize("rdtype", ["AXFR", "IXFR"])
def test_a_zone_is_not_given_away(stub, rdtype):
    assert code(stub.get(f"example.com {rdtype}")) == "REFUSED"


def test_other_classes_are_refused(stub):
    asked = query("version.bind TXT", rdclass="CH")
    assert code(read(ask(stub, asked.to_wire()).reply)) == "REFUSED"


# --- names that stay here


@pytest.mark.parametrize(
    "name",
    [
        "printer.local", "www.invalid", "a.test", "nas.lan", "router.home.arpa", "wpad", "guest", "a.alt",
        "www.example.com.exit", "example.com.noconnect", "host.localdomain", "use-application-dns.net",
        "db.internal", "10.0.0.1", "a\\032b.example", "caf\\195\\169.example", "a\\000b.example",
        "e164.arpa", "a\\.b.example",
    ],
)  # fmt: skip
@pytest.mark.parametrize("rdtype", ["A", "AAAA", "HTTPS", "ANY"])
def test_names_that_are_nowhere_are_not_asked_for(stub, name, rdtype):
    answer = stub.get(f"{name} {rdtype}")
    assert code(answer) == "NXDOMAIN"
    assert is_negative(answer)


@pytest.mark.parametrize("name", ["localhost", "LocalHost", "www.localhost"])
def test_localhost_is_the_guest_itself(stub, name):
    assert records(stub.get(f"{name} A")) == [f"{name}. A 127.0.0.1"]
    assert records(stub.get(f"{name} AAAA")) == [f"{name}. AAAA ::1"]
    assert is_negative(stub.get(f"{name} MX"))


def test_nobody_is_told_of_a_nat64(stub):
    assert records(stub.get("ipv4only.arpa A")) == [
        "ipv4only.arpa. A 192.0.0.170", "ipv4only.arpa. A 192.0.0.171"
    ]  # fmt: skip
    assert is_negative(stub.get("ipv4only.arpa AAAA"))


def test_nobody_is_told_of_another_resolver(stub):
    answer = stub.get("_dns.resolver.arpa SVCB")
    assert code(answer) == "NOERROR"
    assert is_negative(answer)


def test_the_root_is_there(stub):
    for rdtype in "A", "NS", "AAAA":
        answer = stub.get(f". {rdtype}")
        assert code(answer) == "NOERROR"
        assert is_negative(answer)


@pytest.mark.parametrize("name", ["1.0.0.127.in-addr.arpa", f"1.{'0.' * 31}ip6.arpa"])
def test_the_loopback_addresses_are_localhosts(stub, name):
    assert records(stub.get(f"{name} PTR")) == [f"{name}. PTR localhost."]


@pytest.mark.parametrize(
    "name",
    [
        "5.0.168.192.in-addr.arpa", "15.2.0.10.in-addr.arpa", "1.1.254.169.in-addr.arpa",
        "1.0.0.224.in-addr.arpa",
        "255.255.255.255.in-addr.arpa", f"{'0.' * 28}0.8.e.f.ip6.arpa", f"{'0.' * 29}0.d.f.ip6.arpa",
    ],
)  # fmt: skip
def test_private_addresses_are_not_asked_for(stub, name):
    assert code(stub.get(f"{name} PTR")) == "NXDOMAIN"


@pytest.mark.parametrize("name", ["in-addr.arpa", "8.8.in-addr.arpa", "x.8.8.8.8.in-addr.arpa", "ip6.arpa"])
def test_half_an_address_has_no_data(stub, name):
    answer = stub.get(f"{name} PTR")
    assert code(answer) == "NOERROR"
    assert is_negative(answer)


def test_an_addresss_name_has_no_other_types(stub):
    assert is_negative(stub.get("8.8.8.8.in-addr.arpa A"))
    assert is_negative(stub.get("www.example.com PTR"))


# --- messages


def test_edns_is_answered_where_it_was_used(mapping):
    assert mapping.get("www.example.com A", edns=False).edns == -1
    answer = mapping.get("www.example.com A")
    assert (answer.edns, answer.payload, answer.options) == (0, EDNS_MAX, ())


def test_an_unknown_version_of_edns_is_told_ours(stub):
    asked = query("www.example.com A")
    asked.use_edns(5)
    answer = read(ask(stub, asked.to_wire()).reply)
    assert (answer.rcode(), answer.edns, answer.answer) == (dns.rcode.BADVERS, 0, [])


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"edns": False}, 512),
        ({"payload": 100}, 512),
        ({"payload": 700}, 700),
        ({"payload": 65535}, EDNS_MAX),
    ],
)
def test_what_does_not_fit_is_cut_and_said_to_be(mapping, fields, limit):
    reply = mapping.ask(*MANY, **fields).reply
    answer = read(reply)
    assert len(reply) <= limit
    assert answer.flags & dns.flags.TC
    assert (answer.edns >= 0) == fields.get("edns", True)


def test_over_tcp_all_fits(mapping):
    answer = mapping.get(*MANY, stream=True, edns=False)
    assert not answer.flags & dns.flags.TC
    assert len(answer.answer) == 16


def test_other_operations_are_not_implemented(stub):
    update = dns.update.UpdateMessage("example.com", id=5)
    update.add("www", 60, "A", "192.0.2.1")
    answer = read(ask(stub, update.to_wire()).reply)
    assert (answer.id, code(answer), answer.opcode()) == (5, "NOTIMP", dns.opcode.UPDATE)
    for opcode in range(1, 16):
        wire = bytearray(octets("www.example.com A"))
        wire[2] = opcode << 3
        reply = ask(stub, wire).reply
        assert (reply[2] >> 3 & 15, reply[3] & 15) == (opcode, dns.rcode.NOTIMP)


@pytest.mark.parametrize(
    "broken",
    [
        octets(),
        octets("www.example.com A")[:20],
        octets("www.example.com A") + b"junk",
        octets(*MANY, "a.example A"),
        bytes((0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xC0, 12, 0, 1, 0, 1)),
        octets("www.example.com A") + bytes(QUERY_MAX),
        octets("www.example.com A", edns=False)[:6] + bytes((0, 5, 0, 0, 0, 0)) + bytes(200),
    ],
    ids=["no-question", "short", "junk", "too-many", "loop", "long", "records"],
)
def test_a_broken_message_is_told_so(stub, broken):
    answer = read(ask(stub, broken).reply)
    assert (answer.id, code(answer), answer.question) == (7, "FORMERR", [])


def test_what_is_no_message_and_what_is_an_answer_gets_none(stub):
    assert ask(stub, b"") == QueryProgress(None)
    assert ask(stub, bytes(11)) == QueryProgress(None)
    answer = dns.message.make_response(query("www.example.com A"))
    assert ask(stub, answer.to_wire()) == QueryProgress(None)


def test_options_that_are_not_known_do_no_harm(mapping):
    asked = query("www.example.com A")
    asked.use_edns(0, options=[dns.edns.GenericOption(10, b"abcdefgh"), dns.edns.GenericOption(65001, b"")])
    assert code(read(ask(mapping, asked.to_wire()).reply)) == "NOERROR"


# --- over TCP


def test_messages_in_a_stream_are_found_however_it_is_cut():
    messages = [octets(f"{'n' * n}.example A", number=n) for n in range(1, 20)]
    sent = b"".join(framed(message) for message in messages)
    for size in 1, 2, 3, 7, 50, len(sent):
        stream, found = DNSFramer(), []
        for at in range(0, len(sent), size):
            found += stream.receive(sent[at : at + size])
        assert found == messages


@pytest.mark.parametrize("size", [0, 11, QUERY_MAX + 1, 65535])
def test_a_stream_with_lengths_of_no_query_is_malformed(size):
    message = octets("www.example.com A")
    with pytest.raises(Malformed):
        DNSFramer().receive(framed(message) + size.to_bytes(2, "big"))


# --- hostile messages


def mutated(rng, message):
    message = bytearray(message)
    for _ in range(rng.randrange(4)):
        if message:
            message[rng.randrange(len(message))] = rng.choice((0, 1, 0xC0, 0xFF, rng.randrange(256)))
    return bytes(message[: rng.randrange(len(message) + 1)] if rng.random() < 0.1 else message)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_foreign_octets_get_bounded_answers_and_nothing_else(seed):
    rng = random.Random(seed)
    stubs = [Stub(Resolver(mode, askers_max=50)) for mode in Mode]
    update = dns.update.UpdateMessage("example.com", id=5)
    update.add("www", 60, "A", "192.0.2.1")
    valid = [
        octets("www.example.com A"),
        octets("8.8.8.8.in-addr.arpa PTR", "a.example ANY", "b.example TXT", edns=False),
        octets(*MANY),
        update.to_wire(),
        dns.message.make_response(query("www.example.com A")).to_wire(),
    ]
    for turn in range(2000):
        message = rng.randbytes(rng.randrange(80)) if turn % 10 == 0 else mutated(rng, rng.choice(valid))
        for stub in stubs:
            stub.now += 0.1
            asked = stub.resolver.ask(message, turn, stub.now)
            replies = [asked.reply] if asked.reply is not None else []
            replies += [reply for _, reply in stub.resolver.wake(stub.now)]
            for reply in replies:
                assert 12 <= len(reply) <= EDNS_MAX
                assert reply[2] & 0x80
            assert asked.reply is None or asked.reply[:2] == message[:2]
            assert len(asked.lookups) <= 16
            for lookup in asked.lookups[:1]:
                assert lookup.target


def test_records_of_every_class_and_type_leave_nothing_in_memory_and_read_no_module():
    """dnspython remembers each pair of class and type for good, and a guest chooses from 2**32."""
    before = set(sys.modules)
    for number in range(20_000):
        record = b"\0" + struct.pack("!HHIH", number % 200 + 300, 5 + number, 0, 4) + bytes(4)
        dns_message.read(
            struct.pack("!HHHHHH", 1, 0x0100, 1, 0, 0, 1) + b"\1a\0\0\1\0\1" + record, stream=False
        )
    assert len(dns.rdata._rdata_classes) <= dns_message._CLASSES_MAX
    assert set(sys.modules) == before
