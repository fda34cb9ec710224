"""Names that are asked of Tor: who waits, for how long, and what they hear."""

import pytest

from tests.unit.guest_net.asking import (
    BROKEN,
    NO_NAME,
    SOURCE,
    Stub,
    at,
    code,
    forward,
    is_negative,
    query,
    read,
    records,
    reverse,
)
from vtl_tools.common.guest_net.dns import Mode, Resolver
from vtl_tools.common.guest_net.lookups import CACHE_MAX, FAILED_S, NEGATIVE_S, POSITIVE_S
from vtl_tools.common.socks import Resolved

WWW = forward("www.example.com")


@pytest.fixture
def stub():
    return Stub(Resolver(Mode.RESOLVE))


def test_a_name_is_looked_up_and_then_remembered(stub):
    assert stub.waits("www.Example.com A") == [WWW]
    ((source, answer),) = stub.told(WWW, at("93.184.216.34"))
    assert source == SOURCE
    assert answer.id == 7
    assert records(answer) == ["www.Example.com. A 93.184.216.34"]
    stub.now = 20.0
    answer = stub.get("WWW.example.com A")
    assert records(answer) == ["WWW.example.com. A 93.184.216.34"]
    assert answer.answer[0].ttl == POSITIVE_S - 20
    stub.now = POSITIVE_S
    assert stub.waits("www.example.com A") == [WWW]


@pytest.mark.parametrize(
    ("tor", "has", "has_not"), [("192.0.2.1", "A", "AAAA"), ("2001:db8::1", "AAAA", "A")]
)
def test_an_address_of_the_other_version_is_no_data(stub, tor, has, has_not):
    assert stub.waits(f"www.example.com {has_not}") == [WWW]
    ((_, answer),) = stub.told(WWW, at(tor))
    assert code(answer) == "NOERROR"
    assert is_negative(answer)
    assert records(stub.get(f"www.example.com {has}")) == [f"www.example.com. {has} {tor}"]


def test_those_who_ask_the_same_share_a_look_up(stub):
    assert stub.waits("www.example.com A", source=1) == [WWW]
    assert stub.waits("www.example.com AAAA", source=2) == []
    assert stub.waits("WWW.example.com A", source=3, number=9) == []
    replies = stub.told(WWW, at("192.0.2.1"))
    assert [(source, answer.id) for source, answer in replies] == [(1, 7), (2, 7), (3, 9)]
    assert [len(answer.answer) for _, answer in replies] == [1, 0, 1]


def test_a_question_that_is_sent_again_is_answered_once(stub):
    assert stub.waits("www.example.com A") == [WWW]
    assert stub.waits("www.example.com A") == []
    assert len(stub.told(WWW, at("192.0.2.1"))) == 1


@pytest.mark.parametrize(
    ("outcome", "says", "seconds"), [(NO_NAME, "NXDOMAIN", NEGATIVE_S), (BROKEN, "SERVFAIL", FAILED_S)]
)
def test_a_failure_is_remembered_for_a_while(stub, outcome, says, seconds):
    stub.waits("www.example.com A")
    ((_, answer),) = stub.told(WWW, outcome)
    assert code(answer) == says
    assert is_negative(answer) == (says == "NXDOMAIN")
    stub.now = seconds - 1
    assert code(stub.get("www.example.com A")) == says
    stub.now = seconds
    assert stub.waits("www.example.com A") == [WWW]


@pytest.mark.parametrize("nonsense", [at("192.0.2.1"), Resolved("a..b"), Resolved("a" * 64), Resolved("")])
def test_a_name_that_is_none_is_a_failure(stub, nonsense):
    stub.waits("4.4.8.8.in-addr.arpa PTR")
    ((_, answer),) = stub.told(reverse("8.8.4.4"), nonsense)
    assert code(answer) == "SERVFAIL"


def test_a_name_where_an_address_was_asked_for_is_a_failure(stub):
    stub.waits("www.example.com A")
    ((_, answer),) = stub.told(WWW, Resolved("www.example.com"))
    assert code(answer) == "SERVFAIL"


