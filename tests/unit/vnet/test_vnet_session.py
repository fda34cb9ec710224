"""Sessions of daemons in memory: frames, heartbeats, wrong keys and hostile octets."""

import pytest

from vtl_tools.common.session.caller_limit import source_of
from vtl_tools.common.session.items import HEAD, HOPS_MAX, Hello
from vtl_tools.common.session.peer_session import PeerSession
from vtl_tools.common.session.secure_channel import Role, SecureConfig

KEY = b"k" * 32
FRAME = memoryview(bytes(10) + b"\x02" * 12 + b"\x08\x00" + b"data")


def ends(other_key: bytes = KEY) -> tuple[PeerSession, PeerSession]:
    config = SecureConfig()
    near = PeerSession(Role.INITIATOR, config, psk=KEY, ephemeral=b"1" * 32, now=0.0, hello=Hello("near"))
    far = PeerSession(Role.RESPONDER, config, psk=other_key, ephemeral=b"2" * 32, now=0.0, hello=Hello("far"))
    return near, far


def carry(source: PeerSession, target: PeerSession, now: float = 0.0) -> None:
    octets = b"".join(source.outbox)
    source.transmitted(len(octets))
    target.receive(memoryview(octets), now)


@pytest.fixture
def pair() -> tuple[PeerSession, PeerSession]:
    near, far = ends()
    for source, target in (near, far), (far, near), (near, far):
        carry(source, target)
    assert near.is_up
    assert far.is_up
    return near, far


def test_frames_cross_with_their_hops(pair: tuple[PeerSession, PeerSession]) -> None:
    near, far = pair
    assert near.send([FRAME, FRAME], 3) == 2
    carry(near, far)
    assert [(hops, bytes(frame)) for hops, frame in far.frames] == [(3, bytes(FRAME))] * 2


def test_another_key_is_refused_before_anything_is_served() -> None:
    near, far = ends(b"x" * 32)
    carry(near, far)
    assert far.is_over
    assert far.why == "has another key, or is a stranger"
    assert not far.outbox


def test_a_heartbeat_measures_the_round_trip_and_silence_ends(pair: tuple[PeerSession, PeerSession]) -> None:
    near, far = pair
    near.wake(1.0)
    carry(near, far, 1.1)
    carry(far, near, 1.2)
    assert near.rtt_s == pytest.approx(0.2)
    near.wake(60.0)
    assert near.why == "is silent"


@pytest.mark.parametrize(
    "record",
    [
        b"\x00" * 7,
        HEAD.pack(0, 1, 1000) + bytes(FRAME),
        HEAD.pack(99, 1, 0),
        HEAD.pack(1, 0, 3) + b"abc",
        HEAD.pack(4, 0, 3) + b"abc",
        HEAD.pack(4, 0, 16) + b'{"name": "../a"}',
    ],
)
def test_a_record_that_is_wrong_ends_the_session(
    pair: tuple[PeerSession, PeerSession], record: bytes
) -> None:
    near, far = pair
    near.emit([record])
    carry(near, far)
    assert far.is_over
    assert far.why.startswith("broke the protocol")


@pytest.mark.parametrize("frame", [b"short", b"\x01\x00" + b"\xff" * 40, b"\x00\x09" + bytes(40)])
def test_a_frame_that_is_none_is_dropped_alone(pair: tuple[PeerSession, PeerSession], frame: bytes) -> None:
    near, far = pair
    near.send([memoryview(frame), FRAME], 255)
    carry(near, far)
    assert [hops for hops, _ in far.frames] == [HOPS_MAX]
    assert far.malformed == 1


def test_a_changed_octet_ends_the_session(pair: tuple[PeerSession, PeerSession]) -> None:
    near, far = pair
    near.send([FRAME], 1)
    octets = bytearray(b"".join(near.outbox))
    octets[-1] ^= 1
    far.receive(memoryview(octets), 0.0)
    assert far.is_over
    assert not far.frames


def test_a_door_that_is_added_is_told_to_a_session_that_is_up(pair: tuple[PeerSession, PeerSession]) -> None:
    near, far = pair
    doors: list[str] = []
    near.hello = Hello("near", doors)
    doors.append("tcp:0.0.0.0:7700")
    near.say_hello()
    carry(near, far)
    assert far.remote == Hello("near", ("tcp:0.0.0.0:7700",))


def test_a_party_is_an_ipv4_address_however_it_is_written_or_a_64_of_ipv6() -> None:
    one = source_of("192.0.2.1")
    assert one == source_of("::ffff:192.0.2.1") != source_of("::ffff:192.0.2.2")
    assert source_of("2001:db8::1") == source_of("2001:db8::2%eth0") != source_of("2001:db8:0:1::1")
