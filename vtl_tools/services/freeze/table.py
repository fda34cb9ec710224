"""Bounded table of the VM's connections."""

from collections import deque
from collections.abc import Iterator
from typing import Final

from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.tcp import ACK, RST, SYN
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.rate_limit import TokenBucket
from vtl_tools.services.freeze.connection import (  # fmt: skip
    ACK_LATER,
    CLOSED,
    FROM_SYN,
    GAP,
    OPENING,
    PEER_FIN,
    TAKEN,
    UNHEARD,
    USER_TIMEOUT,
    HeldConnection,
)
from vtl_tools.services.freeze.headers import SegmentHeader, address_size, ethernet, parse, syn_options
from vtl_tools.services.freeze.peer_evidence import PATIENCE_S

CONNECTIONS_MAX: Final = 1 << 17
STRANGERS_MAX: Final = 4096
"""Maximum connections without a segment of the VM. They can be forged, so they have room of their own."""
STRANGERS_KEPT_S: Final = 130.0
"""Seconds that such a connection may wait for a repetition: Linux's longest pause is two minutes."""
PROVEN_MAX: Final = 1 << 16
"""Maximum connections with evidence of their peers only; their room is separate from those of the VM."""
OPENING_MAX: Final = 1 << 14
"""Maximum half-open connections, such as of a SYN flood."""
HOSTS_MAX: Final = 256
"""Maximum addresses of the VM, and of shared headers."""
CLOSED_S: Final = 120.0
"""Seconds that a closed connection is remembered: a maximum segment lifetime (RFC 9293)."""
IDLE_S: Final = 60.0
"""Seconds of idleness before which a connection is evicted only if no other can be."""
HELD_MAX: Final = 32 << 20
"""Maximum octets of held frames."""
_LOOKED_AT: Final = 16
_NOTABLE: Final = OPENING | PEER_FIN


