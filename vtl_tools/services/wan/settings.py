"""The settings of a path, one direction of the wide area, and how users write them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from vtl_tools.common.errors import SpecError
from vtl_tools.common.units import duration, rate, share, size

DISTRIBUTIONS: Final = ("uniform", "normal", "pareto")
AQMS: Final = ("droptail", "codel")
QUEUE_S: Final = 0.1
"""Default length of the queue, as the time that its content takes."""
REORDER_S: Final = 0.005
"""Time by which a reordered frame is late."""


@dataclass(frozen=True, slots=True)
class PathSettings:
    """One direction. Seconds, octets, bits a second; probabilities are of a frame.

    jitter_s: standard deviation, or half the width of the uniform distribution. loss: in the good state, and
    loss_bad in the bad one; to_bad, to_good: probabilities of a change before each frame (Gilbert-Elliott).
    rate_bps 0: no limit, and no queue. queue_octets or queue_s bounds the queue; 0: not by that.
    opportunities: a Mahimahi trace, the milliseconds at which 1,504 octets may leave, in place of a rate.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    distribution: str = "normal"
    loss: float = 0.0
    loss_bad: float = 1.0
    to_bad: float = 0.0
    to_good: float = 1.0
    rate_bps: float = 0.0
    queue_octets: int = 0
    queue_s: float = QUEUE_S
    aqm: str = "droptail"
    ecn: bool = False
    reorder: float = 0.0
    duplicate: float = 0.0
    corrupt: float = 0.0
    opportunities: tuple[int, ...] = ()

    @property
    def keeps_whole(self) -> bool:
        """Whether super-segments stay whole: nothing but a delay, which is the same for all segments."""
        return self.only_loses and not (self.loss or self.to_bad)

    @property
    def only_loses(self) -> bool:
        """Whether all segments that are not lost have the same fate."""
        fates = (self.rate_bps, self.reorder, self.duplicate, self.corrupt, self.jitter_s)
        return not any(fates) and not self.opportunities

    def told(self) -> dict[str, object]:
        """Return the settings for `status`, without the trace."""
        named = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "opportunities"
        }
        return {**named, "opportunities": len(self.opportunities)}


Change = dict[str, Any]


def _loss(text: str) -> Change:
    """P; burst:P,LENGTH (Gilbert: runs of LENGTH frames on average); ge:TO_BAD,TO_GOOD,LOSS_BAD,LOSS_GOOD."""
    kind, _, rest = text.rpartition(":")
    words = rest.split(",")
    if not kind and len(words) == 1:
        return {"loss": share(rest), "to_bad": 0.0, "to_good": 1.0, "loss_bad": 1.0}
    if kind == "burst" and len(words) == 2:
        mean = share(words[0])
        try:
            length = float(words[1])
        except ValueError:
            length = 0.0
        if not 1 <= length <= 1e6 or mean >= 1:
            raise SpecError(f"{text}: write burst:1%,5 for 1% in runs of five frames on average")
        to_bad = mean / (length * (1 - mean))
        if to_bad > 1:
            raise SpecError(f"{text}: so many runs are not possible; write longer runs or less loss")
        return {"loss": 0.0, "to_bad": to_bad, "to_good": 1 / length, "loss_bad": 1.0}
    if kind == "ge" and len(words) == 4:
        to_bad, to_good, bad, good = map(share, words)
        return {"loss": good, "to_bad": to_bad, "to_good": to_good, "loss_bad": bad}
    raise SpecError(f"{text}: write 0.1%, burst:1%,5 or ge:TO_BAD,TO_GOOD,LOSS_BAD,LOSS_GOOD")


def _queue(text: str) -> Change:
    """A size or a duration."""
    try:
        if text.rstrip().endswith("s"):
            return {"queue_s": duration(text), "queue_octets": 0}
        return {"queue_s": 0.0, "queue_octets": size(text)}
    except SpecError:
        raise SpecError(f"{text!r}: not a queue; write a duration or a size, such as 100ms or 64kb") from None


