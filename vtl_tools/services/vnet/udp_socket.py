"""A UDP socket with the sessions of daemons over it.

The kernel cuts trains of datagrams (UDP_SEGMENT) and joins them (UDP_GRO), so that a super-segment costs as
little as over TCP. The socket sends with "don't fragment", and the session finds the size that the path
carries. The address of the other end is where its newest authentic record came from. On a host with several
addresses, a datagram is sent from that which the other end has spoken to.
"""

import errno
import hashlib
import hmac
import os
import socket
import struct
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

from vtl_tools.common.device.base import Drop
from vtl_tools.common.device.handle import Handle
from vtl_tools.common.device.peer import enlarge, resolve, translated_errors
from vtl_tools.common.errors import Malformed
from vtl_tools.common.session.base import Address
from vtl_tools.common.session.caller_limit import CallerLimit
from vtl_tools.common.session.items import Hello
from vtl_tools.common.session.secure_channel import SecureConfig
from vtl_tools.services.vnet.datagram_handshake import (
    COOKIE,
    COOKIE_KIND,
    COOKIE_REPLY,
    FIRST,
    FIRST_KIND,
    NOISE,
    SECOND,
    SECOND_KIND,
    DatagramHandshake,
)
from vtl_tools.services.vnet.datagram_session import DATA, DATA_KIND, OVERHEAD, DatagramSession

_SOL_UDP: Final = 17
_UDP_SEGMENT, _UDP_GRO = 103, 104
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PROBE_PMTU = 10, 23, 3
_PKTINFO: Final = {socket.AF_INET: (socket.IPPROTO_IP, 8), socket.AF_INET6: (socket.IPPROTO_IPV6, 50)}
"""IP_PKTINFO, IPV6_PKTINFO: the address of this host that a datagram came to, or is to be sent from."""
_IPV6_RECVPKTINFO: Final = 49
_PKTINFO4: Final = struct.Struct("=I4s4s")  # interface, own address, address in the header
_PKTINFO6: Final = struct.Struct("=16sI")
_CONTROL: Final = 128
_BUFFER: Final = 16 << 20
"""Octets of the socket's buffers: a window of a guest's TCP with its overhead."""
_READ: Final = 1 << 16
_READINGS: Final = 16
"""Trains that are read at once."""
_U16: Final = struct.Struct("=H")
_CALLERS_MAX: Final = 64
"""Sessions that are not confirmed yet; the oldest gives way. All of them have shown the key."""
_KEYS_SEEN: Final = 4096
_COOKIE_S: Final = 60.0
"""Seconds after which cookies are made with another secret; the one before holds as long."""


class SessionUser(Protocol):
    """The link over a session."""

    drops: Counter[Drop]

    def lose(self, peer: "DaemonEnd", why: str) -> None:
        """Note that the session is over."""
        ...

    def frames_came(self) -> None:
        """Note that the session has frames."""
        ...


class Way(NamedTuple):
    """Where the other end is. source: ancillary data that names the address of this host."""

    address: Any
    source: tuple[tuple[int, int, bytes], ...] = ()


class DaemonEnd:
    """A session, and the way to its other end. link: that it carries."""

    def __init__(self, session: DatagramSession, way: Way) -> None:
        self.session, self.way = session, way
        self.link: SessionUser | None = None
        self.first = b""


