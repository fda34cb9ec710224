"""Whether a VM sends as itself: a conversation between it and its network."""

from ipaddress import ip_network

import pytest
from fw import PEER, PEER6, PEER_MAC, VM, VM6, VM_MAC
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.firewall.identity import CLAIMS_MAX, PREFIXES_MAX, Identity
from vtl_tools.common.gateway import dhcp_wire
from vtl_tools.common.gateway.dhcp_wire import Message
from vtl_tools.common.packet import address, arp, build, nd, tcp
from vtl_tools.common.packet.vnet import NONE

LOCAL6, ROUTER = address.link_local(VM_MAC), address.link_local(PEER_MAC)
NOBODY, UNSPECIFIED = address.ip("10.0.0.9"), bytes(16)
L2 = {"src_mac": VM_MAC, "dst_mac": PEER_MAC}


@pytest.fixture
def vm():
    """A VM whose addresses are given."""
    return Identity(VM_MAC, [ip_network("10.0.0.5"), ip_network("2001:db8::5"), ip_network("fe80::/64")])


@pytest.fixture
def guest():
    """A VM of which nothing is known."""
    return Identity()


def segment(src, dst=PEER, **more):
    return build.tcp(**{**L2, **more}, src=src, dst=dst, sport=1, dport=80, seq=1, flags=tcp.SYN)


def datagram(src, sport, dport, payload=b"x", dst=PEER, **more):
    return build.udp(**{**L2, **more}, src=src, dst=dst, sport=sport, dport=dport, payload=payload)


def neighbour(kind, src, target, lladdr=VM_MAC, option=nd.SOURCE_LLADDR, mac=VM_MAC):
    options = b"" if lladdr is None else build.nd_option(option, lladdr)
    body = bytes(4) + target
    return build.nd_message(
        src_mac=mac, dst_mac=PEER_MAC, src=src, dst=address.ALL_NODES, kind=kind, body=body, options=options
    )


def dhcp(kind, chaddr=VM_MAC, src=bytes(4), ciaddr=bytes(4)):
    message = Message(dhcp_wire.BOOTREQUEST, 7, chaddr, ciaddr=ciaddr, options={53: bytes((kind,))})
    return datagram(src, 68, 67, message.encode())


def ack(leased=VM, chaddr=VM_MAC, seconds=600, kind=dhcp_wire.ACK):
    options = {53: bytes((kind,)), 51: seconds.to_bytes(4, "big")}
    message = Message(dhcp_wire.BOOTREPLY, 7, chaddr, yiaddr=leased, options=options)
    return datagram(PEER, 67, 68, message.encode(), dst=leased, src_mac=PEER_MAC, dst_mac=VM_MAC)


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


def test_a_lease_is_the_vms_until_it_ends(guest):
    assert guest.refuse(dhcp(dhcp_wire.DISCOVER), 0.0) == ""
    assert guest.refuse(segment(VM), 0.0) == "spoofed-address"
    guest.heard(ack(), 10.0)
    assert guest.refuse(segment(VM), 11.0) == ""
    assert guest.status()["addresses"] == "10.0.0.5"
    assert guest.deadline() == 610.0
    guest.heard(ack(), 300.0)
    guest.wake(610.0)
    assert guest.refuse(segment(VM), 611.0) == ""
    guest.wake(900.0)
    assert guest.refuse(segment(VM), 901.0) == "spoofed-address"
    assert guest.deadline() is None


@pytest.mark.parametrize(
    "frame",
    [ack(chaddr=PEER_MAC), ack(kind=dhcp_wire.OFFER), ack(leased=bytes(4)), ack(leased=b"\xff" * 4)],
    ids=["another's", "an offer", "none", "everybody's"],
)
def test_what_is_no_lease_of_the_vm_gives_it_nothing(guest, frame):
    guest.refuse(dhcp(dhcp_wire.DISCOVER), 0.0)
    guest.heard(frame, 0.0)
    assert guest.leases == {}


def test_a_lease_that_is_released_is_not_the_vms(guest):
    guest.refuse(dhcp(dhcp_wire.DISCOVER), 0.0)
    guest.heard(ack(), 0.0)
    assert guest.refuse(dhcp(dhcp_wire.RELEASE, src=VM, ciaddr=VM), 1.0) == ""
    assert guest.refuse(segment(VM), 2.0) == "spoofed-address"


