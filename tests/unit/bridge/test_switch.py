"""The bridge's two stages, without a kernel: what goes where, and what is counted."""

from collections import defaultdict
from random import Random

import pytest

from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.common.stage import Stage, join
from vtl_tools.services.bridge import AGE_S, SHARED_PER_S, STATIONS_MAX, Bridge, Switch

A, B, C = (bytes([2, 0, 0, 0, 0, n]) for n in (1, 2, 3))
EVERYBODY = b"\xff" * 6


def frame(dst: bytes, src: bytes, body: bytes = b"") -> bytes:
    return NONE + dst + src + b"\x88\xb5" + body


class Wire:
    """Collects what a stage sends at each port."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.sent: dict[int, list[bytes]] = defaultdict(list)
        for port in range(len(stage.out)):
            stage.out[port] = self._sink(port)

    def _sink(self, port: int):
        return lambda batch, now: self.sent[port].extend(bytes(f) for f in batch)

    def push(self, port: int, *frames: bytes, now: float = 0.0) -> dict[int, list[bytes]]:
        self.sent.clear()
        self.stage.on_batch(port, Batch.of(frames), now)
        return dict(self.sent)


@pytest.fixture
def switch() -> Wire:
    return Wire(Switch(["p0", "p1", "p2"]))


def test_a_bridge_passes_a_batch_on_as_it_is():
    wire = Wire(Bridge())
    frames = [frame(A, B, bytes([n])) for n in range(SLOTS)]
    assert wire.push(0, *frames) == {1: frames}
    assert wire.push(1, *frames) == {0: frames}
    assert wire.stage.drops == {}


def test_half_duplex_counts_what_comes_the_other_way():
    wire = Wire(Bridge(half_duplex=True))
    assert wire.push(1, frame(A, B), frame(A, B)) == {}
    assert wire.stage.drops == {"other-direction": 2}


def test_the_unknown_is_flooded_and_the_known_goes_one_way(switch):
    assert set(switch.push(0, frame(B, A))) == {1, 2}
    assert switch.push(1, frame(A, B)) == {0: [frame(A, B)]}
    assert switch.push(0, frame(B, A)) == {1: [frame(B, A)]}
    assert set(switch.push(2, frame(EVERYBODY, C))) == {0, 1}
    assert switch.stage.drops == {}


def test_a_batch_is_split_by_where_its_frames_go(switch):
    switch.push(1, frame(EVERYBODY, B))
    switch.push(2, frame(EVERYBODY, C))
    one, two, three = frame(B, A, b"1"), frame(C, A, b"2"), frame(B, A, b"3")
    assert switch.push(0, one, two, three) == {1: [one, three], 2: [two]}


def test_what_is_for_the_port_that_it_came_from_stays_there(switch):
    switch.push(0, frame(EVERYBODY, A))
    assert switch.push(0, frame(A, B)) == {}
    assert switch.stage.drops == {"local": 1}


def test_a_station_that_moves_is_found_at_its_new_port_at_once(switch):
    switch.push(0, frame(EVERYBODY, A))
    switch.push(2, frame(EVERYBODY, A))
    assert switch.push(1, frame(A, B)) == {2: [frame(A, B)]}


def test_a_group_address_is_never_learnt_as_a_sender(switch):
    switch.push(0, frame(B, b"\x01" + A[1:]))
    assert switch.stage.status(0.0) == {"stations": {}}


def test_a_frame_that_is_too_short_to_be_one_is_counted(switch):
    whole = frame(EVERYBODY, A)
    for length in range(10, 24):
        assert switch.push(0, whole[:length]) == {}
    assert switch.stage.drops == {"malformed": 14}


def test_stations_age(switch):
    switch.push(0, frame(EVERYBODY, A), now=1.0)
    switch.stage.wake(1.0)
    assert switch.push(1, frame(A, B), now=AGE_S) == {0: [frame(A, B)]}
    assert set(switch.push(1, frame(A, B), now=AGE_S + 1.1)) == {0, 2}, "not yet swept, but too old"
    due = switch.stage.deadline()
    assert due is not None
    switch.stage.wake(max(due, 2 * AGE_S + 2))
    assert switch.stage.status(2 * AGE_S + 2) == {"stations": {}}
    assert switch.stage.deadline() is None, "nothing is left to age"


def test_a_guest_with_ever_new_addresses_costs_a_bounded_table(switch):
    rng = Random(1)
    for _ in range(2 * STATIONS_MAX // SLOTS):
        frames = [frame(EVERYBODY, b"\x02" + rng.randbytes(5)) for _ in range(SLOTS)]
        switch.push(0, *frames)
    assert len(switch.stage.stations) == STATIONS_MAX


def test_to_hear_what_is_for_others_by_a_flood_of_made_up_stations(switch):
    switch.push(1, frame(EVERYBODY, B))
    switch.push(2, frame(EVERYBODY, C))
    rng = Random(1)
    for _ in range(2 * STATIONS_MAX // SLOTS):
        switch.push(0, *(frame(EVERYBODY, b"\x02" + rng.randbytes(5)) for _ in range(SLOTS)), now=0.5)
    assert switch.push(2, frame(B, C), now=0.6) == {1: [frame(B, C)]}


def test_to_keep_other_workers_busy_by_a_flood_of_made_up_stations(switch):
    told = []
    switch.stage.broadcast = told.append
    rng = Random(1)
    for number in range(100):
        switch.push(
            0, *(frame(EVERYBODY, b"\x02" + rng.randbytes(5)) for _ in range(SLOTS)), now=number / 100
        )
    assert len(told) <= 2 * SHARED_PER_S


def test_a_link_that_goes_takes_its_stations_along(switch):
    switch.push(0, frame(EVERYBODY, A))
    switch.push(1, frame(EVERYBODY, B))
    switch.stage.on_link(0, False, 0.0)
    assert list(switch.stage.status(0.0)["stations"]) == [B.hex(":")]


def test_workers_tell_each_other_what_they_learn(switch):
    other = Wire(Switch(["p0", "p1", "p2"]))
    switch.stage.broadcast = lambda message: other.stage.on_message(message, 0.0)
    switch.push(0, frame(EVERYBODY, A))
    assert other.push(1, frame(A, B)) == {0: [frame(A, B)]}
    other.stage.on_message(b"\x09" + C, 0.0)
    other.stage.on_message(b"", 0.0)
    assert C.hex(":") not in other.stage.status(0.0)["stations"]


def test_joined_stages_are_one_box():
    left, right = Bridge(), Bridge()
    join(left, right)
    sent = []
    right.out[1] = lambda batch, now: sent.extend(bytes(f) for f in batch)
    left.out[0] = lambda batch, now: sent.extend(bytes(f) for f in batch)
    left.on_batch(0, Batch.of([frame(A, B)]), 0.0)
    right.on_batch(1, Batch.of([frame(B, A)]), 0.0)
    assert sent == [frame(A, B), frame(B, A)]


def test_a_stage_drops_frames_by_reason():
    stage = Stage()
    batch = Batch.of([frame(A, B, bytes([n])) for n in range(4)])
    stage.drop(batch, [0, 2], "test")
    assert [bytes(f)[-1] for f in batch] == [1, 3]
    assert stage.drops == {"test": 2}
