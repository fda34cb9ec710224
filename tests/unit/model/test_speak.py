"""Packets that a model creates or adopts, as the other end and a checksum see them."""

import pytest

from vtl_tools.common.model.base import LOCAL, REMOTE
from vtl_tools.common.model.ether import EtherEnd, EtherModel
from vtl_tools.common.model.ip import IPEnd, IPModel
from vtl_tools.common.model.tcp import TcpModel
from vtl_tools.common.model.tcp_end import TcpEnd
from vtl_tools.common.model.udp import UdpEnd, UdpModel
from vtl_tools.common.packet import address, build, tcp, vnet
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp_state import State

ENDS = pytest.mark.parametrize("end", [LOCAL, REMOTE], ids=["local", "remote"])
OTHER_MACS = {"src_mac": b"\x02other", "dst_mac": b"\x02world"}
MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")


@pytest.fixture(params=[("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2")], ids=["ipv4", "ipv6"])
def ip_model(request):
    here, there = (address.ip(text) for text in request.param)
    link = EtherModel(EtherEnd(MACS[0]), EtherEnd(MACS[1]))
    return IPModel(link, IPEnd(here, identification=7), IPEnd(there, ttl=50, dscp=10, flow_label=99))


@ENDS
def test_data_continues_the_connection_from_either_end(established, end):
    frame = established.model.create(b"hello", from_=end)
    pkt = Packet.at(frame)
    assert pkt.verify()
    assert bytes(pkt.tcp.payload) == b"hello"
    assert pkt.tcp.flags == tcp.ACK | tcp.PSH
    assert (pkt.tcp.seq, pkt.tcp.ack) == tuple((established.iss[one] + 1) % 2**32 for one in (end, end.other))
    assert established.model.seen.text == "data"
    assert established.numbers(end) == (1, 6, 1)
    assert established.numbers(end.other) == (1, 1, 6)
    assert established.quick.sync_frame(frame) is end


@ENDS
def test_a_look_at_the_next_segment_changes_nothing(established, end):
    frame = established.model.create(b"hello", from_=end, sync=False)
    assert established.numbers(end) == (1, 1, 1)
    assert established.model.create(b"hello", from_=end, sync=False) == frame


def test_a_created_ack_covers_what_passed(established):
    established.local("P.", 1, 100, ack=1)
    pkt = Packet.at(established.model.create(from_=REMOTE))
    assert pkt.tcp.ack == (established.iss[LOCAL] + 101) % 2**32
    assert established.numbers(LOCAL) == (101, 101, 1)


def test_a_frozen_ends_answer_acknowledges_only_what_it_had_acknowledged(established):
    established.remote("P.", 1, 100, ack=1)
    model = established.model
    pkt = Packet.at(model.create(from_=LOCAL, ack=model.remote.snd_una, window=0))
    assert pkt.tcp.ack == (established.iss[REMOTE] + 1) % 2**32
    assert pkt.tcp.window == 0
    assert model.remote.snd_wnd == 0


def test_timestamps_are_the_last_of_the_end_and_echo_the_others(talk):
    talk.handshake(timestamps=True)
    talk.remote("P.", 1, 10, ack=1, timestamps=(950, 101))
    assert Packet.at(talk.model.create(from_=LOCAL)).tcp.timestamps == (101, 950)
    assert Packet.at(talk.model.create(from_=REMOTE)).tcp.timestamps == (950, 101)


def test_a_window_is_shifted_by_the_ends_scale(established):
    assert Packet.at(established.model.create(window=1000 << 7)).tcp.window == 1000
    assert Packet.at(established.model.create(window=1 << 30)).tcp.window == 0xFFFF


def test_a_payload_above_the_segment_size_becomes_a_super_segment_on_demand(established):
    model = established.model
    assert model.segment_size(LOCAL) == 1460
    with pytest.raises(ValueError, match="1461 octets exceed the 1460"):
        model.create(bytes(1461))
    frame = model.create(bytes(5000), offload=True)
    flags, gso_type, hdr_len, gso_size, start, offset = vnet.HEADER.unpack_from(frame)
    pkt = Packet.at(frame)
    assert (flags, gso_size, offset) == (vnet.F_NEEDS_CSUM, 1460, 16)
    assert gso_type == (vnet.GSO_TCPV4 if established.version == 4 else vnet.GSO_TCPV6)
    assert (start, hdr_len) == (pkt.tcp.off - vnet.VNET, pkt.tcp.payload_off - vnet.VNET)
    assert pkt.compute_transport_checksum()
    assert pkt.verify()
    with pytest.raises(ValueError, match="octets do not fit"):
        model.create(bytes(65530), offload=True)


