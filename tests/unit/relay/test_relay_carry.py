"""Established: octets go both ways, and whoever is slow slows the other side down, not the relay."""

from dataclasses import replace

import pytest
from carry import PROMPT, batch_of

from vtl_tools.common.device.batch import SLOTS
from vtl_tools.common.relay.budget import BUFFER
from vtl_tools.common.tcp.queue import PIECE

MEBI = 1 << 20


def test_what_the_guest_says_goes_up(established):
    scene, guest, stream = established
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect(".", seq=1, ack=6)
    assert stream.got == b"hello"
    assert scene.relay.budget.octets_up == 5


def test_what_comes_with_the_handshake_goes_up(scene, guest):
    guest.syn()
    guest.expect("S.")
    guest.inject("P.", 1, b"hello", ack=1)
    guest.expect(".", seq=1, ack=6)
    assert scene.stream.got == b"hello"


def test_what_the_stream_brings_goes_down(established):
    scene, guest, stream = established
    stream.bring(b"hello")
    guest.expect(".", seq=1, data=b"hello")
    guest.inject(".", 1, ack=6)
    guest.expect_nothing()
    assert scene.relay.budget.octets_down == 5
    assert scene.relay.budget.buffered == 0


def test_a_segment_that_comes_early_waits_for_the_one_before(established):
    _, guest, stream = established
    guest.inject(".", 6, b"world", ack=1)
    guest.expect(".", ack=1)
    assert not stream.got
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect(".", ack=11)
    assert stream.got == b"helloworld"


def test_frames_of_one_batch_go_up_in_one_call_and_in_order(established):
    scene, guest, stream = established
    pieces = [bytes([65 + i]) * 100 for i in range(10)]
    calls = []
    sendmsg = stream.sendmsg
    stream.sendmsg = lambda octets: calls.append(len(octets)) or sendmsg(octets)
    scene.push(*(guest.frame(".", 1 + 100 * i, piece, ack=1) for i, piece in enumerate(pieces)))
    assert stream.got == b"".join(pieces)
    assert calls == [10]


def test_what_the_stream_does_not_take_is_kept_and_owned(established):
    scene, guest, stream = established
    stream.room = 3
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect(".", ack=6)
    guest.inject(".", 6, b"world" * 500, ack=1)  # more than is gathered
    guest.expect(".", ack=2506)
    assert stream.got == b"hel"
    assert scene.relay.budget.buffered == 2502 + 2 * PIECE
    stream.drain(1000)
    guest.expect_nothing()
    assert len(stream.got) == 1003
    stream.drain()
    guest.expect_nothing()
    assert stream.got == b"hello" + b"world" * 500
    assert scene.relay.budget.buffered == 0


def test_a_stream_that_takes_nothing_is_left_alone_until_it_tells(established):
    scene, guest, stream = established
    stream.room = 0
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect(".", ack=6)
    tries = []
    stream.send = lambda octets: tries.append(1)
    for i in range(5):
        guest.inject(".", 6 + i, b"x", ack=1)
        guest.expect(".", ack=7 + i)
    scene.pass_(1.0)
    assert tries == []


def test_the_window_closes_when_the_stream_is_full_and_opens_when_it_drains(fresh):
    scene = fresh(config=replace(PROMPT, receive_buffer=10_000))
    guest = scene.guest()
    stream = guest.establish()
    stream.room = 0
    seq = 1
    for left in range(9000, -1, -1000):
        guest.inject(".", seq, 1000, ack=1)
        seq += 1000
        guest.expect(".", ack=seq, win=left)
    guest.inject(".", seq, 1, ack=1)  # a probe: nothing fits
    guest.expect(".", ack=seq, win=0)
    assert scene.relay.budget.buffered == 10_000 + PIECE
    stream.drain(600)
    guest.expect_nothing()  # too little to tell of (RFC 9293 section 3.8.6.2.2)
    stream.drain(900)
    guest.expect(".", ack=seq, win=1500)
    stream.drain()
    guest.expect(".", ack=seq, win=10_000)
    assert len(stream.got) == 10_000
    guest.inject(".", seq, b"on it goes", ack=1)
    guest.expect(".", ack=seq + 10)
    assert stream.got.endswith(b"on it goes")


