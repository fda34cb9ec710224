"""Completing checksums and cutting super-segments."""

import struct
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.supersegments import (
    ACK,
    CWR,
    FIN,
    HOP_BY_HOP,
    MACS,
    PSH,
    V6,
    is_right,
    octets,
    rfc1071,
    tcp,
    udp,
)
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.checksum import pseudo_sum
from vtl_tools.common.packet.offload import bind, is_plain, max_frame, partial_to_full, segment
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.supersegment import MAX_HEADERS, MAX_SEGMENTS, UDP_MAX_SEGMENTS

ETHER = vnet.VNET  # offsets below are into frames without tags, options or extension headers
L3 = ETHER + 14
TCP4 = L3 + 20
TCP6 = L3 + 40
PLAIN = vnet.NONE


def u16(frame, at):
    return struct.unpack_from("!H", frame, at)[0]


def u32(frame, at):
    return struct.unpack_from("!I", frame, at)[0]


def with_vnet(frame, **changes):
    """Return a copy of the frame with fields of its vnet header changed."""
    names = ("flags", "gso_type", "hdr_len", "gso_size", "csum_start", "csum_offset")
    fields = dict(zip(names, vnet.HEADER.unpack_from(frame), strict=True)) | changes
    return bytearray(vnet.HEADER.pack(*fields.values()) + frame[vnet.VNET :])


def refused(frame):
    """Return the field for which segment() refuses the frame, which it must leave as it was."""
    before = bytes(frame)
    with pytest.raises(Malformed) as caught:
        segment(frame)
    assert bytes(frame) == before
    with suppress(Malformed):
        max_frame(frame)
    return caught.value.what


# --- frames without GSO


def test_a_plain_frame_is_given_back_itself():
    frame = bytearray(PLAIN + octets(60))
    before = bytes(frame)
    assert is_plain(frame)
    assert segment(frame)[0] is frame
    assert bytes(frame) == before


def test_a_verified_frame_is_plain():
    frame = bytearray(vnet.HEADER.pack(vnet.F_DATA_VALID, 0, 0, 0, 0, 0) + octets(60))
    assert is_plain(frame)
    assert len(segment(frame)) == 1


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("count", [0, 1, 2, 999, 1448])
@pytest.mark.parametrize("build", [tcp, udp])
def test_a_partial_checksum_is_completed_in_place(build, version, count):
    frame = build(version, octets(count), 0)
    assert not is_plain(frame)
    [same] = segment(frame)
    assert same is frame
    assert is_plain(frame)
    assert frame[: vnet.VNET] == PLAIN
    protocol = 6 if build is tcp else 17
    l4 = TCP4 if version == 4 else TCP6
    assert is_right(version, protocol, frame[l4:])


def summing_to_zero(build):
    """Return a frame with a partial checksum whose full one is 0."""
    frame = build(4, b"\0\0", 0)
    trial = bytearray(frame)
    partial_to_full(trial)
    at = TCP4 + (16 if build is tcp else 6)
    frame[-2:] = trial[at : at + 2]  # data that lack only this sum as much as the checksum made up for
    return frame, at


def test_a_udp_checksum_of_zero_is_sent_as_all_ones():
    frame, at = summing_to_zero(udp)
    partial_to_full(frame)
    assert u16(frame, at) == 0xFFFF


def test_a_tcp_checksum_of_zero_is_sent_as_it_is():
    frame, at = summing_to_zero(tcp)
    partial_to_full(frame)
    assert u16(frame, at) == 0


def test_a_memoryview_is_completed_in_place_too():
    frame = memoryview(tcp(4, octets(100), 0))
    partial_to_full(frame)
    assert is_plain(frame)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"csum_start": 0}, "vnet.csum_start"),  # would write into the addresses
        ({"csum_start": 33}, "vnet.csum_start"),
        ({"csum_start": 0xFFFF}, "vnet.csum_offset"),
        ({"csum_offset": 0xFFFF}, "vnet.csum_offset"),
        ({"csum_start": 34, "csum_offset": 31}, "vnet.csum_offset"),  # one octet of two is inside
    ],
)
def test_a_partial_checksum_outside_of_the_frame_is_refused(changes, what):
    assert refused(with_vnet(tcp(4, b"", 0), **changes)) == what


def test_a_checksum_may_be_the_last_two_octets():
    frame = with_vnet(tcp(4, b"", 0), csum_offset=30)
    partial_to_full(frame)
    assert is_plain(frame)


