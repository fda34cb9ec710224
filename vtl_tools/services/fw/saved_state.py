"""The learned state of a firewall as text, for the next one on the same link.

Each line has a keyword and its values:

    vtl-fw 2 BOOT
    occupant interface 7 2
    mac 52:54:00:00:00:01
    client ff52540001
    server 10.0.0.1 10.0.0.1
    lease 10.0.0.5 86400.0
    duid 00030001525400000001
    ia 3 5
    lease6 20010db8000000000000000000000009 90000.0
    prefix 2001:db8::/64 90000.0
    claim 2001:db8::5
    resolver 10.0.0.1 86400.0
    flow 52:54:00:00:00:01 52:54:00:00:00:02 out tcp 10.0.0.5:40000 1.2.3.4:443

BOOT names the host's present boot: the times are of its clock, and the VM did not outlive it either. Of a
text that is not right, nothing is used.
"""

from collections.abc import Callable, Container, Iterator
from ipaddress import IPv6Network
from itertools import islice
from math import isfinite
from typing import Final

from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet import address
from vtl_tools.common.rules.rule import OUT
from vtl_tools.services.fw import question
from vtl_tools.services.fw.dhcp4 import SERVERS_MAX, VMLease
from vtl_tools.services.fw.dhcp6 import DUID_MAX, IAS_MAX, LEASES_MAX
from vtl_tools.services.fw.flow import ASSURED, Flow, Opening
from vtl_tools.services.fw.identity import Identity, Learned
from vtl_tools.services.fw.resolvers import RESOLVERS_MAX
from vtl_tools.services.fw.savi import CLAIMS_MAX, PREFIX_BITS_MIN, PREFIXES_MAX
from vtl_tools.services.fw.tracker import Tracker

FLOWS_MAX: Final = 4096
"""Connections that are remembered: the latest that both sides use; half of them may be strangers'."""
_LEARNED_MAX: Final = SERVERS_MAX + IAS_MAX + LEASES_MAX + PREFIXES_MAX + CLAIMS_MAX + RESOLVERS_MAX
LINES_MAX: Final = 6 + _LEARNED_MAX + FLOWS_MAX
OCTETS_MAX: Final = LINES_MAX * 160
EVERY_S: Final = 5.0
RECALLED_S: Final = 300.0
"""How long a connection of before may take to be heard of again."""
_AT_ONCE: Final = 64
_PAUSE_S: Final = 0.01
_LEASE_MAX_S: Final = 2.0**32
_CLIENT_ID_MAX: Final = 1024
_OCCUPANT_MAX: Final = 64


class StateKeeper:
    """Tells `write` every few seconds what is to be remembered, in small steps, as packets wait meanwhile.

    write: returns False while it is not done with what it was told before, and is told again.
    """

    def __init__(
        self, tracker: Tracker, identity: Identity | None, boot: str, write: Callable[[str], object]
    ) -> None:
        self._tracker, self._identity, self._write = tracker, identity, write
        self._first = f"vtl-fw 2 {boot}\n"
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

    def begin(self, now: float) -> None:
        """Begin to tell the present state at once: the one before is no longer to be remembered."""
        self._steps, self._due = None, now
        self.wake(now)

    def close(self) -> None:
        """Tell all that is known at the end, unless it never began."""
        if self._told:
            self._tell("".join(self._all()))

    def _tell(self, text: str) -> None:
        if text != self._told and self._write(text) is not False:
            self._told = text

    def _all(self) -> Iterator[str]:
        """Return lines; empty ones for what is only looked at."""
        yield self._first
        yield from lines(self._tracker, self._identity, self._due, FLOWS_MAX)


def lines(
    tracker: Tracker, identity: Identity | None, now: float, flows_max: int, shift: float = 0.0
) -> Iterator[str]:
    """Yield the lines of what is known; empty ones for what is only looked at.

    shift: seconds from the clock of `now` to that of the text.
    """
    if identity is not None:
        yield from _identity_lines(identity.learned(), shift)
    room, of_strangers = flows_max, flows_max // 2
    for flow in reversed(list(tracker.flows)):
        is_own = flow.initiator is OUT
        if flow.use == ASSURED and flow.share is not None and room and (is_own or of_strangers):
            room -= 1
            of_strangers -= not is_own
            yield _flow_line(flow)
        else:
            yield ""
    for flow in islice(tracker.unheard(now), room):
        yield _flow_line(flow)


def recall(text: str, boot: str, tracker: Tracker, identity: Identity | None, now: float) -> bool:
    """Take up what an earlier firewall knew; say whether it was of this boot. Raises ValueError.

    Connections are judged by the rules that hold now, as soon as something is heard of them.
    """
    reader = StateReader(text, LINES_MAX)
    if reader.boot != [boot]:
        return False
    while reader.step(now):
        pass
    if identity is not None:
        identity.recall(reader.learned, now)
    tracker.recall(reader.openings, now + RECALLED_S, now + RECALLED_S)
    return True


