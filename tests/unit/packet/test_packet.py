"""A whole frame: its layers, queries and changes."""

import pytest

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import address, build, icmp, ip, tcp, vnet
from vtl_tools.common.packet.checksum import fold
from vtl_tools.common.packet.packet import Packet

MACS = {"src_mac": address.mac("02:00:00:00:00:01"), "dst_mac": address.mac("02:00:00:00:00:02")}
V4 = {"src": address.ip("10.0.0.1"), "dst": address.ip("10.0.0.2")}
V6 = {"src": address.ip("2001:db8::1"), "dst": address.ip("2001:db8::2")}
PORTS = {"sport": 1000, "dport": 80}
BOTH = pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])


@BOTH
def test_layout_are_none_where_the_frame_is_of_another_kind(ends):
    pkt = Packet.at(build.udp(**MACS, **ends, **PORTS, payload=b"hello"))
    assert pkt.tcp is None
    assert pkt.icmp is None
    assert pkt.arp is None
    assert pkt.nd is None
    assert (pkt.ipv4 is None) == (ends is V6)
    assert bytes(pkt.payload) == b"hello"


def test_a_frame_shorter_than_ethernet_is_malformed_and_a_broken_layer_only_when_asked_for():
    with pytest.raises(Malformed):
        Packet.at(bytearray(23))
    frame = build.tcp(**MACS, **V4, **PORTS)
    pkt = Packet.at(frame[:-1])
    assert pkt.eth.type == 0x0800
    for _ in range(2):
        with pytest.raises(Malformed, match=r"ipv4\.total_length"):
            _ = pkt.tcp


def test_ethernet_padding_is_not_payload():
    frame = build.tcp(**MACS, **V4, **PORTS, payload=b"x") + bytes(5)
    pkt = Packet.at(frame)
    assert bytes(pkt.payload) == b"x"
    assert pkt.verify()
    assert pkt.end == len(frame) - 5


@BOTH
def test_a_super_segment_past_64_kib_ends_where_its_frame_ends(ends):
    frame = build.tcp(**MACS, **ends, **PORTS, payload=bytes(70_000), partial=True, gso_size=1448)
    pkt = Packet.at(frame)
    assert pkt.tcp_payload_len == 70_000
    assert (pkt.gso_size, pkt.needs_csum) == (1448, True)
    frame[1] = vnet.GSO_NONE
    if ends is V4:
        with pytest.raises(Malformed):
            _ = Packet.at(frame).tcp


def test_stacked_tags_are_looked_through_and_can_be_rewritten():
    pkt = Packet.at(build.tcp(**MACS, **V4, **PORTS, vlan=(100, 5 << 13 | 7)))
    outer, inner = pkt.vlans
    assert (outer.tpid, outer.vid, inner.tpid, inner.vid, inner.pcp) == (0x88A8, 100, 0x8100, 7, 5)
    inner.vid = 9
    assert [tag.vid for tag in pkt.vlans] == [100, 9]
    assert pkt.tcp.dport == 80


def test_a_tag_cut_short_is_malformed_and_no_ip():
    pkt = Packet.at(bytearray(10) + bytes(12) + b"\x81\x00\x00")
    assert pkt.ip is None
    with pytest.raises(Malformed):
        _ = pkt.vlans


def test_a_partial_sum_follows_addresses_and_not_ports():
    frame = build.tcp(**MACS, **V4, **PORTS, payload=b"data", partial=True)
    pkt = Packet.at(frame)
    before = pkt.tcp.checksum
    pkt.tcp.sport, pkt.tcp.seq, pkt.tcp.flags = 4000, 5, tcp.ACK
    assert pkt.tcp.checksum == before
    pkt.ip.src = address.ip("192.0.2.1")
    assert pkt.tcp.checksum != before
    assert pkt.compute_transport_checksum()
    assert not pkt.needs_csum
    want = {**V4, "src": address.ip("192.0.2.1")}
    assert frame == build.tcp(**MACS, **want, sport=4000, dport=80, seq=5, flags=tcp.ACK, payload=b"data")


