"""Files that a service reads at its start: what a firewall learned, and what vtl-freeze knows.

Checked: ValueError or VTLError in a line, and nothing else, and then nothing has changed; what was taken is
told again as it was taken; of addresses, connections and held octets no more is kept than may be; the calls
that a text costs are bounded.
"""

import json
from contextlib import suppress
from dataclasses import fields

from tests.fuzz.effort import at_most
from tests.fuzz.octets import Octets
from tests.unit.freeze.freeze_talk import Talk
from tests.unit.fw.fw import policy
from vtl_tools.common.errors import VTLError
from vtl_tools.services.freeze import report, state
from vtl_tools.services.freeze.freezer import Freezer
from vtl_tools.services.fw import saved_state as memory
from vtl_tools.services.fw.identity import Identity, Learned
from vtl_tools.services.fw.tracker import Tracker

LENGTH_MAX = 8000
CALLS_MAX = 500_000
KEPT_MAX = 1024
"""Of anything that was learned."""
BOOT, NOW = "boot", 1000.0
POLICY = policy("allow\n")
WORDS = [word.encode() for word in (
    "mac ", "lease ", "client ", "server ", "duid ", "ia ", "lease6 ", "prefix ", "claim ", "flow ",
    "resolver ", "vtl-fw 1 boot\n", " vlan 5", "out tcp 10.0.0.5:40000 1.2.3.4:443", "null", "true",
    '"connections": [', '"hosts"', '"macs"',
)]  # fmt: skip


LATER = (
    "client ff52540001", "server 10.0.0.1 10.0.0.1", "lease 10.0.0.5 86400.0", "ia 3 5", "claim 2001:db8::5",
    "duid 00030001525400000001", "lease6 20010db8000000000000000000000009 90000.0",
    "prefix 2001:db8::/64 90000.0", "resolver 10.0.0.53 86400.0", "resolver fe80::1 90000.0",
)  # fmt: skip
"""Lines of a second version of the text."""


def told(tracker: Tracker, identity: Identity) -> str:
    """Return what a firewall would keep of what it knows now."""
    texts: list[str] = []
    keeper = memory.StateKeeper(tracker, identity, BOOT, texts.append)
    while not texts:
        keeper.wake(keeper.deadline())
    return texts[0]


def firewall(text: str) -> None:
    tracker, identity = Tracker(POLICY), Identity()
    before = identity.learned()
    try:
        with at_most(CALLS_MAX):
            taken = memory.recall(text, BOOT, tracker, identity, NOW)
    except ValueError as err:
        assert len(str(err)) < 700
        taken = False
    if not taken:
        assert identity.learned() == before, "a text that is not right was used"
        return
    for field in fields(Learned):
        if isinstance(kept := getattr(identity.learned(), field.name), list | dict):
            assert len(kept) <= KEPT_MAX, field.name
    identity.wake(NOW + 1)  # what ends so soon could be rounded away
    once, again, later = told(tracker, identity), Identity(), Tracker(POLICY)
    assert memory.recall(once, BOOT, later, again, NOW)
    assert told(later, again) == once, "what is told is not what was taken"
    for field in fields(Learned):
        kept, taken = (getattr(one.learned(), field.name) for one in (identity, again))
        assert (kept is None) == (taken is None), field.name
        assert not isinstance(kept, list | dict) or list(kept) == list(taken), field.name


def frozen(text: bytes) -> None:
    freezer = Freezer()
    try:
        with at_most(CALLS_MAX):
            vm = state.load(text, "file", freezer, NOW)
    except VTLError as err:
        assert "\n" not in str(err)
        assert not len(freezer.table)
        assert not freezer.frozen
        return
    assert freezer.table.held >= sum(one.held_octets for one in freezer.table)
    first = "".join(state.dump(freezer, vm, NOW))
    again = Freezer()
    assert state.load(first.encode("utf-8", "surrogatepass"), "file", again, NOW) == vm
    second = "".join(state.dump(again, vm, NOW))
    before, after = json.loads(first), json.loads(second)
    before["macs"].sort(), after["macs"].sort()  # a set, whose order is by chance
    assert after == before
    report.report(freezer, NOW)
    freezer.stop(NOW)
    while freezer.thaw():
        pass
    freezer.take()


def one(data: bytes) -> None:
    take = Octets(data)
    if take.flag():
        frozen(take.rest())
        return
    with suppress(UnicodeDecodeError):
        firewall(take.rest().decode("ascii"))


def seeds() -> list[bytes]:
    text = (
        "vtl-fw 1 boot\nmac 52:54:00:00:00:01\nlease 10.0.0.5 86400.0\nprefix 2001:db8::/64 90000.0\n"
        "claim 2001:db8::5\nother 2001:db8::1\n"
        "flow 52:54:00:00:00:01 52:54:00:00:00:02 out tcp 10.0.0.5:40000 1.2.3.4:443\n"
        "flow 52:54:00:00:00:02 52:54:00:00:00:01 in udp [2001:db8::1]:53 [2001:db8::5]:53 vlan 5\n"
        "flow 52:54:00:00:00:02 52:54:00:00:00:01 out icmp 10.0.0.5:7 1.2.3.4:7\n"
    )
    made = [b"\0" + text.encode(), b"\0" + text.replace("boot", "other").encode()]
    made += [b"\0" + f"vtl-fw 2 boot\nmac 52:54:00:00:00:01\n{line}\n".encode() for line in LATER]
    for version in 4, 6:
        talk = Talk(version, vlan=7 if version == 6 else None).open().freeze()
        talk.peer(".", 1001, 201, 1000)
        talk.peer(".", 2001, 201)
        talk.peer("R", 1001, stamps=None)
        made.append(b"\1" + "".join(state.dump(talk.freezer, "web", talk.now)).encode())
        talk = Talk(version).open()
        made.append(b"\1" + "".join(state.dump(talk.freezer, "web", talk.now)).encode())
    made.append(b"\1" + b'{"format":' * 1000)
    return made
