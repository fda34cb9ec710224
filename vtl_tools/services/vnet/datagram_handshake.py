"""The handshake of two daemons over datagrams. Sans-IO.

    first    1 | 0 0 0 | sender's id | cookie 16 | Noise's first message
    second   2 | 0 0 0 | receiver's id | sender's id | Noise's second message
    cookie   3 | 0 0 0 | receiver's id | cookie 16

It is that of noise.py. A responder answers a first message without a valid cookie by a cookie, which is
shorter, and keeps nothing: so nobody makes it send to an address that did not ask, or compute for one. The
initiator repeats its message until it is answered. The first record confirms it to the responder.
"""

import struct
from copy import copy
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.session.noise import KEY, TAG, Handshake

PROLOGUE: Final = b"vtl-vnet udp 2"
FIRST_KIND, SECOND_KIND, COOKIE_KIND = 1, 2, 3
COOKIE: Final = 16
FIRST: Final = struct.Struct(f"!B3xI{COOKIE}s")
SECOND: Final = struct.Struct("!B3xII")
COOKIE_REPLY: Final = FIRST
NOISE: Final = KEY + 1 + TAG
"""Octets of each message of Noise: a key, and one octet, which says that records are sealed."""
_RESEND_S: Final = 0.25
_RESENDS_MAX: Final = 32
_MODE: Final = b"\x01"


class DatagramHandshake:
    """One side. own_id: by which the other end's datagrams say that they are for it. peer_id: the other one.

    keys: to seal, and to open; None until the other end's message has come. second: the answer to the first
    message.
    """

    def __init__(self, *, psk: bytes, ephemeral: bytes, own_id: int, is_initiator: bool) -> None:
        self.own_id, self.peer_id, self._is_initiator = own_id, 0, is_initiator
        self.keys: tuple[bytes, bytes] | None = None
        self.second = b""
        self._noise = Handshake(psk, ephemeral, PROLOGUE, is_initiator=is_initiator)
        self._message = self._noise.write(_MODE) if is_initiator else b""
        self._cookie = bytes(COOKIE)
        self._resend_at, self._resends = 0.0, 0

    @property
    def is_asking(self) -> bool:
        """Whether it waits for the answer to a first message."""
        return self._is_initiator and self.keys is None

    def first(self, now: float) -> bytes:
        """Return the first message if it is due, for the first time or again; else b""."""
        if not self.is_asking or now < self._resend_at or self._resends >= _RESENDS_MAX:
            return b""
        self._resend_at = now + _RESEND_S * min(1 << self._resends, 4)
        self._resends += 1
        return FIRST.pack(FIRST_KIND, self.own_id, self._cookie) + self._message

    def take_cookie(self, cookie: bytes) -> None:
        """Let the first message be due at once, with a cookie."""
        if self.is_asking and cookie != self._cookie:
            self._cookie, self._resend_at = cookie, 0.0

    def take_first(self, peer_id: int, message: bytes) -> bytes:
        """Take a first message; return the ephemeral key in it. Raises Malformed: it has another key."""
        if self._noise.read(message) != _MODE:
            raise Malformed("handshake.mode")
        self.peer_id = peer_id
        self.second = SECOND.pack(SECOND_KIND, peer_id, self.own_id) + self._noise.write(_MODE)
        self.keys = self._noise.keys()
        return self._noise.remote

    def take_second(self, peer_id: int, message: bytes) -> bool:
        """Take the answer to the first message. Return whether it is authentic."""
        attempt = copy(self._noise)
        try:
            attempt.read(message)
        except Malformed:
            return False
        self._noise, self.peer_id, self.keys = attempt, peer_id, attempt.keys()
        return True