def test_a_wrong_checksum_stays_as_wrong_as_it_was():
    pkt = Packet.at(build.tcp(**MACS, **V4, **PORTS))
    pkt.tcp.checksum = fold(pkt.tcp.checksum + 0x1234)
    pkt.tcp.dport = 8080
    assert not pkt.verify()
    right = Packet.at(build.tcp(**MACS, **V4, sport=1000, dport=8080)).tcp.checksum
    assert pkt.tcp.checksum == fold(right + 0x1234)


def test_udp_without_a_checksum_stays_without():
    pkt = Packet.at(build.udp(**MACS, **V4, **PORTS))
    pkt.udp.checksum = 0
    pkt.ip.src, pkt.udp.dport, pkt.udp.length = address.ip("192.0.2.1"), 53, 8
    assert pkt.udp.checksum == 0
    assert pkt.verify()


def test_a_computed_udp_checksum_of_0_is_sent_as_all_ones():
    frame = build.udp(**MACS, **V4, sport=0, dport=0)
    pkt = Packet.at(frame)
    pkt.udp.sport = sport = pkt.udp.checksum  # a sum and its complement make all ones, whose own is 0
    assert pkt.udp.checksum == 0xFFFF
    assert frame == build.udp(**MACS, **V4, sport=sport, dport=0)


@BOTH
def test_a_later_fragment_is_no_transport_header(ends):
    frame = build.tcp(**MACS, **ends, **PORTS, payload=b"p" * 16)
    if ends is V4:
        Packet.at(frame).ip.fragment_offset = 100
    else:
        frame[64:64] = bytes((ip.TCP, 0, 0x03, 0x20, 0, 0, 0, 1))
        frame[30] = ip.FRAGMENT
        frame[29] += 8
    pkt = Packet.at(frame)
    body = bytes(pkt.payload)
    pkt.ip.dst = bytes(len(pkt.ip.dst))
    pkt.swap()
    assert pkt.transport is None
    assert pkt.is_fragment
    assert not pkt.is_first_fragment
    assert bytes(pkt.payload) == body
    assert pkt.flow[0] == ip.TCP


def test_a_source_route_keeps_the_checksum_to_the_final_destination():
    route = bytes((131, 7, 4)) + address.ip("10.7.7.7") + b"\0"
    frame = build.udp(**MACS, src=V4["src"], dst=address.ip("10.7.7.7"), **PORTS)
    frame[44:44] = route
    frame[24], frame[27] = 0x47, 36  # the header and the packet are 8 octets longer now
    pkt = Packet.at(frame)
    pkt.compute_ip_checksum()
    assert pkt.ip.has_source_route
    assert list(pkt.ip.options()) == [(131, route[2:7])]
    assert pkt.verify()
    pkt.ip.dst = address.ip("10.3.3.3")
    assert pkt.ip.final_dst == address.ip("10.7.7.7")
    assert pkt.verify()


@BOTH
def test_a_swapped_packet_goes_back_with_every_checksum_right(ends):
    pkt = Packet.at(build.tcp(**MACS, **ends, **PORTS, payload=b"odd"))
    there = pkt.flow
    pkt.swap()
    back = pkt.flow
    assert (back[1:3], back[3:5]) == (there[3:5], there[1:3])
    assert pkt.conversation == Packet.at(build.tcp(**MACS, **ends, **PORTS)).conversation
    assert pkt.verify()


def test_a_clone_outlives_the_frame():
    frame = build.tcp(**MACS, **V4, **PORTS)
    copy = Packet.at(frame).clone()
    frame[:] = bytes(len(frame))
    assert copy.tcp.dport == 80


