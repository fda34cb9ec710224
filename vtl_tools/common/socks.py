"""The client's side of SOCKS 5 (RFC 1928, RFC 1929) with Tor's extensions, as octets only.

    client = Client(credentials=Credentials(b"guest", b"10.0.0.2"))
    send(client.request(Command.CONNECT, "example.com", 80))
    while not client.done:
        for event in client.receive(recv()):
            ...                                     # Connected, Resolved or Failed
    first = client.rest                             # came with the answer, is the stream's beginning

One client is one request on one connection: a proxy's connection serves no second one. An address is 4 or
16 octets, as in packets; a name is text.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import IntEnum, StrEnum
from functools import partial
from typing import Final, NamedTuple, final

from vtl_tools.common.errors import Malformed

Address = bytes | str
"""4 octets of IPv4, 16 of IPv6, or a name."""

NO_AUTHENTICATION: Final = 0x00  # RFC 1928 section 3
USER_PASSWORD: Final = 0x02
NO_ACCEPTABLE_METHODS: Final = 0xFF

IPV4: Final = 1  # ATYP, RFC 1928 section 4
NAME: Final = 3
IPV6: Final = 4

_VERSION_AUTH: Final = 1  # RFC 1929
_OCTETS_MAX: Final = 255  # what a length of one octet can say

_PORT: Final = struct.Struct("!H")


class Command(IntEnum):
    """The command of a request. The last two are Tor's."""

    CONNECT = 0x01
    RESOLVE = 0xF0
    RESOLVE_PTR = 0xF1


@final
class Reason(StrEnum):
    """Why a request failed; ANSWER has the answer for the guest."""

    GENERAL = "general-failure"
    PROHIBITED = "prohibited"
    """By the proxy's rules; with Tor, by every exit's policy."""
    NET_UNREACHABLE = "net-unreachable"
    HOST_UNREACHABLE = "host-unreachable"
    """With Tor also: there is no such name."""
    REFUSED = "refused"
    TTL_EXPIRED = "ttl-expired"
    """With Tor: it took too long."""
    COMMAND_UNSUPPORTED = "command-unsupported"
    ADDRESS_UNSUPPORTED = "address-type-unsupported"
    NO_METHOD = "no-acceptable-method"
    """The proxy wants another kind of authentication."""
    AUTHENTICATION = "authentication-failed"
    ONION_NOT_FOUND = "onion-descriptor-not-found"
    ONION_INVALID = "onion-descriptor-invalid"
    ONION_INTRODUCTION = "onion-introduction-failed"
    ONION_RENDEZVOUS = "onion-rendezvous-failed"
    ONION_AUTHORIZATION_MISSING = "onion-authorization-missing"
    ONION_AUTHORIZATION_WRONG = "onion-authorization-wrong"
    ONION_ADDRESS = "onion-address-invalid"
    ONION_TIMEOUT = "onion-introduction-timed-out"
    CLOSED = "closed"
    """The proxy closed the connection before it had answered."""
    UNKNOWN = "unknown"
    """A code that nobody has defined; Failed.code has it."""


class Unreachable(NamedTuple):
    """An ICMP error: the code of ICMPv4's type 3, and of ICMPv6's type 1."""

    v4: int
    v6: int


NET: Final = Unreachable(0, 0)
HOST: Final = Unreachable(1, 3)
ADMIN: Final = Unreachable(13, 1)

REPLIES: Final[Mapping[int, Reason]] = {
    0x01: Reason.GENERAL,  # RFC 1928 section 6
    0x02: Reason.PROHIBITED,
    0x03: Reason.NET_UNREACHABLE,
    0x04: Reason.HOST_UNREACHABLE,
    0x05: Reason.REFUSED,
    0x06: Reason.TTL_EXPIRED,
    0x07: Reason.COMMAND_UNSUPPORTED,
    0x08: Reason.ADDRESS_UNSUPPORTED,
    0xF0: Reason.ONION_NOT_FOUND,  # tor(1), ExtendedErrors
    0xF1: Reason.ONION_INVALID,
    0xF2: Reason.ONION_INTRODUCTION,
    0xF3: Reason.ONION_RENDEZVOUS,
    0xF4: Reason.ONION_AUTHORIZATION_MISSING,
    0xF5: Reason.ONION_AUTHORIZATION_WRONG,
    0xF6: Reason.ONION_ADDRESS,
    0xF7: Reason.ONION_TIMEOUT,
}
"""Meanings of REP, the reply code, where it is not 0."""

