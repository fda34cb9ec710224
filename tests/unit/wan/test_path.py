"""A path: when frames come out, in which order, and which."""

import tracemalloc
from random import Random

import pytest

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK
from vtl_tools.common.packet.vnet import NONE, VNET
from vtl_tools.services.wan.loss import Loss
from vtl_tools.services.wan.path import WanPath, ecn_of, with_ce
from vtl_tools.services.wan.settings import UNCHANGED, changed

MACS = {"src_mac": address.mac("52:54:00:00:00:01"), "dst_mac": address.mac("52:54:00:00:00:02")}
ENDS4 = {"src": address.ip("10.0.0.1"), "dst": address.ip("10.0.0.2")}
ENDS6 = {"src": address.ip("fd00::1"), "dst": address.ip("fd00::2")}


def path(memory: int = 1 << 24, seed: int = 1, **changes: str) -> WanPath:
    return WanPath(changed((UNCHANGED, UNCHANGED), changes)[0], Random(seed), memory)


def plain(number: int, octets: int = 60) -> bytes:
    return NONE + bytes(12) + b"\x88\xb5" + number.to_bytes(4, "big") + bytes(octets - 18)


def push(into: WanPath, frames: list[bytes], now: float) -> None:
    batch = Batch.of(frames)
    into.push(batch, batch.count, batch.octets, now)


def numbers(frames: list[bytes]) -> list[int]:
    return [int.from_bytes(frame[VNET + 14 : VNET + 18], "big") for frame in frames]


def drain(of: WanPath, until: float = 1e9) -> list[int]:
    found: list[int] = []
    while frames := of.pop(until):
        found += numbers(frames)
    return found


def test_a_delay_and_nothing_else() -> None:
    one = path(delay="100ms")
    push(one, [plain(n) for n in range(5)], 1.0)
    push(one, [plain(n) for n in range(5, 9)], 1.05)
    assert one.due() == pytest.approx(1.1)
    assert one.pop(1.0999) == []
    assert numbers(one.pop(1.1)) == [0, 1, 2, 3, 4]
    assert drain(one) == [5, 6, 7, 8]
    assert one.due() is None


def test_frames_are_copied() -> None:
    one, batch = path(delay="1ms"), Batch.of([plain(7)])
    one.push(batch, 1, batch.octets, 0.0)
    batch[0][:] = bytes(len(batch[0]))
    assert drain(one) == [7]


def test_a_shorter_delay_lets_no_frame_overtake() -> None:
    one = path(delay="1s")
    push(one, [plain(1)], 0.0)
    one.apply(UNCHANGED, 0.5)
    push(one, [plain(2)], 0.5)
    assert one.pop(0.9) == []
    assert drain(one, 1.0) == [1, 2]


@pytest.mark.parametrize("distribution", ["normal", "uniform", "pareto"])
def test_jitter_moves_frames_in_time_and_keeps_their_order(distribution: str) -> None:
    one = path(delay="100ms", jitter="10ms", distribution=distribution)
    times = []
    for n in range(2000):
        push(one, [plain(n)], n * 1.0)
        due = one.due()
        assert due is not None
        times.append(due - n)
        assert drain(one) == [n]
    mean = sum(times) / len(times)
    spread = (sum((t - mean) ** 2 for t in times) / len(times)) ** 0.5
    assert mean == pytest.approx(0.1, abs=0.002)
    assert spread == pytest.approx(0.0058 if distribution == "uniform" else 0.01, rel=0.35)


def test_reordered_frames_are_overtaken() -> None:
    one = path(delay="10ms", reorder="20%")
    for n in range(500):
        push(one, [plain(n)], n * 0.001)
    found = drain(one)
    assert sorted(found) == list(range(500))
    assert found != sorted(found)
    assert one.reordered == pytest.approx(100, abs=40)


def test_duplicates_and_damage() -> None:
    one = path(duplicate="50%", corrupt="50%")
    sent = [plain(n * 0x9E3779B1 % (1 << 32), 100) for n in range(64)]
    push(one, sent, 0.0)
    found = [frame for frames in iter(lambda: one.pop(1.0), []) for frame in frames]
    assert len(found) == 64 + one.duplicated
    assert 10 < one.duplicated < 54
    whole = set(sent)
    assert sum(frame not in whole for frame in found) == one.corrupted > 10


def test_an_outage_drops_all_until_it_ends() -> None:
    one = path()
    one.fail(5.0)
    push(one, [plain(1)] * 3, 4.9)
    push(one, [plain(2)], 5.0)
    assert drain(one) == [2]
    assert one.drops == {"outage": 3}


@pytest.mark.parametrize("loss", ["0", "0.0001%"])
def test_memory_is_bounded(loss: str) -> None:
    one = path(memory=1 << 20, delay="1s", loss=loss)
    for n in range(100):
        push(one, [plain(n, 1000)] * 64, n * 0.001)
    told = one.status(0.1)
    assert told["waiting_octets"] == pytest.approx(1 << 20, rel=0.1)
    assert one.drops["memory"] > 5000
    drain(one)
    assert one.status(2.0)["waiting_octets"] == 0


