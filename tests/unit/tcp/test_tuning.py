"""Buffers that grow with the path: no further than allowed, and not for a user that does not read."""

from dataclasses import replace
from random import Random

import pytest

from tests.sim.tcp_network import Network
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.state import State
from vtl_tools.common.tcp.tcb import NEVER
from vtl_tools.common.tcp.tuning import tune

MOST = 8 << 20
TUNED = Config(buffer_max=MOST, receive_buffer=1 << 16, send_buffer=1 << 16, congestion="newreno")


@pytest.fixture
def net():
    net = Network(Random(1), delay_s=0.05, configs=(TUNED, TUNED), plain=False)
    net.open()
    return net


def send(net, octets, *, reads=True, may_grow=True):
    """Send octets from one end to the other, as far as they go in a minute; return how many came."""
    one, two = net.ends
    data, left, got, until = bytes(1 << 16), octets, 0, net.now + 60.0
    while net.now < until and got < octets:
        while left and (taken := one.write(data[:left])):
            left -= taken
        for end in net.ends:
            if net.now >= end.tune_at:
                tune(end, net.now, may_grow=may_grow)
        if reads:
            got += two.readable
            two.skip(two.readable)
        if not net.step():
            break
    return got


def test_both_buffers_grow_to_what_the_path_holds(net):
    one, two = net.ends
    assert send(net, 20_000_000) == 20_000_000
    assert one.config.send_buffer > 1 << 20
    assert two.config.receive_buffer > 1 << 20
    assert one.config.receive_buffer == 1 << 16


def test_they_stay_within_the_bound(net):
    send(net, 60_000_000)
    assert {end.config.send_buffer <= MOST and end.config.receive_buffer <= MOST for end in net.ends} == {
        True
    }
    assert net.ends[1].rcv.window(net.ends[1].rcv.shift) <= 0xFFFF


def test_a_short_path_needs_no_large_buffers():
    plain = replace(TUNED, buffer_max=None)
    net = Network(Random(1), delay_s=0.0005, configs=(plain, TUNED), plain=False)
    net.open()
    send(net, 20_000_000)
    assert net.ends[1].config.receive_buffer <= 8 * plain.send_buffer


def test_a_user_that_does_not_read_makes_nothing_grow(net):
    send(net, 10_000_000, reads=False)
    assert net.ends[1].config.receive_buffer == 1 << 16


def test_nothing_grows_without_memory(net):
    send(net, 2_000_000, may_grow=False)
    assert {end.config.send_buffer for end in net.ends} == {1 << 16}


def test_nothing_is_tuned_unless_allowed():
    plain = replace(TUNED, buffer_max=None)
    net = Network(Random(1), configs=(plain, plain))
    net.open()
    assert net.ends[0].state is State.ESTABLISHED
    assert net.ends[0].tune_at == NEVER


def test_the_window_scale_is_that_of_the_largest_buffer():
    assert TUNED.window_scale == Config(receive_buffer=MOST).window_scale
