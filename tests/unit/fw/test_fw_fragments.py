"""FragmentReassembler: judged as the packet that they make, or dropped with a word why."""

from itertools import pairwise

import pytest
from fw import IN, OUT, Wire, ends
from hypothesis import given, settings
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed
from vtl_tools.common.model.fragments import OCTETS_MAX, PACKETS_MAX, ReassembledPacket
from vtl_tools.common.packet import address, build, ip
from vtl_tools.common.packet.packet import Packet
from vtl_tools.services.fw.fragments import FragmentReassembler

RULES = "allow out udp port 53\nallow out tcp port 80\nallow out icmp, icmp6 type echo-request\ndeny"


def datagram(octets=100, *, six=False, dport=53, direction=OUT):
    payload = bytes(i & 0xFF for i in range(octets))
    return build.udp(**ends(direction, six), sport=5000, dport=dport, payload=payload)


def piece(frame, start, end, *, more=None, number=1, extra=b"", source=None):
    """The fragment of a whole frame's IP payload from start to end; extra: appended to its data."""
    net = Packet.at(frame).ip
    body = bytes(frame[net.payload_off : net.end])
    more = end < len(body) if more is None else more
    data = body[start:end] + extra
    head = bytearray(frame[: net.payload_off])
    if len(net.src) == 4:
        head[net.off + 2 : net.off + 4] = (20 + len(data)).to_bytes(2, "big")
        head[net.off + 4 : net.off + 6] = number.to_bytes(2, "big")
        head[net.off + 6 : net.off + 8] = (more << 13 | start >> 3).to_bytes(2, "big")
    else:
        head += bytes((net.protocol, 0)) + (start | more).to_bytes(2, "big") + number.to_bytes(4, "big")
        head[net.off + 4 : net.off + 6] = (8 + len(data)).to_bytes(2, "big")
        head[net.off + 6] = ip.FRAGMENT
    if source:
        head[net.off + 12 : net.off + 12 + len(source)] = source
    return head + data


@pytest.fixture
def wire():
    return Wire(RULES)


@pytest.mark.parametrize("six", [False, True])
def test_fragments_are_kept_until_the_packet_is_whole_and_then_sent_on_as_they_came(wire, six):
    whole = datagram(six=six)
    parts = [piece(whole, 48, 108), piece(whole, 0, 24), piece(whole, 24, 48)]
    assert [wire.raw(part, OUT) for part in parts[:2]] == ["fragment-held", "fragment-held"]
    decision = wire.pass_on(parts[2], OUT)
    assert decision.why == "new"
    assert decision.frames == tuple(map(bytes, parts))
    assert decision.whole[-108:] == whole[-108:]
    assert len(wire.tracker.fragments) == wire.tracker.fragments.octets == 0
    again = [piece(whole, 0, 48, number=2), piece(whole, 48, 108, number=2)]
    assert wire.raw(again[0], OUT) == "fragment-held"
    assert wire.raw(again[1], OUT) == "+known"


@pytest.mark.parametrize("six", [False, True])
def test_a_packet_that_no_rule_allows_is_dropped_whole(wire, six):
    whole = datagram(six=six, dport=54)
    assert wire.raw(piece(whole, 0, 48), OUT) == "fragment-held"
    decision = wire.pass_on(piece(whole, 48, 108), OUT)
    assert decision.why == "rule"
    assert len(decision.frames) == 2


@pytest.mark.parametrize("six", [False, True])
def test_fragments_that_overlap_spoil_their_packet(wire, six):
    whole = datagram(six=six)
    assert wire.raw(piece(whole, 0, 48), OUT) == "fragment-held"
    assert wire.raw(piece(whole, 0, 48), OUT) == "fragment-duplicate"
    assert wire.raw(piece(datagram(dport=54, six=six), 0, 48), OUT) == "fragment-overlap"
    assert wire.raw(piece(whole, 48, 108), OUT) == "fragment-overlap"
    assert wire.tracker.fragments.octets == 0
    wire.wait(31)
    assert wire.raw(piece(whole, 0, 48), OUT) == "fragment-held"
    assert wire.raw(piece(whole, 40, 108), OUT) == "fragment-overlap"