@pytest.mark.parametrize("size", range(vnet.VNET))
def test_less_than_a_vnet_header_is_refused(size):
    assert refused(bytearray(b"\1" * size)) == "vnet"
    with pytest.raises(Malformed):
        max_frame(bytearray(size))


# --- TCP


def test_segments_carry_the_payload_in_order():
    data = octets(5000)
    segments = segment(tcp(4, data, 1448))
    assert [len(s) - TCP4 - 32 for s in segments] == [1448, 1448, 1448, 656]
    assert b"".join(bytes(s[TCP4 + 32 :]) for s in segments) == data
    assert all(s[: vnet.VNET] == PLAIN and s[ETHER : ETHER + 12] == MACS for s in segments)


def test_a_super_segment_is_left_as_it_was():
    frame = tcp(6, octets(5000), 1428)
    before = bytes(frame)
    segment(frame)
    assert bytes(frame) == before


def test_a_multiple_of_the_size_has_no_empty_segment():
    assert [len(s) for s in segment(tcp(4, octets(300), 100))] == [TCP4 + 32 + 100] * 3


def test_sequence_numbers_advance_and_wrap():
    segments = segment(tcp(4, octets(300), 100, seq=0xFFFF_FFFF))
    assert [u32(s, TCP4 + 4) for s in segments] == [0xFFFF_FFFF, 99, 199]


def test_ipv4_identifications_increment_and_wrap():
    segments = segment(tcp(4, octets(300), 100, ident=0xFFFF))
    assert [u16(s, L3 + 4) for s in segments] == [0xFFFF, 0, 1]


def test_fin_and_psh_go_last_and_cwr_goes_first():
    segments = segment(tcp(4, octets(300), 100, flags=FIN | PSH | ACK | CWR))
    assert [s[TCP4 + 13] for s in segments] == [ACK | CWR, ACK, ACK | PSH | FIN]


@pytest.mark.parametrize("version", [4, 6])
def test_the_ecn_bit_of_gso_type_is_allowed_with_tcp(version):
    frame = tcp(version, octets(300), 100)
    marked = with_vnet(frame, gso_type=frame[1] | vnet.GSO_ECN)
    assert segment(marked) == segment(frame)


@pytest.mark.parametrize(("version", "field"), [(4, L3 + 2), (6, L3 + 4)])
def test_lengths_are_written_even_where_the_frame_had_zeros(version, field):
    segments = segment(tcp(version, octets(70_000), 1448, length=0))
    start = L3 if version == 4 else TCP6
    assert [u16(s, field) for s in segments] == [len(s) - start for s in segments]
    assert segments == segment(tcp(version, octets(70_000), 1448, length=77))


def test_segments_of_a_jumbogram_are_none():
    jumbo = bytes.fromhex("0000c204") + (70_000 + 32).to_bytes(4, "big")
    frame = tcp(6, octets(70_000), 1428, extensions=[(0, jumbo)], length=0)
    assert segment(frame) == segment(tcp(6, octets(70_000), 1428, length=0))


@pytest.mark.parametrize("size", [1, 1447])
@pytest.mark.parametrize("tail", [1, 2, 0])
def test_odd_sizes_are_summed_right(size, tail):
    data = octets(3 * size + tail)
    for got in segment(tcp(4, data, size)):
        assert is_right(4, 6, got[TCP4:])
        assert rfc1071(got[L3:TCP4]) == 0xFFFF


def test_what_fits_one_segment_is_only_completed():
    frame = tcp(4, octets(1448), 1448)
    [same] = segment(frame)
    assert same is frame
    plain = tcp(4, octets(1448), 0)
    partial_to_full(plain)
    assert frame == plain


def test_a_merged_segment_that_the_card_verified_needs_no_partial_checksum():
    frame = tcp(4, octets(5000), 1448)
    verified = with_vnet(frame, flags=vnet.F_DATA_VALID, csum_start=0, csum_offset=0)
    verified[TCP4 + 16 : TCP4 + 18] = b"\x12\x34"  # some checksum or other
    assert segment(verified) == segment(frame)


def test_a_checksum_behind_a_routing_header_is_of_the_final_destination():
    routing = bytes.fromhex("0002040100000000") + V6[0]  # RFC 8200 4.4: one segment left
    frame = tcp(6, octets(3000), 1400, extensions=[(43, routing)])
    l4 = TCP6 + len(routing)
    pseudo = pseudo_sum(V6[0], V6[0], 6, len(frame) - l4)  # as if V6[0] were the last stop
    struct.pack_into("!H", frame, l4 + 16, pseudo)
    for got in segment(frame):
        pseudo = pseudo_sum(V6[0], V6[0], 6, len(got) - l4)
        assert rfc1071(bytes(got[l4:]) + pseudo.to_bytes(2, "big")) == 0xFFFF