def test_the_stream_is_not_read_while_the_guest_is_slow(established):
    scene, guest, stream = established
    stream.bring(*[bytes(BUFFER)] * 100)
    reads, seq = stream.reads, 1
    scene.turn()
    assert stream.reads == reads + 1, "what was read is not sent yet: the window is 10,000 octets"
    assert [len(pkt.tcp.payload) for pkt in scene.said] == [1000] * 10
    for _ in range(20):
        seq = max((pkt.tcp.seq + len(pkt.tcp.payload) - guest.iss) % 2**32 for pkt in scene.said)
        scene.said.clear()
        guest.inject(".", 1, ack=seq)
        scene.turn()
        assert 0 < sum(len(pkt.tcp.payload) for pkt in scene.said) <= 10_000
        assert guest.flow.buffered <= 2 * BUFFER
    assert stream.reads <= reads + 4
    scene.said.clear()


def test_a_guest_that_never_reads_costs_a_bounded_buffer(established):
    scene, guest, stream = established
    stream.bring(*[bytes(BUFFER)] * 100)
    scene.turn()
    guest.inject(".", 1, ack=10_001, win=0)
    for _ in range(50):
        scene.pass_(10.0)
        guest.inject(".", 1, ack=10_001, win=0)
    assert scene.relay.budget.buffered <= MEBI
    assert stream.reads < 10
    assert guest.flow is not None
    scene.said.clear()
    got = 10_000
    guest.inject(".", 1, ack=got + 1, win=60_000)
    while got < 100 * BUFFER:
        scene.turn()
        assert scene.said
        top = max((pkt.tcp.seq + len(pkt.tcp.payload) - guest.iss) % 2**32 for pkt in scene.said)
        got = top - 1
        scene.said.clear()
        guest.inject(".", 1, ack=top, win=60_000)
    guest.expect_nothing()
    assert got == 100 * BUFFER
    assert scene.relay.budget.buffered == 0


def test_buffers_are_lent_until_they_are_acknowledged(established):
    scene, guest, stream = established
    relay = scene.relay
    first, second = b"\1" * 150_000, b"\2" * 150_000
    guest.inject(".", 1, ack=1, win=60_000)
    stream.bring(first)
    scene.turn()
    lent = {id(buffer) for _, buffer, _ in guest.flow.unacked}
    assert lent
    stream.bring(second)
    for seq in range(10_000, 300_001, 10_000):
        guest.inject(".", 1, ack=seq + 1, win=60_000)
        scene.turn()
    octets = b"".join(
        bytes(pkt.tcp.payload)
        for pkt in sorted(scene.said, key=lambda pkt: (pkt.tcp.seq - guest.iss) % 2**32)
    )
    assert octets == first + second
    scene.said.clear()
    assert not guest.flow.unacked
    assert {id(buffer) for buffer in relay.budget.free_buffers} >= lent


def test_a_lost_segment_is_sent_again_as_it_was(established):
    scene, guest, stream = established
    data = bytes(range(256)) * 20
    stream.bring(data)
    scene.turn()
    scene.said.clear()
    stream.bring(b"\xff" * 50_000)
    scene.pass_(0.5)
    heard = [pkt.tcp for pkt in scene.said]
    again = [seg for seg in heard if (seg.seq - guest.iss) % 2**32 < len(data)]
    assert again
    for seg in again:
        at = (seg.seq - guest.iss) % 2**32 - 1
        assert bytes(seg.payload) == (data + b"\xff" * 50_000)[at : at + len(seg.payload)]
    scene.said.clear()


def test_the_stream_goes_on_after_short_reads(established):
    _, guest, stream = established
    for i in range(5):
        stream.bring(b"x" * (i + 1))
        guest.expect(".", data=i + 1)
        guest.inject(".", 1, ack=guest_ack(i))
    guest.expect_nothing()


