"""Names for a guest: its DNS queries, over UDP and TCP, and the look-ups by the proxy that they cause."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dns_stream
from vtl_tools.common.guest_net.dns import TIMEOUT_S, QueryProgress, Reply, Resolver
from vtl_tools.common.guest_net.dns_message import QUERY_MAX, weight
from vtl_tools.common.guest_net.lookups import Lookup, Outcome
from vtl_tools.common.packet import build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.connector import READABLE, WRITABLE, InternalStream, SocksConnector
from vtl_tools.common.relay.poller import EventHandler, Poller
from vtl_tools.common.socks import Connected, Failed, Reason
from vtl_tools.common.tcp.queue import PIECE

PORT: Final = 53
_WAITING_MAX: Final = 1 << 16
"""Octets of answers on one connection that wait to be taken, beyond which no query of it is."""
_TAKEN_MAX: Final = QUERY_MAX
"""Octets of queries that a connection takes before they are answered."""
_DATAGRAMS_MAX: Final = 256
"""Queries over UDP that wait to be looked at; more are lost, and asked again."""
_WORK_MAX: Final = 8
"""Questions and records that are read and written, some 0.1 ms each, before frames are looked at again."""


class _Datagram(NamedTuple):
    """Whom a query came from, and whom it was sent to."""

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

    ask: returns the call that asks the proxy, not yet begun. What a guest asks waits until settle(), each of
    which does a bounded part: a connection's window closes meanwhile, and datagrams beyond a number are lost.
    """

    port: Final = PORT

    def __init__(
        self,
        resolver: Resolver,
        poller: Poller,
        ask: Callable[[Lookup], SocksConnector],
        send: Callable[[bytes, float], object],
    ) -> None:
        self.resolver, self.poller, self._ask, self._send = resolver, poller, ask, send
        self._looking: set[_Asking] = set()
        self._datagrams: deque[tuple[_Datagram, bytes]] = deque()
        self._asking: deque[DNSConnection] = deque()
        self._roomy: deque[DNSConnection] = deque()
        self._replies: deque[Iterator[Reply]] = deque()
        self.queries = 0

    @property
    def has_more(self) -> bool:
        """Whether settle() has something to do."""
        return bool(self._datagrams or self._asking or self._roomy or self._replies)

    def on_datagram(self, pkt: Packet) -> bool:
        """Take a query over UDP; tell whether there was room for it."""
        eth, net, datagram = pkt.eth, pkt.ip, pkt.udp
        assert net is not None
        assert datagram is not None
        if len(self._datagrams) >= _DATAGRAMS_MAX:
            return False
        source = _Datagram(eth.src, eth.dst, net.src, net.dst, datagram.sport, datagram.dport)
        self._datagrams.append((source, bytes(datagram.payload[: QUERY_MAX + 1])))
        return True

    def settle(self, now: float) -> bool:
        """Do a part of what there is to do, of each kind in turn; tell whether there was anything."""
        if not self.has_more:
            return False
        work = 0
        while work < _WORK_MAX and self.has_more:
            if self._roomy:
                connection = self._roomy.popleft()
                self.wants(connection)
                connection.tell(now)
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
            if self._asking:
                work += self._ask_one(self._asking.popleft(), now)
        return True

    def _answer_one(self, now: float) -> int:
        """Answer one of those whose look-ups have an outcome; return how much work that was."""
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
        """Take one query of a connection; return how much work that was."""
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
            connection.tell(now)
        self.wants(connection)
        return weight(message)

    def call(self, client: bytes) -> "DNSConnector":
        """Return the call that a guest's connection to a name server is."""
        return DNSConnector(DNSConnection(self, client))

    def wants(self, connection: "DNSConnection") -> None:
        """Put a connection in the queue of those that have a query, once."""
        if connection.is_ready and not connection.queued:
            connection.queued = True
            self._asking.append(connection)

    def has_room(self, connection: "DNSConnection") -> None:
        """Have a connection told, in a while, that there is something new."""
        self._roomy.append(connection)

    def _take(self, asked: QueryProgress, now: float) -> None:
        """Begin the look-ups that a query needs."""
        self.queries += 1
        for lookup in asked.lookups:
            try:
                asking = _Asking(self, lookup, self._ask(lookup), now + TIMEOUT_S)
                self.poller.add(asking.call.stream, asking)
            except OSError:  # no descriptor left
                self._replies.append(self.resolver.resolved(lookup, Failed(Reason.GENERAL), now))
                continue
            self._looking.add(asking)
            asking.on_event(0, now)

    def done(self, asking: "_Asking", outcome: Outcome, now: float) -> None:
        """Take what a look-up came to."""
        self.drop(asking)
        self._replies.append(self.resolver.resolved(asking.lookup, outcome, now))

    def drop(self, asking: "_Asking") -> None:
        """End a look-up, if it has not ended."""
        if asking in self._looking:
            self._looking.remove(asking)
            self.poller.close(asking.call.stream)

    def deadline(self) -> float | None:
        """Return when wake() is due: at once, where settle() has something left to do."""
        return 0.0 if self.has_more else self.resolver.deadline()

    def wake(self, now: float) -> None:
        """Answer those that have waited for too long."""
        due = self.resolver.deadline()
        if due is None or due > now:
            return
        self._replies.append(self.resolver.wake(now))
        for asking in [each for each in self._looking if now >= each.due]:
            self.drop(asking)


