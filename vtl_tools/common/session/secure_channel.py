"""The octets of a session: the handshake, then records; in both directions. Sans-IO.

    record   length 4 | body       the body is sealed (noise.Cipher), and then longer by a tag; or plain

The handshake (noise.py) is two messages of fixed size. The initiator's next 16 octets, an empty message under
the new key, confirm it to the responder, which serves nothing before. Each message also says whether the
records are sealed, and both sides must say the same.
"""

import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.session.base import DEAD_AFTER_S, HEARTBEAT_S, STALLED_AFTER_S
from vtl_tools.common.session.noise import KEY, TAG, Cipher, Handshake

LENGTH: Final = struct.Struct("!I")
"""Before the body of each record."""
OUTBOX_MAX: Final = 1 << 18
"""Octets that wait for the connection before its users must wait."""

_PLAIN, _SEALED = b"\x00", b"\x01"
_HELLO: Final = KEY + 1 + TAG
"""Octets of each message of the handshake: a key, and one octet that says whether records are sealed."""
_STUCK: Final = 4 * OUTBOX_MAX
"""Octets that wait at most: the other end asks for answers and reads none."""


class Role(Enum):
    """The side of a session that it is."""

    INITIATOR = "initiator"
    RESPONDER = "responder"


class SessionState(Enum):
    """A session's state."""

    HELLO = "hello"
    """Waits for the other side's message."""
    CONFIRM = "confirm"
    """The responder waits for the proof that it faces no replay."""
    UP = "up"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class SecureConfig:
    """The choices of both ends. Seconds.

    encrypt: whether records are sealed; both ends must say the same. heartbeat_s, dead_after_s,
    stalled_after_s: see base. handshake_s: time for a handshake.
    """

    encrypt: bool = True
    heartbeat_s: float = HEARTBEAT_S
    dead_after_s: float = DEAD_AFTER_S
    stalled_after_s: float = STALLED_AFTER_S
    handshake_s: float = 5.0


