"""Why the firewall may do other than nftables: each reason is a line of docs/fw.md.

A reason holds for one packet, and for one of both that lets it pass.
"""

from dataclasses import dataclass, field

from vtl_tools.common.packet.tcp import ACK, RST, SYN

WINDOWS = {
    "tcp-out-of-window", "tcp-old-ack", "tcp-ack-of-unsent", "tcp-no-ack", "tcp-old-timestamp",
    "tcp-unexpected-syn", "tcp-not-open",
}  # fmt: skip
OVERLAPS = "cut-overlap", "cut-within", "cut-beyond", "cut-two-ends"
ROUTES = "option-loose", "option-routed"
NO_ERROR = "rule", "malformed-ipv4", "malformed-ipv6"
LIES = {"lie", "blind", "stray", "challenge"}


@dataclass
class Past:
    """What was in a flow: odd packets, and of TCP what passed anywhere.

    reset: a reset. syns: from which side which SYNs. heard: which sides acknowledged. early: one did
    before the other. again: a SYN behind that.
    """

    odd: set = field(default_factory=set)
    reset: bool = False
    syns: set = field(default_factory=set)
    heard: set = field(default_factory=set)
    early: bool = False
    again: bool = False

    @property
    def is_torn(self):
        """Whether one side began twice, by different numbers."""
        return len(self.syns) > len({out for out, _ in self.syns})


@dataclass
class Difference:
    """A packet that only one of both lets pass. ours: whether we do. why: as what we count the drop."""

    shot: object
    ours: bool
    why: str
    past: Past
    policy: object

    def __str__(self):
        verdict = "passes here and not there" if self.ours else f"passes there and not here, by {self.why!r}"
        return f"{self.shot} {verdict}; before: {sorted(self.past.odd)}{' reset' if self.past.reset else ''}"


def is_syn(shot):
    return shot.segment is not None and shot.segment[0] & (SYN | ACK) == SYN


def odd(*names):
    """Whether the packet is odd in one of these."""
    return lambda d: bool(d.shot.odd & set(names))


def ever_odd(*names):
    """The same, or one was before it in the flow."""
    return lambda d: bool((d.past.odd | d.shot.odd) & set(names))


def by(*whys):
    """Whether we dropped it for one of these."""
    return lambda d: d.why in whys


def is_early(d):
    return d.shot.segment is not None and (d.past.early or (not d.shot.out) not in d.past.heard)


def begins_anew(d):
    return d.past.reset and (d.past.again or is_syn(d.shot))


THERE = {
    "windows": (by(*WINDOWS), ever_odd(*LIES)),
    "reset": (by(*WINDOWS, "rule"), lambda d: d.past.reset),
    "crossing": (by("tcp-unexpected-syn"), lambda d: d.past.again and is_syn(d.shot)),
    "errors-not-sent": (by("icmp-not-sent"), odd("error")),
    "errors-quote-little": (by(*NO_ERROR), odd("quote-short", "quote-odd")),
    "errors-orders": (by("rule"), odd("order")),
    "errors-elsewhere": (by("rule"), odd("quote-dst", "quote-way")),
    "errors-types": (by("rule"), odd("error-type")),
    "overlaps": (by("fragment-overlap"), odd(*OVERLAPS)),
    "source-routes": (by("source-route"), odd(*ROUTES)),
    "hops": (by("rule"), odd("option-late-hop", "option-ah")),
    "chains": (by("malformed-ipv6"), odd("option-many")),
    "timestamps": (by("rule"), ever_odd("timestamps")),
    "macs": (by("rule"), ever_odd("mac"), lambda d: d.policy.asks_macs),
}
"""What passes with nftables only: all of the predicates hold."""

HERE = {
    "checksums": (ever_odd("bad-sum", "broken-sum", "quote-sum"),),
    "protocols": (odd("sctp"),),
    "headers": (odd("option-none", "option-ah", "option-late-hop"),),
    "anew": (begins_anew,),
    "twice": (lambda d: d.past.is_torn or d.past.again,),
    "early": (is_early,),
    "edge": (lambda d: "seq-edge" in d.past.odd,),
    "spoiled": (lambda d: bool({"syn-ack", "syn-ack-other", "rst-ack"} & d.past.odd),),
    "resets": (odd("rst-ack"),),
    "room": (odd("unseen-fin", "seq-edge", "rst-inside"),),
    "errors-over": (odd("error"), lambda d: d.past.reset),
    "empty": (odd("cut-empty"),),
}
"""What passes here only."""

EITHER = {"tags": (odd("stacked"), lambda d: any(rule.asks_of_ip for rule in d.policy.rules))}
REASONS = {*THERE, *HERE, *EITHER}


def reason(difference):
    """Return the name of the reason; "" if there is none."""
    table = EITHER | (HERE if difference.ours else THERE)
    return next((name for name, holds in table.items() if all(one(difference) for one in holds)), "")


def compare(policy, shots, linux, ours, why):
    """Return how many packets were compared, how often each reason held, and what has none.

    linux, ours: the numbers that passed. Where both differ for a reason, what they know of the flow does,
    too: it is not compared any more.
    """
    past, apart, reasons, unexplained, compared = {}, set(), {}, [], 0
    for shot in shots:
        before = past.setdefault(shot.flow, Past())
        there, here = (verdicts.get((shot.out, shot.number), 0) for verdicts in (linux, ours))
        if is_syn(shot):
            before.syns.add((shot.out, shot.segment[1]))
        if shot.flow not in apart:
            compared += 1
            if there != here:
                difference = Difference(shot, bool(here), why[shot.number], before, policy)
                name = reason(difference)
                if name:
                    reasons[name] = reasons.get(name, 0) + 1
                else:
                    unexplained.append(str(difference))
                if "error" not in shot.odd:
                    apart.add(shot.flow)
        before.odd |= shot.odd
        if is_syn(shot):
            before.again |= bool(before.heard) or before.reset
        elif shot.segment is not None and (there or here):
            flags, _ = shot.segment
            before.reset |= flags & RST != 0
            if flags & ACK:
                before.early |= not flags & SYN and (not shot.out) not in before.heard
                before.heard.add(shot.out)
    return compared, reasons, unexplained
