"""vtl-split --uplink: TCP ends at both links, and all else passes."""

from random import Random

import pytest
from between import HOSTS, MACS, Between, carry, path_from
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet import address, build, derive, icmp, tcp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.relay.budget import RelayLimits
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.state import Ended, State
from vtl_tools.services.split.side import Stations

SIDES = [0, 1]


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def between(request):
    return Between(version=request.param)


def packets(frames):
    return [Packet.at(bytearray(frame)) for frame in frames]


@pytest.mark.parametrize("side", SIDES, ids=["from-the-guest", "from-the-network"])
def test_each_end_sees_the_other_ends_addresses(between, side):
    one, two = between.establish(side)
    assert carry(between, one, two, b"question", b"answer") == (b"answer", b"question")
    there = path_from(side, between.version)
    for pkt in packets(between.heard[1 - side]):
        assert (pkt.eth.src, pkt.eth.dst) == (there.local_mac, there.remote_mac)
        assert (pkt.ip.src, pkt.ip.dst) == (there.local, there.remote)
        assert (pkt.tcp.sport, pkt.tcp.dport) == (40000, 80)
    for pkt in packets(between.heard[side]):
        assert (pkt.eth.src, pkt.eth.dst) == (there.remote_mac, there.local_mac)
        assert (pkt.ip.src, pkt.ip.dst) == (there.remote, there.local)
    assert not between.stage.drops
    between.pass_(100.0)
    assert between.flows == [{}] * 4


@pytest.mark.parametrize("seed", range(6))
def test_every_octet_arrives_once_and_in_order_over_a_bad_network(seed):
    rng = Random(seed)
    between = Between(seed, version=rng.choice((4, 6)), loss=rng.choice((0.0, 0.01, 0.05)))
    one, two = between.establish(rng.choice(SIDES))
    says, answers = rng.randbytes(rng.choice((0, 10, 400_000))), rng.randbytes(rng.choice((0, 10, 400_000)))
    assert carry(between, one, two, says, answers) == (answers, says)
    between.pass_(500.0)
    assert between.flows == [{}] * 4


def test_a_syn_is_answered_when_the_far_side_has_answered(between):
    between.lose = lambda side, pkt: side == 1
    one = between.open()
    between.pass_(0.5)
    assert one.state is State.SYN_SENT
    assert between.heard[1]
    between.lose = lambda side, pkt: False
    between.run(lambda: one.state is State.ESTABLISHED)


def test_early_acks_answer_at_once_and_data_waits():
    between = Between(early_ack=True)
    between.lose = lambda side, pkt: side == 1
    one = between.open()
    between.pass_(0.01)
    assert one.state is State.ESTABLISHED
    one.write(b"early")
    between.pass_(0.1)
    between.lose = lambda side, pkt: False
    between.run(lambda: between.far(one) is not None and between.far(one).readable == 5)


def test_the_network_is_never_answered_early():
    between = Between(early_ack=True)
    between.lose = lambda side, pkt: side == 0
    one = between.open(1)
    between.pass_(0.5)
    assert one.state is State.SYN_SENT


def test_a_refusal_crosses(between):
    between.refuses = True
    one = between.open()
    between.run(lambda: one.ended is not None)
    assert one.ended is Ended.REFUSED
    between.pass_(1.0)
    assert between.flows == [{}] * 4


def test_half_closes_cross(between):
    one, two = between.establish()
    one.close()
    between.run(lambda: two.at_eof)
    two.write(b"still there")
    between.run(lambda: one.readable == 11)
    two.close()
    one.skip(11)
    between.run(lambda: one.at_eof)


def test_a_port_is_used_again_at_once(between):
    for _ in range(3):
        one, two = between.establish()
        two.close()  # so that the guest's end of the relay waits, and takes a new SYN all the same
        between.run(lambda one=one: one.at_eof)
        assert carry(between, one, two, b"question", b"") == (b"", b"question")
        between.run(lambda one=one: one.state in (State.TIME_WAIT, State.CLOSED))
        for ends_of_side in between.ends:
            ends_of_side.clear()


def test_a_simultaneous_open_within_one_turn_is_one_connection(between):
    ends = between.open(0, port=4000, dport=80), between.open(1, port=80, dport=4000)
    for side, end in enumerate(ends):
        between.stage.on_batch(side, Batch.of(end.transmit(between.now)), between.now)
    between.settle()
    between.run(lambda: all(end.state is State.ESTABLISHED for end in ends))
    assert carry(between, *ends, b"question", b"answer") == (b"answer", b"question")


