"""Fragments of packets, which an independent part of the package puts together again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.model.fragments import FragmentTable, ReassembledPacket
from vtl_tools.common.packet import build
from vtl_tools.common.packet.fragment import fragments
from vtl_tools.common.packet.packet import Packet

MACS = {"src_mac": b"\2" * 6, "dst_mac": b"\4" * 6}
ENDS = {4: (b"\x0a\0\0\1", b"\x0a\0\0\2"), 6: (b"\xfd" + bytes(14) + b"\1", b"\xfd" + bytes(14) + b"\2")}


@given(
    version=st.sampled_from([4, 6]), size=st.integers(0, 65_000), mtu=st.integers(1280, 9000),
    number=st.integers(0, 1 << 40), echo=st.booleans(), order=st.randoms(use_true_random=False),
)  # fmt: skip
def test_the_pieces_fit_the_mtu_and_make_the_packet_again(version, size, mtu, number, echo, order):
    src, dst = ENDS[version]
    payload = bytes(i * 7 & 0xFF for i in range(size))
    if echo:
        frame = build.icmp_echo(**MACS, src=src, dst=dst, identifier=1, sequence=2, payload=payload)
    else:
        frame = build.udp(**MACS, src=src, dst=dst, sport=1, dport=2, payload=payload)
    cut = list(fragments(frame, mtu, number))
    assert all(len(piece) - 24 <= mtu and Packet.at(bytearray(piece)).verify() for piece in cut)
    if len(frame) - 24 <= mtu:
        assert cut == [bytes(frame)]
        return
    order.shuffle(cut)
    table = FragmentTable()
    found = [table.add(Packet.at(bytearray(piece)), 0.0) for piece in cut]
    whole = found.pop()
    assert found == [None] * len(found)
    assert isinstance(whole, ReassembledPacket)
    pkt = Packet.at(whole.packet)
    assert pkt.verify()
    assert pkt.ip is not None
    assert pkt.transport is not None
    assert bytes(pkt.transport.payload) == payload
    assert (pkt.ip.src, pkt.ip.dst) == (src, dst)


@pytest.mark.parametrize("version", [4, 6])
def test_two_packets_have_fragments_of_two_numbers(version):
    src, dst = ENDS[version]
    frame = build.udp(**MACS, src=src, dst=dst, sport=1, dport=2, payload=bytes(3000))
    first, second = (list(fragments(frame, 1500, number)) for number in (7, 8))
    at = slice(28, 30) if version == 4 else slice(24 + 40 + 4, 24 + 48)
    assert {piece[at] for piece in first} & {piece[at] for piece in second} == set()
    assert len({piece[at] for piece in first}) == 1
