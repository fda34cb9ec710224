"""ICMP errors about segments: which are read, and which are believed."""

from contextlib import suppress

import pytest
from far import CLIENT_MAC, HOP_MAC, FarScene, path_of
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import build, derive, icmp, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.relay.icmp_errors import read_error
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.state import State

UNREACHABLE = {4: icmp.UNREACHABLE, 6: icmp.V6_UNREACHABLE}


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def scene(request):
    return FarScene(request.param)


def about(pkt, kind, code, rest=0):
    """The error that the server sends about a packet."""
    return memoryview(derive.icmp_error(pkt, kind, code, src=pkt.ip.dst, rest=rest))


@pytest.fixture
def calling(scene):
    """A connector whose SYN is on its way to nobody."""
    scene.silent = True
    connector = scene.connector()
    connector.step(0)
    scene.turn()
    return scene, connector, scene.heard[-1]


CODES = [
    ((icmp.UNREACHABLE, 0), (icmp.V6_UNREACHABLE, 0), Reason.NET_UNREACHABLE),
    ((icmp.UNREACHABLE, 1), (icmp.V6_UNREACHABLE, 3), Reason.HOST_UNREACHABLE),
    ((icmp.UNREACHABLE, 3), (icmp.V6_UNREACHABLE, 4), Reason.REFUSED),
    ((icmp.UNREACHABLE, 13), (icmp.V6_UNREACHABLE, 1), Reason.PROHIBITED),
    ((icmp.TIME_EXCEEDED, 0), (icmp.V6_TIME_EXCEEDED, 0), Reason.HOST_UNREACHABLE),
]


@pytest.mark.parametrize(("v4", "v6", "reason"), CODES)
def test_an_error_about_a_syn_is_the_reason(calling, v4, v6, reason):
    scene, connector, syn = calling
    error = read_error(about(syn, *(v4 if scene.version == 4 else v6)))
    assert scene.active.on_error(error, scene.now)
    assert connector.step(scene.told[-1]) is reason
    scene.turn()
    assert not scene.active.streams


def test_an_error_about_another_syn_is_not_believed(calling):
    scene, connector, syn = calling
    syn.tcp.seq = (syn.tcp.seq + 1) % 2**32
    assert scene.active.on_error(read_error(about(syn, UNREACHABLE[scene.version], 3)), scene.now)
    assert connector.step(0) is None


def test_an_error_of_nobodys_segment_is_not_ours(calling):
    scene, _, syn = calling
    syn.tcp.dport = 81
    assert not scene.active.on_error(read_error(about(syn, UNREACHABLE[scene.version], 3)), scene.now)


def test_a_smaller_path_mtu_is_kept_to(scene):
    stream, _ = scene.open()
    scene.lose = lambda pkt: len(pkt.buf) - VNET - 14 > 1400
    stream.send(bytes(100_000))
    scene.turn()
    sent = build.tcp(
        src_mac=CLIENT_MAC, dst_mac=HOP_MAC, src=path_of(scene.version).local, sport=40000, dport=80,
        dst=path_of(scene.version).remote, seq=stream.endpoint.snd.snd_una, payload=bytes(9), flags=tcp.ACK,
    )  # fmt: skip
    is4 = scene.version == 4
    kind = (icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED) if is4 else (icmp.V6_PACKET_TOO_BIG, 0)
    scene.active.on_error(read_error(about(Packet.at(sent), *kind, rest=1400)), scene.now)
    scene.pass_(10.0)
    assert scene.server().readable == 100_000
    assert stream.endpoint.state is State.ESTABLISHED


def test_other_messages_are_no_errors_about_segments():
    where = {"src_mac": CLIENT_MAC, "dst_mac": HOP_MAC, "src": b"\x0a\0\0\2", "dst": b"\xc0\0\2\1"}
    datagram = Packet.at(build.udp(**where, sport=1, dport=2, payload=b"x"))
    segment = build.tcp(**where, sport=1, dport=2, flags=tcp.SYN)
    assert read_error(about(datagram, icmp.UNREACHABLE, 3)) is None
    assert read_error(memoryview(segment)) is None
    assert read_error(about(Packet.at(segment), icmp.REDIRECT, 1)) is None


def test_a_quoted_fragment_is_no_segment():
    where = {"src_mac": CLIENT_MAC, "dst_mac": HOP_MAC, "src": b"\x0a\0\0\2", "dst": b"\xc0\0\2\1"}
    segment = Packet.at(build.tcp(**where, sport=1, dport=2, flags=tcp.SYN))
    error = derive.icmp_error(segment, icmp.UNREACHABLE, 3, src=segment.ip.dst)
    quoted = VNET + 14 + 20 + 8
    error[quoted + 7] = 1  # eight octets into a packet
    assert read_error(memoryview(error)) is None


@given(st.binary(max_size=100), st.booleans())
def test_foreign_octets_are_read_or_malformed(octets, is4):
    frame = bytearray(build.over_ip(
        bytes(12), bytes(3 * is4 + 15 * (not is4)) + b"\1", bytes(3 * is4 + 15 * (not is4)) + b"\2",
        1 if is4 else 58, bytes((3 if is4 else 1, 1, 0, 0, 0, 0, 0, 0)), octets,
    ))  # fmt: skip
    with suppress(Malformed):
        read_error(memoryview(frame))
