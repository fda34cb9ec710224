"""Timers of flows: they know keys, so that nothing of a flow is left once it has ended."""

import weakref

import pytest

from vtl_tools.common.relay.timers import SOON_S, STALE_MAX, FlowTimers
from vtl_tools.common.tcp.tcb import NEVER


class Timer:
    """A flow of which nothing but its timer is of interest."""

    def __init__(self, key, due=NEVER):
        self.key, self.due, self.armed_at = key, due, NEVER

    def deadline(self):
        return self.due


@pytest.fixture
def timers():
    flows = {}
    timers = FlowTimers(flows)

    def add(due=NEVER, key=b"one"):
        flow = flows[key] = Timer(key, due)
        timers.arm_soon(flow, 0.0)
        return flow

    return flows, timers, add


def test_a_flow_is_gone_when_it_has_ended(timers):
    flows, timers, add = timers
    flow = weakref.ref(add(5.0))
    assert not timers.expired(SOON_S)
    timers.arm_soon(flows[b"one"], 1.0)
    del flows[b"one"]
    assert flow() is None
    assert not timers.expired(6.0)
    assert timers.deadline() is None


def test_a_flow_with_the_key_of_another_is_woken_once_and_at_its_own_time(timers):
    flows, timers, add = timers
    add(2.0)
    assert not timers.expired(SOON_S)  # which puts the time of the first on the heap
    timers.arm_soon(flows[b"one"], 1.0)
    second = add(3.0)
    assert not timers.expired(2.0)
    assert timers.deadline() == 3.0
    assert timers.expired(3.0) == [second]
    assert not timers.expired(3.0)
    assert timers.deadline() is None


def test_a_key_that_is_used_again_and_again_at_once_has_few_entries(timers):
    _, timers, add = timers
    for _ in range(3 * STALE_MAX):
        last = add(SOON_S)
        timers.arm(last, SOON_S / 2)
        timers.arm_soon(Timer(b"one"), 0.0)
        timers.prune()
    assert len(timers) <= 2 * (2 + STALE_MAX)
    woken = []
    while (due := timers.deadline()) is not None and due <= SOON_S:
        woken += timers.expired(SOON_S)
    assert woken == [last]


def test_flows_that_wait_for_nothing_have_few_entries(timers):
    _, timers, add = timers
    flow, now = add(), 0.0
    for _ in range(2 * STALE_MAX):
        now += SOON_S
        assert not timers.expired(now)
        timers.arm_soon(flow, now)
    assert len(timers) <= 3 + STALE_MAX


def test_flows_that_are_due_at_the_same_time_are_all_woken(timers):
    _, timers, add = timers
    due = {add(1.0, bytes([i])) for i in range(200)}
    assert not timers.expired(SOON_S)
    woken = []
    while timers.deadline() == 1.0:
        woken += timers.expired(1.0)
    assert len(woken) == len(due)
    assert set(woken) == due