class SecureChannel:
    """Base of a session: octets that arrive become records, and records become octets of the outbox.

    state; was_up; why: why it is over. outbox: octets for the connection; pending: how many. sent, received:
    octets, all told.
    """

    prologue = b""
    """The protocol and its version; ends of different ones refuse each other."""
    sizes = range(1, 1 << 16)
    """Octets of a record before it is sealed."""

    def __init__(
        self,
        role: Role,
        config: SecureConfig,
        *,
        psk: bytes,
        ephemeral: bytes,
        now: float,
        is_fresh: Callable[[bytes], bool],
    ) -> None:
        self.role, self.config, self.now = role, config, now
        self.state, self.why, self.was_up = SessionState.HELLO, "", False
        self.outbox: deque[bytes | memoryview] = deque()
        self.pending = self.sent = self.received = 0
        self.heard_at = now
        self._is_fresh = is_fresh
        self._handshake = Handshake(psk, ephemeral, self.prologue, is_initiator=role is Role.INITIATOR)
        self._mode = _SEALED if config.encrypt else _PLAIN
        self._seal: Cipher | None = None
        self._open: Cipher | None = None
        self._rest = bytearray()
        if role is Role.INITIATOR:
            self._emit(self._handshake.write(self._mode))

    @property
    def is_up(self) -> bool:
        """Whether records can be sent."""
        return self.state is SessionState.UP

    @property
    def is_over(self) -> bool:
        """Whether the connection is to be closed."""
        return self.state is SessionState.OVER

    def end(self, why: str, *, say: bool = False) -> None:
        """End the session."""
        raise NotImplementedError

    def on_up(self) -> None:
        """Take the end of the handshake."""
        raise NotImplementedError

    def on_record(self, body: memoryview) -> None:
        """Take the content of a record. It may be kept. Raises Malformed."""
        raise NotImplementedError

    # --- octets in

    def receive(self, octets: memoryview, now: float) -> None:
        """Take octets from the connection, in pieces of any size. They may be reused afterwards."""
        self.now = self.heard_at = now
        self.received += len(octets)
        try:
            for unit in self._units(octets):
                self._take(unit)
                if self.is_over:
                    return
        except Malformed as e:
            self.end(f"broke the protocol: {e.what}" if self.is_up else self._refusal(e), say=self.is_up)

    def _refusal(self, error: Malformed) -> str:
        if error.what in ("handshake.tag", "handshake.key", "session.tag"):
            return "has another key, or is a stranger"
        return f"was refused: {error.what}"

    def _units(self, octets: memoryview) -> Iterator[memoryview]:
        """Return each complete message or record; keep the rest."""
        rest = self._rest
        while octets or rest:
            if not rest and 0 < (size := self._unit_size(octets)) <= len(octets):
                yield octets[:size]
                octets = octets[size:]
                continue
            while octets and (missing := (self._unit_size(rest) or LENGTH.size) - len(rest)) > 0:
                rest += octets[:missing]
                octets = octets[missing:]
            size = self._unit_size(rest)
            if not 0 < size <= len(rest):
                return
            unit = bytes(rest)
            rest.clear()
            yield memoryview(unit)

    def _unit_size(self, octets: bytearray | memoryview) -> int:
        """Return the octets of the message or record that begins here; 0: not known yet. Raises Malformed."""
        if self.state is SessionState.UP:
            if len(octets) < LENGTH.size:
                return 0
            return LENGTH.size + self._body_size(octets)
        return TAG if self.state is SessionState.CONFIRM else _HELLO

    def _body_size(self, header: bytearray | memoryview) -> int:
        """Return the octets that follow a record's length. Raises Malformed if there cannot be so many."""
        size: int = LENGTH.unpack_from(header)[0]
        if size - (TAG if self.config.encrypt else 0) not in self.sizes:
            raise Malformed("record.length")
        return size

    def _take(self, unit: memoryview) -> None:
        if self.state is SessionState.UP:
            self._take_record(unit)
        elif self.state is SessionState.CONFIRM:
            assert self._open is not None
            self._open.open(unit)
            self._come_up()
        elif self.state is SessionState.HELLO:
            self._take_hello(bytes(unit))

    def _take_hello(self, message: bytes) -> None:
        handshake = self._handshake
        if handshake.read(message) != self._mode:
            ours = "encrypts" if self.config.encrypt else "does not encrypt"
            self.end(f"was refused: this end {ours}, and the other is set up differently")
            return
        if self.role is Role.INITIATOR:
            self._seal, self._open = handshake.split()
            self._emit(self._seal.seal(b""))
            self._come_up()
            return
        if not self._is_fresh(handshake.remote):
            self.end("was refused: it replays another's handshake")
            return
        self._emit(handshake.write(self._mode))
        self._seal, self._open = handshake.split()
        self.state = SessionState.CONFIRM

    def _come_up(self) -> None:
        self.state, self.was_up = SessionState.UP, True
        self.on_up()

    def _take_record(self, unit: memoryview) -> None:
        header, body = unit[: LENGTH.size], unit[LENGTH.size :]
        if self.config.encrypt:
            assert self._open is not None
            body = memoryview(self._open.open(body, header))
        else:
            body = memoryview(bytes(body))  # flows keep it
        self.on_record(body)

    # --- octets out

    def _emit_record(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Make a record."""
        body = b"".join(pieces)
        if self.config.encrypt:
            assert self._seal is not None
            header = LENGTH.pack(len(body) + TAG)
            body = self._seal.seal(body, header)
        else:
            header = LENGTH.pack(len(body))
        self._emit(header)
        self._emit(body)
        if self.pending > _STUCK:
            self.end("does not read what it asks for")

    def _emit(self, octets: bytes) -> None:
        self.outbox.append(octets)
        self.pending += len(octets)

    def precede(self, octets: bytes) -> None:
        """Send octets before the handshake, in the clear."""
        self.outbox.appendleft(octets)
        self.pending += len(octets)

    def transmitted(self, octets: int) -> None:
        """Remove octets from the outbox that the connection took."""
        self.pending -= octets
        self.sent += octets
        outbox = self.outbox
        while octets:
            size = len(outbox[0])
            if size > octets:
                outbox[0] = memoryview(outbox[0])[octets:]
                return
            octets -= size
            outbox.popleft()
