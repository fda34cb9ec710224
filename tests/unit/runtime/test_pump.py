"""The pump polls while that costs nobody anything, and sleeps where others want the processor."""

import os
import time

import pytest

from vtl_tools.common.device.memory import MemoryDevice
from vtl_tools.common.runtime.pump import Pump
from vtl_tools.common.stage import Stage


class Processor:
    """A clock that runs 1 us for each look at it, and by yield_s for each yield."""

    def __init__(self):
        self.now, self.yield_s, self.yields = 1000.0, 0.0, 0

    def look(self):
        self.now += 1e-6
        return self.now

    def yield_(self):
        self.yields += 1
        self.now += self.yield_s


@pytest.fixture
def processor(monkeypatch):
    processor = Processor()
    monkeypatch.setattr(time, "monotonic", processor.look)
    monkeypatch.setattr(os, "sched_yield", processor.yield_)
    return processor


@pytest.fixture
def pump():
    link = MemoryDevice("memory", 1500, True)
    link.connect()
    yield Pump(Stage(ports=1), [link], 100e-6)
    link.close()


def test_it_polls_while_it_is_alone(processor, pump):
    pump.turn(1.0)
    assert pump.idle
    assert processor.yields > 10


def test_it_sleeps_for_a_while_once_others_have_run(processor, pump):
    processor.yield_s = 0.003
    pump.turn(1.0)
    assert pump.idle
    assert processor.yields == 1
    pump.turn(1.0)
    assert pump.idle
    assert processor.yields == 1
    processor.now += 0.1
    processor.yield_s = 0.0
    pump.turn(1.0)
    assert processor.yields > 10