def test_addresses_that_are_given_are_all_there_are(vm):
    vm.heard(ack(leased=NOBODY), 0.0)
    assert vm.refuse(segment(NOBODY), 0.0) == "spoofed-address"


def test_a_lease_of_before_is_asked_for_again(guest):
    assert guest.refuse(dhcp(dhcp_wire.REQUEST, src=VM, ciaddr=VM), 0.0) == ""
    assert guest.refuse(dhcp(dhcp_wire.INFORM, src=VM, ciaddr=VM), 0.0) == "spoofed-address"


def test_nobody_asks_dhcp_in_anothers_name(vm):
    assert vm.refuse(dhcp(dhcp_wire.DISCOVER, chaddr=PEER_MAC), 0.0) == "spoofed-dhcp"


@pytest.mark.parametrize(("sport", "dport"), [(67, 68), (9, 68), (67, 9), (547, 546), (9, 546)])
def test_a_vm_is_no_dhcp_server(vm, sport, dport):
    src, dst = (VM6, PEER6) if 546 in (sport, dport) else (VM, PEER)
    assert vm.refuse(datagram(src, sport, dport, dst=dst), 0.0) == "rogue-dhcp"


def test_a_vm_is_no_router(vm):
    for kind in nd.ROUTER_ADVERT, 137:
        frame = build.nd_message(**L2, src=LOCAL6, dst=address.ALL_NODES, kind=kind, body=bytes(36))
        assert vm.refuse(frame, 0.0) == "rogue-router"


def question(spa=VM, sha=VM_MAC, oper=arp.REQUEST, mac=VM_MAC):
    return build.arp(src_mac=mac, dst_mac=address.BROADCAST, sha=sha, spa=spa, tpa=PEER, oper=oper)


def test_arp_names_the_vm(vm):
    assert vm.refuse(question(), 0.0) == ""
    assert vm.refuse(question(oper=arp.REPLY), 0.0) == ""
    assert vm.refuse(question(spa=bytes(4)), 0.0) == ""
    assert vm.refuse(question(spa=bytes(4), oper=arp.REPLY), 0.0) == "spoofed-arp"
    assert vm.refuse(question(spa=PEER), 0.0) == "spoofed-arp"
    assert vm.refuse(question(sha=PEER_MAC), 0.0) == "spoofed-arp"
    assert vm.refuse(question(sha=PEER_MAC, mac=PEER_MAC), 0.0) == "spoofed-mac"
    assert vm.refuse(question()[:40], 0.0).startswith("malformed-")


def test_neighbour_discovery_names_the_vm(vm):
    solicit, advert = nd.NEIGHBOR_SOLICIT, nd.NEIGHBOR_ADVERT
    assert vm.refuse(neighbour(solicit, VM6, PEER6), 0.0) == ""
    assert vm.refuse(neighbour(solicit, UNSPECIFIED, VM6, None), 0.0) == ""
    assert vm.refuse(neighbour(advert, VM6, VM6, option=nd.TARGET_LLADDR), 0.0) == ""
    assert vm.refuse(neighbour(advert, VM6, PEER6, option=nd.TARGET_LLADDR), 0.0) == "spoofed-nd"
    assert vm.refuse(neighbour(advert, VM6, VM6, PEER_MAC, nd.TARGET_LLADDR), 0.0) == "spoofed-nd"
    assert vm.refuse(neighbour(solicit, VM6, PEER6, PEER_MAC), 0.0) == "spoofed-nd"
    assert vm.refuse(neighbour(solicit, PEER6, VM6), 0.0) == "spoofed-nd"
    assert vm.refuse(neighbour(solicit, UNSPECIFIED, PEER6, None), 0.0) == "spoofed-nd"


def announced(prefix="2001:db8::", bits=64, flags=0xC0, valid=600, src=ROUTER, mac=PEER_MAC, **more):
    """What a router says of a prefix."""
    numbers = bytes((bits, flags)) + valid.to_bytes(4, "big") + bytes(8)
    option = build.nd_option(nd.PREFIX_INFORMATION, numbers + address.ip(prefix))
    body = bytes(12)
    return build.nd_message(
        src_mac=mac, dst_mac=VM_MAC, src=src, dst=address.ALL_NODES, kind=nd.ROUTER_ADVERT, body=body,
        options=option,
    )  # fmt: skip


def claims(vm, octets, now=0.0):
    return vm.refuse(neighbour(nd.NEIGHBOR_SOLICIT, UNSPECIFIED, octets, None), now) == ""