@BOTH
@pytest.mark.parametrize("make", [build.tcp, build.udp])
@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("size", [0, 3, 10, 17])
def test_a_payload_is_replaced_and_lengths_and_checksums_follow(ends, make, partial, size):
    frame = make(**MACS, **ends, **PORTS, payload=b"ten octets", partial=partial)
    pkt = Packet.at(frame + bytes(7))
    pkt.set_payload(b"z" * size)
    assert pkt.buf[: pkt.end] == make(**MACS, **ends, **PORTS, payload=b"z" * size, partial=partial)
    with pytest.raises(ValueError, match="do not fit"):
        pkt.set_payload(bytes(18))


def test_queries_tell_what_a_segment_is():
    syn = Packet.at(build.tcp(**MACS, **V4, **PORTS, flags=tcp.SYN, payload=b"tfo"))
    assert (syn.is_syn, syn.is_syn_ack, syn.is_rst, syn.seg_len) == (True, False, False, 4)
    synack = Packet.at(build.tcp(**MACS, **V4, **PORTS, flags=tcp.SYN | tcp.ACK))
    assert (synack.is_syn, synack.is_syn_ack, synack.tcp_payload_len) == (False, True, 0)
    asked = Packet.at(build.arp(**MACS, sha=MACS["src_mac"], spa=V4["src"], tpa=V4["dst"]))
    assert asked.is_arp_request
    assert asked.flow is None


@BOTH
def test_an_echo_is_a_flow_by_its_identifier(ends):
    pkt = Packet.at(build.icmp_echo(**MACS, **ends, identifier=77, sequence=1))
    assert pkt.flow[2] == pkt.flow[4] == 77
    pkt.icmp.identifier = 78
    assert pkt.verify()


def test_an_icmp_message_of_zeros_has_all_ones_for_a_checksum():
    pkt = Packet.at(build.icmp_echo(**MACS, **V4, identifier=1, sequence=0, reply=True))
    pkt.icmp.identifier = 0
    assert pkt.icmp.checksum == 0xFFFF
    pkt.icmp.identifier = 1
    assert pkt.verify()
    assert pkt.icmp.type == icmp.ECHO_REPLY
    frame = build.icmp_echo(**MACS, **V4, identifier=0, sequence=0, reply=True, payload=b"some")
    pkt = Packet.at(frame)
    pkt.set_payload(bytes(4))
    assert pkt.icmp.checksum == 0xFFFF
    pkt.icmp.checksum = 1
    assert pkt.compute_transport_checksum()
    assert pkt.icmp.checksum == 0xFFFF
    assert pkt.verify()


@pytest.mark.parametrize("kind", [4, 253])
def test_a_checksum_follows_the_destination_that_the_pseudo_header_has(kind):
    routing = bytes((ip.UDP, 2, kind, 1)) + bytes(4) + V6["src"]
    frame = build.udp(**MACS, **V6, **PORTS)
    frame[30] = ip.ROUTING
    frame[64:64] = routing
    frame[28:30] = (len(frame) - 64).to_bytes(2, "big")
    pkt = Packet.at(frame)
    pkt.compute_transport_checksum()
    before = pkt.udp.checksum
    pkt.ip.dst = V6["src"]
    assert pkt.verify()
    assert (pkt.udp.checksum == before) == (kind == 4)  # of an unknown kind, nobody knows another end


def test_protocol_and_length_writes_keep_the_pseudo_header_summed():
    for ends in (V4, V6):
        pkt = Packet.at(build.tcp(**MACS, **ends, **PORTS, payload=b"abcdef"))
        field = "total_length" if ends is V4 else "payload_length"
        setattr(pkt.ip, field, getattr(pkt.ip, field) - 2)
        shorter = Packet.at(pkt.buf)
        assert bytes(shorter.payload) == b"abcd"
        body = int.from_bytes(b"ef", "big")
        total = shorter.tcp.checksum + body  # without the octets that are cut off, the sum lacks just them
        shorter.tcp.checksum = (total & 0xFFFF) + (total >> 16)
        assert shorter.verify()
