"""Answers to packets: inject this, expect that."""

import pytest

from vtl_tools.common.packet import address, build, derive, icmp, nd, tcp
from vtl_tools.common.packet.address import BROADCAST
from vtl_tools.common.packet.packet import Packet

GUEST, WORLD = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")
MACS = {"src_mac": GUEST, "dst_mac": WORLD, "vlan": (100, 7)}
V4 = {"src": address.ip("10.0.0.1"), "dst": address.ip("10.0.0.2")}
V6 = {"src": address.ip("2001:db8::1"), "dst": address.ip("2001:db8::2")}
PORTS = {"sport": 1000, "dport": 80}
BOTH = pytest.mark.parametrize("ends", [V4, V6], ids=["v4", "v6"])


def answered(frame: bytearray | None) -> Packet:
    """Every answer goes back behind the same tags, with its checksums right."""
    assert frame is not None
    pkt = Packet.at(frame)
    assert (pkt.eth.src, pkt.eth.dst) == (WORLD, GUEST)
    assert [tag.vid for tag in pkt.vlans] == [100, 7]
    assert pkt.verify()
    return pkt


@BOTH
def test_data_is_acknowledged_up_to_its_end(ends):
    options = tcp.encode_options(timestamps=(5, 6))
    data = Packet.at(
        build.tcp(
            **MACS, **ends, **PORTS, seq=2**32 - 2, ack=9, flags=tcp.ACK, options=options, payload=b"abc"
        )
    )
    reply = answered(derive.ack(data, window=500))
    assert (reply.tcp.sport, reply.tcp.dport) == (80, 1000)
    assert (reply.tcp.seq, reply.tcp.ack, reply.tcp.flags, reply.tcp.window) == (9, 1, tcp.ACK, 500)
    assert reply.tcp.timestamps == (6, 5)


@BOTH
def test_a_syn_is_reset_with_the_ack_that_covers_it(ends):
    reply = answered(derive.rst(Packet.at(build.tcp(**MACS, **ends, **PORTS, seq=100, flags=tcp.SYN))))
    assert (reply.tcp.seq, reply.tcp.ack, reply.tcp.flags) == (0, 101, tcp.RST | tcp.ACK)


@BOTH
def test_an_ack_is_reset_at_its_own_number_without_an_ack(ends):
    reply = answered(derive.rst(Packet.at(build.tcp(**MACS, **ends, **PORTS, ack=55, flags=tcp.ACK))))
    assert (reply.tcp.seq, reply.tcp.ack, reply.tcp.flags) == (55, 0, tcp.RST)


def test_a_reset_is_never_answered():
    pkt = Packet.at(build.tcp(**MACS, **V4, **PORTS, flags=tcp.RST))
    assert derive.rst(pkt) is None
    assert derive.ack(pkt, window=1) is None


@BOTH
def test_a_syn_is_answered_by_a_syn_ack(ends):
    pkt = Packet.at(build.tcp(**MACS, **ends, **PORTS, seq=100, flags=tcp.SYN))
    reply = answered(derive.syn_ack(pkt, iss=7, window=1000, options=tcp.encode_options(mss=1400)))
    assert (reply.is_syn_ack, reply.tcp.seq, reply.tcp.ack, reply.tcp.mss) == (True, 7, 101, 1400)
    assert derive.syn_ack(reply, iss=7, window=1000) is None


def test_an_arp_request_is_answered_and_an_announcement_is_not():
    ask = {"src_mac": GUEST, "dst_mac": BROADCAST, "vlan": (100, 7), "sha": GUEST, "spa": V4["src"]}
    reply = answered(derive.arp_reply(Packet.at(build.arp(**ask, tpa=V4["dst"])), WORLD))
    assert (reply.arp.sha, reply.arp.spa, reply.arp.tha, reply.arp.tpa) == (
        WORLD,
        V4["dst"],
        GUEST,
        V4["src"],
    )
    assert derive.arp_reply(Packet.at(build.arp(**ask, tpa=V4["src"])), WORLD) is None
    assert derive.arp_reply(reply, GUEST) is None


def solicitation(src: bytes, **more) -> Packet:
    dst = address.solicited_node(V6["dst"])
    ends = {"src": src, "dst": dst, "target": V6["dst"], **more}
    return Packet.at(
        build.neighbor_solicit(src_mac=GUEST, dst_mac=address.multicast_mac(dst), vlan=(100, 7), **ends)
    )


