"""Endpoint against endpoint over networks of all sorts; every octet arrives once and in order."""

from random import Random

import pytest
from tcp_network import Network

from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.state import Ended, State

SEEDS = range(5)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("loss", [0.0, 0.01, 0.05, 0.2])
def test_every_octet_arrives_once_and_in_order(loss, seed):
    rng = Random(seed)
    up, down = rng.randbytes(200_000), rng.randbytes(100_000)
    net = Network(rng, loss=loss, reorder=0.05, duplicate=0.02, corrupt=0.01, version=rng.choice((4, 6)))
    net.open()
    assert net.transfer(up, down) == (down, up)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    "options",
    [{"sack": False}, {"timestamps": False}, {"window_scaling": False}, {"delayed_ack_s": 0.0},
     {"receive_buffer": 3000}, {"send_buffer": 1000}, {"reassembly_segments": 2}, {"tail_loss_probe": False}],
    ids=str,
)  # fmt: skip
def test_it_does_so_without_any_one_option(options, seed):
    rng = Random(seed)
    up, down = rng.randbytes(60_000), rng.randbytes(60_000)
    net = Network(rng, loss=0.05, reorder=0.1, configs=(Config(**options), Config()))
    net.open()
    assert net.transfer(up, down) == (down, up)


@pytest.mark.parametrize("seed", [*range(20), 104, 140, 200])
def test_a_path_whose_mtu_shrinks_again_and_again_loses_nothing(seed):
    """Also where data was SACKed or lost before, and in the middle of a recovery."""
    rng = Random(seed)
    data = rng.randbytes(200_000)
    options = {"sack": seed % 4 != 0, "no_delay": seed % 2 == 0, "timestamps": seed % 5 != 0}
    configs = Config(congestion=("newreno", "cubic", "bbr")[seed % 3], **options), Config()
    net = Network(rng, loss=0.01, reorder=0.05, configs=configs, plain=seed % 7 != 0)
    net.open()
    sender, receiver = net.ends
    left, got, mtu = memoryview(data), bytearray(), 1500
    for _ in range(50_000):
        left = left[sender.write(left[: rng.choice((100, 1000, 5000))], eor=rng.random() < 0.2) :]
        if mtu > 600 and rng.random() < 0.02:
            mtu = rng.randrange(576, mtu)
            sender.path_mtu(mtu)
        net.step()
        got += receiver.read()
        if len(got) == len(data):
            break
    assert got == data


@pytest.mark.parametrize("iss", [2**32 - 1, 2**32 - 50_000, 2**31 - 20_000])
def test_numbers_wrap_around(iss):
    rng = Random(iss)
    up, down = rng.randbytes(150_000), rng.randbytes(150_000)
    net = Network(rng, loss=0.02, iss=(iss, iss))
    net.open()
    assert net.transfer(up, down) == (down, up)


def test_super_segments_carry_many_segments_in_a_frame():
    rng = Random(1)
    data = rng.randbytes(2_000_000)
    net = Network(rng, plain=False)
    net.open()
    assert net.transfer(data) == (b"", data)
    assert net.frames < 300


def test_a_network_without_faults_needs_no_retransmission():
    net = Network(Random(1))
    net.open()
    net.transfer(bytes(500_000), bytes(500_000))
    assert [end.info().retransmits for end in net.ends] == [0, 0]


@pytest.mark.parametrize(("timestamps", "segments"), [(True, 10), (False, 1)])
def test_a_round_trip_above_a_second_is_not_a_lost_syn(timestamps, segments):
    """Both ends send their SYN again, and timestamps tell that the first one arrived."""
    configs = Config(timestamps=timestamps), Config(timestamps=timestamps)
    net = Network(Random(1), delay_s=0.6, configs=configs)
    net.open()
    net.run(lambda: all(end.state is State.ESTABLISHED for end in net.ends))
    told = [end.info() for end in net.ends]
    assert [info.retransmits for info in told] == [1, 1]
    assert [info.cwnd_segments for info in told] == [segments] * 2
    assert [info.rtt_s for info in told] == ([pytest.approx(1.2)] * 2 if timestamps else [None] * 2)


def test_in_time_both_ends_are_closed():
    net = Network(Random(1))
    net.open()
    net.transfer(bytes(1000), bytes(1000))
    net.run(lambda: all(end.state is State.CLOSED for end in net.ends))
    assert [end.ended for end in net.ends] == [Ended.CLOSED, Ended.CLOSED]


def test_a_dead_network_ends_the_connection_after_the_user_timeout():
    net = Network(Random(1), configs=(Config(user_timeout_s=30.0), Config()))
    net.open()
    net.loss = 1.0
    net.ends[0].write(b"anybody there?")
    start = net.now
    net.run(lambda: net.ends[0].state is State.CLOSED)
    assert net.ends[0].ended is Ended.TIMED_OUT
    assert 29.0 < net.now - start < 31.0


def test_a_reader_that_stops_stops_the_writer_and_no_more():
    net = Network(Random(1), configs=(Config(), Config(receive_buffer=20_000, user_timeout_s=60.0)))
    net.open()
    client, server = net.ends
    data = Random(2).randbytes(100_000)
    assert client.write(data) == len(data)
    end = net.now + 1000
    while net.now < end:
        net.step()
        assert server.readable <= 20_000
    assert client.state is State.ESTABLISHED
    got = bytearray()

    def drained():
        while piece := server.read(5000):
            got.extend(piece)
        return len(got) == len(data)

    net.run(drained)
    assert got == data


@pytest.mark.parametrize("seed", SEEDS)
def test_an_end_that_does_not_read_still_sends(seed):
    small = Config(receive_buffer=20_000, user_timeout_s=60.0)
    net = Network(Random(seed), loss=0.02, reorder=0.05, configs=(Config(user_timeout_s=60.0), small))
    net.open()
    client, server = net.ends
    up, down = net.rng.randbytes(100_000), net.rng.randbytes(800_000)
    assert client.write(up) == len(up)
    net.run(lambda: server.readable == 20_000 and client.snd.flight == 1)  # an octet probes the window
    assert server.write(down) == len(down)
    got = [bytearray(), bytearray()]

    def read(end, octets):
        while piece := net.ends[end].read():
            got[end].extend(piece)
        return len(got[end]) == octets

    net.run(lambda: read(0, len(down)), 5.0)
    net.run(lambda: read(1, len(up)), 120.0)
    assert (got[1], got[0]) == (up, down)
