"""Names that are answered with addresses which stand for them."""

from collections import Counter
from ipaddress import IPv4Network, ip_address

import dns.message
import dns.rdatatype
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.guest_net.asking import (
    BROKEN,
    NO_NAME,
    Stub,
    code,
    is_negative,
    records,
    reverse,
)
from vtl_tools.common.guest_net.dns import GRACE_S, MAP4, MAP6, TTL_S, Mode, Resolver
from vtl_tools.common.guest_net.name_map import NameMap
from vtl_tools.common.socks import Resolved

KEPT_S = TTL_S + GRACE_S


@pytest.fixture
def stub():
    return Stub(Resolver(Mode.MAP))


@pytest.fixture
def narrow():
    """A table for two names."""
    return Stub(Resolver(Mode.MAP, names_max=2))


def address(answer):
    (record,) = answer.answer[0]
    return ip_address(record.address).packed


@pytest.mark.parametrize(("rdtype", "range_"), [("A", MAP4), ("AAAA", MAP6)])
def test_a_name_gets_an_address_at_once_and_the_address_gives_the_name_back(stub, rdtype, range_):
    answer = stub.get(f"www.example.com {rdtype}")
    assert code(answer) == "NOERROR"
    assert answer.answer[0].ttl == TTL_S
    assert ip_address(address(answer)) in range_
    assert stub.resolver.name_of(address(answer)) == "www.example.com"


def test_a_name_keeps_its_address_and_every_spelling_has_it(stub):
    first = stub.get("www.example.com A")
    again = stub.get("wWw.eXample.COM A")
    assert address(first) == address(again)
    assert str(again.question[0].name) == str(again.answer[0].name) == "wWw.eXample.COM."
    assert stub.resolver.name_of(address(again)) == "www.example.com"
    assert address(stub.get("www.example.org A")) != address(first)
    assert address(Stub(Resolver()).get("www.example.com A")) == address(first), "after a restart"


def test_an_onion_service_is_a_name_like_others(stub):
    onion = "a" * 56 + ".onion"
    assert stub.resolver.name_of(address(stub.get(f"{onion} A"))) == onion


def test_no_address_ends_as_networks_and_broadcasts_do(stub):
    last = {address(stub.get(f"{n}.example A"))[3] for n in range(1000)}
    assert not last & {0, 255}


def test_without_ipv6_there_is_no_aaaa_record():
    stub = Stub(Resolver(ipv6=None))
    answer = stub.get("www.example.com AAAA")
    assert code(answer) == "NOERROR"
    assert is_negative(answer)


@pytest.mark.parametrize("family", ["A", "AAAA"])
def test_an_address_knows_its_name_by_ptr_too(stub, family):
    found = address(stub.get(f"www.example.com {family}"))
    name = ip_address(found).reverse_pointer
    assert records(stub.get(f"{name} PTR")) == [f"{name}. PTR www.example.com."]


def test_other_addresses_are_asked_for(stub):
    assert stub.waits("4.4.8.8.in-addr.arpa PTR") == [reverse("8.8.4.4")]
    ((_, answer),) = stub.told(reverse("8.8.4.4"), Resolved("dns.google"))
    assert records(answer) == ["4.4.8.8.in-addr.arpa. PTR dns.google."]
    assert stub.waits("5.4.8.8.in-addr.arpa PTR") == [reverse("8.8.4.5")]
    ((_, answer),) = stub.told(reverse("8.8.4.5"), NO_NAME)
    assert code(answer) == "NXDOMAIN"
    assert stub.waits("6.4.8.8.in-addr.arpa PTR") == [reverse("8.8.4.6")]
    ((_, answer),) = stub.told(reverse("8.8.4.6"), BROKEN)
    assert code(answer) == "SERVFAIL"


def test_an_address_that_stands_for_nothing_has_no_name(stub):
    assert stub.resolver.name_of(b"\xc6\x12\0\x01") is None
    assert stub.resolver.name_of(b"\x08\x08\x08\x08") is None
    assert stub.resolver.name_of(bytes(16)) is None
    assert code(stub.get("1.0.18.198.in-addr.arpa PTR")) == "NXDOMAIN"


def test_a_full_table_says_that_it_cannot_and_never_gives_an_address_twice(narrow):
    held = [address(narrow.get(f"{n}.example A")) for n in "ab"]
    assert code(narrow.get("c.example A")) == "SERVFAIL"
    narrow.now = KEPT_S - 1
    assert code(narrow.get("c.example A")) == "SERVFAIL"
    assert [narrow.resolver.name_of(each) for each in held] == ["a.example", "b.example"]


