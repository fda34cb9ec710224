"""TCP connections and services that come and go: which of a rule's connections go through it. Sans-IO.

A service that ends TCP connections knows only those that it has seen begin. So, while a rule is drained, only
connections that began through the service go through it, until they end. And with keep-flows, connections
that were there before the rule go around the service. There is no way to tell them but by their segments: for
so many seconds, one of which a segment other than a SYN comes first was there before. Later, none is.
"""

from dataclasses import dataclass
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.tcp.wire import parse
from vtl_tools.services.vnet.fields import FrameFields

FLOWS_MAX: Final = 8192
OPENING_MAX: Final = 1024
"""Connections that nobody has answered yet: a flood of SYNs evicts only such."""
KEPT_MAX: Final = 4096
LINGER_S: Final = 2.0
"""How long a connection that has ended stays what it was, for its last segments."""
IDLE_S: Final = 7440.0
"""Silence after which a kept connection is forgotten (RFC 5382 REQ-5)."""
_MARKS: Final = SYN | FIN | RST
_BOTH: Final = 3
_IPV4_FLAGS: Final = VNET + 14 + 13
"""Behind the IPv4 header, whose length is to be added."""
_IPV6_FLAGS: Final = VNET + 14 + 40 + 13


@dataclass(frozen=True, slots=True)
class FlowSegment:
    """A TCP segment. key: of its connection, and macs: Ethernet addresses, the same for both directions.

    end: which of both sent it.
    """

    key: bytes
    macs: bytes
    end: int
    flags: int

    @property
    def opens(self) -> bool:
        """Whether it asks for a new connection."""
        return self.flags & (SYN | ACK) == SYN

    @property
    def is_marked(self) -> bool:
        """Whether a connection may begin or end by it."""
        return bool(self.flags & _MARKS)


def segment_of(frame: memoryview, fields: FrameFields) -> FlowSegment | None:
    """Return the TCP segment of a frame; None: it is none, or cannot be read."""
    try:
        segment = parse(frame)
    except Malformed:
        return None
    if segment is None:
        return None
    flow = segment.flow
    size = (len(flow) - 4) // 2
    source = flow[:size] + flow[-4:-2]
    target = flow[size : 2 * size] + flow[-2:]
    vlan = fields.vlan.to_bytes(2)
    if source > target:
        return FlowSegment(vlan + target + source, fields.dst + fields.src, 1, segment.flags)
    return FlowSegment(vlan + source + target, fields.src + fields.dst, 0, segment.flags)


def may_be_marked(frame: memoryview) -> bool:
    """Return whether a frame may be a TCP segment with SYN, FIN or RST: at once for most frames."""
    kind = frame[VNET + 12], frame[VNET + 13]
    if kind == (0x08, 0x00) and len(frame) > VNET + 14:
        at = _IPV4_FLAGS + (frame[VNET + 14] & 0xF) * 4
    elif kind == (0x86, 0xDD) and len(frame) > _IPV6_FLAGS and frame[VNET + 20] == 6:
        at = _IPV6_FLAGS
    else:
        return kind != (0x08, 0x06)
    return at < len(frame) and bool(frame[at] & _MARKS)


class ServiceFlows:
    """Connections of one rule. keep_s: those that were there before are kept, if they send within so long.

    drain_until: when the rule goes; None: it stays.
    """

    def __init__(self, keep_s: float = 0.0) -> None:
        self._keep_s = keep_s
        self._keep_until: float | None = None
        self.drain_until: float | None = None
        self._opening: dict[bytes, int] = {}
        self._taken: dict[bytes, int] = {}
        self._kept: dict[bytes, tuple[bytes, float]] = {}
        self._fins: dict[bytes, int] = {}
        self._ended: dict[bytes, float] = {}

    @property
    def taken(self) -> int:
        """Return the number of connections that the service has."""
        return len(self._taken) + len(self._opening)

    @property
    def kept(self) -> int:
        """Return the number of connections that go around the service."""
        return len(self._kept)

    def differ(self, now: float) -> bool:
        """Return whether the rule holds for some connections and for others not."""
        return self.drain_until is not None or bool(self._kept) or self._finds_old(now)

    def _finds_old(self, now: float) -> bool:
        """Return whether connections that were there before are still to be found."""
        if self._keep_until is None:
            self._keep_until = now + self._keep_s
        return now < self._keep_until

    def takes(self, segment: FlowSegment | None, now: float) -> bool:
        """Return whether a frame that the rule matches goes to the service. segment: None: it has none."""
        if self.drain_until is not None:
            return segment is not None and self._is_taken(segment.key) and not self._begins_anew(segment)
        if segment is None:
            return True
        key = segment.key
        if key in self._kept and self._kept[key][0] != segment.macs:
            return True  # nobody else can use the way around, or close it
        if segment.opens:
            if key in self._kept:
                self._forget(key)
            return True
        if key in self._kept:
            del self._kept[key]  # so that the longest silent one is the first
            self._kept[key] = segment.macs, now
            self._finish(key, segment.flags & FIN, segment.end, now)  # anybody may forge a RST
            return False
        if not self._finds_old(now) or self._is_taken(key) or self._is_full:
            return True
        self._kept[key] = segment.macs, now
        return False

    def _is_taken(self, key: bytes) -> bool:
        return key in self._taken or key in self._opening

    def _begins_anew(self, segment: FlowSegment) -> bool:
        """Return whether a connection that has ended makes room for one that is none of the service's."""
        if not segment.opens or segment.key not in self._ended:
            return False
        self._forget(segment.key)
        return True

    @property
    def _is_full(self) -> bool:
        """Whether some connection that the service has may not be known as such."""
        full = len(self._opening) >= OPENING_MAX or len(self._taken) >= FLOWS_MAX
        return full or len(self._kept) >= KEPT_MAX

    def note(self, segment: FlowSegment, now: float) -> None:
        """Note a segment with SYN, FIN or RST between the VM and the service."""
        key = segment.key
        if segment.opens:
            if key in self._ended:
                self._forget(key)
            if not self._is_taken(key) and self.drain_until is None:
                if len(self._opening) >= OPENING_MAX:
                    self._forget(next(iter(self._opening)))
                self._opening[key] = segment.end
        elif key in self._opening and segment.flags & SYN and segment.end != self._opening[key]:
            del self._opening[key]
            if len(self._taken) >= FLOWS_MAX:
                self._forget(next(iter(self._taken)))
            self._taken[key] = 0
        elif self._is_taken(key):
            self._finish(key, segment.flags, segment.end, now)

    def _finish(self, key: bytes, flags: int, end: int, now: float) -> None:
        """Note a FIN or RST, if a segment has one."""
        if flags & FIN:
            self._fins[key] = self._fins.get(key, 0) | 1 << end
        if flags & RST or self._fins.get(key) == _BOTH:
            self._ended.setdefault(key, now)

    def _forget(self, key: bytes) -> None:
        self._kept.pop(key, None)
        self._ended.pop(key, None)
        for numbers in self._opening, self._taken, self._fins:
            numbers.pop(key, None)

    def wake(self, now: float) -> bool:
        """Forget connections that are over. Return whether the rule is drained."""
        self._finds_old(now)  # the time begins with the rule, and not with the first frame
        while self._ended and now >= self._ended[key := next(iter(self._ended))] + LINGER_S:
            self._forget(key)
        while self._kept and now >= self._kept[key := next(iter(self._kept))][1] + IDLE_S:
            self._forget(key)
        return self.drain_until is not None and (not self.taken or now >= self.drain_until)
