"""Linux as the oracle of verdicts: one policy for nftables and for vtl-fw, the same packets, the same end.

What both may do differently has a reason in docs/fw.md, and a predicate in nft_reasons. Each run
goes through the same sequences. VTL_FW_SEQUENCES says how many, VTL_FW_SEED which is the first, for more.
"""

import os
import re
from collections import Counter
from itertools import product
from pathlib import Path
from random import Random

import nft_alphabet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nft_alphabet import POLICIES, STEPS, shots_of
from nft_kernel import LOADS_MAX, Kernel
from nft_ours import Process, Stage
from nft_policies import Policy, Rule, random_policy
from nft_reasons import REASONS, compare
from nft_sequences import Maker, random_sequence

from lab.netns import Lab

pytestmark = pytest.mark.lab

SEQUENCES = int(os.environ.get("VTL_FW_SEQUENCES", "1000"))
SEED = int(os.environ.get("VTL_FW_SEED", "1"))
LONG = pytest.mark.timeout(600 + SEQUENCES // 5)


@pytest.fixture
def linux(lab):
    return Kernel(lab)


def differences(linux, policy, shots):
    """Give both the same, and return what has no reason."""
    linux.load(policy.tables())
    ours = Stage(policy.text)
    for shot in shots:
        ours.take(shot)
    return compare(policy, shots, linux.judge(shots)[0], ours.result()[0], ours.why)[2]


def smallest(linux, policy, shots, difference):
    """Return a failure without the shots and rules that the difference does not need."""
    same = difference.partition(" ")[0], "passes here" in difference

    def fails(rules, some):
        found = differences(linux, Policy.of(rules, Random(0)), some)
        return same in {(text.partition(" ")[0], "passes here" in text) for text in found}

    rules, size = policy.rules, len(shots)
    while size:
        for at in range(len(shots) - size, -1, -size):
            if fails(rules, fewer := shots[:at] + shots[at + size :]):
                shots = fewer
        size //= 2
    for rule in rules[:-1]:
        if fails(fewer_rules := [one for one in rules if one is not rule], shots):
            rules = fewer_rules
    return Policy.of(rules, Random(0)), shots


def report(linux, seed, policy, shots, found):
    policy, shots = smallest(linux, policy, shots, found[0])
    return "\n".join([f"seed {seed}", policy.text, *map(str, shots), *found])


def test_every_reason_is_in_the_documentation():
    page = (Path(__file__).parents[3] / "docs/fw.md").read_text()
    table = page.partition("## Differences from nftables")[2]
    named = {name for cell in re.findall(r"^\| ([a-z, -]+) \|", table, re.M) for name in cell.split(", ")}
    assert named | {"tags"} == REASONS


def test_linux_judges_bridged_frames_by_connection(linux):
    policy = Policy.of([Rule("allow", "out", ["udp"], dport=["53"]), Rule("deny")], Random(0))
    maker = Maker(Random(2), lambda _: True)
    for out, size, cuts in (
        (False, 30, None), (True, 30, None), (False, 30, None), (True, 104, [(0, 56, False), (56, 56, True)]),
        (True, 104, [(56, 56, True)]),
    ):  # fmt: skip
        maker.datagram(out, False, 0, 0, 40000, 53, None, size, cuts, odd={"as it is"})
    linux.load(policy.tables())
    passed, partly = linux.judge(maker.shots)
    assert passed == {(True, 2): 1, (False, 3): 1, (True, 4): 1}
    assert not partly


@LONG
@pytest.mark.slow
def test_random_sequences_end_as_with_nftables():
    compared, reasons, verdicts = 0, Counter(), Counter()
    for first in range(SEED, SEED + SEQUENCES, LOADS_MAX):
        with Lab() as lab:
            linux = Kernel(lab)
            for seed in range(first, min(first + LOADS_MAX, SEED + SEQUENCES)):
                random = Random(seed)
                policy = random_policy(random)
                linux.load(policy.tables())
                ours = Stage(policy.text)
                shots = random_sequence(random, ours.take)
                there, here = linux.judge(shots)[0], ours.result()[0]
                count, held, unexplained = compare(policy, shots, there, here, ours.why)
                assert not unexplained, report(linux, seed, policy, shots, unexplained)
                compared += count
                reasons.update(held)
                verdicts.update(bool(here.get((shot.out, shot.number))) for shot in shots)
    print(f"{compared} of {verdicts.total()} packets, {verdicts[True]} passed; {dict(reasons)}")
    assert compared > 0.8 * verdicts.total()
    assert sum(reasons.values()) < 0.05 * compared
    assert verdicts[True] > 0.3 * verdicts.total() < 2 * verdicts[False]


@LONG
@pytest.mark.slow
def test_short_sequences_of_few_packets_end_as_with_nftables(linux):
    @settings(
        deadline=None,
        max_examples=min(SEQUENCES // 5, LOADS_MAX // 2),
        derandomize=SEED == 1,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(st.sampled_from(POLICIES), min_size=1, max_size=3), STEPS)
    def judged_alike(rules, steps):
        policy = Policy.of([*rules, Rule("deny")], Random(0))
        assert not differences(linux, policy, shots_of(steps))

    judged_alike()


SYN, SYN_ACK, ACK, FIN_ACK = 2, 18, 16, 17
OPENINGS = {
    "plain": [(True, SYN, 0, 0), (False, SYN_ACK, 0, 1), (True, ACK, 1, 1)],
    "at once": [
        (True, SYN, 0, 0), (False, SYN, 0, 0), (True, SYN_ACK, 0, 1), (False, SYN_ACK, 0, 1),
        (True, ACK, 1, 1), (False, ACK, 1, 1),
    ],
    "at once, the other answers first": [
        (True, SYN, 0, 0), (False, SYN, 0, 0), (False, SYN_ACK, 0, 1), (True, SYN_ACK, 0, 1),
        (True, ACK, 1, 1), (False, ACK, 1, 1),
    ],
}  # fmt: skip
SPOKEN = [
    (True, ACK, 1, 1, 100), (False, ACK, 1, 101, 100), (True, ACK, 101, 101, 100), (False, ACK, 101, 201),
    (True, FIN_ACK, 201, 101), (False, ACK, 101, 202, 100), (False, FIN_ACK, 201, 202), (True, ACK, 202, 202),
]  # fmt: skip


@pytest.mark.parametrize("opening", OPENINGS)
def test_numbers_that_wrap_pass_there_and_here_whoever_opens(linux, monkeypatch, opening):
    edges = nft_alphabet.MASK, nft_alphabet.MASK - 150, 0x7FFF_FFFF
    for mine, theirs, is_out in product(edges, edges, (True, False)):
        monkeypatch.setattr(nft_alphabet, "ISS", {True: mine, False: theirs})
        policy = Policy.of([Rule("allow", "out" if is_out else "in", ["tcp"]), Rule("deny")], Random(0))
        steps = [
            ("tcp", way is is_out, flags, seq, ack, *(size or [0]))
            for way, flags, seq, ack, *size in OPENINGS[opening] + SPOKEN
        ]
        shots = shots_of(steps)
        linux.load(policy.tables())
        ours = Stage(policy.text)
        for shot in shots:
            ours.take(shot)
        everything = {(shot.out, shot.number): 1 for shot in shots}
        assert linux.judge(shots)[0] == ours.result()[0] == everything, (hex(mine), hex(theirs), ours.why)


@pytest.mark.slow
def test_the_service_judges_as_its_stage_does(lab):
    process = Process(lab)
    for seed in range(SEED, SEED + 15):
        random = Random(seed)
        policy = random_policy(random)
        text = f"allow ethertype 0x88b5\n{policy.text}"
        ours = Stage(text)
        shots = random_sequence(random, ours.take)
        process.load(text)
        assert process.judge(shots) == ours.result(), (seed, policy.text)
