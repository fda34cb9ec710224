"""Where rfc9293.md and tcp-sender.md (docs) say that Linux does as we do, or not: the kernel is asked."""

import socket
from dataclasses import replace

import pytest
from tcp_duel import PLAIN, Kernel, ours

pytestmark = pytest.mark.lab

OPEN = "listen", "S 0:0(0) win 20000 <mss 1000>", ". 1:1(0) ack 1 win 20000"
STAMPED = "listen", "S 0:0(0) win 20000 <mss 1000,TS 100>", ". 1:1(0) ack 1 win 20000 <TS 100>"
SACK = "listen", "S 0:0(0) win 20000 <mss 1000,sackOK>", ". 1:1(0) ack 1 win 20000"
DUPLICATE = ". 1:1(0) ack 1 win 20000"
IN_RECOVERY = (
    *SACK[:2],
    DUPLICATE,
    "write 20000",
    *(f"{DUPLICATE} <sack 1001:{end}>" for end in (2001, 3001, 4001)),
)
REPAIRS = [". 1:(1000) ack 1", ". 1001:(1000) ack 1", ". 4001:(1000) ack 1"]
BEHIND_A_TIMEOUT = [". 2001:(1000) ack 1", ". 3001:(1000) ack 1", ". 6001:(1000) ack 1"]
PROBED = [". 1:(1000) ack 1", ". 1001:(1000) ack 1", ". 1001:(1000) ack 1"]
CLAIMS = {  # the last step's answer: ours, and the kernel's
    "an idle connection sends a write whole": (
        [*OPEN, "write 2500"],
        [". 1:(1000) ack 1", ". 1001:(1000) ack 1", ". 2001:(500) ack 1"],
        [". 1:(1000) ack 1", ". 1001:(1000) ack 1", ". 2001:(500) ack 1"],
    ),
    "a small segment does not wait for full ones, but for a small one": (
        [*OPEN, "write 1000", "write 300", "write 300"],
        [],
        [],
    ),
    "a small segment behind full ones leaves at once": (
        [*OPEN, "write 1000", "write 300"],
        [". 1001:(300) ack 1"],
        [". 1001:(300) ack 1"],
    ),
    "a window that shrinks alone is applied": (
        [*OPEN, ". 1:1(0) ack 1 win 500", "write 1000"],
        [],
        [". 1:(1000) ack 1"],
    ),
    "a higher ACK brings a window with an older number": (
        [*OPEN, "write 500", ". 201:201(0) ack 1 win 20000", ". 1:1(0) ack 501 win 600", "write 1000"],
        [],
        [],
    ),
    "a zero window is probed by an octet": (
        [*OPEN, ". 1:1(0) ack 1 win 0", "write 10", "wait .5"],
        [". 1:(1) ack 1"],
        [". 0:(0) ack 1"],
    ),
    "a segment without its timestamp is accepted": (
        [*STAMPED, ". 1:101(100) ack 1", "wait .06"],
        [". 1:(0) ack 101 <ecr 100>"],
        [". 1:(0) ack 101 <ecr 100>"],
    ),
    "a timestamp that is older by one is old": (
        [*STAMPED, ". 1:101(100) ack 1 <TS 99>", "wait .06"],
        [". 1:(0) ack 1 <ecr 100>"],
        [". 1:(0) ack 101 <ecr 100>"],
    ),
    "the first segment is acknowledged at once": (
        [*OPEN, ". 1:101(100) ack 1"],
        [". 1:(0) ack 101"],
        [". 1:(0) ack 101"],
    ),
    "the peer's SYN that comes again is answered by our SYN again": (
        ["listen", "S 0:0(0) win 20000 <mss 1000>", "S 0:0(0) win 20000 <mss 1000>"],
        ["S. 0:(0) ack 1"],
        ["S. 0:(0) ack 1"],
    ),
    "a FIN behind a gap is told by SACK": (
        ["listen", "S 0:0(0) win 20000 <mss 1000,sackOK>", ". 1:1(0) ack 1", "F. 101:201(100) ack 1"],
        [". 1:(0) ack 1 <sack 101:202>"],
        [". 1:(0) ack 1 <sack 101:202>"],
    ),
    "a FIN alone behind a gap is told on data too": (
        [*SACK, "F. 101:101(0) ack 1", "write 100"],
        [". 1:(100) ack 1 <sack 101:102>"],
        [". 1:(100) ack 1 <sack 101:102>"],
    ),
    "a FIN that comes again is a duplicate": (
        [*SACK, "F. 1:101(100) ack 1", "wait .06", "F. 1:101(100) ack 1"],
        [". 1:(0) ack 102 <sack 1:102>"],
        [". 1:(0) ack 102 <sack 1:102>"],
    ),
    "data is acknowledged within the window while that is zero and probed": (
        [*OPEN, ". 1:1(0) ack 1 win 0", "write 10", "wait .5", ". 1:101(100) ack 1 win 0", "wait .06"],
        [". 1:(0) ack 101"],
        [". 1:(0) ack 101"],
    ),
    "data in flight is behind a window that shrank, and an ACK is not": (
        [*OPEN, "write 3000", ". 1:101(100) ack 1001 win 500"],
        [". 1501:(0) ack 101"],
        [". 1501:(0) ack 101"],
    ),
    "an ACK of a number before our first is challenged": (
        [*OPEN, ". 1:101(100) ack -50"],
        [". 1:(0) ack 1"],
        [". 1:(0) ack 1"],
    ),
    "the ranges of one ACK are no reordering": (
        [*SACK, "write 9000", ". 1:1(0) ack 1 win 20000 <sack 5001:8001 2001:4001>"],
        REPAIRS,
        REPAIRS,
    ),
    "loss behind a spurious timeout is repaired at once": (
        [*SACK, "write 10000", "wait .4", ". 1:1(0) ack 2001 win 20000 <sack 8001:10001 4001:6001>"],
        BEHIND_A_TIMEOUT,
        BEHIND_A_TIMEOUT,
    ),
    "in recovery every other segment that is delivered lets one leave, counted in segments": (
        [*IN_RECOVERY, f"{DUPLICATE} <sack 1001:5001>", f"{DUPLICATE} <sack 1001:6001>"],
        [". 12001:(1000) ack 1"],
        [". 12001:(1000) ack 1"],
    ),
    "the RTO of a retransmission restarts with a SACK of data that was sent before it": (
        [
            *SACK,
            "write 5000",
            f"{DUPLICATE} <sack 1001:4001>",
            "wait .12",
            f"{DUPLICATE} <sack 1001:5001>",
            "wait .13",
        ],
        [],
        [],
    ),
    "data behind an ACK that ends before SACKed data is sent again soon": (
        [*IN_RECOVERY, ". 1:1(0) ack 1001 win 20000 <sack 1001:4001>", "wait .05"],
        [". 1001:(1000) ack 1"],
        [". 1001:(1000) ack 1"],
    ),
    "a tail loss probe is no part of a segment": (
        [*SACK[:2], ". 1:1(0) ack 1 win 2500", "write 3000", "wait .06"],
        PROBED,
        PROBED,
    ),
}


def last(steps, answers):
    """The answers to the last step that is no wait, and in the wait behind it."""
    return [said for each in answers[-2:] for said in each] if steps[-1].startswith("wait") else answers[-1]


@pytest.mark.parametrize("version", [4, 6])
def test_linux_does_what_the_page_says(lab, version):
    config = replace(PLAIN, timestamps=True, sack=True)
    kernel, reno = Kernel(lab, [("net.ipv4.tcp_window_scaling", 0)]), (socket.IPPROTO_TCP, 13, b"reno")
    left = dict(CLAIMS)
    for name, (steps, mine, _) in CLAIMS.items():
        given = last(steps, ours(steps, config, version))
        assert given[: len(mine) or None] == mine, name
    for _ in range(5):  # the clock is real: what came too late is asked again
        heard = kernel.play([steps for steps, *_ in left.values()], version, options=[reno])
        pairs = zip(list(left.items()), heard, strict=True)
        unlike = {
            name: last(steps, answers)
            for (name, (steps, _, theirs)), answers in pairs
            if last(steps, answers)[: len(theirs) or None] != theirs
        }
        left = {name: CLAIMS[name] for name in unlike}
        if not left:
            break
    assert not unlike
