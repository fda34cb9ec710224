"""Batches: frames in an arena, edited in place."""

import os

import pytest

from vtl_tools.common.device.batch import FRAME_MAX, HEADROOM, SLOTS, Batch, PackedBatch
from vtl_tools.common.packet.vnet import NONE, VNET

FRAMES = [NONE + bytes([n]) * (20 + n) for n in range(5)]


def frames(batch):
    return [bytes(frame) for frame in batch]


def test_what_is_appended_comes_back():
    batch = Batch.of(FRAMES)
    assert frames(batch) == FRAMES
    assert [bytes(batch[i]) for i in range(len(batch))] == FRAMES
    assert batch.lengths.tolist() == [len(frame) for frame in FRAMES]
    assert batch.octets == sum(len(frame) - VNET for frame in FRAMES)


def test_frames_that_are_packed_can_be_looked_at():
    packed = PackedBatch()
    for some in FRAMES, FRAMES[1:3]:
        batch = packed.pack([(frame,) for frame in some])
        assert frames(batch) == some
        assert [bytes(batch[i]) for i in range(len(batch))] == some
        assert batch.octets == sum(len(frame) - VNET for frame in some)


def test_a_forked_worker_has_frames_of_its_own():
    batch = Batch.of(FRAMES)
    if not (worker := os.fork()):
        for frame in batch:
            frame[:] = bytes(len(frame))
        os._exit(any(map(any, batch)))
    assert os.waitpid(worker, 0)[1] == 0
    assert frames(batch) == FRAMES


def test_a_plain_frame_is_given_a_header_of_zeros():
    batch = Batch(1)
    batch.append(b"\xff" * 100)
    batch.clear()
    batch.append_plain(b"ethernet")
    assert frames(batch) == [NONE + b"ethernet"]


def test_a_full_batch_takes_no_more():
    batch = Batch.of(FRAMES)
    for append in batch.append, batch.append_plain:
        with pytest.raises(IndexError):
            append(FRAMES[0])
    assert frames(batch) == FRAMES


@pytest.mark.parametrize(("method", "most"), [("append", FRAME_MAX), ("append_plain", FRAME_MAX - VNET)])
def test_the_largest_frame_fits_and_no_larger(method, most):
    batch = Batch(2)
    with pytest.raises(ValueError, match="octets"):
        getattr(batch, method)(bytes(most + 1))
    getattr(batch, method)(bytes(most))
    assert batch.lengths.tolist() == [FRAME_MAX]


@pytest.mark.parametrize("i", [-1, 5, SLOTS])
def test_only_frames_that_are_there_have_an_index(i):
    with pytest.raises(IndexError):
        Batch.of(FRAMES)[i]


def test_clear_forgets_frames_and_what_was_done_to_them():
    batch = Batch.of(FRAMES)
    batch.resize(0, 30, front=-HEADROOM)
    batch.clear()
    assert not batch
    assert frames(batch) == []
    assert len(batch.room(0)) == FRAME_MAX
    batch.append(FRAMES[1])
    assert frames(batch) == [FRAMES[1]]


def test_views_of_small_frames_are_used_again():
    batch = Batch.of(FRAMES)
    first = batch.frames()
    for length in range(50, 1500):
        batch.resize(0, length)
        assert [len(frame) for frame in batch.frames()] == [length, *map(len, FRAMES[1:])]
    batch.clear()
    for frame in reversed(FRAMES):
        batch.append(frame)
    assert frames(batch) == FRAMES[::-1]
    assert batch.frames()[2] is first[2]
    batch.resize(2, 30, front=-4)
    assert frames(batch)[2][4:] == FRAMES[2][:26]


def test_pick_borrows_a_part_in_any_order():
    source = Batch.of(FRAMES)
    part = Batch(5).pick(source, [3, 1])
    assert frames(part) == [FRAMES[3], FRAMES[1]]
    part[0][-1] = 255
    assert source[3][-1] == 255


def test_a_batch_picks_from_itself():
    batch = Batch.of(FRAMES)
    batch.pick(batch, [0, 2, 4])
    assert frames(batch) == FRAMES[::2]
    batch.pick(batch, [])
    assert frames(batch) == []


def test_resize_into_the_headroom_and_back():
    batch = Batch.of(FRAMES)
    batch.resize(2, len(FRAMES[2]) + HEADROOM, front=-HEADROOM)[:HEADROOM] = b"h" * HEADROOM
    assert bytes(batch[2]) == b"h" * HEADROOM + FRAMES[2]
    batch.resize(2, len(FRAMES[2]), front=HEADROOM)
    assert frames(batch) == FRAMES


@pytest.mark.parametrize(
    ("length", "front"), [(10, -HEADROOM - 1), (-1, 0), (FRAME_MAX + 1, 0), (FRAME_MAX, 1)]
)
def test_resize_stays_within_the_slot(length, front):
    batch = Batch.of(FRAMES)
    with pytest.raises(ValueError, match="cannot be"):
        batch.resize(1, length, front)
    assert frames(batch) == FRAMES


def test_room_is_filled_in_place():
    batch = Batch(2)
    batch.room(0)[:3] = b"abc"
    batch.count = 1
    batch.resize(0, 3)
    assert frames(batch) == [b"abc"]
