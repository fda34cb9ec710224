"""Endpoint against endpoint over a network that marks packets instead of dropping them."""

from contextlib import suppress
from random import Random

import pytest
from tcp_network import Network

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.tcp.config import Config

CE = 3


class Marking(Network):
    """A network that marks ECN-capable packets by chance. marked: how many arrived so at each end."""

    def __init__(self, rng, *, marks, **more):
        self.marks, self.marked = marks, [0, 0]
        super().__init__(rng, **more)

    def send(self, to, frame):
        net = Packet.at(frame).ip
        if net.ecn in (1, 2) and self.rng.random() < self.marks:
            net.ecn = CE
        super().send(to, frame)

    def deliver(self, to, frame):
        with suppress(Malformed):
            self.marked[to] += Packet.at(frame).ip.ecn == CE
        super().deliver(to, frame)


def marking(seed, *, asks="accurate", answers="accept", sack=True, timestamps=True, **more):
    configs = tuple(Config(ecn=ecn, sack=sack, timestamps=timestamps) for ecn in (asks, answers))
    net = Marking(Random(seed), configs=configs, version=4 if seed % 2 else 6, **more)
    net.open()
    return net


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("timestamps", [True, False])
def test_each_mark_is_told_once_both_ways(seed, timestamps):
    net = marking(seed, marks=0.05, timestamps=timestamps)
    up, down = net.rng.randbytes(300_000), net.rng.randbytes(200_000)
    assert net.transfer(up, down) == (down, up)
    infos = [end.info() for end in net.ends]
    assert [info.ecn_mode for info in infos] == ["accurate", "accurate"]
    assert [info.marks for info in infos] == net.marked
    assert all(net.marked)
    assert [infos[1].told_marks, infos[0].told_marks] == net.marked
    assert all(info.retransmits == 0 for info in infos)
    assert all(info.ssthresh < 1 << 30 for info in infos), "the windows were reduced"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sack", [True, False])
def test_a_network_that_marks_loses_and_reorders_delivers_all(seed, sack):
    net = marking(seed, marks=0.2, loss=0.05, reorder=0.1, duplicate=0.02, corrupt=0.01, sack=sack)
    up, down = net.rng.randbytes(150_000), net.rng.randbytes(100_000)
    assert net.transfer(up, down) == (down, up)
    assert all(net.marked)


def test_all_marked_is_slow_and_arrives():
    net = marking(1, marks=1.0)
    data = net.rng.randbytes(200_000)
    assert net.transfer(data, data) == (data, data)
    assert [net.ends[1].info().told_marks, net.ends[0].info().told_marks] == net.marked


def test_super_segments_tell_the_count_of_each_of_their_segments():
    """The counter has the bit CWR, which a link that cuts a super-segment keeps in its first segment only."""
    net = marking(2, marks=0.02)
    up, down = net.rng.randbytes(1_000_000), net.rng.randbytes(1_000_000)
    assert net.transfer(up, down) == (down, up)
    infos = [end.info() for end in net.ends]
    assert [infos[1].told_marks, infos[0].told_marks] == net.marked
    assert min(net.marked) > 10


@pytest.mark.parametrize("asks", ["accurate", "classic"])
@pytest.mark.parametrize("answers", ["accurate", "accept", "classic", "off"])
def test_the_best_that_both_ends_know_is_agreed(asks, answers):
    net = marking(3, marks=0.05, asks=asks, answers=answers)
    data = net.rng.randbytes(100_000)
    assert net.transfer(data, data) == (data, data)
    modes = {end.info().ecn_mode for end in net.ends}
    best = "none" if answers == "off" else "classic" if "classic" in (asks, answers) else "accurate"
    assert modes == {best}
    assert any(net.marked) == (best != "none")


def test_nobody_asks_without_being_told_to():
    net = Marking(Random(1), marks=1.0)
    net.open()
    assert net.transfer(bytes(50_000), bytes(50_000)) == (bytes(50_000), bytes(50_000))
    assert net.marked == [0, 0]
