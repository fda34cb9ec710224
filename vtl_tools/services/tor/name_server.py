"""The guest's name server: its DNS queries, over UDP and TCP, and the look-ups by the proxy for them."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dns_stream
from vtl_tools.common.guest_net.dns import TIMEOUT_S, QueryProgress, Reply, Resolver
from vtl_tools.common.guest_net.dns_message import QUERY_MAX, weight
from vtl_tools.common.guest_net.guest_network import DNS_PORT
from vtl_tools.common.guest_net.lookups import Lookup, Outcome
from vtl_tools.common.packet import build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.connector import READABLE, WRITABLE, InternalStream, SocksConnector
from vtl_tools.common.relay.poller import Poller
from vtl_tools.common.socks import Connected, Failed, Reason
from vtl_tools.common.tcp.queue import PIECE

_WAITING_MAX: Final = 1 << 16
"""Octets of answers that wait on one connection, above which no more of its queries are answered."""
_TAKEN_MAX: Final = QUERY_MAX
"""Octets of queries that a connection takes before they are answered."""
_DATAGRAMS_MAX: Final = 256
"""Queries over UDP that wait; more are dropped, and the guest asks again."""
_WORK_MAX: Final = 8
"""Questions and records that are read and written, some 0.1 ms each, before frames are read again."""


class _Datagram(NamedTuple):
    """The source and the destination of a query."""

    src_mac: bytes
    dst_mac: bytes
    src: bytes
    dst: bytes
    sport: int
    dport: int

    def answer(self, message: bytes) -> bytes:
        """Return the frame that carries an answer back."""
        return bytes(
            build.udp(
                src_mac=self.dst_mac, dst_mac=self.src_mac, src=self.dst, dst=self.src,
                sport=self.dport, dport=self.sport, payload=message,
            )
        )  # fmt: skip


class NameServer:
    """The resolver with its sockets. send: puts a frame on the guest's link.

    connect: returns a connector for a look-up, which is not started yet. Queries wait until settle(), which
    does a bounded part of the work: meanwhile a connection's window closes, and more datagrams are dropped.
    """

    port: Final = DNS_PORT

    def __init__(
        self,
        resolver: Resolver,
        poller: Poller,
        connect: Callable[[Lookup], SocksConnector],
        send: Callable[[bytes, float], object],
    ) -> None:
        self.resolver, self.poller, self._connect, self._send = resolver, poller, connect, send
        self._lookups: set[_ProxyLookup] = set()
        self._datagrams: deque[tuple[_Datagram, bytes]] = deque()
        self._with_queries: deque[DNSConnection] = deque()
        self._to_notify: deque[DNSConnection] = deque()
        self._replies: deque[Iterator[Reply]] = deque()
        self.queries = 0

    @property
    def has_more(self) -> bool:
        """Whether settle() has something to do."""
        return bool(self._datagrams or self._with_queries or self._to_notify or self._replies)

    def on_datagram(self, pkt: Packet) -> bool:
        """Take a query over UDP; return whether there was room for it."""
        eth, net, datagram = pkt.eth, pkt.ip, pkt.udp
        assert net is not None
        assert datagram is not None
        if len(self._datagrams) >= _DATAGRAMS_MAX:
            return False
        source = _Datagram(eth.src, eth.dst, net.src, net.dst, datagram.sport, datagram.dport)
        self._datagrams.append((source, bytes(datagram.payload[: QUERY_MAX + 1])))
        return True

    def settle(self, now: float) -> bool:
        """Do a part of the work, of each kind in turn; return whether there was any."""
        if not self.has_more:
            return False
        work = 0
        while work < _WORK_MAX and self.has_more:
            if self._to_notify:
                connection = self._to_notify.popleft()
                self.enqueue(connection)
                connection.notify(now)
                work += 1
            if self._replies:
                work += self._answer_one(now)
            if self._datagrams:
                source, message = self._datagrams.popleft()
                work += weight(message)
                asked = self.resolver.ask(message, source, now, client=source.src)
                self._take(asked, now)
                if asked.reply is not None:
                    self._send(source.answer(asked.reply), now)
            if self._with_queries:
                work += self._ask_one(self._with_queries.popleft(), now)
        return True

    def _answer_one(self, now: float) -> int:
        """Send one answer whose look-ups are done; return how much work that was."""
        reply = next(self._replies[0], None)
        if reply is None:
            self._replies.popleft()
            return 0
        source, message = reply
        if isinstance(source, _Datagram):
            self._send(source.answer(message), now)
        elif isinstance(source, DNSConnection):
            source.reply(message, now)
        return weight(message)

    def _ask_one(self, connection: "DNSConnection", now: float) -> int:
        """Answer one query of a connection; return how much work that was."""
        connection.queued = False
        if not connection.is_ready:
            return 0
        message = connection.queries.popleft()
        asked = self.resolver.ask(message, connection, now, client=connection.client, stream=True)
        self._take(asked, now)
        if asked.reply is not None:
            connection.reply(asked.reply, now)
        elif not asked.later:
            connection.waiting -= 1
        if not connection.queries:
            connection.notify(now)
        self.enqueue(connection)
        return weight(message)

    def connector(self, client: bytes) -> "DNSConnector":
        """Return the connector for a guest's TCP connection to a name server."""
        return DNSConnector(DNSConnection(self, client))

    def enqueue(self, connection: "DNSConnection") -> None:
        """Queue a connection that has a query which may be answered, once."""
        if connection.is_ready and not connection.queued:
            connection.queued = True
            self._with_queries.append(connection)

    def notify_later(self, connection: "DNSConnection") -> None:
        """Have settle() notify a connection's flow."""
        self._to_notify.append(connection)

    def _take(self, asked: QueryProgress, now: float) -> None:
        """Start the look-ups that a query needs."""
        self.queries += 1
        for lookup in asked.lookups:
            try:
                started = _ProxyLookup(lookup, self._connect(lookup), now + TIMEOUT_S)
                self.poller.add(started.connector.stream, started, self._on_event)
            except OSError:  # no descriptor left
                self._replies.append(self.resolver.resolved(lookup, Failed(Reason.GENERAL), now))
                continue
            self._lookups.add(started)
            self._on_event(started, 0, now)

    def _on_event(self, lookup: "_ProxyLookup", events: int, now: float) -> None:
        """Go on with a look-up; take its result, once there is one."""
        if (outcome := lookup.step()) is not None:
            self._close(lookup)
            self._replies.append(self.resolver.resolved(lookup.lookup, outcome, now))

    def _close(self, lookup: "_ProxyLookup") -> None:
        """End a look-up, if it has not ended."""
        if lookup in self._lookups:
            self._lookups.remove(lookup)
            self.poller.close(lookup.connector.stream)

    def deadline(self) -> float | None:
        """Return when wake() is due: at once, if settle() has work left."""
        return 0.0 if self.has_more else self.resolver.deadline()

    def wake(self, now: float) -> None:
        """Answer the queries whose look-ups took too long."""
        due = self.resolver.deadline()
        if due is None or due > now:
            return
        self._replies.append(self.resolver.wake(now))
        for lookup in [each for each in self._lookups if now >= each.due]:
            self._close(lookup)


