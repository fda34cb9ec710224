"""An event as a line for people."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from vtl_tools.common.repeats import more

Event = dict[str, Any]
Words = Mapping[str, Callable[[Event], str]]
"""By event: what is to be said of it."""

_COMMON: Final = {"schema", "time", "service", "link", "event", "worker", "repeats", "period_s"}


def line_of(event: Event, words: Words) -> str:
    """Return an event as one line: when, at which service's link, what, and how often it came again."""
    name = str(event["event"])
    own = {key: value for key, value in event.items() if key not in _COMMON}
    said = words.get(name) or _WORDS.get(name)
    try:
        told = said(event) if said is not None else _members(own)
        if "repeats" in event:
            told = f"{told} ({more(event['repeats'], event['period_s'])})"
    except (KeyError, TypeError, ValueError, AttributeError):  # of a service of another version
        told = _members(own)
    return f"{event.get('time', '')} {event.get('link', '')} {name}: {told}"


def exit_status(event: Event) -> int:
    """Return the exit status of the service that an `error` tells of."""
    said = event.get("exit")
    return said if isinstance(said, int) and 0 < said < 256 else 1


def _members(fields: Event) -> str:
    return ", ".join(f"{key} {_value(value)}" for key, value in fields.items())


def _value(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(_value, value))
    if isinstance(value, dict):
        return f"({_members(value)})"
    return str(value)


def _stats(event: Event) -> str:
    links = [
        f"{link['link']} received {link['rx_frames']} frames and sent {link['tx_frames']}"
        for link in event["status"]["links"]
    ]
    return f"the service ended; {', '.join(links)}"


_WORDS: Final[Words] = {
    "ready": lambda event: f"process {event['pid']}, {' - '.join(event['links'])}",
    "link": lambda event: f"{event['changed']} is {'up' if event['up'] else 'down'}",
    "guard": lambda event: f"{event['interface']} {event['reason']}: guarded again",
    "lost": lambda event: f"{event['count']} events before this one, as they were not read in time",
    "stats": _stats,
    "error": lambda event: f"the service ended: {event['error']}",
}
