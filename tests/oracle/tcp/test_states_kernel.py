"""One segment of each kind in each state, to the kernel and our endpoint: where they differ, a rule says why.

Linux leaves the RFCs in some places. Each is listed with the clause that our endpoint follows instead.
"""

from typing import NamedTuple

import pytest
from tcp_duel import PLAIN, Kernel, ours

pytestmark = pytest.mark.lab

SYN, OPEN = "S 0:0(0) win 10000 <mss 1000>", ". 1:1(0) ack 1"
ESTABLISHED = ("listen", SYN, OPEN)
# how a state is reached, RCV.NXT and SND.NXT in it
STATES = {
    "closed": ((), 0, 0),
    "listen": (("listen",), 0, 0),
    "syn-sent": (("connect",), 0, 1),
    "syn-received": (("listen", SYN), 1, 1),
    "crossed": (("connect", SYN), 1, 1),
    "established": (ESTABLISHED, 1, 1),
    "fin-wait-1": ((*ESTABLISHED, "shutdown"), 1, 2),
    "fin-wait-2": ((*ESTABLISHED, "shutdown", ". 1:1(0) ack 2"), 1, 2),
    "close-wait": ((*ESTABLISHED, "F. 1:1(0) ack 1"), 2, 1),
    "closing": ((*ESTABLISHED, "shutdown", "F. 1:1(0) ack 1"), 2, 2),
    "last-ack": ((*ESTABLISHED, "F. 1:1(0) ack 1", "shutdown"), 2, 2),
    "time-wait": ((*ESTABLISHED, "shutdown", "F. 1:1(0) ack 2"), 2, 2),
}
FLAGS = ("R", "R.", "S", "S.", "F.", "F", ".", "0", "SF", "FR.", "SF.", "U.")
AT_ONCE = 200, 40, 10, 10, 1
"""Conversations at a time. On a busy machine an answer is late, or a timer fires; so some are tried again."""


class Case(NamedTuple):
    """A segment in a state. seq, ack: from RCV.NXT and SND.NXT; ack is None without the flag."""

    state: str
    flags: str
    seq: int
    ack: int | None
    size: int

    @property
    def steps(self):
        way, rcv_nxt, snd_nxt = STATES[self.state]
        seq = rcv_nxt + self.seq
        segment = f"{self.flags} {seq}:{seq + self.size}({self.size})"
        if self.ack is not None:
            segment += f" ack {snd_nxt + self.ack}"
        if "U" in self.flags:
            segment += " urg 5"
        return [*way, segment, "wait .05", f". {rcv_nxt}:{rcv_nxt}(0) ack {snd_nxt}"]

    @property
    def length(self):
        return self.size + ("S" in self.flags) + ("F" in self.flags)

    @property
    def is_outside(self):
        """Whether it ends at RCV.NXT or before, or begins behind the window: not acceptable (3.10.7.4)."""
        return self.seq > 65_535 or self.seq + self.length < 0 or (self.length > 0 >= self.seq + self.length)


CASES = [
    Case(state, flags, seq, ack, size)
    for state in STATES
    for flags in FLAGS
    for seq in (-1, 0, 100, 90_000)
    for ack in ((-1, 0, 1, 50_000) if "." in flags else (None,))
    for size in (0, 10)
]