ANSWER: Final[Mapping[Reason, Unreachable | None]] = {
    **dict.fromkeys(Reason, HOST),
    Reason.PROHIBITED: ADMIN,
    Reason.NET_UNREACHABLE: NET,
    Reason.REFUSED: None,
    Reason.ADDRESS_UNSUPPORTED: NET,
    Reason.NO_METHOD: ADMIN,
    Reason.AUTHENTICATION: ADMIN,
    Reason.ONION_AUTHORIZATION_MISSING: ADMIN,
    Reason.ONION_AUTHORIZATION_WRONG: ADMIN,
}
"""The answer for the guest: an ICMP error; or None, a RST, if the target itself refused."""


class Credentials(NamedTuple):
    """User and password, 1 to 255 octets each (RFC 1929).

    Tor takes any. With IsolateSOCKSAuth, which it has by default, streams of different credentials share
    no circuit.
    """

    user: bytes
    password: bytes


class Send(NamedTuple):
    """Octets to send now. Never comes where the request was pipelined."""

    octets: bytes


class Connected(NamedTuple):
    """The stream begins. address, port: what the proxy says it is bound to; Tor says 0.0.0.0 and 0."""

    address: Address
    port: int


class Resolved(NamedTuple):
    """The result of a look-up, by name or by address. Tor may answer RESOLVE with either kind of address."""

    address: Address


class Failed(NamedTuple):
    """Nothing came of it. code: as it was received; 0 where nothing was."""

    reason: Reason
    code: int = 0


Event = Send | Connected | Resolved | Failed
_Outcome = Connected | Resolved | Failed | None
_Answer = tuple[int, _Outcome] | None
"""How long an answer is in octets, and what it says; None: more of it must come first."""


class _Exchange(NamedTuple):
    """One turn of the conversation. read: looks for the answer at the start of what was received."""

    octets: bytes
    read: Callable[[bytearray], _Answer]


class Client:
    """One request to a SOCKS proxy, without I/O.

    pipelined: send all messages at once, which saves two round trips. Tor allows it; there is nothing to
    wait for, since only one method of authentication is offered. Some other proxies drop messages that they
    do not expect yet: with pipelined=False the later messages come as Send events.

    rest: the octets behind the answer, once that is complete.
    """

    def __init__(self, *, credentials: Credentials | None = None, pipelined: bool = True) -> None:
        self._credentials = credentials
        self._pipelined = pipelined
        self._exchanges: deque[_Exchange] = deque()
        self._held = bytearray()

    @property
    def done(self) -> bool:
        """Whether the proxy's answer is complete. Later octets are the stream's."""
        return not self._exchanges

    @property
    def rest(self) -> bytes:
        """The octets behind the answer; none unless done."""
        return bytes(self._held) if self.done else b""

    def request(self, command: Command, target: Address, port: int = 0) -> bytes:
        """Return the octets to send. Call it once.

        Raises ValueError if the target, the port or the credentials do not fit a SOCKS message.
        """
        assert self.done
        if not 0 <= port <= 0xFFFF:
            raise ValueError(f"{port} is not a port")
        self._exchanges.extend(_exchanges(command, target, port, self._credentials))
        if self._pipelined:
            return b"".join(exchange.octets for exchange in self._exchanges)
        return self._exchanges[0].octets

    def receive(self, octets: bytes | bytearray | memoryview) -> list[Event]:
        """Take what the proxy sent, split anyhow, and return what it says. Not to be called once done.

        Malformed: this is no SOCKS proxy. As after Failed, what it sent is then forgotten. At most 261
        octets are kept between calls.
        """
        assert not self.done
        self._held += octets
        events: list[Event] = []
        while self._exchanges:
            try:
                answer = self._exchanges[0].read(self._held)
            except Malformed:
                self._end()
                raise
            if answer is None:
                break
            size, event = answer
            del self._held[:size]
            self._exchanges.popleft()
            if event is not None:
                events.append(event)
            if isinstance(event, Failed):
                self._end()
            elif self._exchanges and not self._pipelined:
                events.append(Send(self._exchanges[0].octets))
        return events

    def eof(self) -> list[Event]:
        """Take note that the proxy's stream ended."""
        if self.done:
            return []
        self._end()
        return [Failed(Reason.CLOSED)]

    def _end(self) -> None:
        self._exchanges.clear()
        self._held.clear()