# --- UDP


def test_udp_datagrams_are_cut_apart():
    data = octets(250)
    segments = segment(udp(4, data, 100))
    assert [u16(s, TCP4 + 4) for s in segments] == [108, 108, 58]
    assert [u16(s, L3 + 4) for s in segments] == [0xABCD, 0xABCE, 0xABCF]
    assert b"".join(bytes(s[TCP4 + 8 :]) for s in segments) == data


def test_an_ipv4_datagram_is_fragmented():
    data = octets(4000)
    segments = segment(udp(4, data, 1480, gso_type=vnet.GSO_UDP))
    assert [u16(s, L3 + 6) for s in segments] == [0x2000, 0x2000 | 185, 370]  # DF is gone
    assert [u16(s, L3 + 2) for s in segments] == [1500, 1500, 20 + 4008 - 2960]
    assert {u16(s, L3 + 4) for s in segments} == {0xABCD}
    datagram = b"".join(bytes(s[TCP4:]) for s in segments)
    assert datagram[8:] == data
    assert is_right(4, 17, datagram)


@pytest.mark.parametrize("extensions", [[], [(0, HOP_BY_HOP)], [(0, HOP_BY_HOP), (60, HOP_BY_HOP)]])
def test_an_ipv6_datagram_is_fragmented_behind_its_extension_headers(extensions):
    data = octets(4000)
    segments = segment(udp(6, data, 1448, gso_type=vnet.GSO_UDP, extensions=extensions))
    at = TCP6 + 8 * len(extensions)
    link = at - 8 if extensions else L3 + 6
    assert [s[link] for s in segments] == [44] * 3
    assert [bytes(s[at : at + 2]) for s in segments] == [b"\x11\0"] * 3
    assert [u16(s, at + 2) for s in segments] == [0 | 1, 1448 | 1, 2896]
    assert len({u32(s, at + 4) for s in segments}) == 1
    assert [u16(s, L3 + 4) for s in segments] == [len(s) - TCP6 for s in segments]
    datagram = b"".join(bytes(s[at + 8 :]) for s in segments)
    assert datagram[8:] == data
    assert is_right(6, 17, datagram)


def test_different_datagrams_have_different_ipv6_identifications():
    one, two = (segment(udp(6, octets(4000, seed), 1448, gso_type=vnet.GSO_UDP))[0] for seed in (1, 2))
    assert u32(one, TCP6 + 4) != u32(two, TCP6 + 4)


def test_fragments_are_cut_at_multiples_of_eight():
    segments = segment(udp(4, octets(4000), 1479, gso_type=vnet.GSO_UDP))
    assert len(segments[0]) - TCP4 == 1472


# --- sizes


@pytest.mark.parametrize(
    "frame",
    [
        tcp(4, octets(5000), 1448),
        tcp(6, octets(5000), 1428, tags=[(0x88A8, 1), (0x8100, 2)]),
        udp(6, octets(5000), 1400),
        udp(4, octets(5000), 1480, gso_type=vnet.GSO_UDP),
        udp(6, octets(5000), 1448, gso_type=vnet.GSO_UDP),
        tcp(4, octets(100), 1448),
        tcp(4, octets(100), 0),
        bytearray(PLAIN + octets(60)),
    ],
)
def test_max_frame_is_the_size_of_the_greatest_segment(frame):
    expected = max_frame(frame)
    assert expected == max(len(s) - vnet.VNET for s in segment(frame))


# --- hostile headers


def test_the_number_of_segments_is_bounded():
    assert len(segment(tcp(4, octets(MAX_SEGMENTS), 1))) == MAX_SEGMENTS
    assert refused(tcp(4, octets(MAX_SEGMENTS + 1), 1)) == "vnet.gso_size"
    assert len(segment(udp(4, octets(UDP_MAX_SEGMENTS), 1))) == UDP_MAX_SEGMENTS
    assert refused(udp(4, octets(UDP_MAX_SEGMENTS + 1), 1)) == "vnet.gso_size"
    assert refused(udp(4, octets(8 * MAX_SEGMENTS), 8, gso_type=vnet.GSO_UDP)) == "vnet.gso_size"


