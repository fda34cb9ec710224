"""Sessions as conversations: what each side sends reaches the other in any pieces, and nothing else does."""

import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.udt.pairs import OPENING, REFUSALS, Pair, fresh, outgoing, read, session, up, write
from vtl_tools.common.relay.connector import HUNG_UP, READABLE, WRITABLE
from vtl_tools.common.session.base import DEAD_AFTER_S
from vtl_tools.common.session.secure_channel import OUTBOX_MAX, Role
from vtl_tools.common.socks import Reason
from vtl_tools.services.udt.load import CONTROL
from vtl_tools.services.udt.transport import frames
from vtl_tools.services.udt.transport.answerer import SeenKeys
from vtl_tools.services.udt.transport.base import FlowOpening
from vtl_tools.services.udt.transport.flow import MuxFlow
from vtl_tools.services.udt.transport.frames import FRAME, PLAIN_MAX, FrameKind
from vtl_tools.services.udt.transport.session import SessionConfig
from vtl_tools.services.udt.transport.window import WINDOW_MIN

PLAIN = SessionConfig(encrypt=False)


# --- flows


@given(st.integers(1, 200), st.booleans())
def test_a_flow_carries_octets_both_ways_and_each_half_ends_alone(piece: int, encrypt: bool) -> None:
    pair = up(SessionConfig(encrypt=encrypt))
    near, far = pair.flow()
    assert near.is_open
    assert far.opening == OPENING
    assert write(near, b"question") == 8
    near.shutdown(socket.SHUT_WR)
    pair.exchange(piece)
    assert read(far) == b"question"
    assert far.recv_into(memoryview(bytearray(1)), 1) == 0  # the end, and not a reset
    assert write(far, b"answer") == 6
    far.shutdown(socket.SHUT_WR)
    pair.exchange(piece)
    assert read(near) == b"answer"
    assert near.recv_into(memoryview(bytearray(1)), 1) == 0
    near.close()
    far.close()
    pair.exchange(piece)
    assert not pair.near.flows
    assert not pair.far.flows
    assert pair.near.is_up


@pytest.mark.parametrize("reason", REFUSALS)
def test_a_refusal_arrives_with_its_reason(reason: Reason) -> None:
    pair = up()
    pair.accepts = False
    near, far = pair.flow()
    events: list[int] = []
    near.on_event = lambda event, now: events.append(event)
    far.refuse(reason, 0.0)
    pair.exchange()
    assert near.reason is reason
    assert events[0] & HUNG_UP
    assert not pair.near.flows
    assert not pair.far.flows


def test_a_reset_crosses_and_frees_both_ends() -> None:
    pair = up()
    near, far = pair.flow()
    write(near, b"x")
    pair.exchange()
    events: list[int] = []
    far.on_event = lambda event, now: events.append(event)
    near.close()
    pair.exchange()
    assert events[-1] & HUNG_UP
    with pytest.raises(ConnectionResetError):
        far.recv_into(memoryview(bytearray(1)), 1)
    with pytest.raises(ConnectionResetError):
        far.send(b"x")
    assert not pair.near.flows
    assert not pair.far.flows
    assert pair.far.is_up


def test_a_client_that_gives_up_before_the_answer_is_told_to_the_far_module() -> None:
    pair = up()
    pair.accepts = False
    near, far = pair.flow()
    near.close()
    pair.exchange()
    assert far.is_gone
    far.accept(0.0)  # too late, and harmless
    pair.exchange()
    assert pair.near.is_up
    assert not pair.near.flows


@given(st.data())
def test_an_opening_arrives_as_it_was_sent(data: st.DataObject) -> None:
    size = data.draw(st.sampled_from((4, 16)))
    host, port = st.binary(min_size=size, max_size=size), st.integers(0, 65535)
    opening = FlowOpening(data.draw(host), data.draw(port), data.draw(host), data.draw(port))
    assert frames.parse_opening(memoryview(frames.pack_opening(opening, 99))) == (opening, 99)


