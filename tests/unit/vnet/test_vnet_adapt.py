"""Adaptation on a virtual clock: who is introduced, which shortcut stays and which is undone, and why."""

import json
from types import SimpleNamespace

import pytest

from vtl_tools.common.session.items import INTRODUCE
from vtl_tools.services.vnet.adapt import (
    AGAIN_S,
    BUSY_TICKS,
    IDLE_S,
    TRIAL_S,
    Advice,
    LinkView,
    Matchmaker,
    Shortcuts,
)
from vtl_tools.services.vnet.adapting import AdaptablePeer, Adapting, AdaptSettings
from vtl_tools.services.vnet.switch import VnetSwitch

SITE1 = LinkView("site1", True, 10.0, 0.0)
SITE2 = LinkView("site2", True, 12.0, 0.0, "udp:192.0.2.2:7700")
LINKS = {"a": SITE1, "b": SITE2}


def seconds(
    matchmaker: Matchmaker, links: dict[str, LinkView], mbit: float, first: int, count: int
) -> list[Advice]:
    """Return the advice of so many seconds of traffic between links a and b."""
    found = []
    for now in range(first, first + count):
        if mbit:
            matchmaker.note("a", "b", round(mbit * 1e6 / 16))
            matchmaker.note("b", "a", round(mbit * 1e6 / 16))
        found += matchmaker.tick(links, float(now))
    return found


def test_a_busy_pair_is_introduced_once() -> None:
    matchmaker = Matchmaker()
    (advice,) = seconds(matchmaker, LINKS, 50.0, 1, 60)
    assert advice[:2] == ("introduce", "a")
    assert advice[3:] == ("site2", "udp:192.0.2.2:7700", 12.0, 0.0)
    assert "50.0 Mbit/s" in advice.why
    assert matchmaker.status()["a b"]["mbit"] == pytest.approx(50, rel=0.01)
    assert len(seconds(matchmaker, LINKS, 50.0, int(AGAIN_S) + 61, 60)) == 1, "it is undone by then"


@pytest.mark.parametrize(
    ("mbit", "links"),
    [
        (0.5, LINKS),
        (50.0, {"a": SITE1, "b": SITE2._replace(door="")}),
        (50.0, {"a": SITE1, "b": SITE2._replace(up=False)}),
        (50.0, {"a": SITE1}),
    ],
)
def test_no_pair_is_introduced_that_is_idle_or_cannot_be_joined(
    mbit: float, links: dict[str, LinkView]
) -> None:
    assert not seconds(Matchmaker(), links, mbit, 1, 60)


def test_a_burst_is_no_busy_pair() -> None:
    matchmaker = Matchmaker()
    assert not seconds(matchmaker, LINKS, 500.0, 1, BUSY_TICKS - 1)
    assert not seconds(matchmaker, LINKS, 0.0, BUSY_TICKS, 60)


def judged(link: LinkView, *, until: float, rtt_ms: float | None = 12.0) -> list[Advice]:
    """Return the advice on a shortcut beside link a, whose further half has a round trip of 12 ms."""
    shortcuts, found = Shortcuts(), []
    shortcuts.made("s", "a", rtt_ms, 0.0, 0.0)
    now = 0.0
    while now < until:
        now += 1.0
        found += shortcuts.tick({"a": SITE1, "s": link._replace(octets=link.octets * int(now))}, now)
    return found


DIRECT = LinkView("site2", True, 15.0, 0.0, octets=1000)


def test_a_shortcut_that_pays_stays() -> None:
    assert [advice.action for advice in judged(DIRECT, until=500.0)] == ["keep"]


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (DIRECT._replace(rtt_ms=40.0), "did not pay: round trip"),
        (DIRECT._replace(loss_percent=5.0), "did not pay: loss"),
        (DIRECT._replace(up=False), "was not reached"),
    ],
)
def test_a_shortcut_that_does_not_pay_is_undone(link: LinkView, why: str) -> None:
    (advice,) = judged(link, until=TRIAL_S + 5)
    assert advice.action == "undo"
    assert why in advice.why


