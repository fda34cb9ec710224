"""Conversations with a SOCKS proxy, in octets."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, icmp
from vtl_tools.common.socks import (
    ADMIN,
    ANSWER,
    HOST,
    NET,
    REPLIES,
    Client,
    Command,
    Connected,
    Credentials,
    Failed,
    Reason,
    Resolved,
    Send,
)

V4, V6 = address.ip("192.0.2.1"), address.ip("2001:db8::1")
ALICE = Credentials(b"alice", b"secret")
LONGEST = "a" * 255

# From the answers' own RFCs, by hand: what the proxy says, and what it means to a caller.
METHOD, METHOD_PASSWORD, WELCOME = "0500", "0502", "0100"
BOUND_V4 = "05000001 c0000201 0050"
BOUND_V6 = "05000004 20010db8 00000000 00000000 00000001 0050"
BOUND_NAME = "05000003 05" + b"x.org".hex() + "0050"


def asked(credentials=None, command=Command.CONNECT, target=V4, port=80, **more) -> Client:
    """A client whose request is on its way."""
    client = Client(credentials=credentials, **more)
    client.request(command, target, port)
    return client


def heard(client: Client, octets: bytes) -> list[object]:
    """What a client says to octets that come one by one; those behind the answer are not for it."""
    events = []
    for octet in octets:
        events += client.receive(bytes((octet,)))
        if client.done:
            break
    return events


def test_without_credentials_greeting_and_request_go_in_one_write():
    request = Client().request(Command.CONNECT, V4, 80)
    assert request == bytes.fromhex("050100 05010001 c0000201 0050")


def test_with_credentials_three_messages_go_in_one_write():
    request = Client(credentials=ALICE).request(Command.CONNECT, "x.org", 443)
    password = "01 05" + b"alice".hex() + "06" + b"secret".hex()
    assert request == bytes.fromhex("050102" + password + "05010003 05" + b"x.org".hex() + "01bb")


@pytest.mark.parametrize(
    ("command", "target", "octets"),
    [
        (Command.CONNECT, V6, "05010004 20010db8 00000000 00000000 00000001 0000"),
        (Command.RESOLVE, "x.org", "05f00003 05" + b"x.org".hex() + "0000"),
        (Command.RESOLVE_PTR, V4, "05f10001 c0000201 0000"),
        (Command.CONNECT, LONGEST, "05010003 ff" + "61" * 255 + "0000"),
    ],
)
def test_each_command_and_address_is_said_as_the_rfc_has_it(command, target, octets):
    assert Client().request(command, target) == bytes.fromhex("050100" + octets)


def test_a_proxy_that_wants_to_be_waited_for_is_asked_step_by_step():
    client = Client(credentials=ALICE, pipelined=False)
    whole = Client(credentials=ALICE).request(Command.CONNECT, V4, 80)
    greeting = client.request(Command.CONNECT, V4, 80)
    [password] = client.receive(bytes.fromhex(METHOD_PASSWORD))
    [request] = client.receive(bytes.fromhex(WELCOME))
    assert isinstance(password, Send)
    assert isinstance(request, Send)
    assert greeting + password.octets + request.octets == whole
    assert client.receive(bytes.fromhex(BOUND_V4)) == [Connected(V4, 80)]


@pytest.mark.parametrize(
    ("client", "target", "port", "why"),
    [
        (Client(), b"abc", 0, "4 or 16 octets, not 3"),
        (Client(), "", 0, "not a name"),
        (Client(), LONGEST + "a", 0, "not a name"),
        (Client(), "a\0b", 0, "not a name"),
        (Client(), "bücher.example", 0, "ascii"),
        (Client(), V4, 65536, "not a port"),
        (Client(credentials=Credentials(b"", b"x")), V4, 0, "0 octets"),
        (Client(credentials=Credentials(b"x", b"y" * 256)), V4, 0, "256 octets"),
    ],
)
def test_what_cannot_be_said_is_refused(client, target, port, why):
    with pytest.raises(ValueError, match=why):
        client.request(Command.CONNECT, target, port)


ANSWERS = {
    "v4": (None, Command.CONNECT, METHOD + BOUND_V4, Connected(V4, 80)),
    "v6": (None, Command.CONNECT, METHOD + BOUND_V6, Connected(V6, 80)),
    "name": (None, Command.CONNECT, METHOD + BOUND_NAME, Connected("x.org", 80)),
    "password": (ALICE, Command.CONNECT, METHOD_PASSWORD + WELCOME + BOUND_V4, Connected(V4, 80)),
    "tor-password": (ALICE, Command.CONNECT, WELCOME + BOUND_V4, Connected(V4, 80)),
    "resolve": (None, Command.RESOLVE, METHOD + BOUND_V4, Resolved(V4)),
    "resolve-ptr": (None, Command.RESOLVE_PTR, METHOD + BOUND_NAME, Resolved("x.org")),
}


@pytest.mark.parametrize(("credentials", "command", "answer", "event"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_split_anywhere_is_the_same_and_what_follows_is_the_callers(
    credentials, command, answer, event
):
    octets = bytes.fromhex(answer)
    target = V4 if command is Command.RESOLVE_PTR else "x.org"
    for split in range(len(octets) + 1):
        client = asked(credentials, command, target)
        events = client.receive(octets[:split])
        assert client.done == (split == len(octets))
        if not client.done:
            assert client.rest == b""
            events += client.receive(octets[split:] + b"HTTP/1.1 200")
            assert client.rest == b"HTTP/1.1 200"
        assert events == [event]
        assert client.eof() == []
    assert heard(asked(credentials, command, target), octets) == [event]


@pytest.mark.parametrize(("credentials", "command", "answer", "event"), ANSWERS.values(), ids=ANSWERS)
def test_a_proxy_that_leaves_early_is_a_failure_at_every_octet(credentials, command, answer, event):
    octets = bytes.fromhex(answer)
    for split in range(len(octets)):
        client = asked(credentials, command, V4)
        client.receive(octets[:split])
        assert client.eof() == [Failed(Reason.CLOSED)]
        assert client.done
        assert client.rest == b""


MEANINGS = {
    0x01: ("general-failure", HOST),
    0x02: ("prohibited", ADMIN),
    0x03: ("net-unreachable", NET),
    0x04: ("host-unreachable", HOST),
    0x05: ("refused", None),
    0x06: ("ttl-expired", HOST),
    0x07: ("command-unsupported", HOST),
    0x08: ("address-type-unsupported", NET),
    0xF0: ("onion-descriptor-not-found", HOST),
    0xF1: ("onion-descriptor-invalid", HOST),
    0xF2: ("onion-introduction-failed", HOST),
    0xF3: ("onion-rendezvous-failed", HOST),
    0xF4: ("onion-authorization-missing", ADMIN),
    0xF5: ("onion-authorization-wrong", ADMIN),
    0xF6: ("onion-address-invalid", HOST),
    0xF7: ("onion-introduction-timed-out", HOST),
}


@pytest.mark.parametrize("code", range(1, 256))
def test_each_code_of_socks_5_fails_with_its_meaning(code):
    reason, answer = MEANINGS.get(code, ("unknown", HOST))
    client = asked()
    whole = bytes.fromhex(METHOD) + bytes((5, code)) + bytes.fromhex("0001 00000000 0000")
    assert client.receive(whole) == [Failed(Reason(reason), code)]
    assert ANSWER[Reason(reason)] == answer
    assert (client.done, client.rest) == (True, b"")


def test_every_reason_has_an_answer_and_every_code_was_told_of():
    assert set(ANSWER) == set(Reason)
    assert {code: reason.value for code, reason in REPLIES.items()} == {
        code: reason for code, (reason, _) in MEANINGS.items()
    }


def test_the_answers_are_codes_of_icmp():
    assert NET == (icmp.NET_UNREACHABLE, icmp.V6_NO_ROUTE)
    assert HOST == (icmp.HOST_UNREACHABLE, icmp.V6_ADDRESS_UNREACHABLE)
    assert ADMIN == (icmp.ADMIN_PROHIBITED, icmp.V6_ADMIN_PROHIBITED)


def test_a_proxy_without_our_method_or_with_another_password_is_a_failure():
    assert asked().receive(b"\5\xff") == [Failed(Reason.NO_METHOD, 0xFF)]
    refused = bytes.fromhex(METHOD_PASSWORD) + b"\1\7"
    assert asked(credentials=ALICE).receive(refused) == [Failed(Reason.AUTHENTICATION, 7)]


@pytest.mark.parametrize(
    ("client", "answer", "what", "off"),
    [
        (asked(), b"HTTP/1.1 400", "socks.version", 0),
        (asked(), bytes.fromhex(METHOD_PASSWORD), "socks.method", 1),
        (asked(credentials=ALICE), bytes.fromhex(METHOD), "socks.method", 1),
        (asked(credentials=ALICE), bytes.fromhex(METHOD_PASSWORD + "05"), "socks.auth-version", 0),
        (asked(), bytes.fromhex(METHOD + "04"), "socks.version", 0),
        (asked(), bytes.fromhex(METHOD + "05000002"), "socks.atyp", 3),
        (asked(), bytes.fromhex(METHOD + "05000003 01ff 0000"), "socks.name", 5),
        (asked(), bytes.fromhex(METHOD + "05000003 010a 0000"), "socks.name", 5),
    ],
)
def test_garbage_is_malformed_and_forgotten(client, answer, what, off):
    with pytest.raises(Malformed) as caught:
        client.receive(answer)
    assert (caught.value.what, caught.value.off) == (what, off)
    assert (client.done, client.rest, client.eof()) == (True, b"", [])


CREDENTIALS = st.sampled_from([None, ALICE])
COMMANDS = st.sampled_from([Command.CONNECT, Command.RESOLVE])
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.sampled_from(["05", "0500", "0502", "0100", "050000", "05000003ff"]).map(bytes.fromhex),
    ),
    max_size=6,
)


@given(CREDENTIALS, COMMANDS, PIECES, st.booleans())
def test_foreign_octets_are_an_answer_or_malformed_and_are_not_kept(credentials, command, pieces, pipelined):
    client = asked(credentials, command, pipelined=pipelined)
    with suppress(Malformed):  # any other exception is a bug
        for piece in pieces:
            if client.done:
                break
            client.receive(piece)
            assert len(client._held) <= 261 or client.done
    assert len(client.eof()) <= 1
    assert client.done


@given(CREDENTIALS, COMMANDS, st.binary(max_size=600), st.data())
def test_no_split_changes_what_is_heard(credentials, command, octets, data):
    prefix = b"\5\0" if credentials is None else b"\1\0"
    whole = prefix + octets
    split = data.draw(st.integers(0, len(whole)))

    def outcome(pieces: list[bytes]) -> tuple[object, ...]:
        client = asked(credentials, command)
        events: list[object] = []
        for piece in pieces:
            if client.done:
                return (events, client.rest + piece if events[-1:] != [] else b"")
            try:
                events += client.receive(piece)
            except Malformed as error:
                return (error.what, error.off)
        return events, client.rest

    one, two = outcome([whole]), outcome([whole[:split], whole[split:]])
    if one[0] and isinstance(one[0], list) and isinstance(one[0][-1], Failed):
        assert two[0] == one[0]  # of what follows a failure nothing is kept
    else:
        assert two == one
