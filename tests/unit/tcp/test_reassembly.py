"""Reassembly: octets that came before their turn, in few pieces."""

import gc
import tracemalloc
from random import Random

import pytest

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.queue import PIECE, SendQueue
from vtl_tools.common.tcp.rcv import Receiver
from vtl_tools.common.tcp.reassembly import ReassemblyQueue

STREAM = bytes(Random(3).randbytes(1 << 20))


def receiver(**config):
    rcv = Receiver(Config(**config))
    rcv.start(0)
    rcv.window(10)
    return rcv


def give(rcv, start, end):
    """Let octets come, whose positions begin at 1, and their frame be used for others."""
    frame = bytearray(STREAM[start - 1 : end - 1])
    kept = rcv.take(start, memoryview(frame))
    rcv.own()
    frame[:] = bytes(len(frame))
    return kept


@pytest.mark.parametrize("seed", range(30))
def test_segments_in_any_order_and_overlapping_make_the_stream(seed):
    rng, rcv, size = Random(seed), receiver(), 3000
    longest = rng.choice((3, 40, 900))
    came = set()
    while rcv.nxt <= size:
        start = rng.randrange(1, size + 1)
        if rng.random() < 0.1:
            start = rcv.nxt
        end = min(size + 1, start + rng.randrange(1, longest))
        give(rcv, start, end)
        came |= set(range(max(start, rcv.nxt), end))
        came -= set(range(rcv.nxt))
        assert rcv.early.octets == len(came) == sum(map(len, rcv.early.pieces))
        for left, right in rcv.blocks()[rcv.dsack is not None :]:
            assert right <= rcv.nxt or set(range(left, right)) <= came
    assert b"".join(map(bytes, rcv.queue)) == STREAM[:size]
    assert not rcv.early.starts


def test_the_run_that_came_last_is_told_of_first_and_whole():
    rcv = receiver()
    for start in (11, 31, 51, 71, 91, 41, 21):
        give(rcv, start, start + 10)
    assert rcv.blocks() == [(11, 61), (91, 101), (71, 81)]


def test_large_pieces_that_touch_are_one_run():
    rcv = receiver()
    for start in (300_001, 100_001, 200_001):
        give(rcv, start, start + 100_000)
    assert len(rcv.early.starts) == 3
    assert rcv.blocks() == [(100_001, 400_001)]
    give(rcv, 1, 100_001)
    assert b"".join(map(bytes, rcv.queue)) == STREAM[:400_000]


def measured(make):
    """The octets of memory that make() takes, and what it returns."""
    gc.collect()
    tracemalloc.start()
    made = make()
    octets, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return octets, made


@pytest.mark.parametrize("order", ["ascending", "descending", "shuffled"])
@pytest.mark.parametrize(("size", "apart"), [(1, 1), (1, 2), (1, 1000), (2, 3), (700, 701), (60_000, 60_001)])
def test_more_memory_than_is_charged_for_with_holes(order, size, apart):
    starts = list(range(2, 900_000 - size, apart))[:20_000]
    if order == "descending":
        starts.reverse()
    elif order == "shuffled":
        Random(1).shuffle(starts)

    def fill():
        rcv = receiver()
        for start in starts:
            give(rcv, start, start + size)
        return rcv

    octets, rcv = measured(fill)
    assert octets <= rcv.kept * 9 / 8 + 4096  # a bytearray grows by an eighth at a time


@pytest.mark.parametrize("size", [1, 100, 2047, 2048, 65_000])
def test_more_memory_than_is_charged_for_by_what_nobody_reads(size):
    def fill():
        rcv = receiver()
        for start in range(1, 900_000 - size, size):
            give(rcv, start, start + size)
            if start > 100_000 and size == 1:  # each is measured, which takes its time
                break
        return rcv

    octets, rcv = measured(fill)
    assert octets <= rcv.kept * 9 / 8 + 4096


def test_one_octet_left_of_a_piece_is_charged_for_as_the_piece():
    rcv = receiver()
    give(rcv, 1, 60_001)
    rcv.skip(59_999)
    assert rcv.readable == 1
    assert rcv.kept >= 60_000
    rcv.skip(1)
    assert rcv.kept == 0
    give(rcv, 60_001, 120_001)
    rcv.read(59_999)
    assert rcv.kept >= 60_000
    rcv.read(1)
    assert rcv.kept == 0


def test_one_octet_that_is_not_acknowledged_is_charged_for_as_its_piece():
    queue = SendQueue()
    queue.append(bytes(60_000))
    queue.drop(60_000)
    assert queue.kept == 60_000 + PIECE
    queue.drop(60_001)
    assert queue.kept == 0
    queue.append(b"x")
    queue.append(b"y")
    assert queue.kept == 2 + PIECE
    queue.clear()
    assert queue.kept == 0


def test_joining_copies_no_more_than_a_frame(monkeypatch):
    """Else a segment of one octet before a megabyte would cost as much as a megabyte."""
    early = ReassemblyQueue(1024)
    for start in range(900_000, 100_000, -100):
        early.add(start, start + 100, memoryview(STREAM)[start : start + 100])
    assert max(map(len, early.pieces)) <= 65536
    assert len(early.pieces) <= 2 * 800_000 // 65536 + 2
