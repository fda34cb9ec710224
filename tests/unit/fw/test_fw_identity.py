"""Whether a VM sends as itself: a conversation between it and its network."""

from ipaddress import ip_network

import pytest
from fw import PEER, PEER6, PEER_MAC, VM, VM6, VM_MAC
from fw_guest import (
    L2,
    LOCAL6,
    NOBODY,
    UNSPECIFIED,
    ack,
    advert,
    datagram,
    dhcp,
    neighbour,
    segment,
    solicit,
)  # fmt: skip
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.packet import address, arp, build, nd, quick
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.services.fw import padding
from vtl_tools.services.fw.identity import Identity


@pytest.fixture
def vm():
    """A VM whose addresses are given."""
    return Identity(VM_MAC, [ip_network("10.0.0.5"), ip_network("2001:db8::5"), ip_network("fe80::/64")])


@pytest.fixture
def guest():
    """A VM of which nothing is known."""
    return Identity()


def test_what_is_given_passes_and_nothing_else(vm):
    assert vm.refuse(segment(VM), 0.0) == ""
    assert vm.refuse(segment(VM6, PEER6), 0.0) == ""
    assert vm.refuse(datagram(VM, 5000, 53), 0.0) == ""
    assert vm.refuse(segment(NOBODY), 0.0) == "spoofed-address"
    assert vm.refuse(segment(address.ip("2001:db8::6"), PEER6), 0.0) == "spoofed-address"
    assert vm.refuse(segment(bytes(4)), 0.0) == "spoofed-address"
    assert vm.refuse(segment(VM, src_mac=PEER_MAC), 0.0) == "spoofed-mac"
    assert vm.refuse(segment(VM, vlan=7), 0.0) == ""
    assert vm.refuse(segment(NOBODY, vlan=7), 0.0) == "spoofed-address"
    assert vm.refuse(NONE + PEER_MAC + VM_MAC + b"\x88\xb5" + bytes(46), 0.0) == ""


def test_the_first_ethernet_address_is_the_vms(guest):
    assert guest.refuse(segment(VM), 0.0) == "spoofed-address"
    assert guest.refuse(segment(VM, src_mac=PEER_MAC), 0.0) == "spoofed-mac"
    assert guest.status()["mac"] == address.format_mac(VM_MAC)


def test_a_group_is_nobodys_address(guest):
    assert guest.refuse(segment(VM, src_mac=b"\x01\0\0\0\0\1"), 0.0) == "spoofed-mac"
    assert guest.mac is None


def test_addresses_that_are_given_are_all_there_are(vm):
    assert vm.refuse(dhcp(dhcp_wire.REQUEST), 0.0) == ""
    vm.observe(ack(leased=NOBODY), 0.0)
    assert vm.refuse(segment(NOBODY), 0.0) == "spoofed-address"
    assert vm.refuse(solicit(PEER6), 0.0) == "spoofed-nd"


@pytest.mark.parametrize(("sport", "dport"), [(67, 68), (9, 68), (67, 9), (547, 546), (9, 546)])
def test_a_vm_is_no_dhcp_server(vm, sport, dport):
    src, dst = (VM6, PEER6) if 546 in (sport, dport) else (VM, PEER)
    assert vm.refuse(datagram(src, sport, dport, dst=dst), 0.0) == "rogue-dhcp"


def test_a_vm_is_no_router(vm):
    for kind in nd.ROUTER_ADVERT, 137:
        frame = build.nd_message(**L2, src=LOCAL6, dst=address.ALL_NODES, kind=kind, body=bytes(36))
        assert vm.refuse(frame, 0.0) == "rogue-router"


def question(spa=VM, sha=VM_MAC, oper=arp.REQUEST, mac=VM_MAC, tpa=PEER):
    return build.arp(src_mac=mac, dst_mac=address.BROADCAST, sha=sha, spa=spa, tpa=tpa, oper=oper)


