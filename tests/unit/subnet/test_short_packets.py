"""Which packets take the short way, and what is changed in them."""

import struct

import pytest
from figure6 import DIRECT, FROM_VM

from vtl_tools.common.packet import address, build, icmp, ip, tcp, vnet
from vtl_tools.common.packet.packet import Packet

ROUTER_ALERT = bytes.fromhex("9404000094040000")
FAR = address.ip("192.0.2.1")


@pytest.fixture
def up(world):
    """A function: what VM1 sends to VM2 while the shortcut is up, and by which way it goes."""
    world.talk(v6=True)
    world.chat(3.0)
    one, _ = world

    def send(*frames):
        one.long.clear()
        one.direct.clear()
        one.told.clear()
        one.push(FROM_VM, *frames)
        return ["short"] * len(one.direct) + ["long"] * len(one.long)

    send.world, (send.one, send.other) = world, world
    return send


def with_ipv6_header(frame, number, body):
    """The frame with an extension header in front of what its IPv6 header leads to."""
    at = vnet.VNET + 14
    length = struct.unpack_from("!H", frame, at + 4)[0] + len(body)
    head = frame[: at + 4] + length.to_bytes(2, "big") + bytes([number]) + frame[at + 7 : at + 40]
    return head + bytes([frame[at + 6]]) + body[1:] + frame[at + 40 :]


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("ttl", [255, 128, 64, 2])
def test_one_hop_is_taken_and_the_checksum_stays_right(up, v6, ttl):
    assert up(up.one.packet(up.other, v6=v6, ttl=ttl)) == ["short"]
    (pkt,) = [Packet.at(bytearray(frame)) for frame in up.one.direct]
    assert pkt.ip.ttl == ttl - 1
    assert pkt.verify()
    assert (pkt.eth.dst, pkt.eth.src) == (up.other.mac, up.one.mac)


def test_every_ipv4_header_keeps_its_checksum(up):
    for number in range(0, 65536, 257):
        up(up.one.packet(up.other, ttl=2 + number % 254, ip_id=number, tos=number % 256))
        (pkt,) = [Packet.at(bytearray(frame)) for frame in up.one.direct]
        assert pkt.verify()
        assert pkt.ipv4.checksum != 0xFFFF  # as a header that is not zeros cannot sum to 0


def test_a_wrong_checksum_stays_wrong(up):
    frame = up.one.packet(up.other)
    frame[vnet.VNET + 14 + 10] ^= 0x55
    up(frame)
    assert not Packet.at(bytearray(up.one.direct[0])).verify()


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("ttl", [0, 1])
def test_what_would_die_is_left_to_the_router(up, v6, ttl):
    frame = up.one.packet(up.other, v6=v6, ttl=ttl)
    assert up(frame) == ["long"]
    assert up.one.long == [bytes(frame)]


def test_ipv4_options_are_left_to_the_router(up):
    frame = up.one.packet(up.other)
    at = vnet.VNET + 14
    longer = bytearray(frame[: at + 20] + ROUTER_ALERT + frame[at + 20 :])
    longer[at] = 0x47
    longer[at + 2 : at + 4] = (len(longer) - at).to_bytes(2, "big")
    Packet.at(longer).compute_ip_checksum()
    assert up(longer) == ["long"]


@pytest.mark.parametrize(
    ("number", "body", "way"),
    [
        (ip.HOPOPTS, bytes.fromhex("0000050200000100"), "long"),  # a router alert
        (ip.DSTOPTS, bytes.fromhex("0000010400000000"), "short"),
        (ip.ROUTING, bytes.fromhex("0002020100000000") + address.ip("fd02::5"), "long"),
        (ip.FRAGMENT, bytes.fromhex("0000000100000007"), "short"),
        (200, bytes(8), "short"),
    ],
)
def test_extension_headers_of_ipv6(up, number, body, way):
    frame = with_ipv6_header(up.one.packet(up.other, bytes(8), v6=True), number, body)
    assert up(frame) == [way]