def test_a_neighbour_solicitation_is_answered_by_a_solicited_advertisement():
    reply = answered(derive.nd_reply(solicitation(V6["src"]), WORLD, router=True))
    advert = reply.nd
    assert isinstance(advert, nd.NeighborAdvert)
    assert (advert.router, advert.solicited, advert.override) == (1, 1, 1)
    assert (advert.target, advert.target_lladdr) == (V6["dst"], WORLD)
    assert (reply.ip.src, reply.ip.dst, reply.ip.ttl) == (V6["dst"], V6["src"], 255)


def test_duplicate_address_detection_is_answered_to_all_nodes():
    frame = derive.nd_reply(solicitation(bytes(16)), WORLD)
    reply = Packet.at(frame)
    assert address.format_mac(reply.eth.dst) == "33:33:00:00:00:01"
    assert (reply.ip.dst, reply.nd.solicited) == (address.ALL_NODES, 0)
    assert reply.verify()


def test_a_solicitation_from_beyond_the_link_is_not_answered():
    pkt = solicitation(V6["src"])
    pkt.ip.hop_limit = 254
    assert derive.nd_reply(pkt, WORLD) is None


@BOTH
def test_an_echo_is_answered_with_its_data(ends):
    pkt = Packet.at(build.icmp_echo(**MACS, **ends, identifier=1, sequence=2, payload=b"ping"))
    reply = answered(derive.echo_reply(pkt))
    assert (reply.icmp.identifier, reply.icmp.sequence, bytes(reply.payload)) == (1, 2, b"ping")
    assert reply.icmp.is_echo
    assert derive.echo_reply(reply) is None


def error(pkt: Packet) -> bytearray | None:
    if pkt.ipv4:
        return derive.icmp_error(pkt, icmp.UNREACHABLE, icmp.PORT_UNREACHABLE, src=V4["dst"])
    return derive.icmp_error(pkt, icmp.V6_UNREACHABLE, icmp.V6_PORT_UNREACHABLE, src=V6["dst"])


@BOTH
def test_an_icmp_error_quotes_as_much_as_may_be(ends):
    for size in (0, 5, 2000):
        pkt = Packet.at(build.udp(**MACS, **ends, **PORTS, payload=bytes(size)))
        reply = answered(error(pkt))
        most = 576 if ends is V4 else 1280
        whole = pkt.ip.end - pkt.ip.off + (28 if ends is V4 else 48)
        assert reply.ip.end - reply.ip.off == min(most, whole)
        assert reply.quoted_flow == pkt.flow


@BOTH
def test_no_error_about_an_error(ends):
    about = Packet.at(error(Packet.at(build.udp(**MACS, **ends, **PORTS))))
    assert error(about) is None


@BOTH
def test_no_error_to_a_sender_that_is_no_single_host(ends):
    nobody = {**ends, "src": bytes(len(ends["src"]))}
    assert error(Packet.at(build.udp(**MACS, **nobody, **PORTS))) is None


def test_no_error_about_a_packet_to_a_group_except_too_big():
    four = {**V4, "dst": address.ip("224.0.0.5")}
    assert error(Packet.at(build.udp(**MACS, **four, **PORTS))) is None
    pkt = Packet.at(build.udp(**MACS, src=V6["src"], dst=address.ip("ff02::5"), **PORTS))
    assert error(pkt) is None
    reply = answered(derive.icmp_error(pkt, icmp.V6_PACKET_TOO_BIG, 0, src=V6["dst"], rest=1280))
    assert reply.icmp.mtu == 1280


def test_no_error_about_a_link_layer_broadcast_or_a_later_fragment():
    to_all = {**MACS, "dst_mac": BROADCAST}
    assert error(Packet.at(build.udp(**to_all, **V4, **PORTS))) is None
    pkt = Packet.at(build.udp(**MACS, **V4, **PORTS))
    pkt.ip.fragment_offset = 1
    assert error(Packet.at(pkt.buf)) is None


@BOTH
def test_a_datagram_is_answered_from_where_it_went(ends):
    reply = answered(derive.udp_reply(Packet.at(build.udp(**MACS, **ends, **PORTS)), b"yes"))
    assert (reply.udp.sport, bytes(reply.payload)) == (80, b"yes")