def test_ipv6_addresses_are_of_the_link_or_of_a_prefix_that_a_router_announced(guest):
    far = address.ip("2001:db8:bad::1")
    assert claims(guest, LOCAL6)
    assert not claims(guest, VM6)
    guest.heard(announced(), 0.0)
    assert claims(guest, VM6)
    assert not claims(guest, far)
    assert guest.refuse(segment(far, PEER6), 0.0) == "spoofed-address"
    assert not claims(guest, VM6[:-1] + b"\7", 601.0)
    guest.heard(announced(valid=0xFFFFFFFF), 602.0)
    assert claims(guest, VM6[:-1] + b"\7", 1e9)
    guest.heard(announced(valid=0), 1e9)
    assert not claims(guest, VM6[:-1] + b"\x08", 1e9)
    assert guest.refuse(segment(VM6, PEER6), 1e9) == ""  # what it had, it has


@pytest.mark.parametrize(
    "frame",
    [
        announced(bits=0), announced(bits=31), announced(bits=129), announced(flags=0x3F),
        announced(src=PEER6), announced(mac=VM_MAC), announced()[:-8],
    ],
    ids=["all", "most", "too long", "of no use here", "from afar", "the VM's own", "cut off"],
)  # fmt: skip
def test_what_announces_no_prefix_of_the_link_is_not_believed(guest, frame):
    guest.refuse(segment(VM), 0.0)
    guest.heard(frame, 0.0)
    assert guest.prefixes == {}


def test_prefixes_are_bounded(guest):
    for number in range(PREFIXES_MAX + 5):
        guest.heard(announced(f"2001:db8:{number:x}::"), 0.0)
    assert len(guest.prefixes) == PREFIXES_MAX


@pytest.fixture
def routed(guest):
    """A VM of which nothing is known, where a router has announced its prefix."""
    guest.heard(announced(), 0.0)
    return guest


def test_an_ipv6_address_is_of_who_claims_it_first(routed):
    guest = routed
    guest.refuse(neighbour(nd.NEIGHBOR_SOLICIT, UNSPECIFIED, LOCAL6, None), 0.0)
    heard = neighbour(nd.NEIGHBOR_ADVERT, PEER6, PEER6, PEER_MAC, nd.TARGET_LLADDR, PEER_MAC)
    guest.heard(heard, 0.0)
    assert guest.refuse(segment(LOCAL6, PEER6), 0.0) == ""
    assert guest.refuse(segment(VM6, PEER6), 0.0) == "spoofed-address"
    assert guest.refuse(neighbour(nd.NEIGHBOR_SOLICIT, UNSPECIFIED, VM6, None), 0.0) == ""
    assert guest.refuse(segment(VM6, PEER6), 0.0) == ""
    assert guest.refuse(neighbour(nd.NEIGHBOR_SOLICIT, UNSPECIFIED, PEER6, None), 0.0) == "spoofed-nd"
    assert guest.refuse(segment(PEER6, VM6), 0.0) == "spoofed-address"


def test_an_address_that_the_network_defends_is_not_the_vms(routed):
    guest = routed
    guest.refuse(neighbour(nd.NEIGHBOR_SOLICIT, UNSPECIFIED, VM6, None), 0.0)
    guest.heard(neighbour(nd.NEIGHBOR_ADVERT, VM6, VM6, PEER_MAC, nd.TARGET_LLADDR, PEER_MAC), 0.1)
    assert guest.refuse(segment(VM6, PEER6), 1.0) == "spoofed-address"


def test_claims_are_bounded(routed):
    guest = routed
    for number in range(CLAIMS_MAX + 1):
        target = VM6[:-1] + bytes((number,))
        assert guest.refuse(neighbour(nd.NEIGHBOR_SOLICIT, UNSPECIFIED, target, None), 0.0) == ""
    assert len(guest.claims) == CLAIMS_MAX
    assert guest.refuse(segment(VM6[:-1] + b"\0", PEER6), 0.0) == "spoofed-address"


@given(st.binary(max_size=120), st.sampled_from([b"\x08\0", b"\x08\x06", b"\x86\xdd", b"\x81\0"]))
def test_foreign_octets_raise_nothing(data, kind):
    vm = Identity(VM_MAC, [ip_network("10.0.0.5")])
    for frame in NONE + data, NONE + PEER_MAC + VM_MAC + kind + data:
        vm.refuse(memoryview(bytearray(frame)), 0.0)
        vm.heard(memoryview(bytearray(frame)), 0.0)