class UDPSocket:
    """A socket with its sessions. on_ready: is given a session once the other end's name is known.

    strangers: datagrams that no session took.
    """

    def __init__(
        self, spec: str, handle: Handle, key: bytes, hello: Hello, on_ready: Callable[[DaemonEnd], object]
    ) -> None:
        self._spec, self._handle, self._key, self._hello = spec, handle, key, hello
        self._config = SecureConfig()
        self._on_ready = on_ready
        self._sock: socket.socket | None = None
        self._peers: dict[int, DaemonEnd] = {}
        self._callers: dict[bytes, DaemonEnd] = {}
        self._seen: deque[bytes] = deque(maxlen=_KEYS_SEEN)
        self._buffer = memoryview(bytearray(_READ))
        self._secrets = [os.urandom(32), os.urandom(32)]
        self._secret_at = 0.0
        self._limit = CallerLimit()
        self.strangers = 0

    def open(self, address: Address, *, bind: bool) -> Any:
        """Open the socket, and bind it to the address; return the numeric one. Raises DeviceError."""
        family, where = resolve(self._spec, address, socket.SOCK_DGRAM)
        with translated_errors(self._spec):
            sock = self._sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            enlarge(sock, _BUFFER)
            sock.setsockopt(_SOL_UDP, _UDP_GRO, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PROBE_PMTU)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PROBE_PMTU)
            if bind:
                level, kind = _PKTINFO[sock.family]
                sock.setsockopt(level, kind if sock.family == socket.AF_INET else _IPV6_RECVPKTINFO, 1)
                sock.bind(where)
        self._handle.watch(sock.fileno())
        return where

    def call(self, address: Any, now: float) -> DaemonEnd:
        """Begin a session with the daemon at an address."""
        peer = DaemonEnd(self._session(now, is_initiator=True), Way(address))
        self._peers[peer.session.own_id] = peer
        self.flush(peer)
        return peer

    def _session(self, now: float, *, is_initiator: bool) -> DatagramSession:
        while not (own_id := int.from_bytes(os.urandom(4))) or own_id in self._peers:
            pass
        handshake = DatagramHandshake(
            psk=self._key, ephemeral=os.urandom(32), own_id=own_id, is_initiator=is_initiator
        )
        return DatagramSession(self._config, handshake, now=now, hello=self._hello)

    # --- datagrams in

    def receive(self, now: float) -> None:
        """Read some of the waiting datagrams."""
        sock = self._sock
        if sock is None:
            return
        for _ in range(_READINGS):
            try:
                octets, control, _, address = sock.recvmsg_into([self._buffer], _CONTROL)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error, of which a session learns by silence
                continue
            size, way = octets, Way(address)
            for level, kind, value in control:
                if (level, kind) == (_SOL_UDP, _UDP_GRO):
                    size = _U16.unpack_from(value)[0]
                elif (level, kind) in _PKTINFO.values():
                    way = Way(address, ((level, kind, _from_there(kind, value)),))
            if octets and size:
                self._take(self._buffer[:octets], size, way, now)

    def _take(self, octets: memoryview, size: int, way: Way, now: float) -> None:
        kind = octets[0]
        if kind != DATA_KIND:
            for at in range(0, len(octets), size):
                self._take_handshake(bytes(octets[at : at + size]), way, now)
            return
        if len(octets) <= OVERHEAD or (peer := self._peers.get(DATA.unpack_from(octets)[2])) is None:
            self.strangers += 1
            return
        session = peer.session
        if session.receive(octets, size, now):
            peer.way = way
        self._look_at(peer)

    def _look_at(self, peer: DaemonEnd) -> None:
        session = peer.session
        if session.outbox:
            self.flush(peer)
        if session.is_over:
            self.end(peer)
        elif peer.link is None:
            if session.is_ready:
                self._callers.pop(peer.first, None)
                self._on_ready(peer)
        elif session.frames:
            peer.link.frames_came()

    def _take_handshake(self, datagram: bytes, way: Way, now: float) -> None:
        kind, size = datagram[0], len(datagram)
        if kind == FIRST_KIND and size == FIRST.size + NOISE:
            self._take_first(datagram, way, now)
        elif kind == SECOND_KIND and size == SECOND.size + NOISE:
            _, own_id, peer_id = SECOND.unpack_from(datagram)
            if (peer := self._peers.get(own_id)) is not None:
                peer.session.take_second(peer_id, datagram[SECOND.size :], now)
                self._look_at(peer)
        elif kind == COOKIE_KIND and size == COOKIE_REPLY.size:
            _, own_id, cookie = COOKIE_REPLY.unpack(datagram)
            if (peer := self._peers.get(own_id)) is not None:
                peer.session.take_cookie(cookie, now)
                self._look_at(peer)
        else:
            self.strangers += 1

    def _take_first(self, datagram: bytes, way: Way, now: float) -> None:
        """Ask for a cookie, or begin a session, or answer again."""
        _, peer_id, cookie = FIRST.unpack_from(datagram)
        message = datagram[FIRST.size :]
        if not self._is_cookie(cookie, way.address):
            reply = COOKIE_REPLY.pack(COOKIE_KIND, peer_id, self._cookie(self._secrets[0], way.address))
            self._send(reply, len(reply), way)
            return
        if (peer := self._callers.get(message)) is not None:
            second = peer.session.handshake.second
            self._send(second, len(second), way)
            return
        if not self._limit.admits(way.address[0], now):
            self.strangers += 1
            return
        session = self._session(now, is_initiator=False)
        try:
            ephemeral = session.take_first(peer_id, message)
        except Malformed:
            self.strangers += 1
            return
        if ephemeral in self._seen:
            self.strangers += 1
            return
        self._seen.append(ephemeral)
        if len(self._callers) >= _CALLERS_MAX:
            self.end(next(iter(self._callers.values())))
        peer = DaemonEnd(session, way)
        peer.first = message
        self._peers[session.own_id] = self._callers[message] = peer
        self.flush(peer)

    def _cookie(self, secret: bytes, address: Any) -> bytes:
        return hmac.digest(secret, repr(address[:2]).encode(), hashlib.sha256)[:COOKIE]

    def _is_cookie(self, cookie: bytes, address: Any) -> bool:
        return any(hmac.compare_digest(cookie, self._cookie(secret, address)) for secret in self._secrets)

    # --- datagrams out

    def flush(self, peer: DaemonEnd) -> None:
        """Send all that waits. A full socket drops it."""
        session = peer.session
        outbox = session.outbox
        while outbox:
            train = outbox.popleft()
            code = self._send(train.octets, train.size, peer.way)
            if code in (errno.EMSGSIZE, errno.EINVAL) and train.size == session.size:
                session.shrink()
            elif code == errno.EAGAIN and peer.link is not None:
                peer.link.drops[Drop.QUEUE_FULL] += 1

    def _send(self, octets: bytes, size: int, way: Way) -> int:
        """Send a train; return an errno, or 0."""
        assert self._sock is not None
        control = way.source
        if len(octets) > size:
            control = (*control, (_SOL_UDP, _UDP_SEGMENT, _U16.pack(size)))
        try:
            self._sock.sendmsg([octets], control, 0, way.address)
        except OSError as e:
            return e.errno or errno.EIO
        return 0

    # --- time

    def tick(self, now: float) -> None:
        """Send heartbeats, and end the sessions whose other end is gone."""
        if now >= self._secret_at:
            self._secret_at = now + _COOKIE_S
            self._secrets = [os.urandom(32), self._secrets[0]]
        for peer in list(self._peers.values()):
            peer.session.wake(now)
            self._look_at(peer)

    def end(self, peer: DaemonEnd, why: str = "") -> None:
        """End a session."""
        peer.session.end(why, say=bool(why))
        self.flush(peer)
        self._peers.pop(peer.session.own_id, None)
        self._callers.pop(peer.first, None)
        if peer.link is not None:
            link, peer.link = peer.link, None
            link.lose(peer, peer.session.why)

    def close(self) -> None:
        """End all sessions. Idempotent."""
        if self._sock is not None:
            for peer in list(self._peers.values()):
                self.end(peer, "ends")
            self._sock.close()
            self._sock = None


def _from_there(kind: int, value: bytes) -> bytes:
    """Return the ancillary data by which an answer leaves from where a datagram came to."""
    if kind == _PKTINFO[socket.AF_INET][1]:
        _, own, _ = _PKTINFO4.unpack_from(value)
        return _PKTINFO4.pack(0, own, bytes(4))
    own, index = _PKTINFO6.unpack_from(value)
    return _PKTINFO6.pack(own, index if own[:2] == b"\xfe\x80" else 0)
