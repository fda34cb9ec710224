"""Super-segments that are cut with partial checksums, and joined again from what comes."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.supersegments import ACK, FIN, PSH, octets, tcp, udp
from vtl_tools.common.packet.joining import join
from vtl_tools.common.packet.offload import cut, partial_to_full, segment

VERSIONS = pytest.mark.parametrize("version", [4, 6])
SIZE = 1000


def plain(frames):
    """Return the octets that a card makes of frames, one after the other."""
    return [bytes(one) for frame in frames for one in segment(bytearray(frame))]


def joined(frames, hops=3):
    return [bytes(frame) for _, frame in join((hops, memoryview(frame)) for frame in frames)]


@VERSIONS
@pytest.mark.parametrize("count", [2000, 40_001])
def test_what_is_cut_is_what_a_card_makes(version, count):
    whole = tcp(version, octets(count), SIZE)
    pieces = [bytearray(frame) for frame in cut(whole)]
    assert len(pieces) == -(-count // SIZE)
    for piece in pieces:
        partial_to_full(piece)
    assert [bytes(piece) for piece in pieces] == plain([whole])


@VERSIONS
@pytest.mark.parametrize("flags", [ACK, ACK | PSH, ACK | FIN | PSH])
def test_what_is_cut_and_joined_is_the_same_super_segment(version, flags):
    whole = tcp(version, octets(40_001), SIZE, flags=flags)
    again = joined(cut(whole))
    assert len(again) == 1
    assert plain(again) == plain([whole])


@VERSIONS
def test_around_a_lost_piece_there_are_two_super_segments(version):
    whole = tcp(version, octets(20_000), SIZE)
    pieces = cut(whole)
    again = joined([*pieces[:7], *pieces[8:]])
    assert len(again) == 2
    assert plain(again) == plain(pieces[:7]) + plain(pieces[8:])


@VERSIONS
def test_only_segments_of_one_connection_with_equal_headers_are_joined(version):
    first = list(cut(tcp(version, octets(3000), SIZE, flags=ACK)))
    for others in (
        cut(tcp(version, octets(3000), SIZE, seq=0x01020304 + 3000, options=b"", flags=ACK)),
        cut(tcp(version, octets(3000), SIZE, seq=0x01020304 + 3001, flags=ACK)),
        [bytearray(frame) for frame in segment(tcp(version, octets(3000), SIZE, seq=0x01020304 + 3000))],
        cut(udp(version, octets(3000), SIZE)),
    ):
        assert plain(joined([*first, *others])) == plain([*first, *others])
        assert len(joined([*first, *others])) > 1
    assert (
        len(list(join((hops, memoryview(frame)) for hops, frame in zip((1, 1, 2), first, strict=True)))) == 2
    )


@given(st.lists(st.integers(0, 59), max_size=80), st.sampled_from([4, 6]), st.randoms())
def test_in_any_order_and_with_any_octet_changed_the_segments_are_those_that_came(
    order, version, random: Random
):
    pieces = [*cut(tcp(version, octets(30_000), SIZE)), *cut(tcp(version, octets(30_000), SIZE, options=b""))]
    frames = [bytearray(pieces[i]) for i in order]
    if frames:
        frame = frames[random.randrange(len(frames))]
        frame[random.randrange(10, 90)] ^= 1 << random.randrange(8)
    again = joined(frames)
    assert len(again) <= len(frames)
    assert sum(map(len, plain(_sound(again)))) == sum(map(len, plain(_sound(frames))))


def _sound(frames):
    """Return those that a card takes."""
    for frame in frames:
        try:
            segment(bytearray(frame))
        except ValueError:
            continue
        yield frame


@given(st.lists(st.binary(min_size=24, max_size=120)))
def test_foreign_octets_pass_as_they_are(frames):
    assert joined(frames) == frames