def test_a_reset_right_behind_a_syn_ends_the_connection_and_does_not_pass():
    between = Between(on_demand=True)
    between.stage.verbs()["carry"]({"take": True})
    segments = [
        build.tcp(**ends(0), sport=1, dport=80, seq=n, flags=f) for n, f in ((7, tcp.SYN), (8, tcp.RST))
    ]
    between.inject(0, *segments)
    assert not between.heard[1]
    between.pass_(1.0)
    assert between.flows == [{}] * 4


def test_resets_cross(between):
    for resetting, reset in (0, 1), (1, 0):
        ends = between.establish(port=50000 + resetting)
        ends[resetting].abort()
        between.run(lambda ends=ends, reset=reset: ends[reset].ended is not None)
        assert ends[reset].ended is Ended.RESET
        between.pass_(1.0)
        assert between.flows == [{}] * 4


def test_a_reader_that_stops_stops_the_sender(between):
    for reader in (0, 1):
        ends = between.establish(port=50000 + reader)
        writer = ends[1 - reader]
        written = 0
        for _ in range(150):
            written += writer.write(bytes(1 << 16))
            between.pass_(0.05)
        kept = between.stage.status(between.now)["carried"]["held"]
        assert written < 12 << 20
        assert kept < 8 << 20
        left = written
        while left:
            left -= len(ends[reader].read())
            between.pass_(0.01)
        ends[0].abort()
        between.pass_(1.0)


def test_stopping_resets_both_ends(between):
    one, two = between.establish()
    between.stage.on_stop(between.now)
    between.run(lambda: one.ended is not None and two.ended is not None)
    assert (one.ended, two.ended) == (Ended.RESET, Ended.RESET)
    assert between.flows == [{}] * 4


# --- what is no segment


def others(version=4):
    """Frames that pass, by name."""
    us, them = (address.ip(text) for text in HOSTS[version])
    where = {"src_mac": MACS[0], "dst_mac": MACS[1], "src": us, "dst": them}
    datagram = build.udp(**where, sport=1, dport=2, payload=b"datagram")
    segment = build.tcp(**where, sport=1, dport=2, flags=tcp.SYN)
    tagged = segment[: VNET + 12] + b"\x81\x00\x00\x07" + segment[VNET + 12 :]
    kind = icmp.UNREACHABLE if version == 4 else icmp.V6_UNREACHABLE
    fragment = bytearray(datagram)
    if version == 4:
        pkt = Packet.at(fragment)
        pkt.ip.flags_fragment = 0x2000
    return {
        "udp": datagram,
        "udp-fragment": fragment,
        "arp": build.arp(
            src_mac=MACS[0], dst_mac=b"\xff" * 6, sha=MACS[0], spa=b"\x0a\0\0\2", tpa=b"\x0a\0\0\1"
        ),
        "icmp-error-about-udp": derive.icmp_error(Packet.at(datagram), kind, 3, src=us),
        "tagged-tcp": tagged,
        "lldp": bytes(VNET) + b"\x01\x80\xc2\0\0\x0e" + MACS[0] + b"\x88\xcc" + bytes(46),
        "runt": bytes(VNET) + b"\x01\x02\x03",
    }  # fmt: skip


@pytest.mark.parametrize("name", others())
@pytest.mark.parametrize("side", SIDES)
def test_what_is_no_segment_passes_unchanged(between, side, name):
    frame = bytes(others(between.version)[name])
    between.lose = lambda side, pkt: True
    between.stage.out[1 - side] = lambda batch, now: between.heard[1 - side].extend(map(bytes, batch))
    between.inject(side, frame)
    assert between.heard[1 - side] == [frame]
    assert not between.heard[side]
    assert not between.stage.drops


def test_the_rest_of_a_batch_keeps_its_order():
    between = Between()
    frames = others()
    between.inject(0, frames["udp"], build.tcp(**ends(0), sport=1, dport=80, flags=tcp.SYN), frames["arp"])
    (udp, arp, syn) = between.heard[1]
    assert (udp, arp) == (bytes(frames["udp"]), bytes(frames["arp"]))
    assert packets([syn])[0].is_syn


