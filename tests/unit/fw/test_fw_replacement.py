"""Another VM in the place of the one that is known: what is forgotten, and what no guest gets by it."""

import itertools

import pytest
from fw import OUT, VM, VM_MAC, policy
from fw_guest import NOBODY, ack, announced, claims, dhcp, lease, segment, solicit

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import VTLError
from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.packet import address, quick
from vtl_tools.services.fw import client
from vtl_tools.services.fw.dhcp4 import MESSAGES_AT_ONCE
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.saved_state import StateKeeper, recall
from vtl_tools.services.fw.stage import Firewall
from vtl_tools.services.fw.tracker import Tracker

NEXT_MAC = address.mac("52:54:00:00:00:09")
VM6 = address.ip("2001:db8::77")
PEER6 = address.ip("2001:db8:1::1")


def question(kind, mac):
    """A message to DHCP servers from another Ethernet address."""
    frame = dhcp(kind, chaddr=mac)
    frame[quick.SRC_MAC : quick.KIND] = mac
    return frame


@pytest.fixture
def guest():
    """A VM that is known, behind a tap; another may take its place when the tap is opened anew."""
    made = Identity(follows=True)
    made.meet("interface 7 1")
    lease(made)
    made.observe(announced(), 0.0)
    assert claims(made, VM6)
    return made


def test_another_vm_takes_the_place_when_the_host_says_so(guest):
    told = []
    guest.replaced = lambda *names: told.append(names)
    assert guest.refuse(segment(VM, src_mac=NEXT_MAC), 2.0) == "spoofed-mac"
    guest.meet("interface 7 2")
    assert guest.refuse(segment(VM, src_mac=NEXT_MAC), 2.0) == "spoofed-address"
    assert told == [(VM_MAC, NEXT_MAC, 2.0)]
    assert guest.origins() == {}
    assert guest.refuse(segment(VM6, PEER6, src_mac=NEXT_MAC), 2.0) == "spoofed-address"
    assert guest.refuse(segment(VM), 2.0) == "spoofed-mac"
    assert guest.refuse(question(dhcp_wire.REQUEST, NEXT_MAC), 2.0) == ""
    guest.observe(ack(leased=NOBODY, chaddr=NEXT_MAC), 2.0)
    assert guest.refuse(segment(NOBODY, src_mac=NEXT_MAC), 2.0) == ""
    assert list(guest.bindings.prefixes), "what the network said holds for every VM"


def test_the_same_vm_keeps_its_addresses_and_closes_the_place(guest):
    guest.meet("interface 7 2")
    assert guest.status()["mac"] == address.format_mac(VM_MAC)
    assert guest.refuse(segment(VM), 2.0) == ""
    assert guest.refuse(segment(VM, src_mac=NEXT_MAC), 2.0) == "spoofed-mac"
    assert guest.origins() == {"10.0.0.5": "dhcp", "2001:db8::77": "nd"}


def test_the_same_vm_may_be_another_client_of_dhcp_after_it(guest):
    """As one is that was installed anew."""
    other = dhcp(dhcp_wire.DISCOVER, _61=b"\xff0123")
    assert guest.refuse(dhcp(dhcp_wire.DISCOVER, _61=b"\xff4567"), 2.0) == ""
    assert guest.refuse(other, 2.0) == "spoofed-dhcp"
    guest.meet("interface 7 2")
    assert guest.refuse(other, 2.0) == ""


def test_nobody_takes_the_place_of_a_vm_that_is_fixed():
    guest = Identity()
    guest.meet("interface 7 1")
    lease(guest)
    guest.meet("interface 8 1")
    assert guest.refuse(segment(VM, src_mac=NEXT_MAC), 2.0) == "spoofed-mac"
    assert guest.refuse(segment(VM), 2.0) == ""


def test_nobody_has_another_ethernet_address_than_the_one_that_is_given():
    guest = Identity(VM_MAC, follows=True)
    guest.meet("interface 7 1")
    guest.meet("interface 7 2")
    assert guest.refuse(segment(VM, src_mac=NEXT_MAC), 2.0) == "spoofed-mac"


@pytest.mark.parametrize("src_mac", [address.BROADCAST, bytes(6)])
def test_no_group_takes_the_place(guest, src_mac):
    guest.meet("interface 7 2")
    assert guest.refuse(segment(VM, src_mac=src_mac), 2.0) == "spoofed-mac"
    assert guest.refuse(segment(VM), 2.0) == ""


def test_the_occupant_is_looked_at_when_the_first_frame_comes():
    """Its frames may come before the news of it: then the news is old, and lets no second one in."""
    guest = Identity(follows=True)
    guest.meet("interface 7 1")
    guest.look = lambda: "interface 7 2"
    assert guest.refuse(dhcp(dhcp_wire.REQUEST), 0.0) == ""
    guest.meet("interface 7 2")
    assert guest.refuse(segment(VM, src_mac=NEXT_MAC), 2.0) == "spoofed-mac"


