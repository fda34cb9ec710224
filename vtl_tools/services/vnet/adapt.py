"""Adaptation of the overlay to its traffic (paper sections 2.2 and 3.2). Sans-IO.

A daemon that two others speak through sees the traffic of the pair, as VTTIF does, and the round trip and
loss of both links (Matchmaker). When the pair is busy, it introduces one to the other, which makes a direct
link, a shortcut beside the path through this daemon (Shortcuts). A shortcut carries only frames to stations
that its other end has told; so it makes no loop. It is undone when it does not pay.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from vtl_tools.common.bounded import BoundedTable

PERIOD_S: Final = 1.0
"""How often tick() is to be called."""
BUSY_MBIT: Final = 1.0
"""Mbit/s of a pair, in both directions together, above which it is busy."""
BUSY_TICKS: Final = 3
"""Ticks in a row that a pair is busy before it is introduced."""
AGAIN_S: Final = 600.0
"""Seconds after an introduction until the pair is introduced again, and after a failure until another try."""
TRIAL_S: Final = 10.0
"""Seconds within which a shortcut has to be up, and after which it is judged."""
IDLE_S: Final = 60.0
"""Seconds without traffic after which a shortcut is undone."""
WORSE_RTT: Final = 1.2
WORSE_RTT_MS: Final = 1.0
"""A shortcut's round trip may be so much longer than that of the path through the third daemon."""
WORSE_LOSS: Final = 1.0
"""And its loss so much higher, in percent."""
PAIRS_MAX: Final = 1024
SHORTCUTS_MAX: Final = 16


class LinkView(NamedTuple):
    """A link to another daemon, as it is now. door: a spec by which that daemon is reached; "": none."""

    daemon: str
    up: bool
    rtt_ms: float | None = None
    loss_percent: float | None = None
    door: str = ""
    octets: int = 0


class Advice(NamedTuple):
    """A change, and why. action: introduce, undo or keep.

    link: to change, or to the daemon that is told. daemon, door: whom it is told of, and where that is.
    """

    action: str
    link: str
    why: str
    daemon: str = ""
    door: str = ""
    rtt_ms: float | None = None
    loss_percent: float | None = None


@dataclass
class _Traffic:
    """Of two links. ticks: for how many it was busy. told_at: when it was introduced last."""

    octets: int = 0
    mbit: float = 0.0
    peak_mbit: float = 0.0
    ticks: int = 0
    told_at: float = -AGAIN_S


class Matchmaker:
    """Finds busy pairs of daemons that speak through this one."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], _Traffic] = {}
        self._at = 0.0

    def note(self, ingress: str, egress: str, octets: int) -> None:
        """Count frames that came from one link to a daemon and leave at another."""
        pair = (ingress, egress) if ingress < egress else (egress, ingress)
        traffic = self._pairs.get(pair)
        if traffic is None:
            if len(self._pairs) >= PAIRS_MAX:
                self._pairs.pop(min(self._pairs, key=lambda each: self._pairs[each].mbit))
            traffic = self._pairs[pair] = _Traffic()
        traffic.octets += octets

    def tick(self, links: Mapping[str, LinkView], now: float) -> list[Advice]:
        """Compute rates; return what is to be done."""
        elapsed_s = max(now - self._at, 1e-3)
        self._at = now
        found = []
        for pair, traffic in list(self._pairs.items()):
            if pair[0] not in links or pair[1] not in links:
                del self._pairs[pair]
                continue
            traffic.mbit = 8e-6 * traffic.octets / elapsed_s
            traffic.peak_mbit = max(traffic.peak_mbit, traffic.mbit)
            traffic.octets = 0
            traffic.ticks = traffic.ticks + 1 if traffic.mbit >= BUSY_MBIT else 0
            if traffic.ticks >= BUSY_TICKS and now >= traffic.told_at + AGAIN_S:
                introduced = self._introduce(pair, traffic, links)
                if introduced is not None:
                    traffic.told_at = now
                    found.append(introduced)
        return found

    def _introduce(
        self, pair: tuple[str, str], traffic: _Traffic, links: Mapping[str, LinkView]
    ) -> Advice | None:
        """Return whom to introduce to whom: one of them needs a door that the other can reach."""
        for caller, called in (pair, pair[::-1]):
            one, other = links[caller], links[called]
            if one.up and other.up and other.door and one.daemon and other.daemon:
                why = (
                    f"{one.daemon} and {other.daemon} exchange {traffic.mbit:.1f} Mbit/s through this daemon"
                )
                return Advice(
                    "introduce", caller, why, other.daemon, other.door, other.rtt_ms, other.loss_percent
                )
        return None

    def status(self) -> dict[str, dict[str, float]]:
        """Return the traffic of each pair of links, in Mbit/s."""
        return {
            f"{one} {other}": {"mbit": round(t.mbit, 3), "peak_mbit": round(t.peak_mbit, 3)}
            for (one, other), t in self._pairs.items()
        }


@dataclass
class _Shortcut:
    """A shortcut. over: the link beside which it is. rtt_ms, loss_percent: of that path's further half."""

    over: str
    made_at: float
    rtt_ms: float | None
    loss_percent: float | None
    octets: int = 0
    busy_at: float = 0.0
    was_up: bool = False
    is_kept: bool = False