def test_arp_names_the_vm(vm):
    assert vm.refuse(question(), 0.0) == ""
    assert vm.refuse(question(oper=arp.REPLY), 0.0) == ""
    assert vm.refuse(question(spa=bytes(4), tpa=VM), 0.0) == ""
    assert vm.refuse(question(spa=bytes(4), oper=arp.REPLY), 0.0) == "spoofed-arp"
    assert vm.refuse(question(spa=PEER), 0.0) == "spoofed-arp"
    assert vm.refuse(question(sha=PEER_MAC), 0.0) == "spoofed-arp"
    assert vm.refuse(question(sha=PEER_MAC, mac=PEER_MAC), 0.0) == "spoofed-mac"
    assert vm.refuse(question()[:40], 0.0).startswith("malformed-")


def test_neighbour_discovery_names_the_vm(vm):
    asked, told = nd.NEIGHBOR_SOLICIT, nd.NEIGHBOR_ADVERT
    assert vm.refuse(neighbour(asked, VM6, PEER6), 0.0) == ""
    assert vm.refuse(neighbour(asked, UNSPECIFIED, VM6, None), 0.0) == ""
    assert vm.refuse(neighbour(told, VM6, VM6, option=nd.TARGET_LLADDR), 0.0) == ""
    assert vm.refuse(neighbour(told, VM6, PEER6, option=nd.TARGET_LLADDR), 0.0) == "spoofed-nd"
    assert vm.refuse(neighbour(told, VM6, VM6, PEER_MAC, nd.TARGET_LLADDR), 0.0) == "spoofed-nd"
    assert vm.refuse(neighbour(asked, VM6, PEER6, PEER_MAC), 0.0) == "spoofed-nd"
    assert vm.refuse(neighbour(asked, PEER6, VM6), 0.0) == "spoofed-nd"
    assert vm.refuse(neighbour(asked, UNSPECIFIED, PEER6, None), 0.0) == "spoofed-nd"
    assert vm.refuse(advert(VM6, src=UNSPECIFIED), 0.0) == "spoofed-nd"


def test_a_guest_locks_no_other_out_of_an_ipv4_address(vm):
    """A host that is about to use an address gives it up when another probes for it (RFC 5227 2.1.1)."""
    assert vm.refuse(question(spa=bytes(4), tpa=NOBODY), 0.0) == "spoofed-arp"


# --- what is behind a packet


def blanked(frame, now):
    return padding.check(frame, quick.read(frame), now)


@pytest.mark.parametrize(
    "frame",
    [segment(VM), segment(VM6, PEER6), datagram(VM, 5000, 53), segment(VM, vlan=7), question(),
     neighbour(nd.NEIGHBOR_SOLICIT, VM6, PEER6)],
    ids=["TCP", "TCP over IPv6", "UDP", "tagged", "ARP", "ND"],
)  # fmt: skip
@pytest.mark.parametrize("size", [1, 10, 900])
def test_padding_carries_nothing(vm, frame, size):
    for refuse in vm.refuse, blanked:
        padded = memoryview(bytearray(bytes(frame) + b"secret" * size))
        assert refuse(padded, 0.0) == ""
        assert bytes(padded) == bytes(frame) + bytes(6 * size)
        assert refuse(whole := memoryview(bytearray(frame)), 0.0) == ""
        assert bytes(whole) == bytes(frame)


def test_a_frame_that_is_neither_ip_nor_arp_has_no_end_that_could_be_known():
    frame = bytearray(NONE + PEER_MAC + VM_MAC + b"\x88\xb5" + b"x" * 46)
    assert blanked(frame, 0.0) == ""
    assert frame[-46:] == b"x" * 46
    assert blanked(bytearray(segment(VM))[:40], 0.0) == "malformed-ipv4"


@given(st.binary(max_size=120), st.sampled_from([b"\x08\0", b"\x08\x06", b"\x86\xdd", b"\x81\0"]))
def test_foreign_octets_raise_nothing(data, kind):
    vm = Identity(VM_MAC, [ip_network("10.0.0.5")])
    for frame in NONE + data, NONE + PEER_MAC + VM_MAC + kind + data:
        vm.refuse(memoryview(bytearray(frame)), 0.0)
        vm.observe(memoryview(bytearray(frame)), 0.0)
        blanked(memoryview(bytearray(frame)), 0.0)
