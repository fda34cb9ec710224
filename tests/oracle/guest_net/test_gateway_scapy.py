"""DHCP and router advertisements: what we say scapy reads, and what scapy says we read."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import (
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_RS,
    ICMPv6NDOptMTU,
    ICMPv6NDOptPrefixInfo,
    ICMPv6NDOptRDNSS,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Ether

from vtl_tools.common.guest_net import dhcp_wire as wire
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.dhcp import DHCPServer
from vtl_tools.common.guest_net.neighbours import NeighbourResponder
from vtl_tools.common.packet import address, vnet
from vtl_tools.common.packet.packet import Packet

GUEST = "52:54:00:00:00:01"
BROADCAST = "ff:ff:ff:ff:ff:ff"
CHADDR = address.mac(GUEST)
NETWORK = GuestAddresses()
OURS = address.format_mac(NETWORK.mac)
LINK_LOCAL = address.format_ip(address.link_local(CHADDR))
EXAMPLES = settings(deadline=None, derandomize=True)


def ours(packet):
    """A packet of scapy's as a frame."""
    return Packet.at(bytearray(vnet.NONE + bytes(packet)))


def theirs(frame):
    """A frame as a packet of scapy's, which scapy makes again in the same octets, checksums included."""
    octets = bytes(frame[vnet.VNET :])
    packet = Ether(octets)
    again = packet.copy()
    for layer in again.layers():
        for field in ("chksum", "cksum", "len", "plen"):
            if field in {each.name for each in layer.fields_desc}:
                again[layer].delfieldval(field)
    assert bytes(Ether(bytes(again))) == octets
    return packet


def discover(*options, **fields):
    bootp = BOOTP(chaddr=CHADDR, xid=0x01020304, **fields)
    datagram = IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67)
    return Ether(src=GUEST, dst=BROADCAST) / datagram / bootp / DHCP(options=[*options, "end"])


def said(packet):
    return {option[0]: option[1] for option in packet[DHCP].options if isinstance(option, tuple)}


def test_scapy_gets_a_lease():
    server = DHCPServer(NETWORK)
    offer = theirs(server.answer(ours(discover(("message-type", "discover"), ("hostname", b"guest"))), 0.0))
    options = said(offer)
    assert (offer.src, offer.dst) == (OURS, GUEST)
    assert (offer[BOOTP].op, offer[BOOTP].xid, offer[BOOTP].chaddr[:6]) == (2, 0x01020304, CHADDR)
    assert options == {
        "message-type": 2,
        "server_id": "10.0.2.2",
        "lease_time": 3600,
        "renewal_time": 1800,
        "rebinding_time": 3150,
        "subnet_mask": "255.255.255.0",
        "router": "10.0.2.2",
        "name_server": "10.0.2.2",
        "interface-mtu": 1500,
    }
    yiaddr = offer[BOOTP].yiaddr
    request = discover(
        ("message-type", "request"), ("requested_addr", yiaddr), ("server_id", "10.0.2.2"),
        ("client_id", b"\x01x"),
    )  # fmt: skip
    ack = theirs(server.answer(ours(request), 0.0))
    assert (ack[BOOTP].yiaddr, said(ack)["message-type"], said(ack)["client_id"]) == (yiaddr, 5, b"\x01x")
    refused = discover(("message-type", "request"), ("requested_addr", "192.168.1.5"))
    nak = theirs(server.answer(ours(refused), 0.0))
    assert (nak.dst, nak[IP].dst, said(nak)["message-type"]) == (BROADCAST, "255.255.255.255", 6)


