"""Sessions of daemons over datagrams, in memory: loss, replay, other keys, fragments, the path's size."""

from collections.abc import Callable, Iterator
from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vtl_tools.common.device.batch import SLOTS
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import vnet
from vtl_tools.common.session.items import HEAD, HOPS_MAX, Hello
from vtl_tools.common.session.noise import RENEW_AFTER
from vtl_tools.common.session.numbered import WINDOW, NumberedCipher, ReplayWindow
from vtl_tools.common.session.secure_channel import SecureConfig
from vtl_tools.services.vnet import udp_link
from vtl_tools.services.vnet.datagram_handshake import FIRST, NOISE, SECOND, DatagramHandshake
from vtl_tools.services.vnet.datagram_session import BASE, DATA, LADDER, DatagramSession

KEY = b"k" * 32
FRAME = memoryview(bytes(10) + b"\x02" * 12 + b"\x08\x00" + b"data")
LONG = memoryview(bytes(10) + b"\x02" * 12 + b"\x08\x00" + bytes(range(256)) * 200)


def make(name: str, own_id: int, *, is_initiator: bool, key: bytes = KEY) -> DatagramSession:
    handshake = DatagramHandshake(
        psk=key, ephemeral=bytes([own_id]) * 32, own_id=own_id, is_initiator=is_initiator
    )
    return DatagramSession(SecureConfig(), handshake, now=0.0, hello=Hello(name))


def datagrams(session: DatagramSession) -> Iterator[bytes]:
    """Return what a session sends, as the wire carries it."""
    while session.outbox:
        octets, size = session.outbox.popleft()
        for at in range(0, len(octets), size):
            yield octets[at : at + size]


def carry(
    source: DatagramSession, target: DatagramSession, now: float = 0.0,
    passes: Callable[[bytes], bool] = lambda datagram: True,
) -> None:  # fmt: skip
    for datagram in list(datagrams(source)):
        if passes(datagram):
            target.receive(memoryview(datagram), len(datagram), now)


@pytest.fixture
def pair() -> tuple[DatagramSession, DatagramSession]:
    near, far = make("near", 1, is_initiator=True), make("far", 2, is_initiator=False)
    (first,) = datagrams(near)
    far.take_first(1, first[FIRST.size :])
    (second,) = datagrams(far)
    near.take_second(2, second[SECOND.size :], 0.0)
    for _ in range(3):
        carry(near, far)
        carry(far, near)
    assert near.is_ready
    assert far.is_ready
    assert far.remote == Hello("near")
    return near, far


Pair = tuple[DatagramSession, DatagramSession]


def test_frames_cross_with_their_hops_whole(pair: Pair) -> None:
    near, far = pair
    near.send([FRAME, LONG], 3)
    while near.outbox:
        train = near.outbox.popleft()
        far.receive(memoryview(train.octets), train.size, 0.0)
    assert [(hops, bytes(frame)) for hops, frame in far.frames] == [(3, bytes(FRAME)), (3, bytes(LONG))]


@pytest.mark.parametrize("seed", range(5))
def test_fragments_in_any_order_and_twice_make_each_frame_once(pair: Pair, seed: int) -> None:
    near, far = pair
    for _ in range(20):
        near.send([LONG], 1)
    wire = list(datagrams(near)) * 2
    mixed, random = [], Random(seed)
    for at in range(0, len(wire), 50):
        part = wire[at : at + 50]
        random.shuffle(part)
        mixed += part
    for datagram in mixed:
        far.receive(memoryview(datagram), len(datagram), 0.0)
    assert [bytes(frame) for _, frame in far.frames] == [bytes(LONG)] * 20
    assert far.dropped > 0


def test_a_train_of_which_a_datagram_came_before_completes_its_record(pair: Pair) -> None:
    near, far = pair
    near.send([memoryview(bytes(LONG) + bytes(12_000))], 1)
    trains = [(memoryview(train.octets), train.size) for train in near.outbox]
    near.outbox.clear()
    assert len(trains) == 2
    early = [trains[0][0][at * trains[0][1] :][: trains[0][1]] for at in (3, 3, 0)]
    for datagram in early:
        far.receive(datagram, len(datagram), 0.0)
    for octets, size in trains[::-1]:
        assert not far.frames
        far.receive(octets, size, 0.0)
    assert [bytes(frame) for _, frame in far.frames] == [bytes(LONG) + bytes(12_000)]