def _exchanges(
    command: Command, target: Address, port: int, credentials: Credentials | None
) -> Iterable[_Exchange]:
    method = NO_AUTHENTICATION if credentials is None else USER_PASSWORD
    turns = [_Exchange(bytes((5, 1, method)), partial(_read_method, method))]
    if credentials is not None:
        message = bytes((_VERSION_AUTH,)) + b"".join(_counted(octets) for octets in credentials)
        turns.append(_Exchange(message, _read_status))
    message = bytes((5, command, 0)) + _address(target) + _PORT.pack(port)
    return [*turns, _Exchange(message, partial(_read_reply, command))]


def _address(target: Address) -> bytes:
    if isinstance(target, str):
        return bytes((NAME,)) + _counted(_octets_of(target))
    if len(target) not in (4, 16):
        raise ValueError(f"an address has 4 or 16 octets, not {len(target)}")
    return bytes((IPV4 if len(target) == 4 else IPV6,)) + target


def _octets_of(name: str) -> bytes:
    if not 0 < len(name) <= _OCTETS_MAX or "\0" in name:
        raise ValueError(f"{name!r} is not a name of 1 to {_OCTETS_MAX} octets")
    return name.encode("ascii")


def _counted(octets: bytes) -> bytes:
    if not 0 < len(octets) <= _OCTETS_MAX:
        raise ValueError(f"{len(octets)} octets where 1 to {_OCTETS_MAX} can be said")
    return bytes((len(octets),)) + octets


def _read_method(offered: int, held: bytearray) -> _Answer:
    """Read which method the proxy chose (RFC 1928 section 3).

    Tor skips this answer when it finds user and password right behind the greeting, and so may begin with
    the next one, whose version is another.
    """
    if offered == USER_PASSWORD and held[:1] == bytes((_VERSION_AUTH,)):
        return 0, None
    _check(held, 0, (5,), "socks.version")
    if len(held) < 2:
        return None
    if held[1] == NO_ACCEPTABLE_METHODS:
        return 2, Failed(Reason.NO_METHOD, held[1])
    _check(held, 1, (offered,), "socks.method")
    return 2, None


def _read_status(held: bytearray) -> _Answer:
    """Read what the proxy says of user and password (RFC 1929 section 2)."""
    _check(held, 0, (_VERSION_AUTH,), "socks.auth-version")
    if len(held) < 2:
        return None
    return 2, Failed(Reason.AUTHENTICATION, held[1]) if held[1] else None


def _read_reply(command: Command, held: bytearray) -> _Answer:
    """Read a reply (RFC 1928 section 6). Of a failure only the code: some proxies send no more of it."""
    _check(held, 0, (5,), "socks.version")
    if len(held) >= 2 and (code := held[1]):
        return 2, Failed(REPLIES.get(code, Reason.UNKNOWN), code)
    _check(held, 3, (IPV4, NAME, IPV6), "socks.atyp")
    if len(held) < 5:  # VER REP RSV ATYP, and a name's length
        return None
    kind = held[3]
    start = 5 if kind == NAME else 4
    end = start + (held[4] if kind == NAME else 4 if kind == IPV4 else 16)
    if len(held) < end + _PORT.size:
        return None
    address: Address = bytes(held[start:end])
    if kind == NAME:
        address = held[start:end].decode("latin-1")
        if not (address.isascii() and address.isprintable()):
            raise Malformed("socks.name", start)
    port: int = _PORT.unpack_from(held, end)[0]
    return end + _PORT.size, _outcome(command, address, port)


def _outcome(command: Command, address: Address, port: int) -> Connected | Resolved:
    return Connected(address, port) if command is Command.CONNECT else Resolved(address)


def _check(held: bytearray, at: int, wanted: tuple[int, ...], what: str) -> None:
    """Raise Malformed if the octet has come and is another."""
    if len(held) > at and held[at] not in wanted:
        raise Malformed(what, at)
