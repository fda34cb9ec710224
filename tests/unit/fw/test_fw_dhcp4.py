"""A guest as a client of DHCP: it gets a lease, and not another's, nor more than one."""

import pytest
from fw import PEER, PEER_MAC, VM, VM_MAC
from fw_guest import NOBODY, OTHER_SERVER, SERVER, ack, dhcp, lease, segment
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.guest_net.dhcp_wire import (  # fmt: skip
    ACK,
    DECLINE,
    DISCOVER,
    INFORM,
    NAK,
    OFFER,
    RELEASE,
    REQUEST,
)
from vtl_tools.services.fw.dhcp4 import DECLINES_AT_ONCE, MESSAGES_AT_ONCE, SERVERS_MAX
from vtl_tools.services.fw.identity import Identity

MINE, VICTIMS = b"\1" + VM_MAC, b"\1" + PEER_MAC


@pytest.fixture
def guest():
    return Identity()


@pytest.fixture
def leased(guest):
    """A VM that was leased its address by a server of the link, at 0."""
    lease(guest)
    return guest


def has(vm, octets, now=1.0):
    return vm.refuse(segment(octets), now) == ""


def test_a_lease_is_the_vms_until_it_ends(guest):
    assert guest.refuse(dhcp(DISCOVER), 0.0) == ""
    assert guest.refuse(dhcp(REQUEST), 0.0) == ""
    assert not has(guest, VM)
    guest.observe(ack(), 10.0)
    assert has(guest, VM, 11.0)
    assert guest.status()["addresses"] == ["10.0.0.5"]
    assert guest.deadline() == 610.0
    lease(guest, 300.0)
    guest.wake(610.0)
    assert has(guest, VM, 611.0)
    guest.wake(900.0)
    assert not has(guest, VM, 901.0)
    assert guest.deadline() is None


@pytest.mark.parametrize(
    "frame",
    [
        ack(chaddr=PEER_MAC), ack(kind=OFFER), ack(leased=bytes(4)), ack(leased=b"\xff" * 4), ack(xid=8),
        ack(sport=53), ack(dst=NOBODY),
    ],
    ids=["another's", "an offer", "none", "everybody's", "not asked for", "not from a server", "elsewhere"],
)  # fmt: skip
def test_what_is_no_lease_of_the_vm_gives_it_nothing(guest, frame):
    assert guest.refuse(dhcp(REQUEST), 0.0) == ""
    guest.observe(frame, 0.0)
    assert guest.dhcp4.lease is None
    guest.observe(ack(), 0.0)
    assert guest.dhcp4.lease is not None


def test_a_lease_that_nobody_asked_for_in_time_is_none(guest):
    guest.refuse(dhcp(REQUEST), 0.0)
    guest.observe(ack(), 121.0)
    assert guest.dhcp4.lease is None
    guest.refuse(dhcp(DISCOVER), 200.0)
    guest.observe(ack(), 200.0)
    assert guest.dhcp4.lease is None
    guest.refuse(dhcp(DISCOVER, _80=b""), 201.0)  # rapid commit: it may be answered at once
    guest.observe(ack(), 201.0)
    assert guest.dhcp4.lease is not None


def test_a_udp_peer_gives_the_vm_no_address(leased):
    """A peer of any flow answers it, as if it were a DHCP server, with the transaction told by the VM."""
    for dst in PEER, SERVER[:3] + b"\7":
        assert leased.refuse(dhcp(REQUEST, src=VM, ciaddr=VM, dst=dst), 1.0) == "spoofed-dhcp"
    assert leased.refuse(dhcp(REQUEST, src=VM, ciaddr=VM), 1.0) == ""
    for server in PEER, SERVER, None:
        for octets in NOBODY, VM:
            leased.observe(ack(leased=octets, src=PEER, server=server, dst=VM, seconds=9999), 2.0)
    assert not has(leased, NOBODY, 3.0)
    assert leased.deadline() == 600.0