@dataclass
class Shortcuts:
    """The shortcuts that this daemon has made, until they are undone."""

    _made: dict[str, _Shortcut] = field(default_factory=dict)
    _failed: BoundedTable[str, float] = field(default_factory=lambda: BoundedTable(PAIRS_MAX))

    def may_make(self, daemon: str, now: float) -> bool:
        """Return whether another shortcut may be tried: not again soon after one to this daemon failed."""
        return len(self._made) < SHORTCUTS_MAX and now >= self._failed.get(daemon, -AGAIN_S) + AGAIN_S

    def made(
        self, link: str, over: str, rtt_ms: float | None, loss_percent: float | None, now: float
    ) -> None:
        """Note a shortcut. rtt_ms, loss_percent: between the third daemon and the other end."""
        self._made[link] = _Shortcut(over, now, rtt_ms, loss_percent, busy_at=now)

    def forget(self, link: str) -> None:
        """Note that a shortcut is gone."""
        self._made.pop(link, None)

    def tick(self, links: Mapping[str, LinkView], now: float) -> list[Advice]:
        """Judge each shortcut; return those to undo, and once those that pay."""
        found: list[Advice] = []
        for name, shortcut in list(self._made.items()):
            link, over = links.get(name), links.get(shortcut.over)
            if link is None:
                del self._made[name]
                continue
            if link.octets > shortcut.octets:
                shortcut.octets, shortcut.busy_at = link.octets, now
            shortcut.was_up |= link.up
            why = self._reason(shortcut, link, over, now)
            if why:
                del self._made[name]
                if not why.startswith("idle"):
                    self._failed.put(link.daemon or name, now)
                found.append(Advice("undo", name, why))
            elif link.up and not shortcut.is_kept and now >= shortcut.made_at + TRIAL_S:
                shortcut.is_kept = True
                found.append(Advice("keep", name, f"round trip {link.rtt_ms} ms directly"))
        return found

    def _reason(self, shortcut: _Shortcut, link: LinkView, over: LinkView | None, now: float) -> str:
        """Return why a shortcut is undone; "": it is not."""
        if over is None:
            return "the link that it is beside is gone"
        if now < shortcut.made_at + TRIAL_S:
            return ""
        if not link.up:
            return "went down" if shortcut.was_up else "the other daemon was not reached"
        if now >= shortcut.busy_at + IDLE_S:
            return "idle"
        if None not in (link.rtt_ms, over.rtt_ms, shortcut.rtt_ms):
            through = (over.rtt_ms or 0.0) + (shortcut.rtt_ms or 0.0)
            if (link.rtt_ms or 0.0) > WORSE_RTT * through + WORSE_RTT_MS:
                return (
                    f"did not pay: round trip {link.rtt_ms} ms, and {through:.3f} ms through the third daemon"
                )
        lost = max(over.loss_percent or 0.0, shortcut.loss_percent or 0.0)
        if (link.loss_percent or 0.0) > lost + WORSE_LOSS:
            return f"did not pay: loss {link.loss_percent} %, and {lost} % through the third daemon"
        return ""