class _ProxyLookup:
    """One look-up by the proxy. due: when it is given up."""

    __slots__ = ("connector", "due", "lookup")

    def __init__(self, lookup: Lookup, connector: SocksConnector, due: float) -> None:
        self.lookup, self.connector, self.due = lookup, connector, due

    def step(self) -> Outcome | None:
        """Go on; return the result, once there is one."""
        try:
            outcome = self.connector.answer()
        except BlockingIOError:  # the proxy's backlog is full: the guest will ask again
            return Failed(Reason.GENERAL)
        return Failed(Reason.UNKNOWN) if isinstance(outcome, Connected) else outcome


class DNSConnection(InternalStream):
    """The stream of a guest's TCP connection to a name server: queries in, answers out, and no socket.

    queries: those that are not read yet. waiting: number of queries without an answer yet. queued: whether
    the name server has it in its queue.
    """

    def __init__(self, names: NameServer, client: bytes) -> None:
        self._names, self.client = names, client
        self._parser = dns_stream.DNSFramer()
        self._answers = bytearray()
        self._closed = self._ended = False
        self._octets = 0
        self.queries: deque[bytes] = deque()
        self.waiting = 0
        self.queued = False

    @property
    def is_ready(self) -> bool:
        """Whether its next query may be answered."""
        return bool(self.queries) and len(self._answers) <= _WAITING_MAX and not self._closed

    @property
    def buffered(self) -> int:
        """Octets of memory that wait in it."""
        queries = self._octets + PIECE * len(self.queries) if self.queries else 0
        return queries + self._parser.kept + len(self._answers)

    def notify(self, now: float) -> None:
        """Report to the flow that there is something new."""
        if self.on_event is not None:
            self.on_event(READABLE | WRITABLE, now)

    def fileno(self) -> int:
        """Return -1: there is no descriptor."""
        return -1

    def send(self, octets: bytes | bytearray | memoryview) -> int:
        """Take a few queries, once the earlier ones are answered and the answers are read."""
        if self.queries or len(self._answers) > _WAITING_MAX:
            raise BlockingIOError
        taken = octets[:_TAKEN_MAX]
        try:
            self.queries.extend(self._parser.receive(taken))
        except Malformed as e:
            raise ConnectionAbortedError(str(e)) from None
        self.waiting += len(self.queries)
        self._octets = sum(map(len, self.queries))
        self._names.enqueue(self)
        return len(taken)

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Take the first of several pieces."""
        return self.send(pieces[0])

    def recv_into(self, room: memoryview, octets: int) -> int:
        """Return answers."""
        if not self._answers:
            if self._ended and not self.waiting:
                return 0
            raise BlockingIOError
        size = min(octets, len(self._answers))
        room[:size] = self._answers[:size]
        del self._answers[:size]
        if self.on_event is not None and not self._answers:
            self._names.notify_later(self)
        return size

    def reply(self, message: bytes, now: float) -> None:
        """Take an answer."""
        self.waiting -= 1
        if not self._closed:
            self._answers += dns_stream.framed(message)
            self.notify(now)

    def shutdown(self, how: int) -> None:
        """Take the end of the queries: the stream ends once all are answered."""
        self._ended = True
        self._names.notify_later(self)

    def close(self) -> None:
        """Release it."""
        self._closed = True
        self.on_event = None
        self.queries.clear()
        self._answers.clear()


class DNSConnector:
    """Opens a DNSConnection, at once."""

    def __init__(self, stream: DNSConnection) -> None:
        self.stream = stream

    def step(self, events: int) -> bytes:
        """Return that the stream is open."""
        return b""
