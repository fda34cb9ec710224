"""The choice of a transport by a module whose counters and reports a test writes."""

from ipaddress import ip_network
from types import SimpleNamespace

import pytest

from tests.schemas import validated
from vtl_tools.common.packet.address import ip
from vtl_tools.common.runtime.events import made
from vtl_tools.common.socks import Reason
from vtl_tools.common.tcp.wire import Path
from vtl_tools.services.udt.choice import LOOKS_LEAST
from vtl_tools.services.udt.load import CONTROL, LOADED_LEAST
from vtl_tools.services.udt.near import FarModule, NearSide
from vtl_tools.services.udt.start import EVERYWHERE
from vtl_tools.services.udt.transport.base import Counters, FlowOpening

PATH = Path(bytes(6), bytes(6), bytes([10, 2, 0, 5]), bytes([10, 1, 0, 5]), 80, 40000)
MBIT = 125_000


class Dialled:
    """A dialer, as a module sees it. counters: its status; openings: of the flows that it was asked for."""

    def __init__(self):
        self.said = Counters(rtt_min_s=0.1, up=True)
        self.openings = []

    def counters(self):
        return self.said

    def connector(self, opening):
        self.openings.append(opening)
        stream = SimpleNamespace(on_event=None, close=lambda: None)
        return SimpleNamespace(stream=stream, step=lambda events: None)


class Measured:
    """A module with three transports, whose traffic goes by `rates` in Mbit/s."""

    def __init__(self):
        self.dialers = {name: Dialled() for name in ("tcp", "srt", "udt")}
        self.events, self.now = [], 0.0
        self.module = FarModule("192.0.2.9:7700", self.dialers, has_bbr=True, event=self.told)
        self.module.look(self.now)

    def told(self, name, **fields):
        self.events.append(validated(made("vtl-udt", "vmnet1", name, fields)))

    def carry(self, name, rate, looks=2 * LOOKS_LEAST, *, down=True):
        """Move octets while the transport is the bottleneck."""
        said, carrier = self.dialers[name].said, self.module.carriers[name]
        for _ in range(looks):
            self.now += 0.5
            octets = int(rate * MBIT / 2)
            if down:
                said.received += octets
                carrier.reports.is_loaded = True
            else:
                said.sent += octets
                carrier.held_up = LOADED_LEAST
            self.module.look(self.now)
        carrier.reports.is_loaded = False

    def next(self):
        """The transport of a new connection."""
        transport, _ = self.module.connector(PATH, self.now)
        return transport


@pytest.fixture
def measured():
    return Measured()


@pytest.mark.parametrize("down", [True, False])
def test_a_transport_that_falls_behind_is_left_for_new_connections_and_told_of(measured, down):
    measured.carry("tcp", 290, down=down)
    assert measured.next() == "tcp"
    measured.carry("tcp", 60, looks=20, down=down)
    assert measured.next() == "srt"
    (event,) = measured.events
    assert (event["transport"], event["was"], event["peer"]) == ("srt", "tcp", "192.0.2.9:7700")
    measured.carry("srt", 20, down=down)
    measured.carry("udt", 20, down=down)
    assert measured.next() == "tcp"


def test_traffic_that_is_not_held_up_says_nothing_of_a_transport(measured):
    measured.carry("tcp", 290)
    for _ in range(50):
        measured.now += 0.5
        measured.dialers["tcp"].said.received += MBIT
        measured.module.look(measured.now)
    assert measured.next() == "tcp"
    assert measured.module.choice.status(measured.now) == {"tcp": 290.0}


def test_a_transport_beside_another_one_is_not_measured(measured):
    for _ in range(20):
        measured.dialers["udt"].said.received += 40 * MBIT
        measured.carry("tcp", 100, looks=1)
    assert measured.module.choice.status(measured.now) == {}


def test_loss_counts_once_there_was_traffic(measured):
    measured.dialers["tcp"].said.loss = 0.2
    measured.module.look(1.0)
    assert measured.module.choice.loss is None
    measured.carry("tcp", 100, looks=1)
    assert measured.module.choice.loss == 0.2


def test_each_transport_that_is_up_is_asked_for_reports_once(measured):
    measured.dialers["udt"].said.up = False
    for now in 1.0, 2.0:
        measured.module.look(now)
    assert [len(dialer.openings) for dialer in measured.dialers.values()] == [1, 1, 1]
    assert measured.dialers["tcp"].openings == [CONTROL]
    assert measured.module.up == {"tcp", "srt"}


def test_the_longest_prefix_decides_on_the_far_module(measured):
    other = Measured()
    everywhere = [(net, measured.module) for net in EVERYWHERE]
    near = NearSide([*everywhere, (ip_network("10.2.0.0/24"), other.module)])
    for host, dialer in ("10.2.0.5", other.dialers["tcp"]), ("10.2.1.5", measured.dialers["tcp"]):
        path = PATH.replace(local=ip(host))
        near.dial(path, 0.0)
        assert dialer.openings == [CONTROL, FlowOpening.of(path)]
        assert near.is_behind(path.local)
        assert near.is_named(path.local) is (host == "10.2.0.5")
    nowhere = NearSide([(ip_network("10.2.0.0/24"), other.module)])
    assert nowhere.dial(PATH.replace(local=ip("10.3.0.1")), 0.0) is Reason.NET_UNREACHABLE