def _one_of(name: str, words: Sequence[str]) -> Callable[[str], Change]:
    def read(text: str) -> Change:
        if text not in words:
            raise SpecError(f"{text!r}: write one of {', '.join(words)}")
        return {name: text}

    return read


def _switch(text: str) -> Change:
    if text not in ("on", "off"):
        raise SpecError(f"{text!r}: write on or off")
    return {"ecn": text == "on"}


READ: Final[Mapping[str, Callable[[str], Change]]] = {
    "delay": lambda text: {"delay_s": duration(text)},
    "jitter": lambda text: {"jitter_s": duration(text)},
    "distribution": _one_of("distribution", DISTRIBUTIONS),
    "loss": _loss,
    "rate": lambda text: {"rate_bps": rate(text), "opportunities": ()},
    "queue": _queue,
    "aqm": _one_of("aqm", AQMS),
    "ecn": _switch,
    "reorder": lambda text: {"reorder": share(text)},
    "duplicate": lambda text: {"duplicate": share(text)},
    "corrupt": lambda text: {"corrupt": share(text)},
}
"""By the word of a setting: what a text changes. Raises SpecError."""

Both = tuple[PathSettings, PathSettings]
"""From the first link to the second, and back."""


def changed(before: Both, changes: Mapping[str, str]) -> Both:
    """Return settings after changes. A value is for both directions, or THERE/BACK. Raises SpecError."""
    paths = list(before)
    for word, text in changes.items():
        if word not in READ:
            raise SpecError(f"{word!r}: no such setting; there are {', '.join(READ)}")
        values = text.split("/") if word != "rate" else _rates(text)
        if len(values) > 2:
            raise SpecError(f"{word}: {text}: write one value, or two as THERE/BACK")
        for way in 0, 1:
            try:
                paths[way] = replace(paths[way], **READ[word](values[way % len(values)]))
            except SpecError as e:
                raise SpecError(f"{word}: {e}") from None
    return paths[0], paths[1]


def _rates(text: str) -> list[str]:
    """Split 10mbit/2mbit, but not the unit of 10mbit/s."""
    return text.replace("bit/s", "bit").split("/")


PRESETS: Final[Mapping[str, Mapping[str, str]]] = {
    "lan": {"delay": "100us", "rate": "1gbit", "queue": "5ms"},
    "wifi": {
        "delay": "2ms",
        "jitter": "1ms",
        "rate": "100mbit/50mbit",
        "loss": "burst:0.1%,3",
        "queue": "50ms",
    },
    "dsl": {"delay": "8ms", "rate": "10mbit/50mbit", "queue": "100ms"},
    "cable": {"delay": "6ms", "jitter": "1ms", "rate": "20mbit/200mbit", "queue": "150ms"},
    "4g": {"delay": "25ms", "jitter": "5ms", "rate": "15mbit/40mbit", "loss": "0.01%", "queue": "300ms"},
    "3g": {"delay": "75ms", "jitter": "15ms", "rate": "1mbit/5mbit", "loss": "0.05%", "queue": "500ms"},
    "transatlantic": {"delay": "38ms", "rate": "1gbit", "loss": "0.001%", "queue": "100ms"},
    "transpacific": {"delay": "75ms", "rate": "1gbit", "loss": "0.001%", "queue": "150ms"},
    "geo": {"delay": "280ms", "rate": "5mbit/30mbit", "loss": "burst:0.1%,4", "queue": "500ms"},
    "leo": {
        "delay": "20ms",
        "jitter": "4ms",
        "rate": "15mbit/150mbit",
        "loss": "burst:0.3%,8",
        "queue": "150ms",
    },
}
"""Typical paths, as changes. Published ranges of each technology; no particular network."""

UNCHANGED: Final = PathSettings()


def preset(name: str) -> Both:
    """Return the settings of a preset. Raises SpecError."""
    if name not in PRESETS:
        raise SpecError(f"{name!r}: no such preset; there are {', '.join(PRESETS)}")
    return changed((UNCHANGED, UNCHANGED), PRESETS[name])