@pytest.mark.parametrize(
    ("number", "body"),
    [(ip.DSTOPTS, bytes.fromhex("0000010400000000")), (ip.AH, bytes.fromhex("0000000000000007"))],
)
def test_a_header_in_front_of_a_routing_header_does_not_hide_it(up, number, body):
    routed = with_ipv6_header(
        up.one.packet(up.other, v6=True),
        ip.ROUTING,
        bytes.fromhex("0002020100000000") + address.ip("fd02::5"),
    )
    assert up(with_ipv6_header(routed, number, body)) == ["long"]


def test_a_broken_chain_of_headers_is_left_to_the_router(up):
    frame = with_ipv6_header(up.one.packet(up.other, v6=True), ip.DSTOPTS, bytes.fromhex("00ff010400000000"))
    assert up(frame) == ["long"]


def test_fragments_take_the_short_way_each(up):
    first, second = (bytearray(up.one.packet(up.other, bytes(800))) for _ in range(2))
    for frame, field in (first, 0x2000), (second, 100):
        Packet.at(frame).ipv4.flags_fragment = field
    assert up(first, second) == ["short", "short"]


# --- the size


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize(("octets", "way"), [(1500, "short"), (1501, "long")])
def test_what_does_not_fit_goes_the_default_way(up, v6, octets, way):
    payload = bytes(octets - (48 if v6 else 28))
    assert up(up.one.packet(up.other, payload, v6=v6)) == [way]
    assert len(up.one.told) == (1 if v6 and way == "long" else 0)


def test_the_vm_is_told_what_fits(up):
    """By IPv4 where it said that it must not be fragmented, by IPv6 always; from who it talks to."""
    too_large = bytes(1500)
    frames = [
        up.one.packet(up.other, too_large, dont_fragment=True),
        up.one.packet(up.other, too_large, v6=True),
    ]
    assert up(*frames) == ["long", "long"]
    four, six = (Packet.at(bytearray(frame)) for frame in up.one.told)
    assert (four.icmp.type, four.icmp.code, four.icmp.mtu) == (
        icmp.UNREACHABLE,
        icmp.FRAGMENTATION_NEEDED,
        1500,
    )
    assert (six.icmp.type, six.icmp.mtu) == (icmp.V6_PACKET_TOO_BIG, 1500)
    for error, src, dst in (four, up.other.ip, up.one.ip), (six, up.other.ip6, up.one.ip6):
        assert error.verify()
        assert (error.ip.src, error.ip.dst) == (src, dst)
        assert (error.eth.src, error.eth.dst) == (up.one.gateway, up.one.mac)


def test_it_is_told_a_hundred_times_a_second_at_most(up):
    told = 0
    for _ in range(20):
        up(*[up.one.packet(up.other, bytes(1500), v6=True)] * 64)
        told += len(up.one.told)
    assert told == 100


def test_the_smaller_mtu_of_both_sides_holds(world):
    one, other = world
    other.stage.on_mtu(DIRECT, 1400)
    world.chat(3.0)
    for payload, count in (1372, 1), (1373, 0):
        one.direct.clear()
        one.push(FROM_VM, one.packet(other, bytes(payload)))
        assert len(one.direct) == count


def test_the_vms_own_link_may_be_the_smallest(world):
    one, other = world
    other.stage.on_mtu(FROM_VM, 1300)
    world.chat(3.0)
    one.direct.clear()
    one.push(FROM_VM, one.packet(other, bytes(1300)))
    assert one.direct == []


# --- super-segments


def segments(up, payload, size, *, v6=False, options=b"", **more):
    ends = {"src": up.one.ip6, "dst": up.other.ip6} if v6 else {"src": up.one.ip, "dst": up.other.ip}
    return build.tcp(
        src_mac=up.one.mac, dst_mac=up.one.gateway, **ends, sport=5, dport=6, flags=tcp.ACK, options=options,
        payload=bytes(payload), partial=True, gso_size=size, **more,
    )  # fmt: skip


