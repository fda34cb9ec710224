"""What an operator asks a firewall that runs, and what it answers, as JSON has it."""

from collections.abc import Callable
from typing import Any, Final

from vtl_tools.common.errors import VTLError
from vtl_tools.common.firewall import question
from vtl_tools.common.firewall.explain import explain as steps_to
from vtl_tools.common.firewall.flow import Decision, Flow
from vtl_tools.common.firewall.parser import parse
from vtl_tools.common.firewall.policy import Policy
from vtl_tools.common.firewall.question import Question
from vtl_tools.common.firewall.rule import Direction, Rule
from vtl_tools.common.firewall.tracker import Tracker
from vtl_tools.common.packet.view import Buffer

LISTED_MAX: Final = 1000
"""Connections that a reload names, and rules that an explanation has; a reload counts them all."""

Answer = dict[str, Any]


def compiled(name: str, read: Callable[[str, int], bytes]) -> Policy:
    """Parse and compile. Raises RuleError."""
    return Policy(parse(name, read))


def status(tracker: Tracker, file: str) -> Answer:
    """Return what the policy is, and what it is applied to."""
    return {
        "file": file,
        "rules": len(tracker.policy.rules),
        "flows": len(tracker.flows),
        "flows_max": tracker.flows.flows_max,
        "evicted": tracker.flows.evicted,
        "fragmented": len(tracker.fragments),
    }


def logged(rule: Rule, decision: Decision, direction: Direction, frame: Buffer) -> Answer:
    """Return what a log says of a packet that a rule judged."""
    return {
        "rule": f"{rule.place.file}:{rule.place.line}",
        "verdict": decision.verdict.value if decision.verdict is not None else "",
        "why": decision.why,
        "direction": direction.value,
        **question.describe(frame),
    }


def flows(tracker: Tracker, now: float) -> Answer:
    """Return what is known of each connection."""

    def one(flow: Flow) -> Answer:
        states, rule = flow.states, flow.decision.rule
        return {
            "flow": question.name(flow),
            "states": None if states is None else [state.value for state in states],
            "ends_in_s": round(max(0.0, flow.until - now), 1),
            "rule": "" if rule is None else f"{rule.place.file}:{rule.place.line}",
        }

    return {"flows": [one(flow) for flow in tracker.flows]}


def kill(tracker: Tracker, request: Answer) -> Answer:
    """End a connection. Raises SpecError or VTLError."""
    asked = question.read(_words(request))
    flow = tracker.flows.get(asked.key())
    if flow is None:
        raise VTLError("kill: no such connection; 'vtl-fw flows' lists them")
    tracker.end(flow)
    return {"flow": question.name(flow)}


def explain(tracker: Tracker, request: Answer) -> Answer:
    """Say which rule judges a packet, and of which connection it is, if of any. Raises SpecError."""
    asked = question.read(_words(request))
    flow = tracker.flows.get(asked.key())
    told = explained(tracker.policy, asked)
    return told if flow is None else {**told, "known": question.name(flow)}


def explained(policy: Policy, asked: Question) -> Answer:
    """Return which rule of a policy judges a packet, and why those before it do not."""
    found = steps_to(policy, asked.direction, asked.fields())
    steps = [[str(step.rule), step.why] for step in found.steps[:LISTED_MAX]]
    return {"verdict": found.judgement.verdict.value, "rule": str(found.judgement.rule), "steps": steps}


def reloaded(tracker: Tracker, policy: Policy, ended: list[Flow]) -> Answer:
    """Return what another policy ended, or would end, and what is odd about it."""
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
