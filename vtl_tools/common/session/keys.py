"""Pre-shared keys: the file of one, and the name by which a caller tells which one it has."""

import hashlib
import os
from pathlib import Path
from secrets import token_hex
from typing import Final

from vtl_tools.common.errors import VTLError

_OCTETS: Final = 32
KEY_ID: Final = 8
"""Octets of a key's name."""


def key_id(key: bytes) -> bytes:
    """Return the name of a key: it tells nothing of the key, and may be sent in the clear."""
    return hashlib.sha256(b"vtl key id" + key).digest()[:KEY_ID]


def make_key_file(path: Path) -> None:
    """Create a file of mode 0600 with a random key of 256 bits, in hexadecimal. Raises VTLError."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w", encoding="ascii") as file:
            os.fchmod(fd, 0o600)  # regardless of the umask
            file.write(f"{token_hex(_OCTETS)}\n")
    except FileExistsError:
        raise VTLError(f"{path}: exists; a key is never replaced: name another file, or remove it") from None
    except OSError as e:
        raise VTLError(f"{path}: {e.strerror}; name a file that can be written") from None
