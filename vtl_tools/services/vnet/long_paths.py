"""Pairs of stations whose TCP is busy over a long or lossy link; whether a service for them pays. Sans-IO.

A daemon sees what its stations send to those behind a link, and the link's round trip and loss. Where TCP
suffers from these, the pair's connections that begin from then on may go through a service (paper section
3.3). The rate of a connection in it, against that of a connection before, decides whether it stays.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from math import sqrt
from statistics import median
from typing import Final, NamedTuple

from vtl_tools.common.bounded import BoundedTable
from vtl_tools.common.packet.address import is_link_local, is_single_host
from vtl_tools.services.vnet.adapt import BUSY_MBIT, BUSY_TICKS, PAIRS_MAX, TRIAL_S, LinkView
from vtl_tools.services.vnet.fields import FIXED, FrameFields

LONG_RTT_MS: Final = 50.0
"""Round trip from which on the windows of TCP may be too small for a path."""
LOSSY: Final = 0.1
LOSSY_RTT_MS: Final = 10.0
"""Loss in percent from which on TCP is slow, and the round trip that this takes as well."""
GAIN: Final = 1.2
"""A service pays if a connection in it is so many times as fast as one before."""
TRIAL_SAMPLES: Final = 5
WARM_SAMPLES: Final = 2
"""Seconds with traffic by which a service is judged, and those before, in which connections start."""
_PORTS_MAX: Final = 256
"""Connections of a pair that are told apart."""
_TCP: Final = 6
_SEGMENT: Final = 1448
_IDLE_MBIT: Final = 0.05


class Pair(NamedTuple):
    """Two stations, the one at this daemon first: addresses of IP and Ethernet."""

    ours: IPv4Address | IPv6Address
    theirs: IPv4Address | IPv6Address
    our_mac: bytes
    their_mac: bytes

    def __str__(self) -> str:
        return f"{self.ours} {self.theirs}"


class LongPath(NamedTuple):
    """A pair that a service may pay for. mbit: of one of its connections."""

    link: str
    pair: Pair
    mbit: float
    why: str


@dataclass
class _Sent:
    """TCP of a station to another. mbit, connections: of the last ticks. ports: of those in this one."""

    octets: int = 0
    ports: set[bytes] = field(default_factory=set)
    mbit: deque[float] = field(default_factory=lambda: deque(maxlen=BUSY_TICKS))
    connections: deque[int] = field(default_factory=lambda: deque(maxlen=BUSY_TICKS))

    @property
    def of_each(self) -> float:
        """The Mbit/s of one connection."""
        return sum(self.mbit) / max(sum(self.connections), 1)


class LongPaths:
    """Finds pairs that are busy over links on which TCP is slow."""

    def __init__(self) -> None:
        self._reasons: dict[str, str] = {}
        self._sent: dict[tuple[str, Pair], _Sent] = {}
        self._not_before: BoundedTable[str, float] = BoundedTable(PAIRS_MAX)
        self._at = 0.0

    def note(self, link: str, fields: FrameFields, frame: memoryview, octets: int) -> None:
        """Count octets that a station here sends by a link. fields, frame: of one of the frames."""
        if link not in self._reasons:
            return
        ends = fields.source, fields.destination
        if fields.protocol != _TCP or fields.vlan or not all(map(_is_ordinary, ends)):
            return
        key = link, Pair(ip_address(ends[0]), ip_address(ends[1]), fields.src, fields.dst)
        sent = self._sent.get(key)
        if sent is None:
            if len(self._sent) >= PAIRS_MAX:
                return
            sent = self._sent[key] = _Sent()
        sent.octets += octets
        behind = FIXED + ((frame[FIXED] & 15) * 4 if len(ends[0]) == 4 else 40)
        if len(sent.ports) < _PORTS_MAX:
            sent.ports.add(bytes(frame[behind : behind + 4]))

    def tick(self, links: Mapping[str, LinkView], now: float) -> list[LongPath]:
        """Compute rates; return the pairs that have been busy for long enough."""
        elapsed_s = max(now - self._at, 1e-3)
        self._at = now
        self._reasons = {name: why for name, link in links.items() if (why := reason(link))}
        busy = {name: busy_mbit(links[name]) for name in self._reasons}
        found = []
        for (link, pair), sent in list(self._sent.items()):
            sent.mbit.append(8e-6 * sent.octets / elapsed_s)
            sent.connections.append(len(sent.ports))
            sent.octets, sent.ports = 0, set()
            if link not in self._reasons or max(sent.mbit) < _IDLE_MBIT:
                del self._sent[link, pair]
                continue
            is_busy = len(sent.mbit) == BUSY_TICKS and min(sent.mbit) >= busy[link]
            if is_busy and now >= self._not_before.get(str(pair), now):
                why = f"{sum(sent.mbit) / BUSY_TICKS:.1f} Mbit/s of TCP, {self._reasons[link]}"
                found.append(LongPath(link, pair, sent.of_each, why))
        return found

    def rate(self, link: str, pair: Pair) -> float | None:
        """Return the Mbit/s of one connection of a pair now; None: the pair sends nothing any more.

        A pair whose connection has slowed down since it was found is slow, and is not to be forgotten.
        """
        sent = self._sent.get((link, pair))
        return None if sent is None or not sent.mbit else sent.of_each

    def put_off(self, pair: Pair, until: float) -> None:
        """Do not find a pair again before that time."""
        self._not_before.put(str(pair), until)


def reason(link: LinkView) -> str:
    """Return why TCP is slow on a link; "": it is not, as far as is known."""
    rtt_ms, loss = link.rtt_ms or 0.0, link.loss_percent or 0.0
    if not link.up or rtt_ms < LOSSY_RTT_MS or (rtt_ms < LONG_RTT_MS and loss < LOSSY):
        return ""
    return f"round trip {rtt_ms:.0f} ms, loss {loss:.2f} %"


def busy_mbit(link: LinkView) -> float:
    """Return the Mbit/s from which on a pair is busy: loss may keep a connection below BUSY_MBIT.

    With it, the window is 1.22 segments over the square root of the loss (Mathis et al., 1997); half of
    that is much, if the ends have data all the time.
    """
    loss, rtt_ms = (link.loss_percent or 0.0) / 100, link.rtt_ms or 0.0
    if not loss or not rtt_ms:
        return BUSY_MBIT
    return min(BUSY_MBIT, 0.5 * 1.22 * _SEGMENT * 8e-3 / (rtt_ms * sqrt(loss)))


def _is_ordinary(octets: bytes) -> bool:
    return len(octets) in (4, 16) and is_single_host(octets) and not is_link_local(octets)


@dataclass
class Trial:
    """Whether a service that carries connections pays. before_mbit: of one connection, without it.

    after_mbit: of one within it; None: not known yet. flows: at the last answer. idle_s: seconds without
    traffic after which it is not needed any more.
    """

    before_mbit: float
    idle_s: float
    began_at: float
    after_mbit: float | None = None
    flows: int = 0
    up: bool = False
    pays: bool = False
    _octets: int = 0
    _asked_at: float = 0.0
    _busy_at: float = 0.0
    _heard_at: float = 0.0
    _rates: deque[float] = field(default_factory=lambda: deque(maxlen=TRIAL_SAMPLES + WARM_SAMPLES))

    def __post_init__(self) -> None:
        self._asked_at = self._busy_at = self._heard_at = self.began_at

    def take(self, *, flows: int, octets: int, up: bool, now: float) -> None:
        """Take what a service says that it carries."""
        elapsed_s = max(now - self._asked_at, 1e-3)
        mbit = 8e-6 * max(0, octets - self._octets) / elapsed_s
        self._asked_at, self._octets = now, octets
        self.flows, self.up = flows, up
        if up:
            self._heard_at = now
        if flows or mbit > _IDLE_MBIT:
            self._busy_at = now
        if mbit <= _IDLE_MBIT or self.pays:
            return
        self._rates.append(mbit / max(flows, 1))
        if len(self._rates) == self._rates.maxlen:
            self.after_mbit = median(list(self._rates)[WARM_SAMPLES:])
            self.pays = self.after_mbit >= GAIN * self.before_mbit

    def compared(self) -> str:
        """Return both rates, for people."""
        return f"{self.after_mbit or 0:.1f} Mbit/s a connection, and {self.before_mbit:.1f} without it"

    def verdict(self, now: float) -> str:
        """Return why the service is to be undone; "": it is not."""
        if now >= self._heard_at + TRIAL_S:
            return "the other daemon's vtl-udt is not reached"
        if self.after_mbit is not None and not self.pays:
            return f"did not pay: {self.compared()}"
        if now >= self._busy_at + self.idle_s:
            return f"idle for {self.idle_s:.0f} s"
        return ""