def test_a_window_stops_one_flow_and_no_other() -> None:
    pair = up()
    slow, slow_end = pair.flow()
    fast, fast_end = pair.flow()
    taken = 0
    while size := write(slow, bytes(60_000)):
        taken += size
        pair.exchange()
    assert taken == slow_end.buffered
    events: list[int] = []
    slow.on_event = lambda event, now: events.append(event)
    assert write(fast, b"not held up") == 11
    pair.exchange()
    assert read(fast_end) == b"not held up"
    assert not events
    read(slow_end)
    pair.exchange()
    assert events == [WRITABLE]
    assert write(slow, b"again") == 5


def test_flows_that_wait_for_the_connection_have_equal_turns() -> None:
    pair = up()
    flows = [pair.flow()[0] for _ in range(4)]
    taken = [0, 0, 0, 0]
    may_write = [True] * 4

    def note(number: int) -> None:
        may_write[number] = True

    for number, flow in enumerate(flows):
        flow.on_event = lambda event, now, number=number: note(number)
    for _ in range(64):  # the connection takes 64 KiB a turn
        for number, flow in enumerate(flows):
            while may_write[number]:
                size = write(flow, bytes(60_000))
                taken[number] += size
                may_write[number] = size == 60_000
        pair.near.settle(0.0)
        assert pair.near.pending <= OUTBOX_MAX + 2 * PLAIN_MAX
        left = 1 << 16
        while left and pair.near.outbox:
            size = min(left, len(pair.near.outbox[0]))
            pair.near.transmitted(size)
            left -= size
        pair.near.share(0.0)
    assert max(taken) - min(taken) <= OUTBOX_MAX + 2 * PLAIN_MAX  # the first had the outbox for itself
    assert min(taken) > 10 * PLAIN_MAX


@pytest.mark.parametrize(("rtt_s", "mebibytes"), [(None, 16), (0.001, 16), (0.2, 36), (0.4, 64), (9.0, 64)])
def test_a_first_window_is_for_the_path_at_both_ends(rtt_s: float | None, mebibytes: int) -> None:
    pair = up(SessionConfig(memory=256 << 20))
    pair.near.rtt_min_s = pair.far.rtt_min_s = rtt_s
    near, far = pair.flow()
    assert near.window is not None
    assert far.window is not None
    assert near.window.size == far.window.size
    assert round(near.window.size / 2**20) == mebibytes
    assert near.credit == far.credit == near.window.size


def test_a_first_window_leaves_three_quarters_of_the_memory_to_others() -> None:
    pair = up(SessionConfig(memory=8 << 20))
    for left in (6 << 20, 9 << 19):
        pair.flow()
        assert pair.near._budget.left == pair.far._budget.left == left


def test_a_flow_for_reports_takes_no_memory_from_others() -> None:
    pair = up()
    near, far = pair.flow(CONTROL)
    assert pair.near._budget.left == pair.far._budget.left == SessionConfig().memory
    assert near.credit == far.credit == WINDOW_MIN


def test_a_window_grows_while_its_reader_keeps_up() -> None:
    pair = up()
    near, far = pair.flow()
    assert far.window is not None
    before = far.window.size
    pair.far.rtt_s = 0.1
    for _ in range(64):
        pair.now += 0.01
        while write(near, bytes(60_000)):
            pair.exchange()
            while read(far):
                pass
            if far.window.size > before:
                return
    raise AssertionError("the window stays")


def test_a_window_stays_while_its_reader_is_slow() -> None:
    pair = up()
    near, far = pair.flow()
    assert far.window is not None
    before = far.window.size
    pair.far.rtt_s = 0.001
    for _ in range(200):
        pair.now += 0.1
        write(near, bytes(60_000))
        pair.exchange()
        read(far)
    assert far.window.size == before


# --- strangers, replays, reflections


def test_a_stranger_learns_nothing_and_is_cut_off() -> None:
    far = session(Role.RESPONDER)
    far.receive(memoryview(b"GET / HTTP/1.1\r\nHost: far.example\r\n\r\n" + bytes(64)), 0.0)
    assert far.is_over
    assert far.why == "has another key, or is a stranger"
    assert not outgoing(far)


