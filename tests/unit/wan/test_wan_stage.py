"""The stage of vtl-wan: frames, the verb `set` and the timeline, in virtual time."""

from collections.abc import Iterator
from random import Random

import pytest

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet.vnet import NONE
from vtl_tools.services.wan.settings import UNCHANGED, changed
from vtl_tools.services.wan.stage import EARLY_S, PAUSE_S, REALTIME_EARLY_S, WideArea
from vtl_tools.services.wan.timeline import Timeline, read_timeline

FRAME = NONE + bytes(12) + b"\x88\xb5" + bytes(46)


class Driven:
    """A stage with what came out of it."""

    def __init__(self, *lines: str, realtime: bool = False, **changes: str) -> None:
        settings = changed((UNCHANGED, UNCHANGED), changes)
        steps = read_timeline(lines, "t")
        self.stage = WideArea(settings, Random(1), steps=steps, now=0.0, realtime=realtime)
        self.came: list[tuple[int, int, float]] = []
        self.events: list[str] = []
        self.stage.event = lambda name, **fields: self.events.append(name)
        for port in 0, 1:
            self.stage.out[port] = lambda batch, now, port=port: self.came.append((port, batch.count, now))

    def push(self, port: int, count: int, now: float) -> None:
        self.stage.on_batch(port, Batch.of([FRAME] * count), now)
        self.stage.settle(now)


@pytest.fixture
def close() -> Iterator[list[Driven]]:
    made: list[Driven] = []
    yield made
    for one in made:
        one.stage.timer.close()


def driven(close: list[Driven], *lines: str, realtime: bool = False, **changes: str) -> Driven:
    close.append(Driven(*lines, realtime=realtime, **changes))
    return close[-1]


def test_each_direction_has_its_delay(close: list[Driven]) -> None:
    one = driven(close, delay="10ms/30ms")
    one.push(0, 3, 0.0)
    one.push(1, 2, 0.0)
    for now in (0.0099, 0.0101, 0.0299, 0.0301):
        one.stage.settle(now)
    assert one.came == [(1, 3, 0.0101), (0, 2, 0.0301)]


def test_the_runner_polls_when_a_frame_is_due_soon(close: list[Driven]) -> None:
    one = driven(close, delay="10ms")
    one.push(0, 1, 0.0)
    assert not one.stage.is_near
    assert not one.stage.timer.poll(0.005)
    assert one.stage.timer.poll(0.01 - EARLY_S / 2)
    one.stage.settle(0.01 - EARLY_S / 2)
    assert one.stage.is_near
    assert one.stage.timer.poll(0.01)


def test_the_runner_does_not_poll_at_a_realtime_priority(close: list[Driven]) -> None:
    one = driven(close, delay="10ms", realtime=True)
    one.push(0, 1, 0.0)
    assert not one.stage.inline
    assert not one.stage.timer.poll(0.01 - EARLY_S)
    assert one.stage.timer.poll(0.01 - REALTIME_EARLY_S / 2)


@pytest.mark.parametrize(("realtime", "pause_s"), [(False, 0.0), (True, PAUSE_S)])
def test_a_realtime_process_pauses_between_polls_while_frames_are_dense(
    close: list[Driven], realtime: bool, pause_s: float
) -> None:
    one = driven(close, delay="1ms", realtime=realtime)
    for n in range(400):
        one.push(0, 1, n * 1e-4)
    assert one.stage.pause_s == 0.0
    for n in range(400):
        one.push(0, 3, 0.04 + n * 1e-4)
    assert one.stage.pause_s == pause_s
    one.push(0, 1, 1.0)
    assert one.stage.pause_s == 0.0


def test_settings_change_while_frames_pass(close: list[Driven]) -> None:
    one = driven(close, delay="10ms")
    told = one.stage.set({"changes": {"delay": "20ms", "loss": "100%/0"}, "preset": None})
    assert told["there"]["delay_s"] == 0.02  # type: ignore[index]
    one.push(0, 2, 1.0)
    one.push(1, 2, 1.0)
    one.stage.settle(2.0)
    assert one.came == [(0, 2, 2.0)]
    assert one.stage.drops == {"lost": 2}
    assert one.events == ["settings"]
    one.stage.set({"preset": "geo"})
    assert one.stage.settings[0].loss == 0.0


@pytest.mark.parametrize(
    "request_",
    [{"changes": {"delay": 5}}, {"changes": []}, {"changes": {"x": "1"}}, {"preset": "moon"}, {"preset": 7}],
)
def test_a_change_that_is_wrong_changes_nothing(close: list[Driven], request_: dict[str, object]) -> None:
    one = driven(close, delay="10ms")
    before = one.stage.settings
    with pytest.raises(SpecError):
        one.stage.set(request_)
    assert one.stage.settings is before


def test_a_timeline_changes_the_path_at_its_times(close: list[Driven]) -> None:
    one = driven(close, "# a drive", "at 1s outage 500ms", "at 2s delay 100ms/0ms loss 0", "at 3s preset lan")
    assert one.stage.deadline() == 1.0
    one.stage.wake(1.0)
    one.push(0, 2, 1.2)
    assert one.stage.drops == {"outage": 2}
    assert one.stage.deadline() == 2.0
    one.stage.wake(2.0)
    one.push(0, 1, 2.0)
    one.stage.settle(2.05)
    assert one.came == []
    one.stage.settle(2.11)
    assert one.came == [(1, 1, 2.11)]
    one.stage.wake(3.0)
    assert one.stage.settings[0].rate_bps == 1e9
    assert one.stage.deadline() is None
    assert one.events == ["outage", "settings", "settings"]


def test_a_step_repeats_and_a_missed_one_is_due_once() -> None:
    timeline = Timeline(read_timeline(["every 10s outage 1s"], "t"), 100.0)
    assert [len(list(timeline.due(now))) for now in (109.9, 110.0, 110.1, 120.0, 155.0, 159.9, 160.0)] == [
        0, 1, 0, 1, 1, 0, 1
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("at 1s", "t:1: at 1s: write 'at 30s outage 5s'"),
        ("on 1s outage 2s", "t:1: on 1s outage 2s: write"),
        ("at 1s outage", "t:1: at 1s outage: write"),
        ("at soon outage 2s", "t:1: 'soon': not a duration"),
        ("every 1us outage 1s", "t:1: every 1us: write 10ms or more"),
        ("at 1s latency 2s", "t:1: 'latency': write outage, preset, or one of delay"),
        ("at 1s delay much", "t:1: delay: 'much': not a duration"),
        ("at 1s preset moon", "t:1: 'moon': no such preset"),
    ],
)
def test_a_line_that_is_wrong_is_named(line: str, said: str) -> None:
    with pytest.raises(SpecError) as error:
        read_timeline([line], "t")
    assert str(error.value).startswith(said)
