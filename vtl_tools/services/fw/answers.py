"""Replies to the control verbs of a running firewall, as JSON values."""

from ipaddress import ip_network
from itertools import islice
from posixpath import basename
from typing import Any, Final

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.packet import ip
from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.rules.clauses import ICMP6
from vtl_tools.common.rules.rule import NO_RULE, OUT
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.fw import question
from vtl_tools.services.fw.explain import explain as steps_to
from vtl_tools.services.fw.fields import NONE
from vtl_tools.services.fw.files import PACKED_MAX, SentReader
from vtl_tools.services.fw.flow import Flow
from vtl_tools.services.fw.identity import Identity
from vtl_tools.services.fw.identity_report import problem, remedy
from vtl_tools.services.fw.parser import parse
from vtl_tools.services.fw.policy import Policy
from vtl_tools.services.fw.question import PacketQuery
from vtl_tools.services.fw.tracker import Tracker

LISTED_MAX: Final = 1000
"""Maximum connections listed in one reply, and rules of an explanation. A reload counts them all."""
LOOKED_AT_MAX: Final = 10_000
"""Maximum connections examined for one reply."""

NOT_JUDGED: Final = "not judged: the service runs with --spoofing"
NOT_ASKED: Final = "not judged: no service was asked, and only a running one knows the VM"
_CONTENTS: Final = "judged by the contents of the message: the VM may speak for itself only"
_SOME_MAC: Final = bytes((2, 0, 0, 0, 0, 1))

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
        judged = flow.decision.rule or NO_RULE
        file, line = judged.place.file, judged.place.line
        if rule not in (str(line), f"{file}:{line}", f"{basename(file)}:{line}", judged.key):
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
        "rule": "" if rule is None else rule.key,
    }


def kill(tracker: Tracker, request: Answer) -> Answer:
    """End a connection. Raises SpecError or VTLError."""
    asked = question.read(_words(request))
    flow = tracker.flows.get(asked.key())
    if flow is None:
        raise VTLError("kill: no such connection; 'vtl-fw flows' lists them")
    tracker.end(flow)
    return {"flow": question.name(flow)}


def explain(tracker: Tracker, identity: Identity | None, request: Answer, link: str, now: float) -> Answer:
    """Return the rule that judges a packet, the state of its limits, and its connection, if there is one.

    The identity judges first, as it does with frames: no rule is asked about what is not the VM's. link: the
    VM's, for messages. Raises SpecError.
    """
    asked = question.read(_words(request))
    whose = of_identity(identity, asked, link)
    if whose.get("verdict") == "deny":
        return {"verdict": "deny", "rule": "", "text": "", "steps": [], "identity": whose}
    flow = tracker.flows.get(asked.key())
    told = explained(tracker.policy, asked, tracker.roles(asked.direction, asked.fields()))
    if whose:
        told["identity"] = whose
    rule = tracker.consult(asked.direction, asked.fields()).rule
    if left := tracker.left(rule, asked.direction, asked.src, now):
        told["left"] = left
    return told if flow is None else {**told, "known": question.name(flow)}


def of_identity(identity: Identity | None, asked: PacketQuery, link: str) -> Answer:
    """Return whether the VM may send a packet as itself; empty: that is not asked of this packet.

    verdict: allow, deny, contents (of ARP, neighbour discovery and DHCP, which are not described), or unknown
    without an identity.
    """
    if asked.direction is not OUT:
        return {}
    if identity is None:
        return {"verdict": "unknown", "reason": "", "text": NOT_JUDGED}
    mac = asked.src_mac if any(asked.src_mac) else identity.mac or identity.former or _SOME_MAC
    fields = asked.fields()
    message = fields.icmp >> 8 & 0xFF if fields.icmp >= ICMP6 else NONE
    ports = (fields.sport, fields.dport) if fields.protocol == ip.UDP else (NONE, NONE)
    why = identity.by_addresses(mac, fields.ethertype, asked.src, message=message, ports=ports)
    is_own = bool(asked.src) and identity.owns(asked.src, mac)
    if why is None and len(asked.src) == 16 and not is_own:
        if message == NONE:
            why = "spoofed-address"
        elif any(asked.src):
            why = "spoofed-nd"
    if why is None:
        return {"verdict": "contents", "reason": "", "text": _CONTENTS}
    if why:
        refused = mac if why == "spoofed-mac" else asked.src
        text, advice = problem(identity, why, refused), remedy(identity, why, refused, link)
        return {"verdict": "deny", "reason": why, "text": text, "remedy": advice}
    if not is_own:
        return {"verdict": "allow", "reason": "", "text": "needs no address of the VM"}
    by = identity.origins().get(format_ip(asked.src), "option")
    return {"verdict": "allow", "reason": "", "text": f"{format_ip(asked.src)} is the VM's by {by}"}


def explained(policy: Policy, asked: PacketQuery, roles: int = 0) -> Answer:
    """Return the rule of a policy that judges a packet, and why earlier rules do not match.

    roles: those that a running firewall knows of the packet.
    """
    fields = asked.fields()
    fields.roles = roles
    found = steps_to(policy, asked.direction, fields)
    rule, verdict = found.judgement.rule, found.judgement.verdict.value
    steps = [
        {"rule": step.rule.key, "text": step.rule.text, "why": step.why} for step in found.steps[:LISTED_MAX]
    ]
    return {"verdict": verdict, "rule": rule.key, "text": rule.text, "steps": steps}


def reloaded(tracker: Tracker, policy: Policy, ended: list[Flow]) -> Answer:
    """Return the connections that another policy ended, or would end, and its warnings."""
    names = [question.name(flow) for flow in ended[:LISTED_MAX]]
    warnings = [remark.details for remark in policy.ruleset.remarks]
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