def test_another_key_is_refused_by_the_far_module_without_an_answer() -> None:
    near, far = session(Role.INITIATOR), session(Role.RESPONDER, psk=bytes(32))
    far.receive(memoryview(outgoing(near)), 0.0)
    assert far.is_over
    assert not outgoing(far)


def test_a_far_module_with_another_key_is_refused_by_the_near_one() -> None:
    near, other = session(Role.INITIATOR), session(Role.INITIATOR, psk=bytes(32))
    outgoing(near)
    impostor = session(Role.RESPONDER, psk=bytes(32))
    impostor.receive(memoryview(outgoing(other)), 0.0)
    near.receive(memoryview(outgoing(impostor)), 0.0)
    assert near.is_over
    assert not near.was_up


def record(config: SessionConfig) -> Pair:
    """A session of which everything is recorded, with a flow in it."""
    pair = Pair(config)
    pair.exchange()
    near, _ = pair.flow()
    write(near, b"secret")
    pair.exchange()
    return pair


@pytest.mark.parametrize("config", [SessionConfig(), PLAIN])
def test_a_replayed_session_is_refused_at_its_first_message(config: SessionConfig) -> None:
    seen = SeenKeys()
    flows: list[MuxFlow] = []
    first = Pair(config, is_fresh=seen.is_fresh)
    first.exchange()
    first.flow()
    again = session(
        Role.RESPONDER, config=config, is_fresh=seen.is_fresh, on_flow=lambda flow, now: flows.append(flow)
    )
    again.receive(memoryview(first.to_far), 0.0)
    assert again.is_over
    assert again.why == "was refused: it replays another's handshake"
    assert not outgoing(again)
    assert not flows


@pytest.mark.parametrize("config", [SessionConfig(), PLAIN])
def test_a_replay_that_is_too_old_to_be_known_opens_no_flow(config: SessionConfig) -> None:
    recorded = bytes(record(config).to_far)
    flows: list[MuxFlow] = []
    far = session(Role.RESPONDER, config=config, on_flow=lambda flow, now: flows.append(flow))
    far.receive(memoryview(recorded), 0.0)
    assert far.is_over
    assert not far.was_up
    assert not flows


def test_keys_that_were_seen_are_forgotten_in_their_order() -> None:
    seen = SeenKeys(most=2)
    assert [seen.is_fresh(key) for key in (b"a", b"b", b"a", b"c", b"b", b"a")] == [
        True, True, False, True, False, True,
    ]  # fmt: skip


def test_a_reflected_handshake_is_refused() -> None:
    near = session(Role.INITIATOR)
    near.receive(memoryview(outgoing(near)), 0.0)
    assert near.is_over
    assert not near.was_up


def test_reflected_records_are_refused() -> None:
    pair = up()
    pair.flow()
    pair.near.wake(1.0)
    ours = outgoing(pair.near)
    assert ours
    pair.near.receive(memoryview(ours), 0.0)
    assert pair.near.is_over


@pytest.mark.parametrize(("ours", "theirs"), [(SessionConfig(), PLAIN), (PLAIN, SessionConfig())])
def test_both_modules_must_want_encryption_or_neither(ours: SessionConfig, theirs: SessionConfig) -> None:
    near, far = session(Role.INITIATOR, config=ours), session(Role.RESPONDER, config=theirs)
    far.receive(memoryview(outgoing(near)), 0.0)
    assert far.is_over
    assert "set up differently" in far.why
    assert not outgoing(far)


def test_an_encrypted_session_shows_no_octet_of_its_flows() -> None:
    assert b"secret" not in record(SessionConfig()).to_far
    assert b"secret" in record(PLAIN).to_far


# --- hostile octets