# reason: whether it is why our answers differ from the kernel's
RULES = [
    (
        "Linux sends its SYN again at once after a wrong ACK; for the RFC the timer does (3.10.7.3)",
        lambda it, us, they: it.state == "syn-sent" and they[0] == [*us[0], "S 0:(0)"],
    ),
    (
        "what comes with a SYN-ACK is processed (3.10.7.3); Linux waits until it comes again",
        lambda it, us, they: (
            it.state in ("syn-sent", "crossed")
            and it.flags in ("S.", "SF.")
            and it.ack == 0
            and it.length > 1
        ),
    ),
    (
        "a SYN with a FIN is a SYN (3.10.7.2); Linux drops it",
        lambda it, us, they: it.state in ("listen", "time-wait") and it.flags == "SF",
    ),
    (
        "a FIN and data of a SYN that crosses ours are kept (3.10.7.3); Linux waits until they come again",
        lambda it, us, they: it.state == "syn-sent" and it.flags == "SF" and us[0] == they[0] and not they[1],
    ),
    (
        "a SYN is new if its number is above the FIN's (RFC 6191 section 3); for Linux, above RCV.NXT",
        lambda it, us, they: it.state == "time-wait" and it.flags == "S" and it.seq == 0,
    ),
    (
        "the number of a segment is checked before its ACK (3.10.7.4); Linux resets first",
        lambda it, us, they: (
            (it.state in ("syn-received", "crossed") and us[0] == [". 1:(0) ack 1"])
            or (it.flags == "S" and us[0] == they[0] and us[1] and us[1][0].startswith(". "))
        ),
    ),
    (
        "a SYN in the window of SYN-RECEIVED returns to LISTEN (3.10.7.4); Linux resets",
        lambda it, us, they: (
            it.state == "syn-received"
            and "S" in it.flags
            and not us[0]
            and they[0]
            and they[0][0].startswith("R")
        ),
    ),
    (
        "a wrong ACK of SYN-RECEIVED is reset (3.10.7.4); in Linux, not if the SYNs crossed",
        lambda it, us, they: it.state == "crossed" and " ".join(us[0]).startswith("R "),
    ),
    (
        "only the number of a reset counts (RFC 5961 section 3.2); Linux looks at its length",
        lambda it, us, they: "R" in it.flags and it.seq == -1 and it.length > 0 and not us[0],
    ),
    (
        "a reset with a FIN is a reset (3.10.7.4); Linux does not take it for one",
        lambda it, us, they: it.flags == "FR.",
    ),
    (
        "a reset before RCV.NXT is outside (RFC 5961 section 3.2); Linux takes it after a FIN",
        lambda it, us, they: (
            "R" in it.flags and it.seq == -1 and not us[0] and " ".join(they[1]).startswith("R ")
        ),
    ),
    (
        "an ACK of our FIN leads to TIME-WAIT, where a FIN is acknowledged (3.10.7.4); not by Linux",
        lambda it, us, they: it.state == "closing" and it.flags == "F." and it.ack == 0 and not they[0],
    ),
    (
        "in TIME-WAIT a reset in the window is challenged (RFC 5961 section 3.2); not by Linux",
        lambda it, us, they: it.state == "time-wait" and "R" in it.flags and len(us[0]) == 1 and not they[0],
    ),
    (
        "a segment is acknowledged if it is outside, even without an ACK (3.10.7.4)",
        lambda it, us, they: it.ack is None and it.is_outside and len(us[0]) == 1 and not they[0],
    ),
    (
        "an ACK of the ISS is old, but in the range of RFC 5961 section 5.2; not in Linux that listened",
        lambda it, us, they: it.ack == -1 and it.state in ("established", "close-wait") and not it.is_outside,
    ),
    (
        "what ends at RCV.NXT is outside (3.10.7.4); Linux takes its ACK",
        lambda it, us, they: it.ack is not None and it.is_outside and it.seq == -1 and len(us[0]) == 1,
    ),
    (
        "in TIME-WAIT an ACK is processed like elsewhere; Linux acknowledges all but an exact one",
        lambda it, us, they: (
            it.state == "time-wait" and it.flags in (".", "U.", "F", "0") and us[0] != they[0]
        ),
    ),
    (
        "text after the peer's FIN is ignored (3.10.7.4); Linux resets or acknowledges",
        lambda it, us, they: it.state in ("close-wait", "closing", "last-ack") and it.size and not us[0],
    ),
]


def answers(given, case):
    """The answers on the way to the state; to the segment; and to the ACK that follows."""
    way = len(STATES[case.state][0])
    return given[:way], [given[way] + given[way + 1], given[way + 2]]


def reason(case, mine, theirs):
    return next((rule for rule, holds in RULES if holds(case, mine, theirs)), None)


@pytest.mark.parametrize("version", [4, 6])
def test_every_segment_in_every_state_is_answered_as_linux_does_or_by_a_rule(lab, version):
    off = ("net.ipv4.tcp_timestamps", 0), ("net.ipv4.tcp_sack", 0), ("net.ipv4.tcp_window_scaling", 0)
    kernel, left, used = Kernel(lab, off), CASES, set()
    for at_once in AT_ONCE:
        unlike = []
        for at in range(0, len(left), at_once):
            some = left[at : at + at_once]
            heard = kernel.play([case.steps for case in some], version)
            for case, given in zip(some, heard, strict=True):
                (way, mine), (their_way, theirs) = (
                    answers(ours(case.steps, PLAIN, version), case),
                    answers(given, case),
                )
                if way == their_way and mine == theirs:
                    continue
                if way == their_way and (why := reason(case, mine, theirs)) is not None:
                    used.add(why)
                else:
                    unlike.append((case, mine, theirs))
        left = [case for case, *_ in unlike]
        if not left:
            break
    assert not unlike, "\n".join(
        f"{case}: {mine}, and the kernel: {theirs}" for case, mine, theirs in unlike[:60]
    )
    unused = {rule for rule, _ in RULES} - used
    assert not unused, "the kernel does as we do by now"
