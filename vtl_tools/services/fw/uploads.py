"""The text of rule files on its way to a service, in pieces: a request is at most 64 KiB long.

The service cannot be asked to read the files: it gave up the right to, and whoever asks may have another.
"""

import base64
import binascii
from collections.abc import Callable, Iterator
from typing import Any, Final

from vtl_tools.common.errors import VTLError
from vtl_tools.services.fw.parser import FILES_MAX, OCTETS_MAX

PIECE: Final = 32 << 10
"""Octets of a file in one request, so that it fits with base64 around it."""
NAME_MAX: Final = 4096


class Upload:
    """The files of one client, to be read by parse(). The next client takes the place of one that left."""

    def __init__(self) -> None:
        self._token = ""
        self._files: dict[str, bytearray] = {}
        self._octets = 0

    def take(self, request: dict[str, Any]) -> dict[str, Any]:
        """Take a piece of a file, and answer. Raises VTLError where it is none, or is too much."""
        token, name, data = (request.get(key) for key in ("token", "file", "data"))
        if not (isinstance(token, str) and isinstance(name, str) and isinstance(data, str)):
            raise VTLError("upload: needs a token, a file and its data")
        if request.get("first"):
            self.drop()
            self._token = token
        self.check(token)
        try:
            piece = base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise VTLError("upload: the data is not base64") from None
        self._octets += len(piece)
        full = len(self._files) >= FILES_MAX and name not in self._files
        if self._octets > OCTETS_MAX or full or len(name) > NAME_MAX:
            self.drop()
            raise VTLError(f"upload: at most {OCTETS_MAX >> 20} MiB in {FILES_MAX} files")
        self._files.setdefault(name, bytearray()).extend(piece)
        return {"octets": self._octets}

    def check(self, token: object) -> None:
        """Raise VTLError where somebody else has begun in between."""
        if not self._token or token != self._token:
            raise VTLError("reload: another one came in between; try again")

    def reader(self, token: object) -> Callable[[str, int], bytes]:
        """Return what parse() reads by, and forget the files otherwise. Raises as check() does."""
        self.check(token)
        files = self._files
        self.drop()

        def read(name: str, octets: int) -> bytes:
            if name not in files:
                raise FileNotFoundError(2, "not sent along")
            return bytes(files[name][:octets])

        return read

    def drop(self) -> None:
        """Forget everything."""
        self._token, self._files, self._octets = "", {}, 0


def pieces(files: dict[str, bytes], token: str) -> Iterator[dict[str, Any]]:
    """Return the requests that bring files to a service."""
    first = True
    for name, data in files.items():
        for at in range(0, max(len(data), 1), PIECE):
            piece = base64.b64encode(data[at : at + PIECE]).decode()
            yield {"token": token, "file": name, "data": piece, "first": first}
            first = False