def ends(side, version=4):
    path = path_from(side, version)
    return {
        "src_mac": path.local_mac, "dst_mac": path.remote_mac, "src": path.local, "dst": path.remote
    }  # fmt: skip


@pytest.mark.parametrize("side", SIDES)
def test_segments_between_others_pass_and_are_not_answered(between, side):
    where = ends(side, between.version) | {"dst_mac": b"\x02\0\0\0\0\x77"}
    if side == 0:  # to another station behind the first link
        between.inject(0, build.udp(**ends(0) | {"src_mac": where["dst_mac"]}, sport=1, dport=2, payload=b""))
    between.heard[1].clear()
    for flags in tcp.SYN, tcp.ACK:
        frame = bytes(build.tcp(**where, sport=1, dport=2, flags=flags))
        between.inject(side, frame)
        assert between.heard[1 - side].pop() == frame
        assert between.heard == ([], [])
    assert between.flows == [{}] * 4


@pytest.mark.parametrize("side", SIDES)
def test_fragments_and_errors_between_others_pass(side):
    between = Between()
    where = ends(side) | {"dst_mac": b"\x02\0\0\0\0\x77"}
    if side == 0:
        between.inject(0, build.udp(**ends(0) | {"src_mac": where["dst_mac"]}, sport=1, dport=2, payload=b""))
    between.heard[1].clear()
    fragment = Packet.at(build.tcp(**where, sport=1, dport=2, flags=tcp.SYN, payload=bytes(64)))
    fragment.ip.flags_fragment = 0x2000
    segment = Packet.at(build.tcp(**ends(1 - side), sport=2, dport=1, flags=tcp.SYN))
    error = Packet.at(unreachable(segment, 1, 3))
    error.eth.dst = where["dst_mac"]
    for frame in bytes(fragment.buf), bytes(error.buf):
        between.inject(side, frame)
        assert between.heard[1 - side].pop() == frame
    assert not between.stage.drops


def test_stations_are_bounded_and_a_group_is_none():
    stations = Stations()
    for number in range(5000):
        stations.learn(b"\2\0" + number.to_bytes(4, "big"))
    stations.learn(b"\1\0\0\0\0\1")
    stations.learn(b"\2\0")
    assert b"\1\0\0\0\0\1" not in stations
    assert b"\2\0" not in stations
    assert sum(b"\2\0" + number.to_bytes(4, "big") in stations for number in range(5000)) == 4096
    assert b"\2\0" + (4999).to_bytes(4, "big") in stations


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", [19, 29])
def test_signed_segments_pass(between, side, kind):
    signed = tcp.SYN, tcp.SYN | tcp.ACK, tcp.ACK, tcp.RST
    for flags in signed:
        options = bytes((1, 1, kind, 18)) + bytes(16)
        frame = bytes(
            build.tcp(**ends(side, between.version), sport=1, dport=2, flags=flags, options=options)
        )
        between.inject(side, frame)
        assert between.heard[1 - side].pop() == frame
        assert between.heard == ([], [])


def test_the_far_segments_have_the_time_to_live_and_dscp_of_the_guests(between):
    syns = []
    for sport, marks in (1, (255, 46)), (2, (3, 0)):
        syn = Packet.at(build.tcp(**ends(0, between.version), sport=sport, dport=2, flags=tcp.SYN))
        syn.ip.ttl, syn.ip.dscp = marks
        syns.append(syn.buf)
    between.inject(0, *syns)
    far = {pkt.tcp.sport: (pkt.ip.ttl, pkt.ip.dscp) for pkt in packets(between.heard[1])}
    assert far == {1: (255, 46), 2: (3, 0)}


def test_a_connection_follows_the_guest_to_another_router(between):
    one, two = between.establish()
    router = b"\x02\0\0\0\0\x55"
    one.readdress(remote_mac=router)
    one.write(b"by another way")
    between.run(lambda: two.readable == 14)
    assert packets(between.heard[1])[-1].eth.dst == router
    assert packets(between.heard[0])[-1].eth.src == router