def test_a_guest_that_gets_itself_restarted_has_no_more_messages_to_dhcp(guest):
    """Else it could empty a pool by it, with another Ethernet address each time."""
    passed = 0
    for number in range(100):
        mac = address.mac(f"52:54:00:00:01:{number:02x}")
        guest.meet(f"interface 7 {number + 2}")
        passed += guest.refuse(question(dhcp_wire.DISCOVER, mac), 2.0) == ""
    assert passed <= MESSAGES_AT_ONCE


def test_forget_leaves_nothing_of_the_vm_but_what_was_given(guest):
    guest.forget()
    assert (guest.mac, guest.origins(), guest.learned().claims) == (None, {}, [])
    assert guest.refuse(segment(VM, src_mac=NEXT_MAC), 2.0) == "spoofed-address"
    assert guest.mac == NEXT_MAC
    given = Identity(VM_MAC, [])
    given.forget()
    assert given.mac == VM_MAC


def test_an_address_that_was_being_tested_is_not_the_next_vms(guest):
    late = address.ip("2001:db8::78")
    assert guest.refuse(solicit(late), 2.0) == ""
    guest.forget()
    guest.wake(9.0)
    assert guest.refuse(segment(late, PEER6, src_mac=NEXT_MAC), 9.0) == "spoofed-address"


# --- over a restart of the service


def kept(identity, tracker):
    told = []
    StateKeeper(tracker, identity, "boot", told.append).wake(0.0)
    return told[-1]


def known_again(text, **options):
    made, tracker = Identity(**options), Tracker(policy("allow any"))
    assert recall(text, "boot", tracker, made, 3.0)
    return made


def test_a_start_that_finds_another_occupant_takes_another_vm(guest):
    text = kept(guest, Tracker(policy("allow any")))
    same, other, fixed = known_again(text, follows=True), known_again(text, follows=True), known_again(text)
    same.meet("interface 7 1")
    assert same.refuse(segment(VM, src_mac=NEXT_MAC), 3.0) == "spoofed-mac"
    assert same.refuse(segment(VM), 3.0) == ""
    other.meet("interface 7 2")
    assert other.refuse(segment(VM, src_mac=NEXT_MAC), 3.0) == "spoofed-address"
    fixed.meet("interface 7 2")
    assert fixed.refuse(segment(VM, src_mac=NEXT_MAC), 3.0) == "spoofed-mac"
    assert fixed.is_moved
    assert fixed.refuse(solicit(VM6), 3.0) == ""
    assert not fixed.is_moved, "a guest that restarts and lies is called no other VM"


def test_a_vm_that_is_awaited_is_still_awaited_after_a_restart(guest):
    """The one before it is what the file tells of: nobody else has been seen."""
    guest.meet("interface 7 2")
    again = known_again(kept(guest, Tracker(policy("allow any"))), follows=True)
    assert again.mac == VM_MAC
    again.meet("interface 7 2")
    assert again.refuse(segment(VM), 3.0) == ""


# --- connections


def test_all_connections_end_and_the_rates_of_rules_go_on(wire):
    wire = type(wire)("allow out tcp port 80 limit 3/h limit 3 connections\ndeny any")
    for port in range(3):
        wire.open(vm=40000 + port)
    assert wire.tracker.end_all() == 3
    assert len(wire.tracker.flows) == 0
    assert wire.out(".", 2, 2, vm=40000) == "tcp-not-open"
    assert wire.out("S", 0, vm=40009) == "limit-rate"


def test_a_reload_under_way_goes_on_when_all_connections_end(wire):
    for port in range(3):
        wire.open(vm=40000 + port)
    steps = wire.tracker.replace(policy("allow out tcp port 80\ndeny any"))
    next(steps)
    wire.tracker.end_all()
    assert list(itertools.chain(steps)) == [None, None]
    wire.open(vm=40001)
    assert [flow.initiator for flow in wire.tracker.flows] == [OUT]


def test_forget_tells_what_was_learned_and_ends_connections(guest):
    stage = Firewall(policy("allow any"), identity=guest, link="vmnet1")
    drained = []
    stage.drain = drained.append
    stage.on_batch(0, Batch.of([segment(VM)]), 2.0)
    told = stage.verbs()["forget"]({})
    assert told == {
        "link": "vmnet1", "mac": "52:54:00:00:00:01", "addresses": ["10.0.0.5", "2001:db8::77"], "ended": 1
    }  # fmt: skip
    assert client.forgotten(told) == (
        "vmnet1: forgot 52:54:00:00:00:01, 10.0.0.5, 2001:db8::77; 1 connections ended"
    )
    assert drained == [0], "what waits is of the VM before"
    assert stage.verbs()["forget"]({})["mac"] == ""
    with pytest.raises(VTLError, match="--spoofing"):
        Firewall(policy("allow any")).verbs()["forget"]({})