@given(st.data())
def test_whatever_is_changed_on_the_way_no_wrong_octet_arrives(data: st.DataObject) -> None:
    ephemeral = fresh()
    pair = Pair(ephemeral=ephemeral)
    pair.exchange()
    near, _ = pair.flow()
    write(near, bytes(range(256)))
    near.shutdown(socket.SHUT_WR)
    pair.exchange()
    octets = bytearray(pair.to_far)
    at = data.draw(st.integers(0, len(octets) - 1))
    change = data.draw(st.sampled_from(("flip", "cut", "drop", "repeat")))
    if change == "flip":
        octets[at] ^= data.draw(st.integers(1, 255))
    elif change == "cut":
        del octets[at:]
    elif change == "drop":
        del octets[at]
    else:
        octets[at:at] = octets[at : at + data.draw(st.integers(1, 64))]
    flows: list[MuxFlow] = []

    def on_flow(flow: MuxFlow, now: float) -> None:
        flows.append(flow)
        flow.accept(now)

    far = session(Role.RESPONDER, ephemeral=ephemeral, on_flow=on_flow)
    piece = data.draw(st.integers(1, 400))
    for start in range(0, len(octets), piece):
        far.receive(memoryview(octets)[start : start + piece], 0.0)
        outgoing(far)
    for flow in flows:
        assert flow.opening == OPENING
        assert bytes(range(256)).startswith(read_all(flow))


def read_all(flow: MuxFlow) -> bytes:
    try:
        return read(flow)
    except ConnectionResetError:
        return b""


kinds = st.one_of(st.sampled_from([int(kind) for kind in FrameKind]), st.integers(0, 255))
some_frames = st.lists(st.tuples(kinds, st.integers(0, 4), st.binary(max_size=40)), max_size=12)


@given(some_frames, st.booleans())
def test_no_frames_of_a_peer_with_the_key_do_harm(sent: list[tuple[int, int, bytes]], to_far: bool) -> None:
    pair = up(PLAIN)
    pair.flow()
    body = b"".join(FRAME.pack(kind, flow, len(payload)) + payload for kind, flow, payload in sent)
    side = pair.far if to_far else pair.near
    side.receive(memoryview(struct.pack("!I", len(body)) + body), 0.0)
    outgoing(side)
    assert side.is_over or side.is_up
    assert sum(flow.buffered for flow in side.flows.values()) <= len(body)


@given(st.one_of(st.integers(PLAIN_MAX + 1, 2**32 - 1), st.integers(0, FRAME.size - 1)))
def test_a_record_that_lies_about_its_length_ends_the_session(length: int) -> None:
    pair = up(PLAIN)
    pair.far.receive(memoryview(struct.pack("!I", length)), 0.0)
    assert pair.far.is_over
    assert pair.far.why == "broke the protocol: record.length"


@given(st.integers(0, 2**32 - 1).filter(lambda n: n != 3))
def test_a_frame_that_lies_about_its_length_ends_the_session(length: int) -> None:
    pair = up(PLAIN)
    pair.flow()
    body = struct.pack("!BII", FrameKind.DATA, 1, length) + b"abc"
    pair.far.receive(memoryview(struct.pack("!I", len(body)) + body), 0.0)
    assert pair.far.is_over


def test_a_flow_is_opened_by_the_near_module_only_and_once() -> None:
    for number, to_far in ((1, True), (2, False)):
        pair = up(PLAIN)
        pair.flow()
        payload = frames.pack_opening(OPENING, 0)
        body = FRAME.pack(FrameKind.OPEN, number, len(payload)) + payload
        side = pair.far if to_far else pair.near
        side.receive(memoryview(struct.pack("!I", len(body)) + body), 0.0)
        assert side.why == "broke the protocol: open"


# --- memory


def test_a_peer_that_exceeds_its_window_is_cut_off() -> None:
    pair = up(PLAIN)
    near, _ = pair.flow()
    near.credit = 1 << 30  # it lies to itself
    while pair.far.is_up:
        write(near, bytes(60_000))
        pair.exchange()
    assert pair.far.why == "broke the protocol: data"


