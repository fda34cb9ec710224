"""Sealed records that say their number, for a transport that loses and reorders. Sans-IO.

The nonce of a record is its number (noise.py has the cipher). The key changes every RENEW_AFTER numbers, at
both ends alike, so that no key protects too much; the one before stays for records that come late.
"""

from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from vtl_tools.common.errors import Malformed
from vtl_tools.common.session.noise import NONCE, RENEW_AFTER, next_key

WINDOW: Final = 4096
"""Numbers below the highest one at which a record is still taken."""
_MASK: Final = (1 << WINDOW) - 1


class NumberedCipher:
    """One direction of a session. key: of the first RENEW_AFTER numbers."""

    def __init__(self, key: bytes) -> None:
        self._epoch = 0
        self._before: AESGCM | None = None
        self._aead = AESGCM(key)
        self._next = AESGCM(next_key(self._aead))

    def _of(self, epoch: int) -> AESGCM | None:
        if epoch == self._epoch:
            return self._aead
        return self._next if epoch == self._epoch + 1 else self._before if epoch == self._epoch - 1 else None

    def _enter(self, epoch: int) -> None:
        """Move on to the next key."""
        if epoch > self._epoch:
            self._epoch = epoch
            self._before, self._aead = self._aead, self._next
            self._next = AESGCM(next_key(self._aead))

    def seal(self, number: int, message: bytes, header: bytes) -> bytes:
        """Return the message, encrypted. number: each once, in order. header: is authenticated with it."""
        self._enter(number // RENEW_AFTER)
        return self._aead.encrypt(NONCE.pack(number), message, header)

    def open(self, number: int, message: bytes | memoryview, header: bytes) -> bytes:
        """Return the message, decrypted. Raises Malformed if the other end did not seal it so."""
        epoch = number // RENEW_AFTER
        if (aead := self._of(epoch)) is None:
            raise Malformed("session.number")
        try:
            opened = aead.decrypt(NONCE.pack(number), message, header)
        except InvalidTag:
            raise Malformed("session.tag") from None
        self._enter(epoch)
        return opened


class ReplayWindow:
    """Remembers which numbers were taken, so that none is taken twice (RFC 4303 section 3.4.3, RFC 6479).

    top: the highest number; -1: none yet. taken: how many.
    """

    def __init__(self) -> None:
        self.top = -1
        self.taken = 0
        self._seen = 0  # bit i: top - i was taken

    def is_new(self, number: int) -> bool:
        """Return whether a record of this number would be taken."""
        behind = self.top - number
        return behind < 0 or (behind < WINDOW and not self._seen >> behind & 1)

    def take(self, number: int) -> None:
        """Note an authenticated record whose number is new."""
        ahead = number - self.top
        self.taken += 1
        if ahead > 0:
            self._seen = (self._seen << ahead & _MASK if ahead < WINDOW else 0) | 1
            self.top = number
        else:
            self._seen |= 1 << -ahead
