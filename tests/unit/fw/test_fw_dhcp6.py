"""A guest as a client of DHCPv6: as one client, and with nobody else's addresses."""

import pytest
from fw import PEER6, PEER_MAC, VM6, VM_MAC
from fw_guest import LOCAL6, ROUTER, TO_VM, claims, datagram, segment
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.services.fw.dhcp6 import (  # fmt: skip
    CONFIRM,
    DECLINE,
    IAS_MAX,
    INFORMATION,
    LEASES_MAX,
    REBIND,
    RELEASE,
    RENEW,
    REPLY,
    REQUEST,
    SERVERS,
    SOLICIT,
)
from vtl_tools.services.fw.identity import Identity

MINE, VICTIMS = b"\0\3\0\1" + VM_MAC, b"\0\3\0\1" + PEER_MAC
NA, PD = 3, 25


@pytest.fixture
def guest():
    """A VM that has its link-local address."""
    vm = Identity()
    assert claims(vm, LOCAL6)
    return vm


def option(code, data):
    return code.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data


def address_option(octets, valid=600):
    return option(5, octets + bytes(4) + valid.to_bytes(4, "big"))


def prefix_option(octets, bits=56, valid=600):
    return option(26, bytes(4) + valid.to_bytes(4, "big") + bytes((bits,)) + octets)


def ia(*inner, iaid=1, code=NA):
    return option(code, iaid.to_bytes(4, "big") + bytes(8) + b"".join(inner))


def message(kind, *options, duid=MINE, xid=b"\0\0\7"):
    told = b"" if duid is None else option(1, duid)
    return bytes((kind,)) + xid + told + b"".join(options)


def ask(vm, kind, *options, now=1.0, src=LOCAL6, dst=SERVERS, **more):
    return vm.refuse(datagram(src, 546, 547, message(kind, *options, **more), dst=dst), now)


def reply(vm, *options, now=1.0, src=ROUTER, sport=547, kind=REPLY, **more):
    vm.observe(datagram(src, sport, 546, message(kind, *options, **more), dst=LOCAL6, **TO_VM), now)


@pytest.fixture
def leased(guest):
    """A VM that was leased an address and a prefix."""
    assert ask(guest, REQUEST, ia()) == ""
    reply(guest, ia(address_option(VM6)), ia(prefix_option(VM6), code=PD))
    return guest


@pytest.mark.parametrize("kind", [SOLICIT, REQUEST, CONFIRM, RENEW, REBIND])
def test_a_guest_asks_as_one_client(guest, kind):
    assert ask(guest, kind, ia()) == ""
    assert ask(guest, kind, ia(), duid=VICTIMS) == "spoofed-dhcp"
    assert ask(guest, kind, option(1, VICTIMS), ia()) == "spoofed-dhcp"
    assert ask(guest, kind, ia(), duid=None) == "spoofed-dhcp"
    assert ask(guest, INFORMATION, duid=None) == ""


@pytest.mark.parametrize("code", [9, 18, 37, 38])
def test_a_guest_is_no_relay(guest, code):
    assert ask(guest, SOLICIT, option(code, b"x"), ia()) == "spoofed-dhcp"


@pytest.mark.parametrize("kind", [0, 2, REPLY, 10, 12, 13, 14, 255])
def test_a_guest_says_what_clients_say(guest, kind):
    assert ask(guest, kind, ia()) == "spoofed-dhcp"


def test_a_guest_has_few_associations(guest):
    passed = [ask(guest, SOLICIT, ia(iaid=number)) for number in range(IAS_MAX + 3)]
    assert passed == [""] * IAS_MAX + ["spoofed-dhcp"] * 3
    assert ask(guest, SOLICIT, *[ia(iaid=number) for number in range(IAS_MAX)]) == ""


def test_a_guest_asks_the_link_from_its_own_address_and_not_too_often(guest):
    assert ask(guest, SOLICIT, dst=PEER6) == "spoofed-dhcp"
    assert ask(guest, SOLICIT, dst=ROUTER) == ""
    assert ask(guest, SOLICIT, src=ROUTER) == "spoofed-address"
    assert [ask(guest, SOLICIT) for _ in range(50)][-1] == "dhcp-rate"


@pytest.mark.parametrize("kind", [RELEASE, DECLINE])
def test_a_guest_gives_nothing_back_that_is_anothers(leased, kind):
    other = VM6[:-1] + b"\7"
    for inner, code in (address_option(other), NA), (prefix_option(other), PD), (prefix_option(VM6, 48), PD):
        assert ask(leased, kind, ia(inner, code=code)) == "spoofed-dhcp"
    assert ask(leased, kind, ia(address_option(VM6)), ia(prefix_option(VM6), code=PD)) == ""
    assert ask(leased, kind, ia(address_option(VM6))) == "spoofed-dhcp"


def test_a_leased_address_may_be_claimed_where_no_router_announced_its_prefix(leased):
    assert not claims(leased, VM6[:-1] + b"\7")
    assert claims(leased, VM6)
    reply(leased, ia(address_option(VM6, valid=0)))
    assert not leased.dhcp6.is_leased(VM6, 1.0)


@pytest.mark.parametrize("way", ["ends", "released", "taken back"])
def test_an_address_is_not_kept_beyond_its_lease(leased, way):
    """The server leases it to another then, who would be locked out of it."""
    assert claims(leased, VM6)
    if way == "ends":
        assert leased.deadline() == 601.0
        leased.wake(601.0)
    elif way == "released":
        assert ask(leased, RELEASE, ia(address_option(VM6))) == ""
    else:
        assert ask(leased, RENEW, ia(address_option(VM6))) == ""
        reply(leased, ia(address_option(VM6, valid=0)))
    assert leased.refuse(segment(VM6, PEER6), 602.0) == "spoofed-address"
    assert not claims(leased, VM6, 602.0)


@pytest.mark.parametrize(
    "answer",
    [{"src": PEER6}, {"sport": 9}, {"kind": 2}, {"duid": VICTIMS}, {"xid": b"\0\0\x08"}, {"now": 300.0}],
    ids=["from afar", "no server", "an offer", "another's", "not asked for", "late"],
)
def test_what_is_no_lease_of_the_vm_gives_it_nothing(guest, answer):
    assert ask(guest, REQUEST, ia()) == ""
    reply(guest, ia(address_option(VM6)), **answer)
    assert not guest.dhcp6.leases


def test_leases_are_bounded(guest):
    ask(guest, REQUEST, ia())
    reply(guest, ia(*[address_option(VM6[:-1] + bytes((number,))) for number in range(LEASES_MAX + 5)]))
    assert len(guest.dhcp6.leases) == LEASES_MAX


@given(st.binary(max_size=80))
def test_foreign_octets_raise_nothing(data):
    vm = Identity(VM_MAC)
    vm.bindings.bind(LOCAL6)
    for whole in data, bytes((SOLICIT, 0, 0, 7)) + data, message(SOLICIT) + option(NA, data):
        asked = datagram(LOCAL6, 546, 547, whole, dst=SERVERS)
        assert vm.refuse(asked, 0.0) in ("", "spoofed-dhcp", "malformed-dhcp6", "dhcp-rate")
        vm.observe(datagram(ROUTER, 547, 546, whole, dst=LOCAL6, **TO_VM), 0.0)