def test_the_windows_of_all_flows_have_a_bound() -> None:
    config = SessionConfig(memory=1 << 20)
    pair = up(config)
    ends = [pair.flow() for _ in range(100)]
    for near, _ in ends:
        while write(near, bytes(60_000)):
            pair.exchange()
    held = sum(far.buffered for _, far in ends)
    assert min(far.buffered for _, far in ends) >= WINDOW_MIN
    assert held <= config.memory + len(ends) * WINDOW_MIN
    for near, far in ends:
        near.close()
        far.close()
    pair.exchange()
    assert pair.near._budget.left == pair.far._budget.left == config.memory


def test_octets_that_arrive_one_by_one_are_joined() -> None:
    pair = up()
    near, far = pair.flow()
    for number in range(5_000):
        write(near, bytes([number & 0xFF]))
        pair.near.settle(0.0)  # each is in a record of its own
    pair.exchange()
    assert len(far._pieces) == 1
    assert read(far) == bytes(number & 0xFF for number in range(5_000))


def test_a_peer_that_asks_and_never_reads_is_cut_off() -> None:
    pair = up(PLAIN)
    pair.accepts = False
    for number in range(1, 200_000):
        payload = frames.pack_opening(OPENING, 0)
        body = FRAME.pack(FrameKind.OPEN, number, len(payload)) + payload
        pair.far.receive(memoryview(struct.pack("!I", len(body)) + body), 0.0)
        if pair.arrived:
            pair.arrived.pop().refuse(Reason.REFUSED, 0.0)
        pair.far.settle(0.0)
        assert pair.far.pending <= 5 * OUTBOX_MAX
        if pair.far.is_over:
            break
    assert pair.far.why == "does not read what it asks for"


def test_heartbeats_are_not_answered_while_the_peer_reads_nothing() -> None:
    pair = up(PLAIN)
    body = FRAME.pack(FrameKind.PING, 0, 8) + bytes(8)
    for _ in range(60_000):
        pair.far.receive(memoryview(struct.pack("!I", len(body)) + body), 0.0)
        pair.far.settle(0.0)
    assert pair.far.pending <= OUTBOX_MAX + PLAIN_MAX
    assert pair.far.is_up


# --- time


def test_a_heartbeat_keeps_a_session_and_measures_its_path() -> None:
    pair = up()
    pair.wait(30.0)
    assert pair.near.is_up
    assert pair.far.is_up
    assert pair.near.rtt_s is not None
    assert pair.far.rtt_min_s is not None


def test_a_peer_that_falls_silent_is_dead_within_five_seconds() -> None:
    pair = up()
    near, _ = pair.flow()
    events: list[int] = []
    near.on_event = lambda event, now: events.append(event)
    died_at, now = pair.now, pair.now
    while pair.near.is_up:
        now = pair.near.deadline()
        pair.near.wake(now)
        outgoing(pair.near, now)
    assert DEAD_AFTER_S <= now - died_at < 5.0
    assert events[-1] & HUNG_UP
    assert pair.near.why == "is silent: dead, or cut off"


def test_a_handshake_has_a_time_limit() -> None:
    far = session(Role.RESPONDER)
    far.wake(4.9)
    assert not far.is_over
    far.wake(5.0)
    assert far.is_over


def test_the_end_of_a_session_is_told_and_resets_its_flows() -> None:
    pair = up()
    _, far = pair.flow()
    events: list[int] = []
    far.on_event = lambda event, now: events.append(event)
    pair.near.end("this module ends", say=True)
    pair.exchange()
    assert pair.far.is_over
    assert pair.far.why == "ended"
    assert events[-1] & HUNG_UP


def test_a_session_that_ends_before_it_is_up_says_nothing() -> None:
    near = session(Role.INITIATOR)
    outgoing(near)
    near.end("this module ends", say=True)
    assert not outgoing(near)


def test_what_arrives_is_told_as_readable() -> None:
    pair = up()
    near, far = pair.flow()
    events: list[int] = []
    far.on_event = lambda event, now: events.append(event)
    write(near, b"x")
    pair.exchange()
    assert events == [READABLE]