def guest_ack(i):
    return 1 + (i + 1) * (i + 2) // 2


def test_one_flow_does_not_keep_the_others_waiting(scene):
    """However much one stream brings, each settling moves a bounded part of it."""
    busy = scene.guest(40000)
    stream = busy.establish(win=65_000)
    stream.recv_into = lambda room, octets: octets  # there is always more
    stream.edges |= 1
    stream.tell(scene.now)
    scene.relay.settle(scene.now)
    reads = sum(len(pkt.tcp.payload) for pkt in scene.said)
    assert reads <= 4 * BUFFER
    scene.said.clear()


@pytest.mark.parametrize("partial", [False, True], ids=["summed", "partial"])
def test_super_segments_are_taken(established, partial):
    _, guest, stream = established
    data = bytes(range(250)) * 100
    frame = guest.frame(".", 1, data, ack=1)
    if partial:
        frame[0] = 1
        frame[-1] ^= 0  # the sum is somebody else's to complete
    guest.scene.push(frame)
    guest.expect(".", ack=25_001)
    assert stream.got == data


def test_nothing_is_lost_when_frames_and_events_come_in_one_turn(established):
    scene, guest, stream = established
    stream.bring(b"down")
    scene.relay.on_batch(0, batch_of(guest.frame(".", 1, b"up", ack=1)), scene.now)
    stream.tell(scene.now)
    scene.relay.settle(scene.now)
    guest.expect(".", seq=1, data=b"down", ack=3)
    guest.expect_nothing()
    assert stream.got == b"up"


def test_the_status_tells_what_was_carried(established):
    scene, guest, stream = established
    stream.room = 1
    guest.inject(".", 1, b"hello", ack=1)
    guest.expect(".", ack=6)
    stream.bring(b"hi")
    guest.expect(".", data=b"hi")
    status = scene.relay.status(scene.now)
    assert status == {
        "connections": {"established": 1}, "opened": 1, "established": 1, "failed": 0,
        "evicted": 0,
        "octets_up": 1, "octets_down": 2, "held": 6 + 2 * PIECE,
    }  # fmt: skip
    (flow,) = scene.relay.list_flows(scene.now + 1.5)
    assert flow["from_port"] == 40000
    assert flow["to_port"] == 80
    assert (flow["from"], flow["to"]) == (
        ("10.0.0.2", "192.0.2.1") if scene.version == 4 else ("fd00::2", "2001:db8::1")
    )
    assert (flow["stage"], flow["state"]) == ("established", "ESTABLISHED")
    assert (flow["octets_up"], flow["octets_down"], flow["held"]) == (5, 2, 6 + 2 * PIECE)
    assert flow["idle_s"] == 1.5


def test_what_comes_in_the_moment_in_which_a_shut_window_is_probed_is_taken(established):
    """The probe, which is not sent yet, shows the very octets that the new ones would be put behind."""
    scene, guest, stream = established
    guest.inject(".", 1, ack=1, win=1000)
    stream.bring(bytes(1001))
    guest.expect(".", seq=1, data=1000)
    guest.inject(".", 1, ack=1001, win=0)
    stream.bring(b"more")
    guest.expect_nothing()
    scene.pass_(1.0)
    guest.expect(".", seq=1001, data=1)
    scene.said.clear()
    guest.inject(".", 1, ack=1002, win=1000)
    guest.expect(".", seq=1002, data=b"more")


def test_more_pieces_than_one_call_takes_are_all_sent(established):
    """The stream has room for all, so that no event of it would follow."""
    scene, guest, stream = established
    stream.room = 0
    guest.inject(".", 1, b"x", ack=1)
    frames = [guest.frame(".", 2 + at, b"y", ack=1) for at in range(SLOTS)]
    scene.relay.on_batch(0, batch_of(*frames), scene.now)
    stream.drain()
    stream.tell(scene.now)
    scene.relay.settle(scene.now)
    assert stream.got == b"x" + SLOTS * b"y"
    scene.said.clear()