@pytest.mark.parametrize(("version", "size"), [(4, 536), (6, 1220)])
def test_an_mss_that_nobody_told_is_the_default(new_talk, version, size):
    talk = new_talk(version)
    talk.local(".", 1, ack=1)
    assert talk.model.segment_size(LOCAL) == size


def test_timestamps_take_room_from_a_segment(talk):
    assert talk.handshake(timestamps=True).model.segment_size(LOCAL) == 1448


def test_two_ends_made_by_hand_converse_from_syn_to_close(ip_model):
    local = TcpEnd(1000, snd_nxt=100, mss=1400, wscale=7, sack_permitted=True, timestamps=True, tsval=1)
    remote = TcpEnd(80, snd_nxt=900, mss=1300, wscale=2, timestamps=True, tsval=2)
    model = TcpModel(ip_model, local, remote)
    syn = Packet.at(model.create(flags=tcp.SYN))
    assert (syn.tcp.mss, syn.tcp.window_scale, syn.tcp.sack_permitted) == (1400, 7, True)
    answer = Packet.at(model.create(from_=REMOTE, flags=tcp.SYN | tcp.ACK))
    assert (answer.tcp.seq, answer.tcp.ack, answer.tcp.timestamps) == (900, 101, (2, 1))
    model.create()
    assert (local.state, remote.state) == (State.ESTABLISHED, State.ESTABLISHED)
    assert model.sack_permitted is False
    model.create(b"request")
    model.create(b"answer", from_=REMOTE, flags=tcp.ACK | tcp.FIN)
    model.create(flags=tcp.ACK | tcp.FIN)
    model.create(from_=REMOTE)
    assert (local.state, remote.state) == (State.CLOSED, State.TIME_WAIT)
    assert local.rcv_nxt == remote.snd_nxt == 901 + 6 + 1


def test_an_answer_holds_only_what_the_syn_offered(ip_model):
    offers = {"wscale": 7, "sack_permitted": True, "timestamps": True}
    model = TcpModel(ip_model, TcpEnd(1000), TcpEnd(80, **offers))
    model.create(flags=tcp.SYN)
    answer = Packet.at(model.create(from_=REMOTE, flags=tcp.SYN | tcp.ACK)).tcp
    assert answer.window_scale is None
    assert answer.timestamps is None
    assert not answer.sack_permitted


def test_an_established_connection_may_be_made_by_hand(ip_model):
    both = {"state": State.ESTABLISHED, "wscale": 3}
    model = TcpModel(
        ip_model,
        TcpEnd(1000, snd_nxt=100, rcv_nxt=900, rcv_wnd=800, snd_wnd=8000, **both),
        TcpEnd(80, snd_nxt=900, rcv_nxt=100, rcv_wnd=8000, snd_wnd=800, **both),
    )
    pkt = Packet.at(model.create(b"x"))
    assert (pkt.tcp.seq, pkt.tcp.ack, pkt.tcp.window) == (100, 900, 100)
    assert model.seen.taken


@ENDS
@pytest.mark.parametrize("partial", [False, True], ids=["full", "partial"])
def test_an_adopted_segment_is_the_next_of_its_end(established, end, partial):
    hosts = ("192.0.2.9", "192.0.2.1") if established.version == 4 else ("2001:db8::9", "2001:db8::1")
    established.remote(".", 1, ack=1)
    src, dst = (address.ip(text) for text in hosts)
    options = tcp.encode_options(timestamps=(1, 2), sack=[(5, 6)])
    frame = build.tcp(
        **OTHER_MACS, src=src, dst=dst, sport=5, dport=6, seq=77, ack=88, flags=tcp.ACK, window=9,
        payload=b"adopted", options=options, partial=partial, ttl=3,
    )  # fmt: skip
    pkt = Packet.at(frame)
    assert established.model.matches(pkt) is None
    established.model.adopt(pkt, end)
    pkt = Packet.at(frame)
    assert established.quick.sync(pkt) is end
    assert established.numbers(end) == (1, 8, 1)
    assert pkt.tcp.seq == (established.iss[end] + 1) % 2**32
    assert pkt.tcp.window == 1000
    assert pkt.tcp.timestamps is None, "this connection has none"
    assert pkt.tcp.sack == []
    assert pkt.eth.src == established.model.ip.link[end].mac
    assert pkt.ip.ttl == 64
    assert bytes(pkt.tcp.payload) == b"adopted"
    assert pkt.compute_transport_checksum() if partial else True
    assert Packet.at(frame).verify()


