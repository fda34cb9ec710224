"""Replies to the control verbs of a running firewall, as JSON values."""

from ipaddress import ip_network
from itertools import islice
from posixpath import basename
from typing import Any, Final

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.fw import question
from vtl_tools.services.fw.explain import explain as steps_to
from vtl_tools.services.fw.files import PACKED_MAX, SentReader
from vtl_tools.services.fw.flow import Flow
from vtl_tools.services.fw.parser import parse
from vtl_tools.services.fw.policy import Policy
from vtl_tools.services.fw.question import PacketQuery
from vtl_tools.services.fw.rule import BUILT_IN
from vtl_tools.services.fw.tracker import Tracker

LISTED_MAX: Final = 1000
"""Maximum connections listed in one reply, and rules of an explanation. A reload counts them all."""
LOOKED_AT_MAX: Final = 10_000
"""Maximum connections examined for one reply."""

Answer = dict[str, Any]


def compiled(name: str, upload: SealedFile) -> Policy:
    """Return the policy of a file, from the files that pack() put together. Raises VTLError."""
    return Policy(parse(name, SentReader(upload.read(PACKED_MAX))))


def status(tracker: Tracker, file: str) -> Answer:
    """Return the status of the policy and of the table of connections."""
    return {
        "file": file,
        "rules": len(tracker.policy.rules),
        "flows": len(tracker.flows),
        "flows_max": tracker.flows.flows_max,
        "evicted": tracker.flows.evicted,
        "fragmented": len(tracker.fragments),
    }


def flows(tracker: Tracker, request: Answer, now: float) -> Answer:
    """Return some connections: those of a `rule` and with an `address` in a prefix.

    At most LISTED_MAX are listed and a bounded number examined, so that frames do not wait. `next` is the
    `start` of the next request, and None at the end. Raises SpecError.
    """
    rule, prefix, start = (request.get(word) for word in ("rule", "address", "start"))
    if not isinstance(rule, str | None) or not isinstance(prefix, str | None):
        raise SpecError("flows: a rule is a line or FILE:LINE, an address is text")
    if not isinstance(start, int | None) or not 0 <= (start or 0) <= tracker.flows.flows_max:
        raise SpecError("flows: start must be `next` of the previous reply")
    within = None if prefix is None else _span(prefix)
    at, found = start or 0, list[Answer]()
    for flow in islice(tracker.flows, at, at + LOOKED_AT_MAX):
        if len(found) == LISTED_MAX:
            break
        at += 1
        if _is_asked(flow, rule, within):
            found.append(_known(flow, now))
    return {"flows": found, "next": at if at < len(tracker.flows) else None, "known": len(tracker.flows)}


def _span(prefix: str) -> tuple[bytes, bytes]:
    try:
        network = ip_network(prefix)
    except ValueError as e:
        raise SpecError(f"{str(e)[:120]}; write 192.0.2.5 or 2001:db8::/64") from None
    return network.network_address.packed, network.broadcast_address.packed


def _is_asked(flow: Flow, rule: str | None, within: tuple[bytes, bytes] | None) -> bool:
    if flow.share is None:
        return False
    if rule is not None:
        place = flow.decision.rule.place if flow.decision.rule is not None else BUILT_IN
        if rule not in (
            str(place.line),
            f"{place.file}:{place.line}",
            f"{basename(place.file)}:{place.line}",
        ):
            return False
    if within is None:
        return True
    first, last = within
    return any(len(end) == len(first) and first <= end <= last for end in flow.addresses)


def _known(flow: Flow, now: float) -> Answer:
    states, rule = flow.states, flow.decision.rule
    return {
        "flow": question.name(flow),
        "states": None if states is None else [state.value for state in states],
        "ends_in_s": round(max(0.0, flow.until - now), 1),
        "rule": "" if rule is None else f"{rule.place.file}:{rule.place.line}",
    }


def kill(tracker: Tracker, request: Answer) -> Answer:
    """End a connection. Raises SpecError or VTLError."""
    asked = question.read(_words(request))
    flow = tracker.flows.get(asked.key())
    if flow is None:
        raise VTLError("kill: no such connection; 'vtl-fw flows' lists them")
    tracker.end(flow)
    return {"flow": question.name(flow)}


def explain(tracker: Tracker, request: Answer, now: float) -> Answer:
    """Return the rule that judges a packet, the state of its limits, and its connection, if there is one.

    Raises SpecError.
    """
    asked = question.read(_words(request))
    flow = tracker.flows.get(asked.key())
    told = explained(tracker.policy, asked)
    rule = tracker.policy.judge(asked.direction, asked.fields()).rule
    if left := tracker.left(rule, asked.direction, asked.src, now):
        told["left"] = left
    return told if flow is None else {**told, "known": question.name(flow)}


def explained(policy: Policy, asked: PacketQuery) -> Answer:
    """Return the rule of a policy that judges a packet, and why earlier rules do not match."""
    found = steps_to(policy, asked.direction, asked.fields())
    steps = [[str(step.rule), step.why] for step in found.steps[:LISTED_MAX]]
    return {"verdict": found.judgement.verdict.value, "rule": str(found.judgement.rule), "steps": steps}


def reloaded(tracker: Tracker, policy: Policy, ended: list[Flow]) -> Answer:
    """Return the connections that another policy ended, or would end, and its warnings."""
    names = [question.name(flow) for flow in ended[:LISTED_MAX]]
    warnings = [str(remark) for remark in policy.ruleset.remarks]
    return {
        "rules": len(policy.rules),
        "flows": len(tracker.flows),
        "ended": len(ended),
        "names": names,
        "warnings": warnings,
    }


def _words(request: Answer) -> list[str]:
    words = request.get("words")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise VTLError("a packet is a list of words")
    return words