class StateReader:
    """Reads a text in steps. shift: as in lines(). Raises ValueError if it is not right."""

    def __init__(self, text: str, lines_max: int, shift: float = 0.0) -> None:
        first, *rest = text.splitlines() or [""]
        if len(rest) >= lines_max or first.split()[:2] != ["vtl-fw", "2"]:
            raise ValueError("not what vtl-fw writes")
        self.boot = first.split()[2:]
        self.learned, self.openings = Learned(), dict[bytes, Opening]()
        self._rest, self._shift = iter(rest), shift

    def step(self, now: float) -> bool:
        """Read some lines. Return whether any may be left."""
        some = list(islice(self._rest, _AT_ONCE))
        for line in some:
            try:
                _take(line, self.learned, self.openings, now, self._shift)
            except (ValueError, SpecError):
                raise ValueError(f"{line[:80]!r}: not what vtl-fw writes") from None
        return len(some) == _AT_ONCE


def _identity_lines(learned: Learned, shift: float) -> Iterator[str]:
    if learned.occupant:
        yield f"occupant {learned.occupant}\n"
    if learned.mac is not None:
        yield f"mac {address.format_mac(learned.mac)}\n"
    if learned.client_id is not None:
        yield f"client {learned.client_id.hex()}\n"
    for server, source in learned.met.items():
        yield f"server {address.format_ip(server)} {address.format_ip(source)}\n"
    if learned.lease is not None:
        yield f"lease {address.format_ip(learned.lease.address)} {learned.lease.until + shift:.1f}\n"
    if learned.duid is not None:
        yield f"duid {learned.duid.hex()}\n"
    for kind, iaid in learned.ias:
        yield f"ia {kind} {iaid}\n"
    for octets, until in learned.leases6.items():
        yield f"lease6 {octets.hex()} {until + shift:.1f}\n"
    for prefix, until in learned.prefixes.items():
        yield f"prefix {prefix} {until + shift:.1f}\n"
    for octets in learned.claims:
        yield f"claim {address.format_ip(octets)}\n"
    for octets, until in learned.resolvers.items():
        yield f"resolver {address.format_ip(octets)} {until + shift:.1f}\n"


def _flow_line(flow: Flow) -> str:
    _, src_mac, dst_mac, _ = flow.opening
    return f"flow {address.format_mac(src_mac)} {address.format_mac(dst_mac)} {question.name(flow)}\n"


def _take(line: str, learned: Learned, openings: dict[bytes, Opening], now: float, shift: float) -> None:
    word, *rest = line.split(" ")
    if word == "flow":
        src_mac, dst_mac = map(address.mac, rest[:2])
        asked = question.read(rest[2:])
        if not (key := asked.key()):
            raise ValueError
        openings[key] = Opening(asked.direction, src_mac, dst_mac, asked.vlan)
    elif word == "mac" and learned.mac is None:
        (learned.mac,) = map(address.mac, rest)
    elif word == "occupant" and not learned.occupant:
        learned.occupant = " ".join(rest)[:_OCCUPANT_MAX]
    elif word == "prefix":
        what, end = rest
        prefix = IPv6Network(what)
        if prefix.prefixlen < PREFIX_BITS_MIN:
            raise ValueError
        learned.prefixes[prefix] = _time(end, now, shift)
    elif word == "claim":
        (what,) = rest
        learned.claims.append(_host(what, 16))
    elif word == "resolver":
        what, end = rest
        learned.resolvers[_host(what, 16 if ":" in what else 4)] = _time(end, now, shift)
    else:
        _take_dhcp(word, rest, learned, now, shift)


def _take_dhcp(word: str, rest: list[str], learned: Learned, now: float, shift: float) -> None:
    first, *others = rest
    if word == "lease" and learned.lease is None:
        (end,) = others
        learned.lease = VMLease(_host(first, 4), _time(end, now, shift))
    elif word == "server":
        (source,) = others
        learned.met[_host(first, 4)] = _host(source, 4)
    elif word == "ia":
        (iaid,) = map(int, others)
        if not 0 <= iaid < 1 << 32:
            raise ValueError
        learned.ias.append((int(first), iaid))
    elif word == "lease6":
        (end,) = others
        learned.leases6[_octets(first, (16, 17))] = _time(end, now, shift)
    elif word == "client" and learned.client_id is None and not others:
        learned.client_id = _octets(first, range(2, _CLIENT_ID_MAX + 1))
    elif word == "duid" and learned.duid is None and not others:
        learned.duid = _octets(first, range(3, DUID_MAX + 1))
    else:
        raise ValueError


def _time(text: str, now: float, shift: float) -> float:
    until = float(text) - shift
    if not isfinite(until) or until > now + _LEASE_MAX_S:
        raise ValueError
    return until


def _octets(text: str, sizes: Container[int]) -> bytes:
    octets = bytes.fromhex(text)
    if len(octets) not in sizes:
        raise ValueError
    return octets


def _host(text: str, size: int) -> bytes:
    octets = address.ip(text)
    if len(octets) != size or not address.is_single_host(octets):
        raise ValueError
    return octets