def test_a_renewal_is_of_the_server_that_leased(leased):
    assert leased.refuse(dhcp(REQUEST, src=VM, ciaddr=VM, dst=SERVER), 300.0) == ""
    leased.observe(ack(src=OTHER_SERVER, server=OTHER_SERVER, dst=VM), 301.0)
    leased.observe(ack(src=OTHER_SERVER, server=SERVER, dst=VM), 301.0)
    leased.observe(ack(leased=NOBODY, dst=VM), 301.0)
    assert leased.deadline() == 600.0
    leased.observe(ack(dst=VM), 301.0)
    assert leased.deadline() == 901.0
    assert not has(leased, NOBODY, 302.0)


def test_a_server_behind_a_relay_renews_by_itself(guest):
    relay = OTHER_SERVER
    lease(guest, src=relay, dst=VM)
    assert has(guest, VM)
    assert guest.refuse(dhcp(REQUEST, src=VM, ciaddr=VM, dst=SERVER), 300.0) == ""
    guest.observe(ack(dst=VM), 300.0)
    assert guest.deadline() == 900.0


def test_another_server_of_the_link_may_rebind(leased):
    """It was heard to offer, as the second of two that share leases."""
    leased.refuse(dhcp(DISCOVER), 1.0)
    leased.observe(ack(kind=OFFER, src=OTHER_SERVER, server=OTHER_SERVER), 1.0)
    leased.refuse(dhcp(REQUEST, src=VM, ciaddr=VM), 500.0)
    leased.observe(ack(src=OTHER_SERVER, server=OTHER_SERVER, dst=VM), 500.0)
    assert leased.deadline() == 1100.0


def test_only_servers_that_are_named_lease():
    guest = Identity(servers=[SERVER])
    lease(guest, src=OTHER_SERVER, server=SERVER)
    assert guest.dhcp4.lease is None
    assert guest.refuse(dhcp(REQUEST, dst=OTHER_SERVER), 1.0) == "spoofed-dhcp"
    assert guest.refuse(dhcp(REQUEST, src=VM, ciaddr=VM, dst=SERVER), 1.0) == ""
    guest.observe(ack(dst=VM), 1.0)
    assert has(guest, VM)


def test_a_lease_of_before_is_asked_for_again(guest):
    assert guest.refuse(dhcp(REQUEST, src=VM, ciaddr=VM, dst=SERVER), 0.0) == "spoofed-dhcp"
    assert guest.refuse(dhcp(REQUEST, src=VM, ciaddr=VM), 0.0) == ""
    assert guest.refuse(dhcp(INFORM, src=VM, ciaddr=VM), 0.0) == "spoofed-address"
    guest.observe(ack(dst=VM), 0.0)
    assert has(guest, VM)
    assert guest.refuse(dhcp(REQUEST, src=NOBODY, ciaddr=NOBODY), 1.0) == "spoofed-address"


def test_a_vm_has_one_lease_at_a_time(leased):
    lease(leased, 1.0, leased=NOBODY)
    assert has(leased, NOBODY, 2.0)
    assert not has(leased, VM, 2.0)


def test_a_server_takes_a_lease_back(leased):
    leased.refuse(dhcp(REQUEST, src=VM, ciaddr=VM), 1.0)
    leased.observe(ack(kind=NAK, src=PEER, server=PEER, leased=bytes(4), dst=VM), 1.0)
    assert has(leased, VM)
    leased.observe(ack(kind=NAK, leased=bytes(4)), 1.0)
    assert not has(leased, VM)


# --- what a guest may say


def relayed(payload):
    payload[24:28] = SERVER


def hopped(payload):
    payload[3] = 1


def repeated(payload):
    payload[243:243] = b"\x3d\x07" + VICTIMS


