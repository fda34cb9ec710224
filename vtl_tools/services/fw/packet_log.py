"""The events of rules that say `log`: one of each kind of packet at once, and the others by their number.

A kind is the rule and its verdict, the protocol, both addresses, and the destination port or the ICMP type. A
guest can make as many kinds as it likes: kinds beyond a rate, or for which there is no room, are counted
together, by rule and protocol.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from vtl_tools.common.packet import quick
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.repeats import Repeats, more
from vtl_tools.services.fw.describe import as_words, describe
from vtl_tools.services.fw.flow import Decision
from vtl_tools.services.fw.question import NAMES
from vtl_tools.services.fw.rule import Direction, Rule

LOGS_PER_S: Final = 100.0
"""Packets of one side that are told one by one."""
KINDS_MAX: Final = 2048
"""Kinds of one side that are counted one by one."""
OTHER: Final = "other"
"""The protocol of kinds that are counted together, if it is neither TCP nor UDP."""

Told = dict[str, object]


class _Kind(NamedTuple):
    """The common part of packets that are told once.

    flow: source, destination and destination port as on the wire, or the members of an event; empty: all.
    """

    rule: Rule
    verdict: str
    reason: str
    protocol: str
    flow: bytes | tuple[tuple[str, object], ...] = b""


class PacketLog:
    """The log of one direction's packets. tell: takes the members of an event."""

    def __init__(self, direction: Direction, tell: Callable[[Told], object]) -> None:
        self._direction, self._tell = direction.value, tell
        self._bucket = TokenBucket(LOGS_PER_S)
        self._each: Repeats[_Kind] = Repeats(most=KINDS_MAX)
        self._together: Repeats[_Kind] = Repeats(most=KINDS_MAX)

    def note(self, rule: Rule, decision: Decision, frame: Buffer, now: float) -> None:
        """Take a packet that a rule judged, and tell it unless its kind is known."""
        verdict = "" if decision.verdict is None else decision.verdict.value
        every = _Kind(rule, verdict, decision.why, OTHER)
        headers, told = quick.read(frame), None
        if headers is not None:
            parties = headers[2]
            every = every._replace(protocol=NAMES[headers[1]])
            kind = every._replace(flow=parties[:-4] + parties[-2:])
            is_told_of = kind in self._each or self._bucket.take(now)
        elif is_told_of := self._bucket.take(now):
            told = describe(frame)
            shared = tuple((key, value) for key, value in told.items() if key not in ("sport", "code"))
            kind = every._replace(flow=shared)
        if not is_told_of or (len(self._each) >= KINDS_MAX and kind not in self._each):
            self._together.count(every, now)
        elif self._each.admit(kind, now):
            self._tell(self._members(kind) | (told or describe(frame)))

    def _members(self, kind: _Kind) -> Told:
        place, flow = kind.rule.place, kind.flow
        told: Told = {
            "rule": f"{place.file}:{place.line}",
            "direction": self._direction,
            "verdict": kind.verdict,
            "reason": kind.reason,
        }
        if isinstance(flow, tuple):
            return told | dict(flow)
        told["protocol"] = kind.protocol
        if flow:
            half = len(flow) // 2 - 1
            told |= {"src": format_ip(flow[:half]), "dst": format_ip(flow[half:-2])}
            told["dport"] = int.from_bytes(flow[-2:], "big")
        return told

    def deadline(self) -> float | None:
        """Return when repeats are due."""
        due = (repeats.deadline() for repeats in (self._each, self._together))
        return min((when for when in due if when is not None), default=None)

    def wake(self, now: float) -> None:
        """Tell the repeats of each kind whose minute is over."""
        for repeats in self._each, self._together:
            for kind, count in repeats.due(now):
                self._tell({**self._members(kind), "repeats": count, "period_s": repeats.period_s})

    def finish(self, now: float) -> None:
        """Tell the repeats that are not told yet."""
        self.wake(now + self._each.period_s)


def words(told: Mapping[str, Any]) -> str:
    """Return what an event says of its packet, in the words that question.read() accepts."""
    reason = "" if told["reason"] in ("rule", "new") else f", {told['reason']}"
    known = "ethertype" in told or "src" in told
    packet = as_words(told) if known else f"{told['protocol']} packets that are not told one by one"
    return f"{told['verdict']} {told['direction']} {packet} by {told['rule']}{reason}"


def log_line(told: Mapping[str, Any]) -> str:
    """Return an event, or repeats of it, as a line for people."""
    return f"{words(told)} ({more(told['repeats'], told['period_s'])})" if "repeats" in told else words(told)