class ConnectionTable:
    """Connections of one VM, by SegmentHeader.key. now: seconds."""

    def __init__(
        self,
        connections_max: int = CONNECTIONS_MAX,
        *,
        proven_max: int = PROVEN_MAX,
        opening_max: int = OPENING_MAX,
        held_max: int = HELD_MAX,
    ) -> None:
        self.connections_max, self.held_max = connections_max, held_max
        self.proven_max, self.opening_max = proven_max, opening_max
        self.gaps = False
        """Whether segments may pass unseen; set by set_sampled()."""
        self._epoch = 0
        self.evicted = 0
        self.held = 0
        """Octets of held frames."""
        self.hosts: dict[tuple[bytes, bytes], bytes] = {}
        """The VM's addresses, after the VLAN tags before them, and the Ethernet address of each."""
        self.macs: set[bytes] = set()
        self._known: dict[bytes, HeldConnection] = {}
        self._opening: dict[bytes, HeldConnection] = {}
        self._proven: dict[bytes, HeldConnection] = {}
        self._strangers: dict[bytes, HeldConnection] = {}
        self._newcomers = TokenBucket(STRANGERS_MAX / 2 / STRANGERS_KEPT_S)
        self._closed: deque[tuple[float, HeldConnection]] = deque()
        self._headers: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._known) + len(self._proven)

    def __iter__(self) -> Iterator[HeldConnection]:
        for part in self._known, self._proven, self._strangers:
            yield from list(part.values())

    @property
    def strangers(self) -> int:
        """The number of connections without a segment of the VM and without sufficient evidence."""
        return len(self._strangers)

    def get(self, key: bytes) -> HeldConnection | None:
        """Return a connection; None: unknown."""
        return self._known.get(key) or self._proven.get(key) or self._strangers.get(key)

    def is_heard(self, connection: HeldConnection) -> bool:
        """Return whether a segment of the VM was seen of a connection, here or on another host."""
        return connection.key in self._known

    def doubts(self, connection: HeldConnection) -> bool:
        """Return whether segments of a connection may have passed unseen since the VM's last segment."""
        return self.gaps or connection.epoch != self._epoch

    def set_sampled(self, gaps: bool) -> None:
        """Set whether segments may pass unseen from now on."""
        if gaps:
            self._epoch += 1
        self.gaps = gaps

    # --- input

    def overhear(self, frame: Buffer, from_vm: bool, now: float) -> HeldConnection | None:
        """Learn from a frame, which may be truncated after its TCP header.

        Return its connection, if it is known.
        Raises Malformed.
        """
        segment = parse(frame, from_vm)
        if from_vm:
            return self.vm_sent(frame, segment, now)
        connection = self._known.get(segment.key)
        if connection is None or segment.flags & RST:
            return connection
        if segment.flags & SYN:
            self._peer_syn(connection, frame, segment)
        elif segment.flags & ACK:
            doubt = self.gaps or connection.epoch != self._epoch
            if connection.peer_sent(segment, GAP if doubt else 0) is TAKEN:
                connection.seen = now
                if connection.flags & _NOTABLE:
                    self._opened(connection)
                    self._close_if_closed(connection, now)
        return connection

    def vm_sent(self, frame: Buffer, segment: SegmentHeader, now: float) -> HeldConnection | None:
        """Learn from a segment of the VM. Return its connection, if it still exists."""
        connection = self._known.get(segment.key)
        if segment.flags & RST:
            self.remove(segment.key)
            return None
        if connection is None or (segment.flags & SYN and connection.is_new_incarnation(segment)):
            connection = self._begin(segment, now)
        if segment.flags & SYN:
            connection.vm_scale = syn_options(frame, segment).scale or 0
            connection.flags |= FROM_SYN
        elif connection.flags & OPENING:
            self._opened(connection)
        if connection.evidence is None:
            connection.vm_sent(segment)
        else:
            connection.apply_vm_segment(segment)
        connection.seen, connection.epoch = now, self._epoch
        if not connection.l2:
            self._learn(connection, frame, segment)
        self._close_if_closed(connection, now)
        return connection

    def _begin(self, segment: SegmentHeader, now: float) -> HeldConnection:
        """Add a connection from a segment of the VM."""
        known = self._proven.get(segment.key) or self._strangers.get(segment.key)
        if known is not None and not segment.flags & SYN:
            connection, connection.l2 = known, b""
        else:
            connection = HeldConnection(segment.key, now)
        self.remove(segment.key)
        self.add(connection, now)
        if segment.flags & SYN:
            if len(self._opening) >= self.opening_max:
                self.evicted += 1
                self.remove(next(iter(self._opening)))
            connection.flags |= OPENING
            self._opening[segment.key] = connection
        return connection

    def _opened(self, connection: HeldConnection) -> None:
        """Note that a connection has more than its first segment."""
        connection.flags &= ~OPENING
        self._opening.pop(connection.key, None)

    def _learn(self, connection: HeldConnection, frame: Buffer, segment: SegmentHeader) -> None:
        """Learn the Ethernet header of the VM's segments to this peer, and the VM's addresses."""
        connection.l2 = self.shared(ethernet(frame, segment))
        self.is_at(connection, bytes(frame[vnet.VNET + 6 : vnet.VNET + 12]))

    def is_at(self, connection: HeldConnection, mac: bytes) -> None:
        """Record the Ethernet address of the VM's IP address of a connection."""
        size = address_size(connection.key)
        host = connection.key[2 * size + 4 :], connection.key[:size]
        if host not in self.hosts and len(self.hosts) < HOSTS_MAX:
            self.hosts[host] = mac
            self.macs.add(mac)

    def _peer_syn(self, connection: HeldConnection, frame: Buffer, segment: SegmentHeader) -> None:
        number = connection.vm_ack
        if segment.flags & ACK:  # counts once, and only as an answer to the VM's SYN
            if number is not None or not connection.flags & UNHEARD or segment.ack == connection.peer_ack:
                return
            if connection.peer_sent(segment) is not TAKEN:
                return
            self._opened(connection)
        elif number is None or segment.seq != (number - 1) & 0xFFFF_FFFF:
            return
        options = syn_options(frame, segment)
        if options.user_timeout:
            connection.flags |= USER_TIMEOUT
        if segment.flags & ACK and options.scale is None:
            connection.vm_scale = 0  # neither scales, or both (RFC 7323 section 2.2)

    # --- entries

    def add_stranger(self, key: bytes, now: float) -> HeldConnection | None:
        """Add a connection of which only the peer was seen. None: there is no room.

        No such connection is evicted before STRANGERS_KEPT_S. The second half of the room is assigned so
        slowly that some is always left.
        """
        strangers = self._strangers
        oldest = next(iter(strangers.values()), None)
        if oldest is not None and now - oldest.since >= STRANGERS_KEPT_S:
            del strangers[oldest.key]
        if len(strangers) >= STRANGERS_MAX:
            return None
        if len(strangers) >= STRANGERS_MAX // 2 and not self._newcomers.take(now):
            return None
        connection = strangers[key] = HeldConnection(key, now)
        connection.since = now
        return connection

    def came_again(self, connection: HeldConnection, now: float) -> None:
        """Note a repetition of a stranger's segment."""
        if self._strangers.pop(connection.key, None) is not None:
            self._strangers[connection.key] = connection
            connection.since = now

    def proven(self, connection: HeldConnection, now: float) -> bool:
        """Admit a connection without a segment of the VM, but with a proof, if there is room."""
        key = connection.key
        if key not in self._strangers:
            return True
        if len(self._proven) >= self.proven_max:
            oldest = next(iter(self._proven.values()))
            if now - oldest.seen <= PATIENCE_S:
                self._proven[oldest.key] = self._proven.pop(oldest.key)
                return False
            self.evicted += 1
            self.remove(oldest.key)
        self._proven[key] = self._strangers.pop(key)
        return True

    def add_proven(self, connection: HeldConnection) -> bool:
        """Add a connection of an imported state that has only a proof. Return whether there is room."""
        if len(self._proven) >= self.proven_max:
            return False
        self._proven[connection.key] = connection
        return True

    def note_peer(self, connection: HeldConnection, now: float) -> None:
        """Note that a segment of the VM itself was seen of a known connection."""
        if self._proven.pop(connection.key, None) is not None:
            self.add(connection, now)

    def forget_strangers(self) -> None:
        """Remove connections without a segment of the VM, as the VM is present again."""
        self._strangers.clear()
        for key in list(self._proven):
            self.remove(key)

    def add(self, connection: HeldConnection, now: float) -> None:
        """Add a connection whose key is unknown. May evict another."""
        self._expire(now)
        if len(self._known) >= self.connections_max:
            self._make_room(now)
        self._known[connection.key] = connection

    def remove(self, key: bytes) -> None:
        """Remove a connection, if it is known."""
        connection = self._known.pop(key, None)
        if connection is None:
            connection = self._proven.pop(key, None) or self._strangers.pop(key, None)
        elif connection.flags & OPENING:
            self._opened(connection)
        if connection is not None:
            self.release(connection)

    def hold(self, connection: HeldConnection, frame: Buffer | bytes, *, head: bool) -> bool:
        """Hold a copy of a frame until the VM is back, instead of an earlier one, if there is room.

        head: the frame has the octet that the VM expects next; else it is an ACK without data.
        """
        before = connection.head if head else connection.newest
        octets = self.held + len(frame) - len(before or b"")
        if octets > self.held_max:
            return False
        self.held = octets
        if head:
            connection.head = bytes(frame)
            connection.flags &= ~ACK_LATER
        else:
            connection.newest = bytes(frame)
            connection.flags |= ACK_LATER
        return True

    def release(self, connection: HeldConnection) -> None:
        """Release the held frames of a connection."""
        self.held -= connection.held_octets
        connection.head = connection.newest = None

    def shared(self, header: bytes) -> bytes:
        """Return the shared copy of an Ethernet header."""
        if len(self._headers) >= HOSTS_MAX:
            self._headers.clear()
        return self._headers.setdefault(header, header)

    def _close_if_closed(self, connection: HeldConnection, now: float) -> None:
        if connection.is_closed and not connection.flags & CLOSED:
            connection.flags |= CLOSED
            if len(self._closed) > 2 * len(self._known) + HOSTS_MAX:  # some were reopened since
                self._closed = deque(
                    (due, one) for due, one in self._closed if self._known.get(one.key) is one
                )
            self._closed.append((now + CLOSED_S, connection))

    def _expire(self, now: float) -> None:
        for _ in range(2):
            if not self._closed or self._closed[0][0] > now:
                return
            self._forget(self._closed.popleft()[1])

    def _forget(self, connection: HeldConnection) -> bool:
        if self._known.get(connection.key) is not connection:
            return False
        self.remove(connection.key)
        return True

    def _make_room(self, now: float) -> None:
        """Evict a half-open or closed connection, else one that was idle for long.

        The idle one is chosen from a few samples.
        """
        self.evicted += 1
        if self._opening:
            self.remove(next(iter(self._opening)))
            return
        while self._closed:
            if self._forget(self._closed.popleft()[1]):
                return
        oldest: HeldConnection | None = None
        for _ in range(_LOOKED_AT):
            connection = self._known.pop(next(iter(self._known)))
            if now - connection.seen > IDLE_S:
                self.release(connection)
                return
            self._known[connection.key] = connection
            if oldest is None or connection.seen < oldest.seen:
                oldest = connection
        assert oldest is not None
        self.remove(oldest.key)
