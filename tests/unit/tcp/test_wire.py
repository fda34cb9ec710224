"""Headers and options that are not the usual ones."""

from dataclasses import replace

import pytest
from talk import PLAIN, Talk

from vtl_tools.common.packet import tcp, vnet
from vtl_tools.common.packet.checksum import checksum
from vtl_tools.common.packet.ipv4 import LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.state import Ended, SegmentDrop


@pytest.mark.parametrize(
    "options", ["fd0401020101080a", "0101080a", "05000000", "08ff0000", "01010101", "00ffffff"]
)
def test_options_unknown_or_broken_do_no_harm(established, options):
    end, peer = established
    pkt = Packet.at(peer.frame(".", 1, bytes.fromhex(options) + b"data", ack=1))
    pkt.tcp.data_offset += len(options) // 8  # what was data is options now
    end.receive(pkt.buf, peer.now)
    peer.expect(".", ack=5)
    assert bytes(end.read()) == b"data"


def test_a_sack_option_without_blocks_is_none(make):
    end, peer = make(replace(PLAIN, sack=True))
    end.write(b"ours")
    peer.expect(".", seq=1, data=b"ours")
    peer.inject(".", 1, b"data", ack=1, raw=bytes((tcp.SACK, 2)))
    peer.expect(".", ack=5)
    assert bytes(end.read()) == b"data"


def test_an_mss_is_offered_in_the_syn_only(fresh):
    peer = fresh(replace(PLAIN, mss=None))
    peer.tcp.connect()
    assert peer.expect("S", seq=0).mss == {4: 1460, 16: 1440}[len(peer.path.local)]
    peer.inject("S.", 0, ack=1, mss=1000)
    heard = peer.expect(".", seq=1, ack=1)
    assert heard.find_option(tcp.MSS) == 0
    assert heard.header_length % 4 == 0


def test_dscp_and_ttl_are_as_told(fresh):
    peer = fresh(replace(PLAIN, ttl=7, dscp=46))
    peer.tcp.connect()
    peer.pump()
    ip = peer.said[0].ip
    assert (ip.ttl if len(ip.src) == 4 else ip.hop_limit) == 7
    assert ip.dscp == 46


def test_dscp_and_ttl_may_change_while_the_connection_lives(established):
    tcp, peer = established
    tcp.configure(dscp=10, ttl=3)
    tcp.write(b"x")
    peer.pump()
    ip = peer.said[0].ip
    assert (ip.ttl if len(ip.src) == 4 else ip.hop_limit) == 3
    assert ip.dscp == 10


def extended(frame, options):
    """A frame with IP options, of a multiple of four octets."""
    frame[44:44] = options
    frame[24] += len(options) // 4
    frame[27] += len(options)
    frame[34:36] = bytes(2)
    frame[34:36] = checksum(frame[24 : 44 + len(options)]).to_bytes(2, "big")
    return frame


def test_ip_options_are_ignored():
    peer = Talk()
    peer.tcp.listen()
    peer.tcp.receive(extended(peer.frame("S", 0, mss=1000), bytes(4)), peer.now)
    assert peer.tcp.asked


def test_what_comes_in_a_burst_is_acknowledged_together(established):
    end, peer = established
    for seq in range(1, 6001, 1000):
        end.receive(peer.frame(".", seq, bytes(1000), ack=1), peer.now)
    peer.expect(".", ack=6001)
    peer.expect_nothing()


def test_a_reset_counts_while_our_window_is_shut(make):
    end, peer = make(replace(PLAIN, receive_buffer=1000))
    peer.inject(".", 1, 1000, ack=1)
    peer.expect(".", ack=1001, win=0)
    peer.inject("R", 1001)
    assert end.ended is Ended.RESET


def test_a_super_segment_says_what_it_is_to_be_cut_into(established):
    end, peer = established
    end.write(bytes(5000))
    (frame,) = end.transmit(peer.now)
    assert vnet.HEADER.unpack_from(frame)[3] == 1000
    assert Packet.at(frame).tcp_payload_len == 5000


@pytest.mark.parametrize("kind", [LOOSE_SOURCE_ROUTE, STRICT_SOURCE_ROUTE])
@pytest.mark.parametrize("pointer", [4, 8], ids=["to be followed", "at its end"])
def test_what_its_sender_routed_is_dropped(kind, pointer):
    peer = Talk()
    peer.tcp.listen()
    route = bytes((1, kind, 7, pointer)) + peer.path.local
    peer.tcp.receive(extended(peer.frame("S"), route), peer.now)
    assert not peer.tcp.asked
    assert peer.tcp.info().drops == {SegmentDrop.SOURCE_ROUTE: 1}


@pytest.mark.parametrize("left", [0, 1])
def test_a_routing_header_is_ignored_at_its_end_only(left):
    peer = Talk(version=6)
    peer.tcp.listen()
    frame = peer.frame("S", 0, mss=1000)
    frame[64:64] = bytes((6, 2, 0, left, 0, 0, 0, 0)) + peer.path.local
    frame[30] = 43
    frame[29] += 24
    peer.tcp.receive(frame, peer.now)
    assert peer.tcp.asked == (not left)
    assert peer.tcp.info().drops == ({SegmentDrop.SOURCE_ROUTE: 1} if left else {})


def test_a_path_differs_in_fields_that_it_has(fresh):
    path = fresh(PLAIN).path
    assert path.replace(local_port=81) != path == path.replace(local_port=path.local_port)
    with pytest.raises(TypeError):
        path.replace(prot=81)