def test_a_record_of_which_a_fragment_is_lost_is_lost_alone(pair: Pair) -> None:
    near, far = pair
    near.send([LONG], 1)
    carry(near, far, passes=lambda datagram: datagram[DATA.size] != 3)
    for _ in range(100):
        near.send([FRAME], 1)
        carry(near, far)
    assert len(far.frames) == 100
    assert far.broken == 1


def test_loss_makes_records_short_and_its_end_long_again(pair: Pair) -> None:
    near, far = pair
    random, now = Random(1), 0.0

    def seconds(until: float, loss: float) -> None:
        nonlocal now
        while now < until:
            now += 0.02
            near.send([LONG], 1)
            carry(near, far, now, lambda datagram: random.random() >= loss)
            far.frames.clear()
            near.wake(now)
            far.wake(now)
            carry(far, near, now)
            carry(near, far, now)
            carry(far, near, now)

    seconds(5.0, 0.0)
    assert not near.is_cautious
    seconds(10.0, 0.02)
    assert near.is_cautious
    assert near.lost_records > 0
    seconds(25.0, 0.0)
    assert not near.is_cautious
    assert near.is_up


def test_another_key_is_refused_before_anything_is_sent() -> None:
    near, far = make("near", 1, is_initiator=True), make("far", 2, is_initiator=False, key=b"x" * 32)
    (first,) = datagrams(near)
    with pytest.raises(Malformed):
        far.take_first(1, first[FIRST.size :])
    assert not far.outbox


def test_an_answer_that_is_forged_does_not_spoil_the_handshake() -> None:
    near, far = make("near", 1, is_initiator=True), make("far", 2, is_initiator=False)
    (first,) = datagrams(near)
    far.take_first(1, first[FIRST.size :])
    (second,) = datagrams(far)
    near.take_second(9, bytes(NOISE), 0.0)
    assert near.dropped == 1
    near.take_second(2, second[SECOND.size :], 0.0)
    assert near.is_up


def test_a_lost_first_message_is_repeated_with_the_cookie() -> None:
    near = make("near", 1, is_initiator=True)
    list(datagrams(near))
    near.take_cookie(b"c" * 16, 0.1)
    (first,) = datagrams(near)
    assert FIRST.unpack_from(first)[2] == b"c" * 16
    near.wake(1.0)
    assert list(datagrams(near)) == [first]
    near.wake(60.0)
    assert near.why == "does not answer"


def test_only_an_authentic_and_new_record_tells_where_the_other_end_is(pair: Pair) -> None:
    near, far = pair
    near.send([FRAME], 1)
    (datagram,) = datagrams(near)
    changed = bytearray(datagram)
    changed[-1] ^= 1
    assert not far.receive(memoryview(changed), len(changed), 0.0)
    assert far.receive(memoryview(datagram), len(datagram), 0.0)
    assert not far.receive(memoryview(datagram), len(datagram), 0.0), "a replay"
    assert len(far.frames) == 1


def test_the_size_is_the_greatest_that_the_path_carries_and_falls_when_it_changes(pair: Pair) -> None:
    near, far = pair
    assert near.size == LADDER[-1]
    near.shrink()
    for step in range(80):
        now, most = step * 0.25, LADDER[-1] if step < 20 else 1412
        near.wake(now)
        far.wake(now)
        carry(near, far, now, lambda datagram, most=most: len(datagram) <= most)
        carry(far, near, now)
        assert near.is_up
        if step == 19:
            assert near.size == LADDER[-1]
    assert near.size == 1412
    assert min(LADDER) > BASE


def test_a_heartbeat_measures_the_round_trip_and_silence_ends(pair: Pair) -> None:
    near, far = pair
    near.wake(1.0)
    carry(near, far, 1.1)
    carry(far, near, 1.2)
    assert near.rtt_s == pytest.approx(0.2)
    near.wake(60.0)
    assert near.why == "is silent"


