"""vtl-ack with numbers, chances and pauses that hypothesis chooses: each octet arrives once and in order."""

from ack_world import GUEST, PEER, AckWorld
from hypothesis import given, settings
from hypothesis import strategies as st

from vtl_tools.common.model.base import LOCAL, REMOTE
from vtl_tools.common.packet import build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, encode_options
from vtl_tools.common.tcp.config import Config
from vtl_tools.services.ack.register import OCTETS, SLOTS, Register, RegisteredConnection
from vtl_tools.services.ack.rewrite import erase_sack, rewrite

NUMBERS = st.integers(0, 2**32 - 1) | st.integers(2**32 - 100_000, 2**32 - 1)
CHANCES = st.sampled_from([0.0, 0.02, 0.1])
BUFFERS = st.sampled_from([1, 536, 5000, 65535])


@settings(max_examples=30, deadline=None)
@given(
    numbers=st.tuples(NUMBERS, NUMBERS),
    taken=st.sampled_from([(LOCAL,), (REMOTE,), (LOCAL, REMOTE)]),
    loss=CHANCES,
    reorder=CHANCES,
    duplicate=CHANCES,
    local_loss=CHANCES,
    receive=st.tuples(BUFFERS, BUFFERS),
    buffer=st.sampled_from([20_000, 1 << 20]),
    sizes=st.tuples(st.integers(0, 12_000), st.integers(0, 12_000)),
    chunk=st.sampled_from([700, 1 << 20]),
    seed=st.integers(0, 1000),
)
def test_each_octet_arrives_once_and_in_order(
    numbers, taken, loss, reorder, duplicate, local_loss, receive, buffer, sizes, chunk, seed
):
    """A receive buffer of one octet closes the window after each."""
    configs = tuple(Config(receive_buffer=room, send_buffer=65535, no_delay=True) for room in receive)
    limit = [size if configs[1 - end].receive_buffer > 1 else min(size, 8) for end, size in enumerate(sizes)]
    world = AckWorld(
        taken=taken, iss=numbers, loss=loss, reorder=reorder, duplicate=duplicate, local_loss=local_loss,
        configs=configs, buffer=buffer, seed=seed, give_up_s=10_000.0,
    )  # fmt: skip
    world.open()
    sent = tuple(world.rng.randbytes(size) for size in limit)
    got = world.transfer(*sent, limit_s=20_000, read=chunk)
    assert got == sent[::-1]
    world.go(10)
    assert (world.told["held_octets"], world.told["lost_octets"], world.events) == (0, 0, [])
    assert world.ends[GUEST].ended is None or world.ends[PEER].ended is not None


@given(
    was=st.tuples(NUMBERS, NUMBERS, st.integers(0, 65535)),
    now=st.tuples(NUMBERS, NUMBERS, st.integers(0, 65535)),
    payload=st.binary(max_size=50),
    partial=st.booleans(),
    six=st.booleans(),
)
def test_a_rewritten_segment_has_a_correct_checksum(was, now, payload, partial, six):
    size, at = (16, 64) if six else (4, 44)
    frame = build.tcp(
        src_mac=bytes(6), dst_mac=bytes(6), src=b"\x0a" * size, dst=b"\x0b" * size, sport=1, dport=2,
        seq=was[0], ack=was[1], flags=ACK, window=was[2], payload=payload, partial=partial,
        options=encode_options(timestamps=(1, 2), sack=[(5, 9)]),
    )  # fmt: skip
    rewrite(memoryview(frame), at, seq=now[0], ack=now[1], window=now[2])
    erase_sack(memoryview(frame))
    pkt = Packet.at(frame)
    segment = pkt.tcp
    assert segment is not None
    assert (segment.seq, segment.ack, segment.window, segment.sack) == (*now, [])
    assert pkt.needs_csum is partial
    if partial:
        pkt.compute_transport_checksum()
    assert pkt.verify()


def connection(number):
    parties = number.to_bytes(4, "big") * 2 + b"\0\1\0\2"
    return RegisteredConnection(bytes(6), b"\2" * 6, parties if number % 2 else parties * 3)


@given(st.lists(st.integers(0, 50)), st.binary(max_size=300))
def test_a_register_is_read_as_it_was_left(steps, junk):
    memory = bytearray(OCTETS)
    register, kept = Register(memory), {}
    for number in steps:
        if number in kept:
            register.free(kept.pop(number))
        else:
            kept[number] = register.add(connection(number))
    again = Register(memory)
    assert dict(again.found()) == {slot: connection(number) for number, slot in kept.items()}
    assert len(again) == len(kept)
    memory[: len(junk)] = junk  # no state of the file makes it fail
    for slot, _ in Register(memory).found():
        assert 0 <= slot < SLOTS


def test_a_full_register_takes_no_more():
    register = Register(bytearray(OCTETS))
    slots = [register.add(connection(1)) for _ in range(SLOTS)]
    assert register.add(connection(1)) is None
    register.free(slots[7])
    assert register.add(connection(2)) == slots[7]
