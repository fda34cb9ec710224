"""Scapy reads our segments: every length and checksum as it would write them, and the payload whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP, TCP, UDP, defragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

from tests.supersegments import CWR, FIN, HOP_BY_HOP, TIMESTAMPS, octets, tcp, udp
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.offload import max_frame, segment

versions = st.sampled_from([4, 6])
counts = st.integers(0, 4000)
sizes = st.integers(40, 1500)
tags = st.sampled_from([(), ((0x8100, 5),), ((0x88A8, 7), (0x8100, 0x6005))])


def read(frame, version):
    """Parse a plain frame, and check that scapy would have written all computed fields the same."""
    assert frame[: vnet.VNET] == vnet.NONE
    sent = bytes(frame[vnet.VNET :])
    packet = Ether(sent)
    again = Ether(sent)
    layer = again
    while layer:
        for name in ("len", "plen", "chksum", "ihl", "dataofs"):
            if name in layer.fields and not isinstance(layer, Raw):
                del layer.fields[name]
        layer = layer.payload
    again.clear_cache()
    assert bytes(again) == sent
    assert (IP if version == 4 else IPv6) in packet
    return packet


def payload_of(packets, layer):
    return b"".join(bytes(p[layer].payload) for p in packets)


@settings(deadline=None)  # a hundred segments take scapy that long
@given(
    version=versions,
    count=counts,
    size=sizes,
    tags=tags,
    flags=st.integers(0, 255),
    seq=st.integers(0, 0xFFFF_FFFF),
    ident=st.integers(0, 0xFFFF),
    options=st.sampled_from([b"", TIMESTAMPS]),
    extensions=st.sampled_from([(), ((0, HOP_BY_HOP),), ((0, HOP_BY_HOP), (60, HOP_BY_HOP))]),
    seed=st.integers(0, 1000),
)
def test_scapy_reads_tcp_segments(version, count, size, tags, flags, seq, ident, options, extensions, seed):
    data = octets(count, seed)
    frame = tcp(
        version,
        data,
        size,
        tags=tags,
        flags=flags,
        seq=seq,
        ident=ident,
        options=options,
        extensions=extensions if version == 6 else (),
    )
    greatest = max_frame(frame)
    packets = [read(s, version) for s in segment(frame)]
    assert payload_of(packets, TCP) == data
    assert max(len(p) for p in packets) == greatest
    assert [p[TCP].seq for p in packets] == [(seq + i * size) % 2**32 for i in range(len(packets))]
    if version == 4:
        assert [p[IP].id for p in packets] == [(ident + i) % 2**16 for i in range(len(packets))]
        assert {p[IP].flags.value for p in packets} == {2}
    for index, packet in enumerate(packets):
        expected = flags
        if index:
            expected &= ~CWR
        if packet is not packets[-1]:
            expected &= ~(FIN | 0x08)
        assert packet[TCP].flags.value == expected
    assert all((Dot1AD in p, Dot1Q in p) == (len(tags) == 2, bool(tags)) for p in packets)


@settings(deadline=None)
@given(version=versions, count=counts, size=sizes, tags=tags, seed=st.integers(0, 1000))
def test_scapy_reads_udp_datagrams(version, count, size, tags, seed):
    data = octets(count, seed)
    packets = [read(s, version) for s in segment(udp(version, data, size, tags=tags))]
    assert payload_of(packets, UDP) == data
    assert all(p[UDP].len == 8 + len(p[UDP].payload) for p in packets)


@settings(deadline=None)
@given(count=counts, size=sizes, seed=st.integers(0, 1000))
def test_scapy_reassembles_an_ipv4_datagram(count, size, seed):
    data = octets(count, seed)
    segments = segment(udp(4, data, size, gso_type=vnet.GSO_UDP))
    for s in segments:
        packet = IP(bytes(s[vnet.VNET + 14 :]))
        again = packet.copy()
        del again.chksum, again.len
        assert bytes(again) == bytes(packet)
    [whole] = defragment([Ether(bytes(s[vnet.VNET :])) for s in segments])
    assert bytes(whole[UDP].payload) == data
    checksum = whole[UDP].chksum
    del whole[UDP].chksum
    assert UDP(bytes(whole[UDP])).chksum == checksum


@pytest.mark.parametrize("count", [1400, 1441, 4000, 60_000])
@pytest.mark.parametrize("extensions", [(), ((0, HOP_BY_HOP),)])
def test_scapy_reassembles_an_ipv6_datagram(count, extensions):
    data = octets(count)
    segments = segment(udp(6, data, 1448, gso_type=vnet.GSO_UDP, extensions=extensions))
    packets = [IPv6(bytes(s[vnet.VNET + 14 :])) for s in segments]
    assert all(p.plen == len(p) - 40 for p in packets)
    whole = packets[0]
    if len(packets) > 1:
        assert [p[IPv6ExtHdrFragment].m for p in packets] == [1] * (len(packets) - 1) + [0]
        whole = defragment6(packets)
    assert bytes(whole[UDP].payload) == data
    checksum = whole[UDP].chksum
    del whole[UDP].chksum
    assert IPv6(bytes(whole))[UDP].chksum == checksum