@EXAMPLES
@given(
    xid=st.integers(0, 2**32 - 1),
    secs=st.integers(0, 2**16 - 1),
    flags=st.sampled_from([0, 0x8000]),
    ciaddr=st.ip_addresses(v=4).map(str),
    requested=st.ip_addresses(v=4).map(str),
    client=st.binary(min_size=1, max_size=255),
)
def test_what_scapy_says_we_read(xid, secs, flags, ciaddr, requested, client):
    options = [("message-type", 3), ("requested_addr", requested), ("client_id", client), "end"]
    message = BOOTP(chaddr=CHADDR, xid=xid, secs=secs, flags=flags, ciaddr=ciaddr) / DHCP(options=options)
    found = wire.DHCPMessage.at(bytes(message))
    assert (found.op, found.chaddr, found.xid, found.secs, found.flags) == (1, CHADDR, xid, secs, flags)
    assert found.ciaddr == address.ip(ciaddr)
    assert found.address(wire.REQUESTED_ADDRESS) == address.ip(requested)
    assert found.options[wire.CLIENT_ID] == client
    assert found.kind == wire.REQUEST


@EXAMPLES
@given(
    xid=st.integers(0, 2**32 - 1),
    yiaddr=st.binary(min_size=4, max_size=4),
    options=st.dictionaries(
        st.integers(1, 254).filter(lambda n: n != wire.OVERLOAD), st.binary(max_size=255)
    ),
)
def test_what_we_say_we_read_and_so_does_scapy(xid, yiaddr, options):
    message = wire.DHCPMessage(wire.BOOTREPLY, xid, CHADDR, yiaddr=yiaddr, options=options)
    octets = message.encode()
    assert wire.DHCPMessage.at(octets) == message
    packet = BOOTP(octets)
    assert (packet.xid, address.ip(packet.yiaddr), packet.chaddr[:6]) == (xid, yiaddr, CHADDR)


def test_scapy_reads_our_router_advertisement():
    neighbours = NeighbourResponder(NETWORK, 0.0)
    ask = IPv6(src=LINK_LOCAL, dst="ff02::2", hlim=255) / ICMPv6ND_RS()
    asked = Ether(src=GUEST, dst="33:33:00:00:00:02") / ask / ICMPv6NDOptSrcLLAddr(lladdr=GUEST)
    for advert in theirs(neighbours.answer(ours(asked), 0.0)), theirs(neighbours.wake(0.0)):
        router = advert[ICMPv6ND_RA]
        assert (router.routerlifetime, router.chlim, router.M, router.O) == (1800, 64, 0, 0)
        prefix = advert[ICMPv6NDOptPrefixInfo]
        assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("fd76:746c:0:1::", 64, 1, 1)
        assert (prefix.validlifetime, prefix.preferredlifetime) == (86400, 14400)
        assert advert[ICMPv6NDOptMTU].mtu == 1500
        assert advert[ICMPv6NDOptRDNSS].dns == ["fd76:746c:0:1::1"]
        assert advert[ICMPv6NDOptRDNSS].lifetime == 1800
        assert advert[ICMPv6NDOptSrcLLAddr].lladdr == OURS


@pytest.mark.parametrize("target", ["10.0.2.2", "10.0.2.77"])
def test_scapys_arp_is_answered(target):
    asked = Ether(src=GUEST, dst=BROADCAST) / ARP(op=1, hwsrc=GUEST, psrc="10.0.2.15", pdst=target)
    reply = theirs(NeighbourResponder(NETWORK, 0.0).answer(ours(asked), 0.0))[ARP]
    assert (reply.op, reply.hwsrc, reply.psrc, reply.hwdst, reply.pdst) == (
        2,
        OURS,
        target,
        GUEST,
        "10.0.2.15",
    )


def test_scapys_solicitation_is_answered():
    group = "ff02::1:ff00:77"
    ask = IPv6(src=LINK_LOCAL, dst=group, hlim=255) / ICMPv6ND_NS(tgt="fe80::77")
    asked = Ether(src=GUEST, dst="33:33:ff:00:00:77") / ask / ICMPv6NDOptSrcLLAddr(lladdr=GUEST)
    reply = theirs(NeighbourResponder(NETWORK, 0.0).answer(ours(asked), 0.0))
    assert (reply[IPv6].src, reply[IPv6].dst, reply.lladdr) == ("fe80::77", LINK_LOCAL, OURS)