def test_an_adopted_segment_may_be_given_its_numbers(established):
    frame = established.frame(LOCAL, ".", 50, 10, ack=3)
    established.model.adopt(Packet.at(frame), LOCAL, seq=123, ack=456, sync=False)
    assert (Packet.at(frame).tcp.seq, Packet.at(frame).tcp.ack) == (123, 456)
    assert established.numbers(LOCAL) == (1, 1, 1)


def test_what_cannot_belong_is_not_adopted(new_talk):
    four, six = new_talk(4).handshake(), new_talk(6).handshake()
    with pytest.raises(ValueError, match="not IPv4"):
        four.model.adopt(Packet.at(six.frame(LOCAL, ".", 1, ack=1)), LOCAL)
    with pytest.raises(ValueError, match="VLAN tags"):
        four.model.adopt(Packet.at(four.frame(LOCAL, ".", 1, ack=1, vlan=5)), LOCAL)
    with pytest.raises(ValueError, match="TCP"):
        four.model.adopt(Packet.at(UdpModel(four.model.ip, UdpEnd(1), UdpEnd(2)).create()), LOCAL)


@pytest.mark.parametrize("offload", [False, True])
@ENDS
def test_a_datagram_is_created_from_either_end(ip_model, end, offload):
    model = UdpModel(ip_model, UdpEnd(5000), UdpEnd(53))
    frame = model.create(b"query", from_=end, offload=offload)
    pkt = Packet.at(frame)
    assert model.matches(pkt) is end
    assert UdpModel.from_packet(pkt, end).matches(pkt) is end
    assert bytes(pkt.udp.payload) == b"query"
    assert pkt.needs_csum is offload
    assert pkt.compute_transport_checksum()
    assert pkt.verify()


def test_a_header_says_what_the_end_says(ip_model):
    frame = ip_model.create(b"hop", from_=REMOTE, protocol=253)
    net = Packet.at(frame).ip
    assert (net.ttl, net.dscp, bytes(net.payload)) == (50, 10, b"hop")
    if ip_model.version == 6:
        assert net.flow_label == 99
        assert IPModel.from_packet(Packet.at(frame), REMOTE).remote.flow_label == 99


def test_each_packet_has_the_next_identification(new_talk):
    model = new_talk(4).handshake().model
    model.ip.local.identification = 0xFFFF
    assert [Packet.at(model.create()).ip.identification for _ in range(3)] == [0xFFFF, 0, 1]


def test_a_datagram_is_adopted(ip_model):
    model = UdpModel(ip_model, UdpEnd(5000), UdpEnd(53))
    here, there = ip_model.local.address, ip_model.remote.address
    frame = build.udp(**OTHER_MACS, src=there, dst=here, sport=1, dport=2, payload=b"x")
    model.adopt(Packet.at(frame), LOCAL)
    assert model.sync(Packet.at(frame)) is LOCAL
    assert Packet.at(frame).verify()


def test_tags_are_put_on_what_is_created(established):
    established.local(".", 1, ack=1, vlan=(100, 7))
    pkt = Packet.at(established.model.create(b"x"))
    assert [tag.vid for tag in pkt.vlans] == [100, 7]
    assert pkt.verify()


def test_the_layers_below_tell_who_sent_a_frame_too(established):
    pkt = Packet.at(established.frame(REMOTE, ".", 1, ack=1))
    assert established.model.ip.sync(pkt) is REMOTE
    assert established.model.ip.link.sync(pkt) is REMOTE


def test_a_segment_that_tells_of_no_connection_makes_no_model(new_talk):
    with pytest.raises(ValueError, match="neither SYN nor ACK"):
        new_talk().local("R", 5)
    with pytest.raises(ValueError, match="not a whole TCP segment"):
        TcpModel.from_packet(Packet.at(bytearray(60)))