def test_news_of_a_door_that_is_lost_is_told_again_with_the_next_heartbeat(pair: Pair) -> None:
    near, far = pair
    near.hello = Hello("near", ["udp:0.0.0.0:7700"])
    near.say_hello()
    carry(near, far, passes=lambda datagram: False)
    assert far.remote == Hello("near")
    near.wake(1.0)
    carry(near, far, 1.0)
    assert far.remote == Hello("near", ("udp:0.0.0.0:7700",))


@pytest.mark.parametrize("record", [b"\x00" * 7, HEAD.pack(99, 1, 0), HEAD.pack(6, 0, 1) + b"a"])
def test_a_record_that_is_wrong_ends_the_session_of_datagrams(pair: Pair, record: bytes) -> None:
    near, far = pair
    near.emit([record])
    carry(near, far)
    assert far.why.startswith("broke the protocol")


@pytest.mark.parametrize("asks", [HEAD.pack(1, 0, 8) + bytes(8), HEAD.pack(5, 0, 0)])
def test_one_record_is_not_answered_by_many(pair: Pair, asks: bytes) -> None:
    near, far = pair
    near.emit([asks * 1000])
    carry(near, far)
    assert far.why == "broke the protocol: item.answers"
    assert len(list(datagrams(far))) < 20


def test_a_frame_passes_no_more_links_than_allowed(pair: Pair) -> None:
    near, far = pair
    near.send([FRAME], 255)
    carry(near, far)
    assert [hops for hops, _ in far.frames] == [HOPS_MAX]


@given(st.lists(st.binary(max_size=80), max_size=20), st.integers(0, 255), st.integers(0, 2**64 - 1))
def test_any_datagrams_at_all_are_dropped(bodies: list[bytes], last: int, number: int) -> None:
    near, far = make("near", 1, is_initiator=True), make("far", 2, is_initiator=False)
    (first,) = datagrams(near)
    far.take_first(1, first[FIRST.size :])
    for i, body in enumerate(bodies):
        for datagram in body, DATA.pack(4, last, 2, number ^ i) + body:
            if datagram:
                assert not far.receive(memoryview(datagram), max(1, len(datagram) - i % 3), 0.0)
    assert not far.frames
    assert not far.is_up


def test_a_super_segment_that_cannot_be_cut_is_counted(pair: Pair) -> None:
    near, _ = pair
    near.is_cautious = True
    bad = bytearray(FRAME)
    bad[1] = vnet.GSO_TCPV4
    assert near.send([memoryview(bad), FRAME], 1) == 1


# --- numbers


def test_each_number_is_taken_once_and_old_ones_are_not() -> None:
    window = ReplayWindow()
    for number in 5, 3, 4, 5 + WINDOW:
        assert window.is_new(number)
        window.take(number)
        assert not window.is_new(number)
    assert not window.is_new(5)
    assert window.is_new(6)
    assert window.taken == 4


def test_the_key_changes_and_late_records_still_open() -> None:
    seal, unseal = NumberedCipher(KEY), NumberedCipher(KEY)
    late = seal.seal(RENEW_AFTER - 1, b"late", b"")
    assert unseal.open(RENEW_AFTER, seal.seal(RENEW_AFTER, b"new", b""), b"") == b"new"
    assert unseal.open(RENEW_AFTER - 1, late, b"") == b"late"
    with pytest.raises(Malformed):
        unseal.open(RENEW_AFTER, late, b"")
    with pytest.raises(Malformed):
        unseal.open(9 * RENEW_AFTER, late, b"")


def test_frames_that_wait_cost_no_more_the_more_they_are(
    pair: tuple[DatagramSession, DatagramSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = 0

    def counted(frames: list[tuple[int, memoryview]]) -> Iterator[tuple[int, memoryview]]:
        nonlocal looked_at
        looked_at += len(frames)
        return iter(frames)

    monkeypatch.setattr(udp_link, "join", counted)
    link, end = udp_link.UDPPeerLink("udp:"), SimpleNamespace(session=pair[0])
    waiting = [(n % 8, FRAME) for n in range(8192)]
    with link:
        link._peer = end
        pair[0].frames.extend(waiting)
        hops = []
        while pair[0].frames:
            assert link.read().count == SLOTS
            hops += link.hops
        link._peer = None
    assert hops == [hop for hop, _ in waiting]
    assert looked_at <= 1024 * len(waiting) // SLOTS
