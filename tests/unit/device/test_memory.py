"""The cable in memory, and what it shows of every device: counting, waiting, segmenting."""

import asyncio

import pytest

from tests.unit.device.helpers import ether, octets, plain, ready, tcp
from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.device.memory import QUEUE, pair
from vtl_tools.common.packet.vnet import NONE, VNET


@pytest.fixture
def ends():
    left, right = pair()
    with left, right:
        yield left, right


def test_what_one_sends_the_other_receives(ends):
    left, right = ends
    assert left.write(Batch.of([plain(1), plain(2)])) == 2
    assert right.write(Batch.of([plain(3)])) == 1
    assert octets(right.read()) == [ether(1), ether(2)]
    assert octets(left.read()) == [ether(3)]
    assert not right.read()
    assert (left.tx_frames, left.tx_octets, left.rx_frames, left.rx_octets) == (2, 120, 1, 60)
    assert left.drops == right.drops == {}


def test_the_handle_tells_when_there_is_something_to_read(ends):
    left, right = ends
    assert not ready(right, 0)
    left.write(Batch.of([plain(n) for n in range(SLOTS)]))
    left.write(Batch.of([plain(99)]))
    assert ready(right)
    assert len(right.read()) == SLOTS
    assert ready(right, 0)
    assert octets(right.read()) == [ether(99)]
    assert not ready(right, 0)


def test_a_full_queue_drops_and_counts(ends):
    left, _ = ends
    full = Batch.of([plain(n) for n in range(SLOTS)])
    for _ in range(QUEUE // SLOTS):
        assert left.write(full) == SLOTS
    assert left.write(full) == 0
    assert left.drops == {Drop.QUEUE_FULL: SLOTS}
    assert left.tx_frames == QUEUE
    assert left.tx_octets == QUEUE * 60


def test_frames_sent_before_the_other_end_is_plugged_in_wait():
    left, right = pair()
    with left:
        left.write(Batch.of([plain(1)]))
        with right:
            assert ready(right)
            assert octets(right.read()) == [ether(1)]


def test_closing_one_end_finishes_the_other_once_it_is_drained():
    left, right = pair()
    with right:
        with left:
            left.write(Batch.of([plain(1)]))
        left.close()
        assert not right.up
        assert ready(right)
        assert octets(right.read()) == [ether(1)]
        assert right.finished
        assert right.write(Batch.of([plain(2)])) == 0
        assert right.drops == {Drop.LINK_DOWN: 1}


def test_the_paper_s_figure_1_runs_to_the_end():
    async def bridge():
        guest, src = pair()
        dst, world = pair()
        with guest, world:
            async with src, dst:
                guest.write(Batch.of([plain(1), plain(2)]))
                asyncio.get_running_loop().call_soon(guest.close)
                async for batch in src:
                    dst.write(batch)
                return octets(world.read())

    assert asyncio.run(asyncio.wait_for(bridge(), 30)) == [ether(1), ether(2)]


def test_without_offload_super_segments_are_cut_and_summed(ends):
    left, right = ends
    assert left.write(Batch.of([plain(1), tcp(b"x" * 3000, gso_size=1000), tcp(b"y")])) == 5
    frames = [bytes(frame) for frame in right.read()]
    assert [len(frame) - VNET for frame in frames] == [60, 1054, 1054, 1054, 55]
    assert all(frame[:VNET] == NONE for frame in frames)


def test_a_super_segment_may_become_more_frames_than_a_batch_holds(ends):
    left, right = ends
    assert left.write(Batch.of([tcp(b"x" * 60_000, gso_size=500)] * 2)) == 240
    assert [len(right.read()) for _ in range(4)] == [64, 64, 64, 48]


def test_with_offload_frames_pass_as_they_are():
    left, right = pair(offload=True)
    with left, right:
        frames = [tcp(b"x" * 3000, gso_size=1000), tcp(b"y")]
        assert left.write(Batch.of(frames)) == 2
        assert [bytes(frame) for frame in right.read()] == frames


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", Drop.RUNT),
        (NONE, Drop.RUNT),
        (plain(size=60)[: VNET + 13], Drop.RUNT),
        (plain(size=1515), Drop.TOO_BIG),
        (tcp(b"x" * 4000, gso_size=2000), Drop.TOO_BIG),
        (tcp(b"x" * 3000, gso_size=1000, gso_type=4), Drop.MALFORMED),
        (tcp(b"x" * 3000, gso_size=1000, gso_type=77), Drop.MALFORMED),
    ],
)
def test_what_a_link_without_offload_cannot_carry_is_counted_by_reason(ends, frame, reason):
    left, right = ends
    assert left.write(Batch.of([plain(1), frame, plain(2)])) == 2
    assert octets(right.read()) == [ether(1), ether(2)]
    assert set(left.drops) == {reason}
    assert left.tx_octets == 120


@pytest.mark.parametrize(("tags", "taken"), [("81000005", 1), ("88a8000581000005", 1), ("81000005" * 3, 0)])
def test_two_vlan_tags_do_not_count_towards_the_mtu(ends, tags, taken):
    left, right = ends
    frame = plain(size=1514)
    tagged = frame[: VNET + 12] + bytes.fromhex(tags) + frame[VNET + 12 :]
    assert left.write(Batch.of([tagged])) == taken
    assert [len(frame) for frame in right.read()] == [len(tagged)] * taken


def test_status_is_what_json_prints(ends):
    left, _ = ends
    left.write(Batch.of([plain(), plain(size=2000)]))
    assert left.status() == {
        "link": "memory:left",
        "up": True,
        "losses": 0,
        "rx_frames": 0,
        "rx_octets": 0,
        "tx_frames": 1,
        "tx_octets": 60,
        "drops": {"too-big": 1},
    }
