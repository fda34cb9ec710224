"""Faults by seed, in virtual time; and in real time by the handle."""

from random import Random

import pytest

from tests.unit.device.helpers import ether, octets, plain, read_all, ready
from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.batch import SLOTS, Batch
from vtl_tools.common.device.fault import LIMIT, REORDER_S, Fault
from vtl_tools.common.device.memory import pair
from vtl_tools.common.packet.vnet import NONE, VNET


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def make():
    """Return Fault(...) around one end of a cable, the other end, and a clock that stands still."""
    opened = []

    def build(**faults):
        clock = Clock()
        inner, far = pair(offload=True)
        device = Fault(inner, clock=clock, **faults)
        for one in device, far:
            one.connect()
            opened.append(one)
        return device, far, clock

    yield build
    for device in opened:
        device.close()


def send(device, count):
    for n in range(0, count, SLOTS):
        device.write(Batch.of([plain(m) for m in range(n, min(n + SLOTS, count))]))


def drain(device):
    got = []
    while batch := device.read():
        got += octets(batch)
    return got


def run_out(device, far, clock):
    """Move the clock from deadline to deadline until nothing is under way; return what came each way."""
    near, away = drain(device), drain(far)
    while (due := device.deadline()) is not None:
        assert due > clock.now
        clock.now = due
        near += drain(device)
        away += drain(far)
    return near, away


def test_without_faults_all_passes_at_once(make):
    device, far, clock = make(rng=Random(1))
    send(device, 100)
    send(far, 100)
    expected = [ether(n) for n in range(100)]
    assert run_out(device, far, clock) == (expected, expected)
    assert clock.now == Clock.now
    assert device.drops == {}


@pytest.mark.parametrize("seed", range(3))
def test_the_same_seed_gives_the_same_faults(make, seed):
    faults = {"loss": 0.2, "duplicate": 0.1, "reorder": 0.1, "corrupt": 0.1, "delay_s": 0.01}

    def once(seed):
        device, far, clock = make(rng=Random(seed), **faults)
        send(device, 200)
        send(far, 200)
        return run_out(device, far, clock)

    assert once(seed) == once(seed)
    assert once(seed) != once(seed + 1)


def test_losses_are_counted(make):
    device, far, clock = make(loss=0.3, rng=Random(1))
    send(device, 500)
    send(far, 500)
    near, away = run_out(device, far, clock)
    assert device.drops == {Drop.FAULT: 1000 - len(near) - len(away)}
    assert 250 < device.drops[Drop.FAULT] < 350
    assert device.status()["drops"] == {"fault": device.drops[Drop.FAULT]}


@pytest.mark.parametrize(("fault", "copies"), [({"loss": 1.0}, 0), ({"duplicate": 1.0}, 2)])
def test_certain_faults_fall_on_every_frame(make, fault, copies):
    device, far, clock = make(rng=Random(1), **fault)
    send(device, 10)
    assert sorted(run_out(device, far, clock)[1]) == sorted([ether(n) for n in range(10)] * copies)


def test_a_delay_is_kept_to_the_instant(make):
    device, far, clock = make(delay_s=0.25, rng=Random(1))
    send(device, 1)
    send(far, 1)
    assert device.deadline() is None or device.deadline() == 1000.25
    assert not device.read()
    assert device.deadline() == 1000.25
    clock.now = 1000.249
    assert not device.read()
    assert not far.read()
    clock.now = 1000.25
    assert octets(device.read()) == [ether(0)]
    assert octets(far.read()) == [ether(0)]
    assert device.deadline() is None


def test_reordered_frames_arrive_late_and_all_arrive(make):
    device, far, clock = make(reorder=0.2, rng=Random(1))
    send(device, 100)
    away = run_out(device, far, clock)[1]
    assert away != sorted(away) == [ether(n) for n in range(100)]
    assert clock.now == 1000 + REORDER_S


def test_damage_is_one_bit_and_never_in_the_virtio_net_hdr(make):
    device, far, _ = make(corrupt=1.0, rng=Random(1))
    batch = Batch.of([plain(7)] * SLOTS)
    device.write(batch)
    frames = [bytes(frame) for frame in far.read()]
    assert [bytes(frame) for frame in batch] == [plain(7)] * SLOTS
    assert all(frame[:VNET] == NONE for frame in frames)
    flips = [int.from_bytes(frame, "big") ^ int.from_bytes(plain(7), "big") for frame in frames]
    assert [flip.bit_count() for flip in flips] == [1] * SLOTS


def test_what_is_under_way_is_bounded(make):
    device, _, _ = make(delay_s=1.0, rng=Random(1))
    send(device, LIMIT + 10)
    assert device.drops == {Drop.QUEUE_FULL: 10}


def test_it_is_finished_when_the_link_is_and_nothing_is_under_way(make):
    device, far, clock = make(delay_s=1.0, rng=Random(1))
    send(far, 1)
    assert not device.read()
    far.close()
    assert not device.read()
    assert not device.finished
    clock.now += 1
    assert octets(device.read()) == [ether(0)]
    assert device.finished


def test_everything_else_is_the_inner_device_s(make):
    device, _, _ = make(rng=Random(1))
    inner = device.device
    assert (device.mtu, device.offload, device.up, device.spec) == (1500, True, True, "memory:left")
    assert device.status() == inner.status()
    device.mtu = 9000
    assert inner.mtu == 9000


def test_in_real_time_the_handle_tells_of_frames_that_are_due():
    inner, far = pair()
    with Fault(inner, delay_s=0.02, rng=Random(1)) as device, far:
        far.write(Batch.of([plain(1)]))
        assert read_all(device, 1) == [ether(1)]
        device.write(Batch.of([plain(2)]))
        assert not far.read()
        while not ready(far, 0):
            assert ready(device)
            device.read()
        assert octets(far.read()) == [ether(2)]