@pytest.mark.parametrize("size", [0, 1, 7])
def test_fragments_of_less_than_eight_octets_are_refused(size):
    frame = with_vnet(udp(4, octets(100), 8, gso_type=vnet.GSO_UDP), gso_size=size)
    assert refused(frame) == "vnet.gso_size"


def test_a_segment_that_ip_cannot_carry_is_refused():
    assert refused(tcp(4, octets(70_000), 0xFFFF, length=0)) == "vnet.gso_size"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"gso_size": 0}, "vnet.gso_size"),
        ({"gso_type": vnet.GSO_TCPV6}, "vnet.gso_type"),
        ({"gso_type": vnet.GSO_UDP_L4}, "vnet.gso_type"),
        ({"gso_type": vnet.GSO_UDP}, "vnet.gso_type"),
        ({"gso_type": vnet.GSO_UDP | vnet.GSO_ECN}, "vnet.gso_type"),
        ({"gso_type": 2}, "vnet.gso_type"),
        ({"gso_type": vnet.GSO_ECN}, "vnet.gso_type"),
        ({"gso_type": 0x21}, "vnet.gso_type"),  # in a UDP tunnel
        ({"hdr_len": 0xFFFF}, "vnet.hdr_len"),
        ({"csum_start": 0}, "vnet.csum_start"),
        ({"csum_start": 0xFFFF}, "vnet.csum_start"),
        ({"csum_start": 35}, "vnet.csum_start"),
        ({"csum_offset": 6}, "vnet.csum_offset"),
        ({"flags": 0}, "vnet.flags"),
    ],
)
def test_a_vnet_header_that_lies_is_refused(changes, what):
    assert refused(with_vnet(tcp(4, octets(3000), 1448), **changes)) == what


@pytest.mark.parametrize(
    ("at", "octet", "what"),
    [
        (ETHER + 12, 0x09, "ether.type"),
        (L3, 0x65, "ipv4.ihl"),
        (L3, 0x44, "ipv4.ihl"),
        (L3 + 6, 0x20, "ipv4.fragment"),
        (L3 + 7, 0x01, "ipv4.fragment"),
        (L3 + 9, 1, "vnet.gso_type"),
        (TCP4 + 12, 0x40, "tcp.offset"),
    ],
)
def test_an_ipv4_frame_that_lies_is_refused(at, octet, what):
    frame = tcp(4, octets(3000), 1448)
    frame[at] = octet
    assert refused(frame) == what


@pytest.mark.parametrize(
    ("at", "octet", "what"),
    [(L3, 0x45, "ipv6.version"), (L3 + 6, 44, "vnet.gso_type"), (TCP6 + 1, 200, "headers")],
)
def test_an_ipv6_frame_that_lies_is_refused(at, octet, what):
    frame = tcp(6, octets(3000), 1448, extensions=[(60, HOP_BY_HOP)])
    frame[at] = octet
    if what == "headers":  # let what it skips to look like a TCP header
        frame[TCP6 + 201 * 8 + 12] = 0x50
    assert refused(frame) == what


def test_headers_beyond_all_measure_are_refused():
    endless = [(60, HOP_BY_HOP)] * (MAX_HEADERS // 8 + 1)
    assert refused(tcp(6, octets(3000), 1448, extensions=endless)) == "ipv6.extension"


def test_vlan_tags_beyond_all_measure_are_refused():
    assert len(segment(tcp(4, octets(3000), 1448, tags=[(0x8100, 1)] * 8))) == 3
    assert refused(tcp(4, octets(3000), 1448, tags=[(0x8100, 1)] * 9)) == "ether.type"


@pytest.mark.parametrize(
    "frame",
    [
        tcp(4, b"", 100, tags=[(0x8100, 1)]),
        tcp(6, b"", 100, extensions=[(0, HOP_BY_HOP), (60, HOP_BY_HOP)]),
        udp(4, b"", 100),
        udp(6, b"", 100, gso_type=vnet.GSO_UDP),
    ],
)
def test_a_frame_cut_short_anywhere_in_its_headers_is_refused(frame):
    for size in range(vnet.VNET, len(frame)):
        refused(with_vnet(frame[:size], hdr_len=0))


FRAMES = [
    tcp(4, octets(300), 100),
    tcp(6, octets(300), 100, tags=[(0x8100, 5)], extensions=[(0, HOP_BY_HOP)]),
    udp(4, octets(300), 100),
    udp(6, octets(300), 100),
    udp(6, octets(300), 104, gso_type=vnet.GSO_UDP),
    udp(4, octets(300), 104, gso_type=vnet.GSO_UDP),
    tcp(4, octets(300), 0),
]


@settings(deadline=None)
@given(
    st.sampled_from(FRAMES),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=4),
    st.integers(0, 500),
)
def test_foreign_octets_become_plain_frames_or_are_malformed(frame, changes, size):
    frame = bytearray(frame[:size])
    for at, octet in changes:
        if at < len(frame):
            frame[at] = octet
    with suppress(Malformed):
        greatest = max_frame(frame)
        segments = segment(frame)
        assert all(is_plain(s) for s in segments)
        assert max(len(s) for s in segments) - vnet.VNET == greatest