@pytest.mark.parametrize("v6", [False, True])
def test_a_super_segment_goes_whole_with_its_partial_checksum(up, v6):
    frame = segments(up, 60000, 1400, v6=v6)
    before = Packet.at(bytearray(frame))
    assert up(frame) == ["short"]
    after = Packet.at(bytearray(up.one.direct[0]))
    assert (after.gso_size, after.needs_csum, after.tcp.checksum) == (1400, True, before.tcp.checksum)
    assert (after.ip.ttl, after.verify()) == (63, True)


@pytest.mark.parametrize("v6", [False, True])
def test_a_super_segment_is_as_large_as_what_it_is_cut_into(up, v6):
    """Its segments of `size` octets and headers, timestamps included, have to fit."""
    stamps = tcp.encode_options(timestamps=(1, 2))
    fits = 1500 - (40 if v6 else 20) - 20 - len(stamps) - (-len(stamps) % 4)
    for size, way in (fits, "short"), (fits + 1, "long"):
        assert up(segments(up, 60000, size, v6=v6, options=stamps)) == [way]
        assert len(up.one.told) == (way == "long" and v6)


def test_a_small_super_segment_is_as_large_as_it_is(up):
    assert up(segments(up, 100, 9000)) == ["short"]


@pytest.mark.parametrize("v6", [False, True])
def test_super_segments_of_udp(up, v6):
    ends = {"src": up.one.ip6, "dst": up.other.ip6} if v6 else {"src": up.one.ip, "dst": up.other.ip}
    for size, way in (1400, "short"), (1480, "long"):
        frame = build.udp(
            src_mac=up.one.mac, dst_mac=up.one.gateway, **ends, sport=5, dport=6, payload=bytes(30000),
            partial=True, gso_size=size,
        )  # fmt: skip
        assert up(frame) == [way]


@pytest.mark.parametrize("at", [6, 14 + 8, 14 + 12, 14 + 16])
def test_a_checksum_that_is_to_be_written_elsewhere_takes_no_short_way(up, at):
    """A guest has its host write over the addresses, or the TTL, that were looked at."""
    frame = up.one.packet(up.other, bytes(100))
    vnet.HEADER.pack_into(frame, 0, vnet.F_NEEDS_CSUM, vnet.GSO_NONE, 0, 0, at, 0)
    assert up(frame) == ["long"]
    vnet.HEADER.pack_into(frame, 0, vnet.F_NEEDS_CSUM, vnet.GSO_TCPV4, 54, 40, at, 0)
    assert up(frame) == ["long"]
    fields = {"src_mac": up.other.mac, "dst_mac": up.one.mac, "src": up.other.ip, "dst": up.one.ip, "ttl": 63}
    frame = build.udp(**fields, sport=1, dport=2, payload=bytes(100))
    vnet.HEADER.pack_into(frame, 0, vnet.F_NEEDS_CSUM, vnet.GSO_NONE, 0, 0, at, 0)
    up.one.got.clear()
    up.one.push(DIRECT, frame)
    assert up.one.got == []
    assert up.one.stage.drops == {"offload": 1}


# --- what is no packet for a shortcut


@pytest.mark.parametrize("size", range(0, 84, 3))
def test_runts_go_the_default_way(up, size):
    frame = bytes(up.one.packet(up.other, bytes(40)))[: vnet.VNET + size]
    assert up(frame) == ["long" if size < 34 else "short"]
    assert up.one.stage.drops == {}


def test_spoofed_sources_groups_and_others_go_the_default_way(up):
    other_mac = address.mac("02:00:00:00:00:77")
    for changed in (
        {"src": address.ip("10.1.0.6")},
        {"src_mac": other_mac},
        {"dst_mac": b"\xff" * 6},
        {"dst": FAR},
        {"dst": address.ip("10.2.0.255")},
    ):
        assert up(up.one.packet(up.other, **changed)) == ["long"], changed
