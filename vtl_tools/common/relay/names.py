"""Names for a guest: its DNS queries, over UDP and TCP, and the look-ups by the proxy that they cause."""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from vtl_tools.common.errors import Malformed
from vtl_tools.common.gateway import dns_stream
from vtl_tools.common.gateway.dns import TIMEOUT_S, Asked, Reply, Resolver
from vtl_tools.common.gateway.lookups import Lookup, Outcome
from vtl_tools.common.packet import build
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.call import READABLE, WRITABLE, SocksCall
from vtl_tools.common.relay.poller import Owner, Poller
from vtl_tools.common.socks import Connected, Failed, Reason

PORT: Final = 53
_WAITING_MAX: Final = 1 << 16
"""Octets of answers on one connection that wait to be taken, beyond which no query of it is."""


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


class Names:
    """The resolver with its sockets. send: puts a frame on the guest's link.

    ask: returns the call that asks the proxy, not yet begun.
    """

    port: Final = PORT

    def __init__(
        self,
        resolver: Resolver,
        poller: Poller,
        ask: Callable[[Lookup], SocksCall],
        send: Callable[[bytes, float], object],
    ) -> None:
        self.resolver, self.poller, self._ask, self._send = resolver, poller, ask, send
        self._asking: set[_Asking] = set()
        self.asking: list[Connection] = []
        self.roomy: list[Connection] = []
        self.queries = 0

    def on_datagram(self, pkt: Packet, now: float) -> None:
        """Take a query over UDP."""
        eth, net, datagram = pkt.eth, pkt.ip, pkt.udp
        assert net is not None
        assert datagram is not None
        source = _Datagram(eth.src, eth.dst, net.src, net.dst, datagram.sport, datagram.dport)
        asked = self.resolver.ask(bytes(datagram.payload), source, now, client=net.src)
        self.take(asked, now)
        if asked.reply is not None:
            self._send(source.answer(asked.reply), now)

    def settle(self, now: float) -> bool:
        """Answer what came over TCP; tell whether there was anything."""
        asking, self.asking = self.asking, []
        roomy, self.roomy = self.roomy, []
        for connection in asking:
            queries, connection.queries = connection.queries, []
            for message in queries:
                asked = self.resolver.ask(message, connection, now, client=connection.client, stream=True)
                self.take(asked, now)
                if asked.reply is not None:
                    connection.reply(asked.reply, now)
        for connection in roomy:
            if connection.owner is not None:
                connection.owner.on_event(READABLE | WRITABLE, now)
        return bool(asking or roomy)

    def call(self, client: bytes) -> "DNSCall":
        """Return the call that a guest's connection to a name server is."""
        return DNSCall(Connection(self, client))

    def take(self, asked: Asked, now: float) -> None:
        """Begin the look-ups that a query needs."""
        self.queries += 1
        for lookup in asked.lookups:
            try:
                asking = _Asking(self, lookup, self._ask(lookup), now + TIMEOUT_S)
                self.poller.add(asking.call.stream, asking)
            except OSError:  # no descriptor left
                self._reply(self.resolver.resolved(lookup, Failed(Reason.GENERAL), now), now)
                continue
            self._asking.add(asking)
            asking.on_event(0, now)

    def done(self, asking: "_Asking", outcome: Outcome, now: float) -> None:
        """Take what a look-up came to."""
        self.drop(asking)
        self._reply(self.resolver.resolved(asking.lookup, outcome, now), now)

    def drop(self, asking: "_Asking") -> None:
        """End a look-up, if it has not ended."""
        if asking in self._asking:
            self._asking.remove(asking)
            self.poller.close(asking.call.stream)

    def deadline(self) -> float | None:
        """Return when wake() is due."""
        return self.resolver.deadline()

    def wake(self, now: float) -> None:
        """Answer those that have waited for too long."""
        self._reply(self.resolver.wake(now), now)
        for asking in [each for each in self._asking if now >= each.due]:
            self.drop(asking)

    def _reply(self, replies: Sequence[Reply], now: float) -> None:
        for source, message in replies:
            if isinstance(source, _Datagram):
                self._send(source.answer(message), now)
            elif isinstance(source, Connection):
                source.reply(message, now)


class _Asking:
    """One question to the proxy. due: when nobody waits for it any more."""

    def __init__(self, names: Names, lookup: Lookup, call: SocksCall, due: float) -> None:
        self.names, self.lookup, self.call, self.due = names, lookup, call, due

    def on_event(self, events: int, now: float) -> None:
        """Go on with the call."""
        try:
            outcome = self.call.hear()
        except BlockingIOError:
            outcome = Failed(Reason.GENERAL)  # so many callers wait at the proxy: the guest will ask again
        if outcome is not None:
            self.names.done(self, Failed(Reason.UNKNOWN) if isinstance(outcome, Connected) else outcome, now)


class Connection:
    """The stream of a guest's connection to a name server: queries in, answers out, and no socket."""

    def __init__(self, names: Names, client: bytes) -> None:
        self._names, self.client = names, client
        self._parser = dns_stream.Stream()
        self._answers = bytearray()
        self._closed = self._ended = False
        self.queries: list[bytes] = []
        self.waiting = 0
        self.owner: Owner | None = None

    def fileno(self) -> int:
        """Return that there is no descriptor: the owner is told."""
        return -1

    def send(self, octets: bytes | bytearray | memoryview) -> int:
        """Take queries, unless too many of their answers wait."""
        if len(self._answers) > _WAITING_MAX:
            raise BlockingIOError
        try:
            messages = self._parser.receive(octets)
        except Malformed as e:
            raise ConnectionAbortedError(str(e)) from None
        if messages:
            self.queries += messages
            self.waiting += len(messages)
            self._names.asking.append(self)
        return len(octets)

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
            self._names.roomy.append(self)
        return size

    def reply(self, message: bytes, now: float) -> None:
        """Take an answer."""
        self.waiting -= 1
        if self._closed:
            return
        self._answers += dns_stream.framed(message)
        if self.owner is not None:
            self.owner.on_event(READABLE | WRITABLE, now)

    def shutdown(self, how: int) -> None:
        """The guest asks no more: once all is answered, this is the end."""
        self._ended = True
        self._names.roomy.append(self)

    def close(self) -> None:
        """Forget it."""
        self._closed = True
        self.owner = None
        self._answers.clear()


class DNSCall:
    """A call that is answered at once, by us."""

    def __init__(self, stream: Connection) -> None:
        self.stream = stream

    def advance(self, events: int) -> bytes:
        """Nobody has to be asked."""
        return b""