def test_the_name_that_was_asked_for_longest_ago_makes_room(narrow):
    first, second = (address(narrow.get(f"{n}.example A")) for n in "ab")
    narrow.now = 10.0
    narrow.get("a.example AAAA")
    narrow.now = KEPT_S
    third = address(narrow.get("c.example A"))
    assert narrow.resolver.name_of(first) == "a.example"
    assert narrow.resolver.name_of(third) == "c.example"
    assert third == second or narrow.resolver.name_of(second) is None
    assert len(narrow.resolver.names) == 2


def test_an_address_that_a_connection_uses_keeps_its_name(narrow):
    names = narrow.resolver.names
    first, second = (address(narrow.get(f"{n}.example A")) for n in "ab")
    assert names.pin(first) == "a.example"
    names.pin(first)
    names.pin(second)
    narrow.now = 10 * KEPT_S
    assert code(narrow.get("c.example A")) == "SERVFAIL"
    assert address(narrow.get("a.example A")) == first, "which does not unpin it"
    names.unpin(first, narrow.now)
    narrow.now += KEPT_S
    assert code(narrow.get("c.example A")) == "SERVFAIL", "there was a second pin"
    names.unpin(first, narrow.now)
    assert code(narrow.get("c.example A")) == "SERVFAIL", "kept a while after it was used"
    narrow.now += KEPT_S
    assert code(narrow.get("c.example A")) == "NOERROR"
    assert names.name_of(second) == "b.example"
    assert names.pin(b"\x08\x08\x08\x08") is None
    names.unpin(b"\x08\x08\x08\x08", 0.0)
    names.unpin(address(narrow.get("c.example A")), 0.0)


@settings(deadline=None, derandomize=True)
@given(
    st.lists(
        st.tuples(st.sampled_from("pub"), st.sampled_from("abcdef"), st.booleans(), st.floats(0, KEPT_S))
    )
)
def test_an_address_stands_for_one_name_while_somebody_may_have_it(actions):
    """p: a connection pins what the name has; u: one ends; b: the name is asked for."""
    names, now = NameMap(MAP4, MAP6, names_max=3, keep_s=KEPT_S), 0.0
    kept, pins = {}, Counter()
    for action, name, ipv6, later in actions:
        now += later
        found = names.address_of(name, now, ipv6=ipv6) if action == "b" or name in kept else None
        kept = {who: until for who, until in kept.items() if until > now or pins[who]}
        if found is None:
            assert action != "b" or len(kept.keys() - {name}) == 3
            continue
        kept[name] = now + KEPT_S
        if action == "p":
            pins[names.pin(found)] += 1
        elif action == "u":
            names.unpin(found, now)
            pins[name] -= pins[name] > 0
        assert names.name_of(found) == name
        for who in kept:
            assert names.name_of(names.address_of(who, now)) == who
            kept[who] = now + KEPT_S
        assert len(names) <= 3


def test_a_small_range_is_used_to_the_last_address():
    stub = Stub(Resolver(ipv4=IPv4Network("192.0.2.0/28"), ipv6=None))
    found = {address(stub.get(f"{n}.example A")) for n in range(14)}
    assert {ip_address(each) for each in found} == set(IPv4Network("192.0.2.0/28").hosts())
    assert code(stub.get("one-more.example A")) == "SERVFAIL"
    assert [stub.resolver.name_of(each) for each in found if stub.resolver.name_of(each) is None] == []


def test_a_range_without_room_is_refused():
    with pytest.raises(ValueError):
        Resolver(ipv4=IPv4Network("192.0.2.0/32"))


def test_several_questions_are_answered_in_one_message(stub):
    answer = stub.get("a.example A", "b.example A", "a.example AAAA", "b.example MX", "a.example A")
    assert [f"{rrset.name} {dns.rdatatype.to_text(rrset.rdtype)}" for rrset in answer.answer] == [
        "a.example. A", "b.example. A", "a.example. AAAA"
    ]  # fmt: skip
    assert len(answer.question) == 5
    assert len(answer.authority) == 1


def test_the_answer_may_be_ready_for_some_questions_before_others(stub):
    assert stub.waits("a.example A", "4.4.8.8.in-addr.arpa PTR", "5.4.8.8.in-addr.arpa PTR")
    assert stub.told(reverse("8.8.4.4"), Resolved("dns.google")) == []
    ((_, answer),) = stub.told(reverse("8.8.4.5"), NO_NAME)
    assert code(answer) == "NOERROR", "not all names are unknown"
    assert len(answer.answer) == 2


def test_a_reply_can_be_read_by_who_asked(stub):
    """The identifier, the question and the flags are those of the query; dnspython judges."""
    asked = dns.message.make_query("www.example.com", "A", want_dnssec=True)
    asked.flags |= dns.flags.CD
    answer = stub.check(stub.resolver.ask(asked.to_wire(), 1, 0.0).reply, asked)
    assert answer.ednsflags & dns.flags.DO
    assert answer.flags & dns.flags.CD
    assert not answer.flags & (dns.flags.AD | dns.flags.AA | dns.flags.TC)