def test_an_idle_shortcut_is_undone_and_may_be_made_again_at_once_and_a_failed_one_later() -> None:
    shortcuts = Shortcuts()
    idle = DIRECT._replace(octets=0)
    shortcuts.made("s", "a", 12.0, 0.0, 0.0)
    found = [a for now in range(1, 99) for a in shortcuts.tick({"a": SITE1, "s": idle}, float(now))]
    assert [(a.action, a.why) for a in found][1:] == [("undo", "idle")]
    assert shortcuts.may_make("site2", IDLE_S + 1)
    shortcuts.made("s", "a", 12.0, 0.0, 100.0)
    assert shortcuts.tick({"a": SITE1, "s": DIRECT._replace(up=False)}, 111.0)
    assert not shortcuts.may_make("site2", 112.0)
    assert shortcuts.may_make("site2", 111.0 + AGAIN_S)


def test_a_shortcut_goes_with_the_link_that_it_is_beside() -> None:
    shortcuts = Shortcuts()
    shortcuts.made("s", "a", None, None, 0.0)
    (advice,) = shortcuts.tick({"s": DIRECT}, 1.0)
    assert advice.action == "undo"


@pytest.mark.parametrize(
    "change",
    [
        {"door": "udp:999.1.1.1:7700"},
        {"door": "tcp:127.0.0.1:22"},
        {"door": "tcp:[::1]:22"},
        {"door": "tcp:db.example:5432"},
        {"daemon": "../x"},
        {"daemon": 7},
        {"rtt_ms": ...},
        {},
    ],
)
def test_an_introduction_makes_no_link_but_to_another_host_and_none_that_is_not_judged(
    change: dict[str, object],
) -> None:
    told = {"daemon": "c", "door": "udp:192.0.2.9:7700", "rtt_ms": 1.0, "loss_percent": 0.0, **change}
    item = json.dumps({name: value for name, value in told.items() if value is not ...}).encode()
    made: list[str] = []
    links = SimpleNamespace(
        make_shortcut=lambda name, spec, over: made.append(spec), event=lambda name, **fields: None
    )
    adapting = Adapting(AdaptSettings("on"), VnetSwitch(), links, "a", None, None)
    device = SimpleNamespace(
        messages=lambda: [(INTRODUCE, item)], remote=None, up=True, doors=(), where="192.0.2.1",
        status=lambda: {"rtt_ms": 1.0, "loss_percent": 0.0},
    )  # fmt: skip
    adapting.tick({"hub": AdaptablePeer(device, "", 0)}, 0.0)
    assert made == ([] if change else ["udp:192.0.2.9:7700"])
    assert [done["action"] for done in adapting.last] == ["make"] * len(made)


def test_a_suggestion_is_told_once_and_again_when_it_has_changed() -> None:
    told: list[str] = []
    links = SimpleNamespace(event=lambda name, **fields: told.append(fields["why"]))
    adapting = Adapting(AdaptSettings("suggest"), VnetSwitch(), links, "a", None, None)

    def hear(port: int) -> None:
        item = {"daemon": "c", "door": f"udp:192.0.2.9:{port}", "rtt_ms": 1.0, "loss_percent": 0.0}
        device = SimpleNamespace(
            messages=lambda: [(INTRODUCE, json.dumps(item).encode())] * 2, remote=None, up=True, doors=(),
            where="192.0.2.1", status=lambda: {"rtt_ms": 1.0, "loss_percent": 0.0},
        )  # fmt: skip
        adapting.tick({"hub": AdaptablePeer(device, "", 0)}, 0.0)

    for port in 7700, 7700, 7800, 7800, 7700:
        hear(port)
    assert [why.rpartition(":")[2] for why in told] == ["7700", "7800", "7700"]
    assert len(adapting.last) == 3