def test_tor_that_takes_too_long_is_a_failure_and_its_late_answer_is_kept(stub):
    resolver = stub.resolver
    assert resolver.deadline() is None
    stub.waits("www.example.com A", source=1)
    due = resolver.deadline()
    stub.now = 5.0
    stub.waits("www.example.org A", source=2)
    assert resolver.deadline() == due
    assert list(resolver.wake(due - 0.1)) == []
    ((source, reply),) = resolver.wake(due)
    assert (source, code(read(reply))) == (1, "SERVFAIL")
    assert resolver.deadline() == due + 5.0
    stub.now = due + 1
    assert stub.told(WWW, at("192.0.2.1")) == []
    assert records(stub.get("www.example.com A"))


def test_several_questions_wait_for_all_their_look_ups(stub):
    asked = stub.waits("a.example A", "a.example AAAA", "b.example A", "4.4.8.8.in-addr.arpa PTR")
    assert asked == [forward("a.example"), forward("b.example"), reverse("8.8.4.4")]
    assert stub.told(forward("a.example"), at("192.0.2.1")) == []
    assert stub.told(reverse("8.8.4.4"), Resolved("dns.google")) == []
    ((_, answer),) = stub.told(forward("b.example"), at("192.0.2.2"))
    assert records(answer) == [
        "a.example. A 192.0.2.1", "b.example. A 192.0.2.2", "4.4.8.8.in-addr.arpa. PTR dns.google."
    ]  # fmt: skip
    assert query("a.example A", "a.example AAAA", "b.example A", "4.4.8.8.in-addr.arpa PTR").is_response(
        answer
    )


def test_one_failure_of_several_is_the_messages(stub):
    stub.waits("a.example A", "b.example A")
    stub.told(forward("a.example"), at("192.0.2.1"))
    ((_, answer),) = stub.told(forward("b.example"), BROKEN)
    assert code(answer) == "SERVFAIL"


def test_an_onion_service_has_no_address(stub):
    assert code(stub.get("a" * 56 + ".onion A")) == "NXDOMAIN"


def test_who_asks_too_much_hears_so_and_others_are_served():
    stub = Stub(Resolver(Mode.RESOLVE, askers_max=10, client_max=4))
    for number in range(4):
        assert stub.waits(f"{number}.example A", source=number, client="greedy")
    assert code(stub.get("5.example A", client="greedy")) == "SERVFAIL"
    for number in range(6):
        assert stub.waits(f"x{number}.example A", source=number, client=number)
    assert code(stub.get("6.example A", client="late")) == "SERVFAIL"
    assert code(stub.get("0.example A", source="late", client="late")) == "SERVFAIL", "waiting costs too"
    assert len(stub.told(forward("0.example"), at("192.0.2.1"))) == 1
    assert stub.waits("5.example A", client="greedy")
    for _, reply in stub.resolver.wake(1e6):
        assert code(read(reply)) == "SERVFAIL"
    assert stub.resolver.deadline() is None


def test_a_message_cannot_ask_for_more_than_there_is_room_for():
    stub = Stub(Resolver(Mode.RESOLVE, askers_max=3))
    assert code(stub.get(*(f"{n}.example A" for n in range(4)))) == "SERVFAIL"
    assert stub.resolver.deadline() is None


def test_memory_by_messages_that_wait_for_the_same_names_many_times_over():
    stub = Stub(Resolver(Mode.RESOLVE, askers_max=10, client_max=10))
    questions = [f"{n}.example A" for n in range(4)]
    assert len(stub.waits(*questions, source=1)) == 4
    assert stub.waits(*questions, source=2) == []
    assert code(stub.get(*questions, source=3)) == "SERVFAIL"
    for number in range(4):
        stub.told(forward(f"{number}.example"), at("192.0.2.1"))
    assert stub.resolver.deadline() is None
    assert len(stub.waits(*(f"x{n}.example A" for n in range(10)), source=4)) == 10


def test_the_cache_is_bounded(stub):
    for number in range(CACHE_MAX + 10):
        stub.told(forward(f"{number}.example"), at("192.0.2.1"))
    assert stub.waits("0.example A") == [forward("0.example")]
    assert records(stub.get(f"{CACHE_MAX}.example A"))
