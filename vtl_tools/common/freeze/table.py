"""The connections that are known: by key, and bounded, whatever comes."""

from collections import deque
from collections.abc import Iterator
from typing import Final

from vtl_tools.common.freeze.connection import ACK_LATER, CLOSED, FROM_SYN, USER_TIMEOUT, Connection
from vtl_tools.common.freeze.headers import Segment, address_size, ethernet, parse, syn_options
from vtl_tools.common.packet import vnet
from vtl_tools.common.packet.tcp import ACK, RST, SYN
from vtl_tools.common.packet.view import Buffer

CONNECTIONS_MAX: Final = 1 << 17
STRANGERS_MAX: Final = 4096
"""Connections of which the VM was never heard: anybody can make one up, so they have room of their own."""
HOSTS_MAX: Final = 256
"""Addresses of the VM, and headers that are shared."""
CLOSED_S: Final = 120.0
"""How long a connection is remembered that both ends have closed: a maximum segment lifetime (RFC 9293)."""
IDLE_S: Final = 60.0
"""Who was heard of within this time makes no room for another, if any else can."""
HELD_MAX: Final = 32 << 20
"""Octets of all frames that are kept for the VM."""
_LOOKED_AT: Final = 16


class Table:
    """Connections of one VM, by Segment.key. now: seconds."""

    def __init__(self, connections_max: int = CONNECTIONS_MAX) -> None:
        self.connections_max = connections_max
        self.gaps = False
        """Whether segments pass unseen; set by missed()."""
        self._epoch = 0
        self.evicted = 0
        self.held = 0
        """Octets of frames that are kept for the VM."""
        self.hosts: dict[tuple[bytes, bytes], bytes] = {}
        """The VM's addresses, behind the VLAN tags in front of them, and the Ethernet address of each."""
        self.macs: set[bytes] = set()
        self._known: dict[bytes, Connection] = {}
        self._strangers: dict[bytes, Connection] = {}
        self._closed: deque[tuple[float, Connection]] = deque()
        self._headers: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __iter__(self) -> Iterator[Connection]:
        yield from list(self._known.values())
        yield from list(self._strangers.values())

    @property
    def strangers(self) -> int:
        """How many connections there are of which the VM was never heard."""
        return len(self._strangers)

    def get(self, key: bytes) -> Connection | None:
        """Return a connection, if it is known."""
        return self._known.get(key) or self._strangers.get(key)

    def doubts(self, connection: Connection) -> bool:
        """Whether segments of a connection may have passed unseen since the VM last sent one."""
        exact = connection.flags & FROM_SYN and connection.epoch == self._epoch
        return self.gaps or not exact

    def missed(self, gaps: bool) -> None:
        """Learn whether segments pass unseen from now on."""
        if gaps:
            self._epoch += 1
        self.gaps = gaps

    # --- following

    def hear(self, frame: Buffer, from_vm: bool, now: float) -> Connection | None:
        """Follow a frame, which may be cut behind its TCP header; return its connection, if it is known.

        Raises Malformed.
        """
        segment = parse(frame, from_vm)
        if from_vm:
            return self.vm_sent(frame, segment, now)
        connection = self._known.get(segment.key)
        if connection is None or segment.flags & RST:
            return connection
        connection.seen = now
        if segment.flags & SYN:
            self._peer_syn(connection, frame, segment)
        elif segment.flags & ACK and connection.peer_sent(segment, self.doubts(connection)):
            self._close_if_closed(connection, now)
        return connection

    def vm_sent(self, frame: Buffer, segment: Segment, now: float) -> Connection | None:
        """Follow a segment that the VM sent; return its connection, if it still is one."""
        connection = self._known.get(segment.key)
        if segment.flags & RST:
            self.remove(segment.key)
            return None
        if connection is None or (segment.flags & SYN and connection.is_anew(segment)):
            connection = self._begin(segment, now)
        if segment.flags & SYN:
            connection.vm_scale = syn_options(frame, segment).scale or 0
            connection.flags |= FROM_SYN
        connection.vm_sent(segment)
        connection.seen, connection.epoch = now, self._epoch
        if not connection.l2:
            self._learn(connection, frame, segment)
        self._close_if_closed(connection, now)
        return connection

    def _begin(self, segment: Segment, now: float) -> Connection:
        stranger = self._strangers.get(segment.key)
        if stranger is not None and not segment.flags & SYN:
            connection = stranger
        else:
            connection = Connection(segment.key, now)
        self.remove(segment.key)
        self.add(connection, now)
        return connection

    def _learn(self, connection: Connection, frame: Buffer, segment: Segment) -> None:
        """Learn by which Ethernet header the VM speaks to this peer, and where it has its address."""
        connection.l2 = self.shared(ethernet(frame, segment))
        self.is_at(connection, bytes(frame[vnet.VNET + 6 : vnet.VNET + 12]))

    def is_at(self, connection: Connection, mac: bytes) -> None:
        """Remember that the VM has the address of a connection at an Ethernet address."""
        size = address_size(connection.key)
        host = connection.key[2 * size + 4 :], connection.key[:size]
        if host not in self.hosts and len(self.hosts) < HOSTS_MAX:
            self.hosts[host] = mac
            self.macs.add(mac)

    @staticmethod
    def _peer_syn(connection: Connection, frame: Buffer, segment: Segment) -> None:
        options = syn_options(frame, segment)
        if options.user_timeout:
            connection.flags |= USER_TIMEOUT
        answers = segment.flags & ACK and connection.peer_ack is None
        if answers and connection.peer_sent(segment, doubt=False) and options.scale is None:
            connection.vm_scale = 0  # neither scales, or both (RFC 7323 section 2.2)

    # --- what is there

    def stranger(self, key: bytes, now: float) -> Connection:
        """Remember a connection of which only the peer was heard."""
        if len(self._strangers) >= STRANGERS_MAX:
            self.remove(next(iter(self._strangers)))
        connection = self._strangers[key] = Connection(key, now)
        return connection

    def proven(self, connection: Connection, now: float) -> None:
        """Take a connection for one, though the VM was never heard of it."""
        if self._strangers.pop(connection.key, None) is not None:
            self.add(connection, now)

    def add(self, connection: Connection, now: float) -> None:
        """Take a connection whose key is not known; another may have to make room."""
        self._expire(now)
        if len(self._known) >= self.connections_max:
            self._make_room(now)
        self._known[connection.key] = connection

    def remove(self, key: bytes) -> None:
        """Forget a connection, if it is known."""
        connection = self._known.pop(key, None) or self._strangers.pop(key, None)
        if connection is not None:
            self.release(connection)

    def hold(self, connection: Connection, frame: Buffer | bytes, *, head: bool) -> bool:
        """Keep a copy of a frame until the VM is back, in the place of the one before, if there is room.

        head: it has the octet that the VM is to take next; else it is an ACK without data.
        """
        before = connection.head if head else connection.newest
        octets = self.held + len(frame) - len(before or b"")
        if octets > HELD_MAX:
            return False
        self.held = octets
        if head:
            connection.head = bytes(frame)
            connection.flags &= ~ACK_LATER
        else:
            connection.newest = bytes(frame)
            connection.flags |= ACK_LATER
        return True

    def release(self, connection: Connection) -> None:
        """Let go what is held of a connection."""
        self.held -= connection.held_octets
        connection.head = connection.newest = None

    def clear(self) -> None:
        """Forget all."""
        for part in self._known, self._strangers, self._closed, self._headers, self.hosts, self.macs:
            part.clear()
        self.held = 0

    def shared(self, header: bytes) -> bytes:
        """Return the one copy of an Ethernet header."""
        if len(self._headers) >= HOSTS_MAX:
            self._headers.clear()
        return self._headers.setdefault(header, header)

    def _close_if_closed(self, connection: Connection, now: float) -> None:
        if connection.is_closed and not connection.flags & CLOSED:
            connection.flags |= CLOSED
            self._closed.append((now + CLOSED_S, connection))

    def _expire(self, now: float) -> None:
        for _ in range(2):
            if not self._closed or self._closed[0][0] > now:
                return
            self._forget(self._closed.popleft()[1])

    def _forget(self, connection: Connection) -> bool:
        if self._known.get(connection.key) is not connection:
            return False
        self.remove(connection.key)
        return True

    def _make_room(self, now: float) -> None:
        """Forget a connection that is closed, else one that was idle for long, as far as a few looks tell."""
        self.evicted += 1
        while self._closed:
            if self._forget(self._closed.popleft()[1]):
                return
        oldest: Connection | None = None
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
