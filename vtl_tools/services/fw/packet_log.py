"""The events of rules that say `log`: one of each kind of packet at once, and the others by their number.

A kind is the rule and its verdict, the protocol, both addresses, and the destination port or the ICMP type. A
guest can make as many kinds as it likes: kinds beyond a rate, or for which there is no room, are counted
together, by rule and protocol.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from vtl_tools.common.packet import quick
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.common.repeats import Repeats, more
from vtl_tools.common.rules.rule import Direction, Rule, Verdict
from vtl_tools.services.fw.describe import as_words, describe
from vtl_tools.services.fw.flow import Decision
from vtl_tools.services.fw.question import NAMES

LOGS_PER_S: Final = 100.0
"""Packets of one side that are told one by one."""
KINDS_MAX: Final = 2048
"""Kinds of one side that are counted one by one."""
LIMITS: Final = ("limit-rate", "limit-connections")
"""Reasons for which a packet is denied although its rule allows it."""
OTHER: Final = "other"
"""The protocol of kinds that are counted together, if it is neither TCP nor UDP."""

Told = dict[str, object]


Flow = bytes | tuple[tuple[str, object], ...]
"""Source, destination and destination port as on the wire, or members of an event."""
_Each = tuple[Rule, str, int, Flow]
"""A kind: the rule, the reason, the protocol, the flow."""
_Some = tuple[Rule, str, str]
"""Kinds that are counted together: the rule, the reason, the protocol's name."""


class PacketLog:
    """The log of one direction's packets. tell: takes the members of an event."""

    def __init__(self, direction: Direction, tell: Callable[[Told], object]) -> None:
        self._direction, self._tell = direction.value, tell
        self._bucket = TokenBucket(LOGS_PER_S)
        self._each: Repeats[_Each] = Repeats(most=KINDS_MAX)
        self._together: Repeats[_Some] = Repeats(most=KINDS_MAX)

    def note(self, rule: Rule, decision: Decision, frame: Buffer, now: float) -> None:
        """Take a packet that a rule judged, and tell it unless its kind is known."""
        why, headers, told = decision.why, quick.read(frame), None
        if headers is not None:
            protocol, parties = headers[1], headers[2]
            kind: _Each = rule, why, protocol, parties[:-4] + parties[-2:]
            if self._each.repeat(kind):
                return
            is_told = len(self._each) < KINDS_MAX and self._bucket.take(now)
        elif is_told := len(self._each) < KINDS_MAX and self._bucket.take(now):
            told = describe(frame)
            shared = ((key, value) for key, value in told.items() if key not in ("sport", "code"))
            kind = rule, why, 0, tuple(shared)
        if not is_told:
            name = OTHER if headers is None else NAMES[headers[1]]
            self._together.count((rule, why, name), now)
        elif self._each.admit(kind, now):
            self._tell(self._judged(rule, why) | (told or describe(frame)))

    def _judged(self, rule: Rule, why: str) -> Told:
        verdict = Verdict.DENY if why in LIMITS else rule.verdict
        return {
            "rule": rule.key, "direction": self._direction, "verdict": verdict.value, "reason": why,
        }  # fmt: skip

    def deadline(self) -> float | None:
        """Return when repeats are due."""
        each, some = self._each.deadline(), self._together.deadline()
        return each if some is None or (each is not None and each < some) else some

    def wake(self, now: float) -> None:
        """Tell the repeats of each kind whose minute is over."""
        for (rule, why, protocol, flow), count in self._each.due(now):
            self._tell_repeats(self._judged(rule, why) | _members(protocol, flow), count)
        for (rule, why, name), count in self._together.due(now):
            self._tell_repeats({**self._judged(rule, why), "protocol": name}, count)

    def _tell_repeats(self, told: Told, count: int) -> None:
        self._tell({**told, "repeats": count, "period_s": self._each.period_s})

    def finish(self, now: float) -> None:
        """Tell the repeats that are not told yet."""
        self.wake(now + self._each.period_s)


def _members(protocol: int, flow: Flow) -> Told:
    if isinstance(flow, tuple):
        return dict(flow)
    half = len(flow) // 2 - 1
    return {
        "protocol": NAMES[protocol],
        "src": format_ip(flow[:half]),
        "dst": format_ip(flow[half:-2]),
        "dport": int.from_bytes(flow[-2:], "big"),
    }


def words(told: Mapping[str, Any]) -> str:
    """Return what an event says of its packet, in the words that question.read() accepts."""
    reason = "" if told["reason"] in ("rule", "new") else f", {told['reason']}"
    known = "ethertype" in told or "src" in told
    packet = as_words(told) if known else f"{told['protocol']} packets that are not told one by one"
    return f"{told['verdict']} {told['direction']} {packet} by {told['rule']}{reason}"


def log_line(told: Mapping[str, Any]) -> str:
    """Return an event, or repeats of it, as a line for people."""
    return f"{words(told)} ({more(told['repeats'], told['period_s'])})" if "repeats" in told else words(told)