@pytest.mark.parametrize(
    "fields",
    [
        {"chaddr": PEER_MAC}, {"_61": VICTIMS}, {"_61": b""}, {"_61": b"\0"}, {"_82": b"\1\1x"},
        {"change": relayed}, {"change": hopped}, {"_61": MINE, "change": repeated}, {"_52": b"\1"},
        {"dst": SERVER},
    ],
    ids=["another's Ethernet address", "another's identifier", "no identifier", "half of one",
         "as if relayed: option", "as if relayed: agent", "as if relayed: hops", "two identifiers",
         "more options elsewhere", "to whom it has not met"],
)  # fmt: skip
def test_a_guest_asks_for_no_other(guest, fields):
    assert guest.refuse(dhcp(DISCOVER, **fields), 0.0) == "spoofed-dhcp"
    assert guest.refuse(dhcp(DISCOVER), 0.0) == ""


@pytest.mark.parametrize("kind", [0, OFFER, ACK, NAK, 9, 10, 255])
def test_a_guest_says_what_clients_say(guest, kind):
    assert guest.refuse(dhcp(kind), 0.0) == "spoofed-dhcp"


def test_a_guest_is_one_client(guest):
    """Servers find leases by the identifier: with many it would have many, or another's."""
    assert guest.refuse(dhcp(DISCOVER), 0.0) == ""
    assert guest.refuse(dhcp(DISCOVER, _61=MINE), 0.0) == ""
    assert guest.refuse(dhcp(DISCOVER, _61=b"\xffone"), 0.0) == ""
    for other in b"\xfftwo", b"\xffone2", b"\xffon":
        assert guest.refuse(dhcp(DISCOVER, _61=other), 0.0) == "spoofed-dhcp"
    assert guest.refuse(dhcp(REQUEST, _61=b"\xffone"), 0.0) == ""


@pytest.mark.parametrize(("kind", "option"), [(RELEASE, {}), (DECLINE, {"_50": NOBODY})])
def test_a_guest_gives_nothing_back_that_is_anothers(leased, kind, option):
    ciaddr = NOBODY if kind == RELEASE else bytes(4)
    assert leased.refuse(dhcp(kind, ciaddr=ciaddr, **option), 1.0) == "spoofed-dhcp"
    assert leased.refuse(dhcp(kind), 1.0) == "spoofed-dhcp"
    assert has(leased, VM)


def test_a_lease_that_is_given_back_is_not_the_vms(leased):
    assert leased.refuse(dhcp(RELEASE, src=VM, ciaddr=VM, dst=SERVER), 1.0) == ""
    assert not has(leased, VM, 2.0)
    assert leased.refuse(dhcp(RELEASE, src=VM, ciaddr=VM, dst=SERVER), 2.0) == "spoofed-address"
    lease(leased, 3.0)
    assert leased.refuse(dhcp(DECLINE, _50=VM), 4.0) == ""
    assert not has(leased, VM, 5.0)


def test_a_guest_empties_no_pool(guest):
    declined = 0
    for number in range(200):
        guest.refuse(dhcp(REQUEST), 0.0)
        leased = NOBODY[:3] + bytes((number + 1,))
        guest.observe(ack(leased=leased), 0.0)
        declined += guest.refuse(dhcp(DECLINE, _50=leased), 0.0) == ""
    assert declined == DECLINES_AT_ONCE
    assert guest.refuse(dhcp(REQUEST), 1000.0) == ""
    passed = [guest.refuse(dhcp(DISCOVER, xid=number), 2000.0) for number in range(100)]
    assert passed.count("") == MESSAGES_AT_ONCE
    assert passed[-1] == "dhcp-rate"


def test_servers_that_are_met_are_bounded(guest):
    for number in range(SERVERS_MAX + 5):
        guest.refuse(dhcp(DISCOVER), float(number))
        guest.observe(ack(kind=OFFER, server=NOBODY[:3] + bytes((number + 1,))), float(number))
    assert len(guest.dhcp4.met) == SERVERS_MAX


@given(st.binary(max_size=60), st.sampled_from([DISCOVER, REQUEST, DECLINE, RELEASE]))
def test_options_of_any_octets_raise_nothing(data, kind):
    def change(payload):
        payload[243:] = data

    guest = Identity()
    assert guest.refuse(dhcp(kind, change=change), 0.0) in ("", "spoofed-dhcp", "malformed-dhcp")
