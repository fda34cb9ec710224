"""The octets of a flow, in whatever order its sessions bring them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.errors import Malformed
from vtl_tools.services.udt.transport.reassembly import GAPS_MAX, FlowBuffer

CONTENT = bytes(range(251)) * 1000
ROOM = memoryview(bytearray(len(CONTENT)))


def read(buffer: FlowBuffer, most: int = len(CONTENT)) -> bytes:
    return bytes(ROOM[: buffer.read_into(ROOM, most)])


@st.composite
def arrivals(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """The content in pieces, which several sessions bring, each in its order."""
    cuts = draw(st.lists(st.integers(1, len(CONTENT) - 1), max_size=12, unique=True).map(sorted))
    pieces = list(zip([0, *cuts], [*cuts, len(CONTENT)], strict=True))
    lanes = draw(st.lists(st.integers(0, 3), min_size=len(pieces), max_size=len(pieces)))
    order = draw(st.permutations(lanes))
    waiting = {lane: [piece for piece, on in zip(pieces, lanes, strict=True) if on == lane] for lane in lanes}
    return [(start, CONTENT[start:end]) for lane in order for start, end in [waiting[lane].pop(0)]]


@given(arrivals(), st.integers(len(CONTENT) // 50, len(CONTENT)))
def test_octets_are_read_in_their_order_and_once(came: list[tuple[int, bytes]], most: int) -> None:
    buffer, got, arrived = FlowBuffer(), b"", 0
    for offset, data in came:
        before = buffer.next
        assert buffer.add(offset, data) == (buffer.next > before)
        arrived += len(data)
        assert buffer.total == arrived
        got += read(buffer, most)
        assert CONTENT.startswith(got)
        assert buffer.unread == buffer.next - len(got)
        assert buffer.held == arrived - buffer.next
    while piece := read(buffer, most):
        got += piece
    assert got == CONTENT
    assert (buffer.held, buffer.unread) == (0, 0)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 20)), max_size=30))
def test_an_octet_that_comes_twice_is_malformed_and_nothing_else_is(pieces: list[tuple[int, int]]) -> None:
    buffer, known = FlowBuffer(), set[int]()
    for offset, size in pieces:
        octets = set(range(offset, offset + size))
        if known & octets:
            with pytest.raises(Malformed):
                buffer.add(offset, CONTENT[offset : offset + size])
        else:
            buffer.add(offset, CONTENT[offset : offset + size])
            known |= octets
    whole = next(at for at in range(100) if at not in known)
    assert (buffer.next, buffer.total) == (whole, len(known))
    assert read(buffer) == CONTENT[:whole]


def test_gaps_have_a_bound() -> None:
    buffer = FlowBuffer()
    for number in range(1, GAPS_MAX + 1):
        buffer.add(2 * number, b"x")
    with pytest.raises(Malformed):
        buffer.add(2 * GAPS_MAX + 2, b"x")
    assert buffer.held == GAPS_MAX


def test_a_gap_that_is_filled_makes_all_that_follows_readable() -> None:
    buffer = FlowBuffer()
    assert not buffer.add(6, CONTENT[6:9])
    assert not buffer.add(3, CONTENT[3:6])
    assert not buffer.add(10, CONTENT[10:12])
    assert buffer.add(0, CONTENT[:3])
    assert read(buffer) == CONTENT[:9]
    assert buffer.held == 2
