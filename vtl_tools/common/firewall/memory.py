"""What a firewall learned, as text, so that the next one on the same link need not learn it again.

A word and what it is about on each line:

    vtl-fw 1 BOOT
    mac 52:54:00:00:00:01
    lease 10.0.0.5 86400.0
    prefix 2001:db8::/64 90000.0
    claim 2001:db8::5
    other 2001:db8::1
    flow 52:54:00:00:00:01 52:54:00:00:00:02 out tcp 10.0.0.5:40000 1.2.3.4:443

BOOT names the host's present boot: the times are of its clock, and the VM did not outlive it either. Of a
text that is not right, nothing is used.
"""

from collections.abc import Callable, Iterator
from ipaddress import IPv6Network
from itertools import islice
from math import isfinite
from typing import Final

from vtl_tools.common.errors import SpecError
from vtl_tools.common.firewall import question
from vtl_tools.common.firewall.flow import ASSURED, Flow, Opening
from vtl_tools.common.firewall.identity import (
    CLAIMS_MAX,
    LEASES_MAX,
    OTHERS_MAX,
    PREFIX_BITS_MIN,
    PREFIXES_MAX,
    Identity,
    Learned,
)
from vtl_tools.common.firewall.rule import OUT
from vtl_tools.common.firewall.tracker import Tracker
from vtl_tools.common.packet import address

FLOWS_MAX: Final = 4096
"""Connections that are remembered: the latest that both sides use; half of them may be strangers'."""
LINES_MAX: Final = 1 + 1 + LEASES_MAX + PREFIXES_MAX + CLAIMS_MAX + OTHERS_MAX + FLOWS_MAX
OCTETS_MAX: Final = LINES_MAX * 160
EVERY_S: Final = 5.0
RECALLED_S: Final = 300.0
"""How long a connection of before may take to be heard of again."""
_AT_ONCE: Final = 64
_PAUSE_S: Final = 0.01
_LEASE_MAX_S: Final = 2.0**32


class Keeper:
    """Tells `write` every few seconds what is to be remembered, in small steps, as packets wait meanwhile."""

    def __init__(
        self, tracker: Tracker, identity: Identity | None, boot: str, write: Callable[[str], object]
    ) -> None:
        self._tracker, self._identity, self._write = tracker, identity, write
        self._first = f"vtl-fw 1 {boot}\n"
        self._steps: Iterator[str] | None = None
        self._lines: list[str] = []
        self._told = ""
        self._due = 0.0

    def deadline(self) -> float:
        """Return when wake() is due."""
        return self._due

    def wake(self, now: float) -> None:
        """Do a step, if one is due."""
        if now < self._due:
            return
        if self._steps is None:
            self._steps, self._lines = self._all(), []
        some = list(islice(self._steps, _AT_ONCE))
        self._lines += filter(None, some)
        if len(some) == _AT_ONCE:
            self._due = now + _PAUSE_S
            return
        self._steps, self._due = None, now + EVERY_S
        self._tell("".join(self._lines))

    def close(self) -> None:
        """Tell all that is known at the end, unless it never began."""
        if self._told:
            self._tell("".join(self._all()))

    def _tell(self, text: str) -> None:
        if text != self._told:
            self._write(text)
            self._told = text

    def _all(self) -> Iterator[str]:
        """Return lines; empty ones for what is only looked at."""
        yield self._first
        if self._identity is not None:
            yield from _identity_lines(self._identity.learned())
        room, of_strangers = FLOWS_MAX, FLOWS_MAX // 2
        for flow in reversed(list(self._tracker.flows)):
            is_own = flow.initiator is OUT
            if flow.use == ASSURED and flow.share is not None and room and (is_own or of_strangers):
                room -= 1
                of_strangers -= not is_own
                yield _flow_line(flow)
            else:
                yield ""


def recall(text: str, boot: str, tracker: Tracker, identity: Identity | None, now: float) -> bool:
    """Take up what an earlier firewall knew; say whether it was of this boot. Raises ValueError.

    Connections are judged by the rules that hold now, as soon as something is heard of them.
    """
    lines = text.splitlines()
    if not lines or len(lines) > LINES_MAX or lines[0].split()[:2] != ["vtl-fw", "1"]:
        raise ValueError("not what vtl-fw writes")
    if lines[0].split()[2:] != [boot]:
        return False
    learned, openings = Learned(), dict[bytes, Opening]()
    for line in lines[1:]:
        try:
            _take(line, learned, openings, now)
        except (ValueError, SpecError):
            raise ValueError(f"{line[:80]!r}: not what vtl-fw writes") from None
    if identity is not None:
        identity.recall(learned, now)
    tracker.recall(openings, now + RECALLED_S)
    return True


def _identity_lines(learned: Learned) -> Iterator[str]:
    if learned.mac is not None:
        yield f"mac {address.format_mac(learned.mac)}\n"
    for octets, until in learned.leases.items():
        yield f"lease {address.format_ip(octets)} {until:.1f}\n"
    for prefix, until in learned.prefixes.items():
        yield f"prefix {prefix} {until:.1f}\n"
    for word, addresses in ("claim", learned.claims), ("other", learned.others):
        for octets in addresses:
            yield f"{word} {address.format_ip(octets)}\n"


def _flow_line(flow: Flow) -> str:
    _, src_mac, dst_mac, _ = flow.opening
    return f"flow {address.format_mac(src_mac)} {address.format_mac(dst_mac)} {question.name(flow)}\n"


def _take(line: str, learned: Learned, openings: dict[bytes, Opening], now: float) -> None:
    word, *rest = line.split(" ")
    if word == "flow":
        src_mac, dst_mac = map(address.mac, rest[:2])
        asked = question.read(rest[2:])
        openings[asked.key()] = Opening(asked.direction, src_mac, dst_mac, asked.vlan)
    elif word == "mac" and learned.mac is None:
        (learned.mac,) = map(address.mac, rest)
    elif word in ("lease", "prefix"):
        what, end = rest
        until = float(end)
        if not isfinite(until) or until > now + _LEASE_MAX_S:
            raise ValueError
        if word == "lease":
            learned.leases[_host(what, 4)] = until
        elif (prefix := IPv6Network(what)).prefixlen >= PREFIX_BITS_MIN:
            learned.prefixes[prefix] = until
        else:
            raise ValueError
    elif word in ("claim", "other") and len(rest) == 1:
        (learned.claims if word == "claim" else learned.others).append(_host(rest[0], 16))
    else:
        raise ValueError


def _host(text: str, size: int) -> bytes:
    octets = address.ip(text)
    if len(octets) != size or not address.is_single_host(octets):
        raise ValueError
    return octets
