"""The handshake of a session: Noise_NNpsk0_25519_AESGCM_SHA256 (The Noise Protocol Framework, revision 34).

    -> psk, e        the initiator's ephemeral key, and a payload under the pre-shared key
    <- e, ee         the responder's, and a payload under the pre-shared key and both ephemeral keys

After the second message the initiator knows that the responder has the key and is alive. The responder knows
it of the initiator after the first message of the session itself: until then it may face a replay, whose
sender lacks the ephemeral key. Both payloads are authenticated. Without a private ephemeral key, a recorded
session cannot be read, not even with the pre-shared key. The primitives are those of the package
cryptography; all comparisons are its own, in constant time.
"""

import hashlib
import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from vtl_tools.common.errors import Malformed

NAME: Final = b"Noise_NNpsk0_25519_AESGCM_SHA256"
KEY: Final = 32
"""Octets of the pre-shared key, of an ephemeral key, and of a cipher's key."""
TAG: Final = 16
"""Octets by which encryption makes a message longer."""

NONCE: Final = struct.Struct("!4xQ")
_LAST: Final = NONCE.pack(2**64 - 1)
"""The nonce that is only for a cipher's next key (Noise section 4.2)."""
RENEW_AFTER: Final = 1 << 20
"""Messages under one key: with 64 KiB each, 2**36 octets, well below the limit of AES-GCM."""


def next_key(aead: AESGCM) -> bytes:
    """Return the key that follows another one, which cannot be computed from it (Noise section 4.2)."""
    return aead.encrypt(_LAST, bytes(KEY), None)[:KEY]


class Cipher:
    """One direction of a session: seals or opens messages in their order (Noise section 5.1).

    A message that is left out, repeated, reordered or changed does not open.
    """

    __slots__ = ("_aead", "_left", "_nonce")

    def __init__(self, key: bytes) -> None:
        self._use(key)

    def _use(self, key: bytes) -> None:
        self._aead = AESGCM(key)
        self._nonce, self._left = 0, RENEW_AFTER

    def _next(self) -> bytes:
        """Return the next message's nonce; change the key when it is due (Noise section 11.3)."""
        if not self._left:
            self._use(next_key(self._aead))
        self._left -= 1
        nonce = NONCE.pack(self._nonce)
        self._nonce += 1
        return nonce

    def seal(self, message: bytes, header: bytes = b"") -> bytes:
        """Return the message, encrypted, TAG octets longer. header: is authenticated with it."""
        return self._aead.encrypt(self._next(), message, header)

    def open(self, message: bytes | memoryview, header: bytes | memoryview = b"") -> bytes:
        """Return the message, decrypted. Raises Malformed if it is not the other end's next one."""
        try:
            return self._aead.decrypt(self._next(), bytes(message), bytes(header))
        except InvalidTag:
            raise Malformed("session.tag") from None


class Handshake:
    """One side of the handshake. ephemeral: 32 random octets, used once.

    Initiator: write(), read(); responder: read(), write(); then split().
    """

    def __init__(self, psk: bytes, ephemeral: bytes, prologue: bytes, *, is_initiator: bool) -> None:
        self._private = X25519PrivateKey.from_private_bytes(ephemeral)
        self.public = self._private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.remote = b""
        """The other side's ephemeral public key, after read()."""
        self._is_initiator = is_initiator
        self._hash = self._chain = NAME  # exactly 32 octets, so not hashed
        self._cipher: AESGCM | None = None
        self._nonce = 0
        self._mix_hash(prologue)
        self._psk = psk
        self._has_begun = False

    # --- Noise section 5.2

    def _mix_hash(self, octets: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + octets).digest()

    def _derive(self, material: bytes, count: int) -> list[bytes]:
        octets = HKDF(SHA256(), KEY * count, salt=self._chain, info=b"").derive(material)
        return [octets[i : i + KEY] for i in range(0, len(octets), KEY)]

    def _mix_key(self, material: bytes) -> None:
        self._chain, key = self._derive(material, 2)
        self._cipher, self._nonce = AESGCM(key), 0

    def _mix_psk(self) -> None:
        self._chain, mixed, key = self._derive(self._psk, 3)
        self._mix_hash(mixed)
        self._cipher, self._nonce = AESGCM(key), 0

    def _mix_ephemeral(self, public: bytes) -> None:
        self._mix_hash(public)
        self._mix_key(public)

    # --- Noise section 5.3

    def _mix_tokens(self, ephemeral: bytes) -> None:
        """Mix in the tokens of the next message: psk, e; then e, ee."""
        if not self._has_begun:
            self._has_begun = True
            self._mix_psk()
            self._mix_ephemeral(ephemeral)
            return
        self._mix_ephemeral(ephemeral)
        try:
            self._mix_key(self._private.exchange(X25519PublicKey.from_public_bytes(self.remote)))
        except ValueError:  # a point of small order, whose secret everybody knows
            raise Malformed("handshake.key") from None

    def write(self, payload: bytes) -> bytes:
        """Return this side's message."""
        self._mix_tokens(self.public)
        assert self._cipher is not None
        sealed = self._cipher.encrypt(NONCE.pack(self._nonce), payload, self._hash)
        self._mix_hash(sealed)
        return self.public + sealed

    def read(self, message: bytes) -> bytes:
        """Take the other side's message and return its payload. Raises Malformed: the key is another one."""
        self.remote, sealed = message[:KEY], message[KEY:]
        self._mix_tokens(self.remote)
        assert self._cipher is not None
        try:
            payload = self._cipher.decrypt(NONCE.pack(self._nonce), sealed, self._hash)
        except InvalidTag:
            raise Malformed("handshake.tag") from None
        self._mix_hash(sealed)
        return payload

    def keys(self) -> tuple[bytes, bytes]:
        """Return the keys of the session: to seal, and to open."""
        first, second = self._derive(b"", 2)
        return (first, second) if self._is_initiator else (second, first)

    def split(self) -> tuple[Cipher, Cipher]:
        """Return the ciphers of the session: to seal, and to open."""
        seal, unseal = self.keys()
        return Cipher(seal), Cipher(unseal)