def test_an_end_is_one_end(wire):
    whole = datagram()
    assert wire.raw(piece(whole, 24, 48, more=False), OUT) == "fragment-held"
    assert wire.raw(piece(whole, 48, 108), OUT) == "fragment-overlap"
    assert wire.raw(piece(whole, 48, 72, number=2), OUT) == "fragment-held"
    assert wire.raw(piece(whole, 8, 24, more=False, number=2), OUT) == "fragment-overlap"


def test_tiny_fragments_do_not_hide_a_header(wire):
    tcp = build.tcp(**ends(OUT), sport=1, dport=80, flags=2, payload=bytes(80))
    assert wire.raw(piece(tcp, 0, 8), OUT) == "fragment-tiny"
    assert wire.raw(piece(tcp, 0, 16), OUT) == "fragment-tiny"
    assert wire.raw(piece(tcp, 8, 32), OUT) == "fragment-tiny"
    assert wire.raw(piece(tcp, 16, 32), OUT) == "fragment-tiny"
    assert wire.raw(piece(tcp, 0, 24), OUT) == "fragment-held"
    assert wire.raw(piece(datagram(), 0, 8, number=9), OUT) == "fragment-held"  # all of UDP's header


def test_lengths_that_cannot_be_are_malformed(wire):
    whole = datagram()
    assert wire.raw(piece(whole, 0, 20), OUT) == "fragment-malformed"
    assert wire.raw(piece(whole, 24, 24), OUT) == "fragment-malformed"
    far = piece(whole, 24, 48, more=False)
    far[30:32] = b"\x1f\xff"  # behind 64 KiB: the ping of death
    assert wire.raw(far, OUT) == "fragment-malformed"
    gso = piece(whole, 0, 48)
    gso[1] = 1
    assert wire.raw(gso, OUT) == "fragment-malformed"


def test_a_second_fragment_header_says_nothing(wire):
    part = piece(datagram(six=True), 0, 48)
    inner = bytes((ip.UDP, 0, 0, 0)) + bytes(4)
    nested = part[:64] + bytes((ip.FRAGMENT,)) + part[65:72] + inner + part[72:]
    nested[28:30] = (len(nested) - 64).to_bytes(2, "big")
    assert Packet.at(nested).ip.is_fragment is False
    assert wire.raw(nested, OUT) == "fragment-nested"


def test_neighbour_discovery_in_fragments_is_dropped(wire):
    here, there = ends(OUT, six=True)["src"], address.ALL_NODES
    macs = {"src_mac": bytes(6), "dst_mac": bytes(6)}
    advert = build.neighbor_advert(**macs, src=here, dst=there, target=here, lladdr=bytes(6))
    assert wire.raw(advert, OUT) == "+rule"
    assert wire.raw(piece(advert, 0, 32), OUT) == "fragment-neighbour"  # in one, atomic
    assert wire.raw(piece(advert, 0, 24), OUT) == "fragment-neighbour"
    options = bytes((ip.ICMPV6, 0, 1, 4, 0, 0, 0, 0))
    hidden = advert[:30] + bytes((ip.DSTOPTS,)) + advert[31:64] + options + advert[64:]
    hidden[28:30] = (len(hidden) - 64).to_bytes(2, "big")
    for part in piece_behind(hidden, 0, 8), piece_behind(hidden, 8, 40):
        assert wire.raw(part, OUT).startswith(("fragment", "malformed"))


def piece_behind(frame, start, end):
    """A fragment whose header stands before the extensions."""
    data = frame[64:]
    part = frame[:64] + bytes((frame[30], 0)) + (start | (end < len(data))).to_bytes(2, "big") + bytes(4)
    part += data[start:end]
    part[28:30] = (len(part) - 64).to_bytes(2, "big")
    part[30] = ip.FRAGMENT
    return part


def test_an_atomic_fragment_is_whole(wire):
    assert wire.raw(piece(datagram(six=True), 0, 108), OUT) == "+new"


def test_an_extension_behind_the_fragment_header_stays_in_the_packet(wire):
    whole = datagram(six=True)
    options = bytes((ip.UDP, 0, 1, 4, 0, 0, 0, 0))
    whole = whole[:30] + bytes((ip.DSTOPTS,)) + whole[31:64] + options + whole[64:]
    whole[28:30] = (len(whole) - 64).to_bytes(2, "big")
    data, parts = whole[64:], []
    for start, end, more in (0, 24, 1), (24, len(data), 0):
        part = (
            whole[:64]
            + bytes((ip.DSTOPTS, 0))
            + (start | more).to_bytes(2, "big")
            + bytes(4)
            + data[start:end]
        )
        part[28:30] = (len(part) - 64).to_bytes(2, "big")
        part[30] = ip.FRAGMENT
        parts.append(part)
    assert wire.raw(parts[1], OUT) == "fragment-held"
    assert wire.raw(parts[0], OUT) == "+new"