@pytest.mark.parametrize("side", SIDES)
def test_segments_of_no_connection_are_reset_and_go_no_further(between, side):
    where = ends(side, between.version)
    stranger = build.tcp(**where, sport=1, dport=2, seq=7, ack=9, flags=tcp.ACK, payload=b"x")
    between.inject(side, stranger)
    (answer,) = packets(between.heard[side])
    assert answer.is_rst
    assert answer.tcp.seq == 9
    assert not between.heard[1 - side]
    reset = build.tcp(**where, sport=1, dport=2, seq=7, flags=tcp.RST)
    between.inject(side, reset)
    assert len(between.heard[side]) == 1
    assert not between.heard[1 - side]
    assert between.stage.drops == {"no-connection": 2}


def test_fragments_of_segments_go_no_further():
    between = Between()
    frame = bytearray(build.tcp(**ends(0), sport=1, dport=2, flags=tcp.SYN, payload=bytes(64)))
    pkt = Packet.at(frame)
    pkt.ip.flags_fragment = 0x2000
    later = bytearray(frame)
    Packet.at(later).ip.flags_fragment = 0x0008
    between.inject(0, frame, later)
    assert between.heard == ([], [])
    assert between.stage.drops == {"fragment": 2}


def test_a_guest_that_sends_from_a_group_address_reaches_nothing(between):
    where = ends(0, between.version) | {"src_mac": b"\x01\0\0\0\0\1"}
    between.inject(0, build.tcp(**where, sport=1, dport=2, flags=tcp.SYN))
    assert not between.heard[1]


def test_segments_to_groups_go_no_further(between):
    where = ends(0, between.version) | {"dst_mac": b"\xff" * 6}
    between.inject(0, build.tcp(**where, sport=1, dport=2, flags=tcp.SYN))
    assert between.heard == ([], [])
    assert between.stage.drops == {"not-unicast": 1}


# --- errors about segments


def unreachable(pkt, code4, code6):
    """An ICMP error about a packet, from its destination."""
    is4 = len(pkt.ip.src) == 4
    kind, code = (icmp.UNREACHABLE, code4) if is4 else (icmp.V6_UNREACHABLE, code6)
    return derive.icmp_error(pkt, kind, code, src=pkt.ip.dst)


def too_big(pkt, mtu):
    if len(pkt.ip.src) == 4:
        kind, code = icmp.UNREACHABLE, icmp.FRAGMENTATION_NEEDED
    else:
        kind, code = icmp.V6_PACKET_TOO_BIG, 0
    return derive.icmp_error(pkt, kind, code, src=pkt.ip.dst, rest=mtu)


@pytest.mark.parametrize(
    ("codes", "told"),
    [((0, 0), (0, 0)), ((1, 3), (1, 3)), ((13, 1), (13, 1)), ((3, 4), None)],
    ids=["net", "host", "prohibited", "port"],
)
def test_unreachable_servers_are_told_to_the_guest(between, codes, told):
    one = between.open()
    between.run(lambda: between.heard[1])
    syn = Packet.at(bytearray(between.heard[1][0]))
    between.inject(1, unreachable(syn, *codes))
    answer = Packet.at(bytearray(between.heard[0][-1]))
    if told is None:
        between.run(lambda: one.ended is Ended.REFUSED, 1.0)
    else:
        assert answer.icmp.code == told[0 if between.version == 4 else 1]
        assert answer.quoted_flow[1:] == (one.path.local, 40000, one.path.remote, 80)
        assert answer.eth.dst == MACS[0]
    assert between.flows == [{}] * 4


def test_errors_about_open_connections_change_nothing(between):
    one, two = between.establish()
    one.write(b"data")
    between.run(lambda: any(pkt.tcp.payload for pkt in packets(between.heard[1])))
    pkt = packets(between.heard[1])[-1]
    between.inject(1, unreachable(pkt, 1, 3))
    between.run(lambda: two.readable == 4)
    assert one.state is State.ESTABLISHED


def test_a_forged_error_ends_nothing(between):
    one = between.open()
    between.run(lambda: between.heard[1])
    syn = Packet.at(bytearray(between.heard[1][0]))
    syn.tcp.seq = (syn.tcp.seq + 1) % 2**32
    between.inject(1, unreachable(syn, 1, 3))
    between.run(lambda: one.state is State.ESTABLISHED)