@pytest.mark.parametrize("at_once", [1, 64], ids=["alone", "batch"])
@pytest.mark.parametrize("settings", [{}, {"loss": "0.1%"}, {"rate": "1gbit"}, {"reorder": "100%"}])
def test_what_waits_takes_no_more_memory_than_is_counted(settings: dict[str, str], at_once: int) -> None:
    one = path(delay="100s", queue="100s", **settings)
    batch = Batch.of([plain(n) for n in range(at_once)])
    tracemalloc.start()
    try:
        for n in range(12_800 // at_once):
            one.push(batch, batch.count, batch.octets, n * 1e-5)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    counted = one.status(1.0)["waiting_octets"]
    assert isinstance(counted, int)
    assert 0.4 * counted < taken < counted


def super_segment(size: int = 40_000) -> bytes:
    return bytes(
        build.tcp(
            **MACS,
            **ENDS4,
            sport=1,
            dport=2,
            seq=1,
            ack=1,
            flags=ACK,
            payload=bytes(size),
            gso_size=1460,
            partial=True,
        )
    )


def test_only_a_delay_leaves_super_segments_whole() -> None:
    one = path(delay="1ms")
    push(one, [super_segment()], 0.0)
    assert one.pop(1.0) == [super_segment()]


@pytest.mark.parametrize("settings", [{"loss": "0.1%"}, {"loss": "burst:0.5%,20"}])
def test_a_super_segment_is_cut_only_where_a_segment_of_it_is_lost(settings: dict[str, str]) -> None:
    one = path(**settings)
    for _ in range(400):
        push(one, [super_segment()], 0.0)
    segments = Loss(one.settings, Random(1))  # by the same chances
    lost = [sum(segments.takes() for _ in range(28)) for _ in range(400)]
    assert one.cut == sum(map(bool, lost)) > 0
    assert one.drops["lost"] == sum(lost)
    found = [frame for frames in iter(lambda: one.pop(1.0), []) for frame in frames]
    assert found.count(super_segment()) == lost.count(0)
    assert len(found) == sum(28 - n if n else 1 for n in lost)


@pytest.mark.parametrize(
    "settings",
    [{"rate": "1gbit"}, {"jitter": "1ms"}, {"reorder": "1%"}, {"duplicate": "1%"}, {"corrupt": "1%"}],
)
def test_a_super_segment_is_cut_where_its_segments_have_fates_of_their_own(settings: dict[str, str]) -> None:
    one = path(**settings, queue="1s", delay="10ms")
    push(one, [super_segment()], 0.0)
    assert one.cut == 1
    found = [frame for frames in iter(lambda: one.pop(1.0), []) for frame in frames]
    assert max(map(len, found)) == VNET + 54 + 1460


def test_a_partial_checksum_is_completed_before_damage_only() -> None:
    frame = bytes(build.udp(**MACS, **ENDS4, sport=1, dport=2, payload=b"hello", partial=True))
    one, damaged = path(rate="1gbit"), path(corrupt="100%")
    for each in one, damaged:
        push(each, [frame], 0.0)
    assert one.pop(1.0) == [frame]
    assert damaged.pop(1.0)[0][0] == 0


def test_a_loss_falls_on_real_segments() -> None:
    one = path(loss="5%", rate="10gbit")
    for _ in range(40):
        push(one, [super_segment()], 0.0)
    found = [frame for frames in iter(lambda: one.pop(1.0), []) for frame in frames]
    assert one.cut == 40
    assert len(found) + one.drops["lost"] == 40 * 28
    assert 20 < one.drops["lost"] < 100
    for frame in found[:50]:
        pkt = Packet.at(bytearray(frame))
        assert pkt.tcp is not None
        assert len(pkt.tcp.payload) <= 1460


def test_a_super_segment_that_lies_is_dropped() -> None:
    one = path(loss="1%")
    lie = bytearray(super_segment())
    lie[VNET + 23] = 17  # UDP, says the packet
    push(one, [bytes(lie)], 0.0)
    assert one.drops == {"malformed": 1}


@pytest.mark.parametrize("ends", [ENDS4, ENDS6])
def test_a_mark_is_congestion_experienced(ends: dict[str, bytes]) -> None:
    frame = bytearray(build.udp(**MACS, **ends, sport=1, dport=2, payload=b"hello"))
    pkt = Packet.at(frame)
    assert pkt.ip is not None
    pkt.ip.ecn = 2
    assert ecn_of(frame) == 2
    marked = bytearray(with_ce(bytes(frame)))
    again = Packet.at(marked)
    assert again.ip is not None
    assert again.ip.ecn == 3 == ecn_of(marked)
    assert ecn_of(plain(1)) == 0
    assert ecn_of(NONE) == 0
    assert with_ce(NONE + b"\x08") == NONE + b"\x08"