# --- bind: a frame is what it says


@pytest.mark.parametrize(
    "frame",
    [
        *FRAMES,
        udp(4, b"data", 0),
        tcp(6, b"data", 0),
        tcp(4, octets(300), 100, gso_type=vnet.GSO_TCPV4 | vnet.GSO_ECN),
        tcp(4, b"data", 0, tags=[(0x88A8, 1), (0x8100, 2)], ip_options=bytes(4)),
        udp(6, b"data", 0, extensions=[(60, HOP_BY_HOP)]),
        with_vnet(tcp(4, octets(300), 100), flags=vnet.F_DATA_VALID),
    ],
)
def test_what_an_honest_kernel_sends_is_left_alone(frame):
    before = bytes(frame)
    bind(frame)
    assert frame == before


@pytest.mark.parametrize(("build", "l4"), [(tcp, TCP4), (udp, TCP4)])
@pytest.mark.parametrize("tags", [(), [(0x8100, 7)]])
def test_a_sum_to_be_written_over_a_port_is_there_before_anyone_reads_it(build, l4, tags):
    l4 += 4 * len(tags)
    frame = with_vnet(build(4, b"data", 0, tags=tags), csum_start=l4 - ETHER, csum_offset=2)
    sent = bytearray(frame)
    partial_to_full(sent)  # as whoever sends it would
    bind(frame)
    assert frame == sent
    assert u16(frame, l4 + 2) != 2000
    assert is_plain(frame)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"csum_offset": 2}, "vnet.csum_start"),
        ({"csum_start": 14 + 20 + 8}, "vnet.csum_start"),
        ({"gso_type": vnet.GSO_TCPV6}, "vnet.gso_type"),
        ({"gso_type": vnet.GSO_UDP_L4}, "vnet.gso_type"),
        ({"gso_type": 0x77}, "vnet.gso_type"),
    ],
)
def test_a_super_segment_of_something_else_than_it_says_is_refused(changes, what):
    with pytest.raises(Malformed) as caught:
        bind(with_vnet(tcp(4, octets(300), 100), **changes))
    assert caught.value.what == what


def test_what_a_super_segment_has_behind_its_packet_would_be_sent_too():
    for frame in tcp(4, octets(300), 100, length=100), tcp(6, octets(300), 100, length=100):
        with pytest.raises(Malformed):
            bind(frame)


@pytest.mark.parametrize("build", [tcp, udp])
@pytest.mark.parametrize(("version", "field"), [(4, L3 + 2), (6, L3 + 4)])
def test_a_small_super_segment_without_a_length_would_be_sent_without_one(build, version, field):
    frame = build(version, b"data", 1000)
    frame[field : field + 2] = b"\0\0"
    with pytest.raises(Malformed):
        bind(frame)


@pytest.mark.parametrize("size", range(vnet.VNET))
def test_less_than_a_vnet_header_cannot_be_bound(size):
    with pytest.raises(Malformed):
        bind(bytearray(size))


def test_a_sum_in_a_fragment_is_made_at_once():
    frame = udp(4, octets(16), 0)
    frame[L3 + 6 : L3 + 8] = b"\x20\x00"
    bind(frame)
    assert is_plain(frame)


@settings(deadline=None)
@given(
    st.sampled_from(FRAMES),
    st.lists(st.tuples(st.integers(0, 110), st.integers(0, 255)), max_size=4),
    st.integers(vnet.VNET, 500),
)
def test_foreign_octets_are_bound_or_malformed(frame, changes, size):
    frame = bytearray(frame[:size])
    for at, octet in changes:
        if at < len(frame):
            frame[at] = octet
    with suppress(Malformed):
        bind(frame)
        once = bytes(frame)
        bind(frame)
        assert frame == once
        pkt = Packet.at(frame)
        if pkt.needs_csum:
            assert vnet.HEADER.unpack_from(frame)[4:] == (pkt.transport.off - ETHER, pkt.transport.SUM)