def test_the_path_mtu_is_learned_and_the_guest_hears_nothing_of_it(between):
    one, two = between.establish()
    narrow = 1300

    def lose(side, pkt):
        if side == 1 and pkt.ip.src == one.path.local and len(pkt.buf) - VNET - 14 > narrow:
            between.put(1, True, too_big(pkt, narrow))
            return True
        return False

    between.lose = lose
    says = bytes(range(256)) * 400
    assert carry(between, one, two, says, b"") == (b"", says)
    assert not any(pkt.icmp for pkt in packets(between.heard[0]))


def test_an_error_with_a_wrong_checksum_goes_no_further(between):
    one = between.open()
    between.run(lambda: between.heard[1])
    error = unreachable(Packet.at(bytearray(between.heard[1][0])), 1, 3)
    error[-1] ^= 1
    error[0] = 0
    between.inject(1, error)
    assert between.stage.drops == {"checksum": 1}
    between.run(lambda: one.state is State.ESTABLISHED)


def test_errors_about_unknown_segments_go_no_further(between):
    stranger = Packet.at(build.tcp(**ends(0, between.version), sport=1, dport=2, flags=tcp.SYN))
    between.inject(1, unreachable(stranger, 1, 3))
    assert between.heard == ([], [])
    assert between.stage.drops == {"icmp-no-connection": 1}


# --- limits


def test_connections_that_are_being_opened_from_the_network_are_few():
    between = Between(limits=RelayLimits(half_open=4096))
    between.lose = lambda side, pkt: True
    for number in range(3000):
        between.inject(1, build.tcp(**ends(1), sport=10_000 + number, dport=80, flags=tcp.SYN))
    assert len(between.heard[0]) <= 1024


@pytest.mark.parametrize("side", SIDES)
def test_buffers_towards_the_network_grow_for_the_path(side):
    between = Between()
    big = {"receive_buffer": 1 << 24, "send_buffer": 1 << 24}
    ends = between.establish(side, config=Config(**big))
    ends[1].configure(**big)
    network = between.stage.sides[1]
    (far,) = (network.active.streams or network.relay.flows).values()
    assert (far.endpoint.config.send_buffer, far.endpoint.config.receive_buffer) == (1 << 20, 1 << 20)
    says = bytes(4_000_000)
    assert carry(between, *ends, says, says) == (says, says)
    assert far.endpoint.config.send_buffer > 1 << 20
    assert far.endpoint.config.receive_buffer > 1 << 20


@pytest.mark.parametrize(("memory", "most"), [(64, 48), (1024, 128)])
def test_one_connection_may_take_three_quarters_of_the_memory(memory, most):
    between = Between(limits=RelayLimits(memory=memory << 20))
    assert [side.active.config.buffer_max for side in between.stage.sides] == [most << 20] * 2


def test_buffered_octets_are_bounded_however_many_connections_there_are():
    limits = RelayLimits(memory=2 << 20)
    between = Between(limits=limits)
    ends = [between.establish(port=50_000 + number, config=Config())[1] for number in range(12)]
    for _ in range(40):
        for server in ends:
            if server.ended is None:
                server.write(bytes(1 << 17))
        between.pass_(0.05)
        assert between.stage.status(between.now)["carried"]["held"] <= limits.most
    assert between.stage.drops["memory"]


@given(st.integers(0, 1), st.binary(max_size=120), st.integers(0, 2**32 - 1))
def test_any_frame_is_survived(side, octets, number):
    between = Between()
    between.lose = lambda side, pkt: True
    between.stage.out = [lambda batch, now: None] * 2
    between.inject(side, bytes(VNET) + octets)
    frame = bytearray(build.tcp(**ends(side), sport=1, dport=80, flags=tcp.SYN, payload=octets))
    frame[VNET + number % (len(frame) - VNET)] ^= number >> 8 & 0xFF
    between.inject(side, frame)


def test_on_demand_connections_are_taken_that_begin_while_it_is_asked_for(between):
    demanded = Between(version=between.version, on_demand=True)
    ask = demanded.stage.verbs()["carry"]
    old, other = demanded.establish(0)
    assert demanded.flows == [{}] * 4, "it passes"
    ask({"take": True})
    assert carry(demanded, old, other, b"question", b"answer") == (b"answer", b"question")
    assert ask({}) == {"taking": True, "up": True, "flows": 0, "octets": 0}
    one, two = demanded.establish(1)
    assert carry(demanded, one, two, b"question", b"answer") == (b"answer", b"question")
    assert ask({"take": False}) == {"taking": False, "up": True, "flows": 1, "octets": 14}
