"""Both ends send what they like: the service raises nothing, and holds no more than it may."""

from random import Random

import pytest
from ack_world import GUEST, PEER, SMALL, AckWorld

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.model.base import LOCAL, REMOTE
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.offload import segment
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN, URG, encode_options
from vtl_tools.services.ack import stage as stage_module
from vtl_tools.services.ack.register import SLOTS, RegisteredConnection

MACS = address.mac("02:00:00:00:00:01"), address.mac("02:00:00:00:00:02")


def mutated(rng, frame):
    """Return a frame with some octets changed, which says that its checksum was verified."""
    frame = bytearray(frame)
    for _ in range(rng.choice((0, 1, 1, 2, 6))):
        frame[rng.randrange(len(frame))] = rng.randrange(256)
    if rng.random() < 0.2:
        del frame[rng.randrange(24, len(frame) + 1) :]  # no link gives less than an Ethernet header
    frame[0] |= rng.choice((0, 2, 2, 2, 1))
    return frame


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("taken", [(LOCAL,), (LOCAL, REMOTE)], ids=["out", "both"])
def test_mutated_frames_of_both_ends(taken, seed):
    rng = Random(seed)
    world = AckWorld(taken=taken, seed=seed, plain=False, buffer=100_000, memory=200_000)
    put, kept = world.pass_on, []

    def hostile(end, way, frame):
        if way == 1:
            put(end, way, frame)
            return
        kept.append((end, bytes(frame)))
        for at, one in ((end, frame), rng.choice(kept), rng.choice(kept)):
            batch = Batch.of([mutated(rng, one)])
            world.stage.on_batch(at if rng.random() < 0.9 else 1 - at, batch, world.now)
            if rng.random() < 0.3:
                world.stage.settle(world.now)
        put(end, way, frame)

    world.pass_on = hostile
    first, second = world.ends
    second.listen()
    first.connect()
    for turn in range(400):
        for end in world.ends:
            if end.asked:
                end.accept()
            if end.writable and turn < 200:
                end.write(rng.randbytes(5000))
            while end.readable and rng.random() < 0.8:
                end.read()
        if not world.step():
            break
        assert world.told["held_octets_max"] < 300_000
        assert len(world.stage.flows) < 100


@pytest.mark.parametrize("seed", range(4))
def test_random_segments_of_one_connection(seed):
    """Numbers near those that are right, and any flags."""
    rng = Random(seed)
    world = AckWorld(taken=(LOCAL, REMOTE), buffer=50_000, memory=100_000)
    world.open()
    model = next(iter(world.stage.flows.values())).wires[GUEST].model
    guest, peer = address.ip("10.0.0.1"), address.ip("10.0.0.2")
    seqs = model.local.snd_nxt, model.remote.snd_nxt
    for _ in range(1500):
        end = rng.choice((GUEST, PEER))
        src, dst, ports = (guest, peer, (40000, 5001)) if end == GUEST else (peer, guest, (5001, 40000))
        flags = rng.choice((ACK, ACK, ACK, ACK | FIN, RST, SYN, SYN | ACK, ACK | URG, 0, 0xFF))
        if flags & RST and rng.random() < 0.8:
            continue
        number = rng.choice((0, 1, -1, 1000, -1000, 60_000, 1 << 20, 1 << 31))
        options = rng.choice((b"", encode_options(timestamps=(model.local.tsval + rng.randrange(9), 0))))
        frame = build.tcp(
            src_mac=MACS[end], dst_mac=MACS[1 - end], src=src, dst=dst, sport=ports[0], dport=ports[1],
            seq=(seqs[end] + number) % 2**32, ack=(seqs[1 - end] + rng.choice((0, number))) % 2**32,
            flags=flags, window=rng.choice((0, 1, 65535)), urgent=rng.randrange(65536),
            payload=rng.randbytes(rng.choice((0, 1, 1400))), options=options,
        )  # fmt: skip
        world.stage.on_batch(end, Batch.of(segment(frame)), world.now)
        world.stage.settle(world.now)
        world.now += rng.choice((0.0, 0.01, 3.0))
        if (due := world.stage.deadline()) is not None and due <= world.now:
            world.stage.wake(world.now)
            world.stage.settle(world.now)
        assert world.told["held_octets_max"] <= 130_000
    world.stage.on_stop(world.now)
    assert (world.told["held_octets"], len(world.stage.register)) == (0, 0)


def syn(number, flags=SYN, back=False):
    src, dst = address.ip("10.0.0.1"), address.ip("10.0.0.2")
    ends = (dst, src, 80, number % 60000 + 1) if back else (src, dst, number % 60000 + 1, 80)
    return build.tcp(
        src_mac=MACS[back], dst_mac=MACS[not back], src=ends[0], dst=ends[1], sport=ends[2], dport=ends[3],
        seq=number, ack=number + 1 if back else 0, flags=flags, window=1000,
    )  # fmt: skip


def test_a_flood_of_syns_is_bounded_and_passes(monkeypatch):
    monkeypatch.setattr(stage_module, "OPENING_MAX", 100)
    world = AckWorld(configs=(SMALL, SMALL))
    passed = []
    world.stage.out[PEER] = lambda batch, now: passed.append(batch.count)
    for number in range(1000):
        world.stage.on_batch(GUEST, Batch.of([syn(number)]), world.now)
    assert len(world.stage.flows) == world.told["opening"] == 100
    assert sum(passed) == 1000
    world.stage.settle(world.now)
    world.now += 200
    while world.stage.deadline() is not None and world.stage.deadline() <= world.now:
        world.stage.wake(world.now)
        world.stage.settle(world.now)
    world.stage.settle(world.now)
    assert len(world.stage.flows) == 0


def test_connections_beyond_the_register_pass_untouched_and_idle_ones_make_room():
    world = AckWorld()
    for port in GUEST, PEER:
        world.stage.out[port] = lambda batch, now: None
    for _ in range(SLOTS - 20):
        world.stage.register.add(RegisteredConnection(*MACS, bytes(12)))
    for number in range(30):
        world.stage.on_batch(GUEST, Batch.of([syn(number)]), world.now)
        world.stage.on_batch(PEER, Batch.of([syn(number, SYN | ACK, back=True)]), world.now)
    assert (world.told["connections"], world.told["passed"]) == (20, 10)
    world.now += 301
    world.stage.on_batch(GUEST, Batch.of([syn(9000)]), world.now)
    world.stage.on_batch(PEER, Batch.of([syn(9000, SYN | ACK, back=True)]), world.now)
    assert (world.told["connections"], world.told["passed"]) == (20, 10)
