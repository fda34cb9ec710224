"""How users write a wide area, and what it means."""

import pytest

from vtl_tools.common import units
from vtl_tools.common.errors import SpecError
from vtl_tools.services.wan.settings import PRESETS, UNCHANGED, changed, preset

BOTH = UNCHANGED, UNCHANGED


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("100ms", 0.1), ("1.5s", 1.5), ("50us", 50e-6), ("2", 2.0), (" 1 MIN ", 60.0), (".5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert units.duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "bits"),
    [("10mbit", 1e7), ("1gbit/s", 1e9), ("1.5Mbit", 1.5e6), ("none", 0.0), ("8kbit", 8e3), ("5mbps", 0)],
)
def test_rates(text: str, bits: float) -> None:
    if bits or text == "none":
        assert units.rate(text) == pytest.approx(bits)
    else:  # megabits or megabytes? better to ask
        with pytest.raises(SpecError, match="not a rate; write 10mbit"):
            units.rate(text)


@pytest.mark.parametrize(("text", "share"), [("0.1%", 0.001), ("0.5", 0.5), ("100%", 1.0), ("0", 0.0)])
def test_shares(text: str, share: float) -> None:
    assert units.share(text) == pytest.approx(share)


@pytest.mark.parametrize(
    "text", ["", "-1ms", "1e99s", "nan", "inf", "1 ms ms", "9" * 400, "\x00", "½s", "2h", "٣ms"]
)
def test_what_is_no_duration_is_one_line(text: str) -> None:
    with pytest.raises(SpecError) as error:
        units.duration(text)
    assert "; write" in str(error.value)


def test_a_value_is_for_both_directions_or_for_there_and_back() -> None:
    there, back = changed(BOTH, {"delay": "20ms/80ms", "rate": "10mbit/s/2mbit/s", "loss": "1%"})
    assert (there.delay_s, back.delay_s) == (0.02, 0.08)
    assert (there.rate_bps, back.rate_bps) == (1e7, 2e6)
    assert there.loss == back.loss == 0.01


def test_settings_that_are_not_named_stay() -> None:
    first = changed(BOTH, {"delay": "20ms", "loss": "1%"})
    assert changed(first, {"loss": "0"})[0].delay_s == 0.02


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"delay": "1ms/2ms/3ms"}, "delay: 1ms/2ms/3ms: write one value, or two as THERE/BACK"),
        ({"latency": "1ms"}, "'latency': no such setting; there are delay, jitter,"),
        ({"loss": "burst:50%,1"}, None),
        ({"loss": "burst:90%,2"}, "loss: burst:90%,2: so many runs are not possible"),
        ({"loss": "ge:1%,2%"}, "loss: ge:1%,2%: write 0.1%, burst:1%,5 or ge:"),
        ({"queue": "many"}, "queue: 'many': not a queue; write a duration or a size"),
        ({"aqm": "red"}, "aqm: 'red': write one of droptail, codel"),
        ({"ecn": "yes"}, "ecn: 'yes': write on or off"),
    ],
)
def test_what_is_wrong_is_named(changes: dict[str, str], line: str | None) -> None:
    if line is None:
        changed(BOTH, changes)
        return
    with pytest.raises(SpecError) as error:
        changed(BOTH, changes)
    assert str(error.value).startswith(line)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_path(name: str) -> None:
    assert all(path.delay_s > 0 for path in preset(name))


def test_only_a_delay_keeps_super_segments_whole() -> None:
    assert changed(BOTH, {"delay": "50ms"})[0].keeps_whole
    for word, text in {
        "loss": "1%",
        "rate": "1gbit",
        "jitter": "1ms",
        "reorder": "1%",
        "corrupt": "1%",
    }.items():
        assert not changed(BOTH, {"delay": "50ms", word: text})[0].keeps_whole, word
