"""Bulk data: a flow alone has larger turns than one of many, and of ACKs the newest counts."""

import pytest
from carry import Guest, Scene

from vtl_tools.common.relay.budget import BUFFER
from vtl_tools.common.relay.frames import newest_acks

STAMPS = {"timestamps": (7, 8)}


def bulk(scene, count):
    """Open flows of guests with large windows. Return the guests, and the reads of their endless streams."""
    guests = [scene.guest(40_000 + i) for i in range(count)]
    for guest in guests:
        scene.push(guest.frame("S", 0, win=60_000, options={"mss": 1000, "window_scale": 10}))
        guest.expect("S.")
        guest.inject(".", 1, ack=1, win=60_000)
    scene.relay.out[0] = lambda batch, now: None
    reads = {guest: [] for guest in guests}
    for call, guest in zip(scene.made, guests, strict=True):
        call.stream.recv_into = lambda room, octets, seen=reads[guest]: seen.append(octets) or octets
        call.stream.edges |= 1
        call.stream.tell(scene.now)
    scene.relay.settle(scene.now)
    return reads


def take(scene, guests, **more):
    """Have guests acknowledge all, which is a turn."""
    scene.relay.poll(scene.now)
    acks = [guest.frame(".", 1, ack=guest.flow.endpoint.snd.nxt, **more) for guest in guests]
    scene.push(*acks)


def most_reads(scene, count):
    """Return the most reads of one flow in one turn, of so many whose guests take all."""
    reads, most = bulk(scene, count), 0
    for _ in range(20):
        for seen in reads.values():
            seen.clear()
        take(scene, reads, win=60_000)
        most = max(most, *map(len, reads.values()), 0)
    return most


def test_a_flow_alone_reads_more_in_a_turn_than_one_of_many(fresh):
    assert most_reads(fresh(), 1) == 4
    assert most_reads(fresh(), 2) == 2
    assert most_reads(fresh(), 5) == 1


def test_a_large_turn_ends_where_the_window_does(fresh):
    scene = fresh()
    reads = bulk(scene, 1)
    ((guest, seen),) = reads.items()
    for _ in range(20):
        take(scene, reads, win=60_000)
    seen.clear()
    take(scene, reads, win=2 * BUFFER >> 10)
    assert len(seen) == 2
    assert not guest.flow.endpoint.unsent


def ack(guest, number, **more):
    fields = {"flags": ".", "seq": 1, "ack": number, "options": STAMPS, "win": 500}
    return memoryview(guest.frame(**{**fields, **more}))


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def guests(request):
    scene = Scene(request.param)
    return Guest(scene, 40_000), Guest(scene, 40_001)


def test_an_ack_that_the_next_repeats_is_left_out(guests):
    one, two = guests
    frames = [ack(one, 100), ack(one, 200), ack(one, 300), ack(two, 100), ack(two, 200), ack(one, 400)]
    assert newest_acks(frames) == [frames[2], frames[4], frames[5]]


def test_an_ack_that_says_something_else_stays(guests):
    one, two = guests
    first = ack(one, 200)
    for other in (
        ack(one, 200),  # a duplicate counts
        ack(one, 100),
        ack(two, 300),
        ack(one, 300, seq=2),
        ack(one, 300, data=b"x"),
        ack(one, 300, flags="F."),
        ack(one, 300, options={"sack": [(5, 6)], **STAMPS}),
        ack(one, 300, options={"sack": [(5, 6)]}),
        ack(one, 300, options={}),
    ):
        assert newest_acks([first, other]) == [first, other]
        assert newest_acks([other, first]) == [other, first] or other == ack(one, 100)


def test_of_acks_that_come_together_the_last_is_processed(established):
    scene, guest, stream = established
    stream.bring(bytes(80_000))
    scene.turn()
    scene.said.clear()
    endpoint = guest.flow.endpoint
    before = endpoint.segments_in
    scene.push(*(guest.frame(".", 1, ack=1 + at, options=STAMPS) for at in range(1000, 5001, 1000)))
    assert endpoint.acknowledged == 5000
    assert endpoint.segments_in == before + 1