def test_what_is_not_whole_in_time_is_given_up(wire):
    whole = datagram()
    assert wire.raw(piece(whole, 0, 48), OUT) == "fragment-held"
    assert wire.tracker.deadline() == wire.now + 30
    wire.wait(31)
    assert wire.raw(piece(whole, 48, 108), OUT) == "fragment-held"


def test_directions_and_tags_are_not_mixed(wire):
    whole = datagram()
    assert wire.raw(piece(whole, 0, 48), OUT) == "fragment-held"
    assert wire.raw(piece(whole, 48, 108), IN) == "fragment-held"
    tagged = piece(whole, 48, 108)
    tagged = tagged[:22] + b"\x81\x00\x00\x07" + tagged[22:]
    assert wire.raw(tagged, OUT) == "fragment-held"
    assert len(wire.tracker.fragments) == 3


def test_a_flood_of_fragments_is_bounded_and_one_source_does_not_take_all():
    fragments = FragmentReassembler()
    whole = build.udp(**ends(IN), sport=5, dport=53, payload=bytes(1400))
    for number in range(3000):
        fragments.add(Packet.at(piece(whole, 0, 1400, number=number)), IN, 1.0)
    assert len(fragments) <= PACKETS_MAX
    assert fragments.octets <= OCTETS_MAX // 4
    other = address.ip("198.51.100.1")
    first, second = (Packet.at(piece(whole, *at, source=other)) for at in ((0, 1400), (1400, 1408)))
    assert fragments.add(first, IN, 2.0) is None
    assert isinstance(fragments.add(second, IN, 2.0), ReassembledPacket)
    for source in range(5000):
        packed = b"\xc6\x33" + source.to_bytes(2, "big")
        fragments.add(Packet.at(piece(whole, 0, 1400, source=packed)), IN, 3.0)
    assert len(fragments) <= PACKETS_MAX
    assert fragments.octets <= OCTETS_MAX
    fragments.wake(100.0)
    assert (len(fragments), fragments.octets, fragments.deadline()) == (0, 0, None)


@settings(max_examples=150, deadline=None)
@given(
    six=st.booleans(),
    octets=st.integers(1, 300),
    cuts=st.sets(st.integers(1, 38).map(lambda i: i * 8), max_size=8),
    order=st.randoms(use_true_random=False),
)
def test_whatever_the_cuts_and_the_order_the_packet_is_the_one_that_was_cut(six, octets, cuts, order):
    whole = datagram(octets, six=six)
    size = 8 + octets
    edges = [0, *sorted(cut for cut in cuts if cut < size), size]
    parts = [piece(whole, low, high, number=0) for low, high in pairwise(edges)]
    order.shuffle(parts)
    if len(parts) == 1:
        return
    fragments = FragmentReassembler()
    *before, last = [fragments.add(Packet.at(part), OUT, 1.0) for part in parts]
    assert before == [None] * len(before)
    assert last.packet == whole
    assert Packet.at(last.packet).verify()
    assert sorted(last.frames) == sorted(map(bytes, parts))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12), st.booleans(), st.booleans()),
        min_size=1,
        max_size=12,
    )
)
def test_what_is_forwarded_never_overlaps_and_has_no_hole(said):
    """Two versions of one datagram, in any pieces: what goes on can be read in one way only."""
    versions = datagram(80), datagram(80, dport=9)
    fragments = FragmentReassembler()
    for low, high, more, other in said:
        frame = piece(versions[other], low * 8, max(low, high) * 8, more=more)
        try:
            got = fragments.add(Packet.at(frame), OUT, 1.0)
        except Malformed:
            continue
        if not isinstance(got, ReassembledPacket):
            continue
        covered = []
        for forwarded in map(bytearray, got.frames):
            net = Packet.at(forwarded).ip
            start = net.fragment_offset * 8
            data = bytes(net.payload)
            covered += range(start, start + len(data))
            at = Packet.at(got.packet).ip.payload_off
            assert bytes(got.packet[at + start : at + start + len(data)]) == data
        assert sorted(covered) == list(range(len(covered)))
