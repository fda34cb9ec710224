"""A flow on several sessions: who may join it, and that its octets arrive in order and once."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.udt.pairs import OPENING, Pair, outgoing, read, write
from vtl_tools.common.errors import Malformed
from vtl_tools.common.relay.connector import HUNG_UP, WRITABLE
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.frames import FRAME, OFFSET, FrameKind
from vtl_tools.services.udt.transport.session import LANES_MAX, Session, SessionConfig
from vtl_tools.services.udt.transport.tokens import NO_TOKEN, FlowTokens

PLAIN = SessionConfig(encrypt=False)
TOKEN = bytes(range(1, 17))


class Bundle:
    """Several sessions between two modules. pairs[0] is the one that flows are opened on."""

    def __init__(self, count: int = 3, config: SessionConfig = PLAIN) -> None:
        self.tokens: FlowTokens[MuxFlow] = FlowTokens()
        self.pairs = [Pair(config, tokens=self.tokens) for _ in range(count)]
        self.exchange()

    def exchange(self) -> None:
        for _ in range(2 * len(self.pairs)):
            for pair in self.pairs:
                pair.exchange()

    def spread(self, token: bytes = TOKEN) -> tuple[MuxFlow, MuxFlow]:
        """Open a flow that uses all sessions; return both of its ends."""
        near, far = self.open(token)
        for pair in self.pairs[1:]:
            pair.near.join(near, 0.0)
        self.exchange()
        return near, far

    def open(self, token: bytes = TOKEN) -> tuple[MuxFlow, MuxFlow]:
        near = MuxFlow(OPENING, token)
        self.pairs[0].near.open(near, 0.0)
        self.exchange()
        return near, self.pairs[0].arrived[-1]

    @property
    def lanes(self) -> list[int]:
        return [len(side.lanes) for pair in self.pairs for side in (pair.near, pair.far)]


def frame(kind: FrameKind, number: int, payload: bytes) -> bytes:
    return FRAME.pack(kind, number, len(payload)) + payload


def say(side: Session, *frames: bytes) -> None:
    """Let plain frames of the other end come."""
    body = b"".join(frames)
    side.receive(memoryview(struct.pack("!I", len(body)) + body), 0.0)


def data(offset: int, octets: bytes, number: int = 1) -> bytes:
    return frame(FrameKind.DATA, number, OFFSET.pack(offset) + octets)


@given(st.lists(st.integers(0, 5), max_size=60), st.booleans(), st.booleans())
def test_octets_cross_whole_in_whatever_order_the_sessions_bring_them(
    turns: list[int], upwards: bool, encrypt: bool
) -> None:
    bundle = Bundle(3, SessionConfig(encrypt=encrypt))
    near, far = bundle.spread()
    source, sink = (near, far) if upwards else (far, near)
    content = bytes(range(251)) * 6000
    sent, got = 0, b""
    while not sink.got_end:
        before = sent, len(got)
        if sent < len(content):
            sent += write(source, content[sent:])
        elif not source.sent_end:
            source.shutdown(socket.SHUT_WR)
        for turn in turns or range(6):
            pair = bundle.pairs[turn % 3]
            ways = ((pair.near, pair.far), (pair.far, pair.near))[turn // 3 :: 2]
            for one, other in ways:
                other.receive(memoryview(outgoing(one)), 0.0)
        if before == (sent, len(got)):
            bundle.exchange()  # the turns leave a session out
        got += read(sink)
        assert content.startswith(got)
    assert got + read(sink) == content
    sink.shutdown(socket.SHUT_WR)
    bundle.exchange()
    near.close()
    far.close()
    bundle.exchange()
    assert bundle.lanes == [0] * 6
    assert all(side.is_up for pair in bundle.pairs for side in (pair.near, pair.far))


def test_all_sessions_have_their_share() -> None:
    bundle = Bundle(4)
    near, far = bundle.spread()
    before = [pair.near.sent for pair in bundle.pairs]
    for _ in range(20):
        while write(near, bytes(100_000)):
            pass
        for pair in bundle.pairs:
            pair.far.receive(memoryview(outgoing(pair.near)), 0.0)
        read(far)
        bundle.exchange()
    moved = [pair.near.sent - sent for pair, sent in zip(bundle.pairs, before, strict=True)]
    assert min(moved) > max(moved) // 2


def test_octets_that_come_one_by_one_stay_on_one_session() -> None:
    bundle = Bundle(3)
    near, far = bundle.spread()
    before = [pair.near.sent for pair in bundle.pairs]
    for _ in range(100):
        assert write(near, b"x" * 100) == 100
        bundle.exchange()
    assert read(far) == b"x" * 10_000
    assert sum(pair.near.sent > sent for pair, sent in zip(bundle.pairs, before, strict=True)) == 1


def test_a_flow_that_waits_is_told_of_room_on_any_session() -> None:
    bundle = Bundle(3)
    near, _ = bundle.spread()
    while write(near, bytes(100_000)):
        pass
    events: list[int] = []
    near.on_event = lambda event, now: events.append(event)
    outgoing(bundle.pairs[2].near)
    assert events == [WRITABLE]
    assert write(near, b"y" * 100) == 100


def test_the_window_is_one_for_all_sessions() -> None:
    bundle = Bundle(3)
    near, far = bundle.spread()
    assert far.window is not None
    while write(near, bytes(100_000)):
        bundle.exchange()
    assert far.buffered == far.window.size
    assert near.credit == 0


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("end", ["near", "far"])
def test_a_lost_session_ends_the_flow_and_no_other_session(index: int, end: str) -> None:
    bundle = Bundle(3)
    near, far = bundle.spread()
    events: list[int] = []
    for flow in near, far:
        flow.on_event = lambda event, now: events.append(event & HUNG_UP)
    side: Session = getattr(bundle.pairs[index], end)
    side.end("the connection broke", say=True)
    bundle.exchange()
    assert near.is_gone
    assert far.is_gone
    assert len(events) == 2
    assert all(events)
    assert bundle.lanes == [0] * 6
    assert [pair.near.is_up for pair in bundle.pairs] == [i != index for i in range(3)]
    bundle.pairs[2].flow()


def test_a_reset_crosses_and_late_octets_of_other_sessions_are_not_taken() -> None:
    bundle = Bundle(3)
    near, far = bundle.spread()
    while write(near, bytes(100_000)):
        pass
    near.close()
    bundle.exchange()
    assert far.is_gone
    assert bundle.lanes == [0] * 6
    assert all(pair.far.is_up for pair in bundle.pairs)


# --- those who join


@pytest.mark.parametrize("token", [bytes(16), TOKEN[:8] + bytes(8), bytes(8) + TOKEN[8:], TOKEN[::-1]])
def test_another_token_joins_nothing(token: bytes) -> None:
    bundle = Bundle(2)
    _, far = bundle.open()
    stranger = bundle.pairs[1].far
    say(stranger, frame(FrameKind.JOIN, 1, token), data(0, b"forged"), data(7, b"forged"))
    assert len(far.lanes) == 1
    assert far.buffered == 0
    assert not stranger.lanes
    assert stranger.is_up


def test_a_flow_without_a_token_cannot_be_joined() -> None:
    bundle = Bundle(2)
    _, far = bundle.open(NO_TOKEN)
    say(bundle.pairs[1].far, frame(FrameKind.JOIN, 1, NO_TOKEN))
    assert len(far.lanes) == 1


def test_a_flow_that_has_ended_cannot_be_joined() -> None:
    bundle = Bundle(2)
    near, _ = bundle.open()
    near.close()
    bundle.exchange()
    assert bundle.tokens.find(TOKEN) is None
    say(bundle.pairs[1].far, frame(FrameKind.JOIN, 1, TOKEN), data(0, b"late"))
    assert not bundle.pairs[1].far.lanes
    assert bundle.pairs[1].far.is_up


def test_joining_twice_or_too_often_ends_the_session_that_does_it() -> None:
    bundle = Bundle(LANES_MAX + 1)
    bundle.open()
    for pair in bundle.pairs[1:]:
        say(pair.far, frame(FrameKind.JOIN, 1, TOKEN))
    *some, last = [pair.far for pair in bundle.pairs[1:]]
    assert all(side.is_up for side in some)
    assert last.why == "broke the protocol: join"
    bundle = Bundle(2)
    bundle.open()
    for number in 1, 2:
        say(bundle.pairs[1].far, frame(FrameKind.JOIN, number, TOKEN))
    assert bundle.pairs[1].far.why == "broke the protocol: join"


def test_a_flow_that_is_not_open_yet_cannot_be_joined() -> None:
    bundle = Bundle(2)
    bundle.pairs[0].accepts = False
    bundle.open()
    say(bundle.pairs[1].far, frame(FrameKind.JOIN, 1, TOKEN))
    assert bundle.pairs[1].far.is_over


def test_a_near_module_is_joined_by_nobody() -> None:
    bundle = Bundle(2)
    bundle.open()
    say(bundle.pairs[1].near, frame(FrameKind.JOIN, 1, TOKEN))
    assert bundle.pairs[1].near.is_over


def test_two_flows_of_one_token_end_the_session_of_the_second() -> None:
    bundle = Bundle(2)
    _, far = bundle.open()
    bundle.pairs[1].near.open(MuxFlow(OPENING, TOKEN), 0.0)
    bundle.exchange()
    assert bundle.pairs[1].far.why == "broke the protocol: open.token"
    assert bundle.tokens.find(TOKEN) is far


@pytest.mark.parametrize("kind", [FrameKind.END, FrameKind.RESET, FrameKind.WINDOW])
def test_only_data_comes_by_further_sessions(kind: FrameKind) -> None:
    bundle = Bundle(2)
    _, far = bundle.spread()
    sizes = {FrameKind.END: 8, FrameKind.WINDOW: 4}
    say(bundle.pairs[1].far, frame(kind, 1, bytes(sizes.get(kind, 0))))
    assert bundle.pairs[1].far.why == "broke the protocol: frame.kind"
    assert far.is_gone


# --- those who lie about offsets

WINDOW = 1 << 16


@pytest.mark.parametrize(
    "frames",
    [
        (data(0, b"abc"), data(2, b"c")),
        (data(5, b"abc"), data(4, b"xy")),
        (data(5, b"abc"), data(0, b"abcdef")),
        (data(0, b"abc"), data(0, b"abc")),
        (data(1 << 63, b"abc"),),
        (data(2**64 - 1, b"abc"),),
        (data(10, b"abc"), frame(FrameKind.END, 1, OFFSET.pack(2))),
        (frame(FrameKind.END, 1, OFFSET.pack(4)), data(2, b"abc")),
        (frame(FrameKind.END, 1, OFFSET.pack(4)), frame(FrameKind.END, 1, OFFSET.pack(4))),
        (frame(FrameKind.END, 1, OFFSET.pack(1 << 40)),),
        (frame(FrameKind.DATA, 1, b"short"),),
    ],
)
def test_overlaps_octets_beyond_the_window_and_ends_that_cannot_be_end_the_session(
    frames: tuple[bytes, ...],
) -> None:
    bundle = Bundle(1)
    _, far = bundle.open()
    for each in frames:
        say(bundle.pairs[0].far, each)
    assert bundle.pairs[0].far.is_over
    assert far.is_gone


def test_nothing_beyond_the_window_is_held_wherever_it_is_said_to_be() -> None:
    bundle = Bundle(1)
    _, far = bundle.open()
    assert far.window is not None
    size = far.window.size
    say(bundle.pairs[0].far, data(size - 1, b"x"))
    assert far.buffered == 1
    say(bundle.pairs[0].far, data(size, b"x"))
    assert bundle.pairs[0].far.is_over


def test_an_end_waits_for_octets_that_are_on_their_way() -> None:
    bundle = Bundle(1)
    _, far = bundle.open()
    say(bundle.pairs[0].far, frame(FrameKind.END, 1, OFFSET.pack(6)), data(3, b"def"))
    assert not far.got_end
    with pytest.raises(BlockingIOError):
        far.recv_into(memoryview(bytearray(9)), 9)
    say(bundle.pairs[0].far, data(0, b"abc"))
    assert read(far) == b"abcdef"
    assert far.recv_into(memoryview(bytearray(9)), 9) == 0


# --- tokens


def test_a_token_is_found_whole_only() -> None:
    tokens: FlowTokens[MuxFlow] = FlowTokens()
    flow = MuxFlow(OPENING, TOKEN)
    tokens.add(flow)
    assert tokens.find(TOKEN) is flow
    assert tokens.find(TOKEN[:15] + b"?") is None
    with pytest.raises(Malformed):
        tokens.add(MuxFlow(OPENING, TOKEN[:8] + bytes(8)))
    tokens.remove(MuxFlow(OPENING, TOKEN))
    assert tokens.find(TOKEN) is flow
    tokens.remove(flow)
    assert tokens.find(TOKEN) is None