class _Asking:
    """One question to the proxy. due: when nobody waits for it any more."""

    def __init__(self, names: NameServer, lookup: Lookup, call: SocksConnector, due: float) -> None:
        self.names, self.lookup, self.call, self.due = names, lookup, call, due

    def on_event(self, events: int, now: float) -> None:
        """Go on with the call."""
        try:
            outcome = self.call.answer()
        except BlockingIOError:
            outcome = Failed(Reason.GENERAL)  # so many callers wait at the proxy: the guest will ask again
        if outcome is not None:
            self.names.done(self, Failed(Reason.UNKNOWN) if isinstance(outcome, Connected) else outcome, now)


class DNSConnection(InternalStream):
    """The stream of a guest's connection to a name server: queries in, answers out, and no socket.

    queries: not answered yet, nor looked at. waiting: how many of all that came have no answer yet. queued:
    whether it is in the queue of those that have a query.
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
        self.owner: EventHandler | None = None

    @property
    def is_ready(self) -> bool:
        """Whether its next query may be answered."""
        return bool(self.queries) and len(self._answers) <= _WAITING_MAX and not self._closed

    @property
    def kept(self) -> int:
        """Octets of memory that wait in it."""
        queries = self._octets + PIECE * len(self.queries) if self.queries else 0
        return queries + self._parser.kept + len(self._answers)

    def tell(self, now: float) -> None:
        """Have the owner look at what is new."""
        if self.owner is not None:
            self.owner.on_event(READABLE | WRITABLE, now)

    def fileno(self) -> int:
        """Return that there is no descriptor: the owner is told."""
        return -1

    def send(self, octets: bytes | bytearray | memoryview) -> int:
        """Take a few queries, once those before are answered and the answers taken."""
        if self.queries or len(self._answers) > _WAITING_MAX:
            raise BlockingIOError
        taken = octets[:_TAKEN_MAX]
        try:
            self.queries.extend(self._parser.receive(taken))
        except Malformed as e:
            raise ConnectionAbortedError(str(e)) from None
        self.waiting += len(self.queries)
        self._octets = sum(map(len, self.queries))
        self._names.wants(self)
        return len(taken)

    def sendmsg(self, pieces: Sequence[bytes | bytearray | memoryview]) -> int:
        """Take the first of several pieces."""
        return self.send(pieces[0])

    def recv_into(self, room: memoryview, octets: int) -> int:
        """Give answers."""
        if not self._answers:
            if self._ended and not self.waiting:
                return 0
            raise BlockingIOError
        size = min(octets, len(self._answers))
        room[:size] = self._answers[:size]
        del self._answers[:size]
        if self.owner is not None and not self._answers:
            self._names.has_room(self)
        return size

    def reply(self, message: bytes, now: float) -> None:
        """Take an answer."""
        self.waiting -= 1
        if not self._closed:
            self._answers += dns_stream.framed(message)
            self.tell(now)

    def shutdown(self, how: int) -> None:
        """The guest asks no more: once all is answered, this is the end."""
        self._ended = True
        self._names.has_room(self)

    def close(self) -> None:
        """Forget it."""
        self._closed = True
        self.owner = None
        self.queries.clear()
        self._answers.clear()


class DNSConnector:
    """A call that is answered at once, by us."""

    def __init__(self, stream: DNSConnection) -> None:
        self.stream = stream

    def step(self, events: int) -> bytes:
        """Nobody has to be asked."""
        return b""
