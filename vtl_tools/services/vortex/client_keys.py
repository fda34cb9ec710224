"""The directory with the keys of vortex-backend's clients, which is read at the start and at SIGHUP."""

import asyncio
import json
import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Protocol

from vtl_tools.common.errors import SpecError, VTLError
from vtl_tools.common.host.broker import ReadAgain
from vtl_tools.common.runtime.sealed_file import SealedFile
from vtl_tools.services.vortex.wormhole_client import WormholeClient

log = logging.getLogger(__name__)

CLIENTS_MAX: Final = 1024
NUMBER_MAX: Final = 65534
KEY_MIN: Final = 16
_KEY_MAX: Final = 1024
_ALL_MAX: Final = 4 * CLIENTS_MAX * _KEY_MAX
_FILE: Final = re.compile(r"([1-9]\d{0,4})-([A-Za-z0-9][\w.-]{0,31})")


def read_keys(directory: Path) -> dict[str, bytes]:
    """Return the content of each file that is named like a key. Raises OSError."""
    found = {}
    for path in sorted(directory.iterdir()):
        if _FILE.fullmatch(path.name) is not None and path.is_file():
            with path.open("rb") as file:
                found[path.name] = file.read(_KEY_MAX).strip()
            if len(found) > CLIENTS_MAX:  # which clients_of() refuses
                break
    return found


def clients_of(directory: Path, keys: dict[str, bytes], rate_bps: float) -> list[WormholeClient]:
    """Return the clients of keys that were read. Raises SpecError."""
    found = []
    for name, key in keys.items():
        match = _FILE.fullmatch(name)
        assert match is not None
        if len(key) < KEY_MIN:
            raise SpecError(f"{directory / name}: shorter than {KEY_MIN} octets; make it by 'keygen'")
        found.append(WormholeClient(int(match[1]), match[2], key, rate_bps))
    _require_different(directory, found)
    return found


def _require_different(directory: Path, clients: Iterable[WormholeClient]) -> None:
    kept = list(clients)
    if len(kept) > CLIENTS_MAX or any(client.number > NUMBER_MAX for client in kept):
        raise SpecError(f"{directory}: a backend has {CLIENTS_MAX} clients at most, numbered to {NUMBER_MAX}")
    for what in "number", "name", "key":
        values = [getattr(client, what) for client in kept]
        if len(set(values)) < len(values):
            raise SpecError(f"{directory}: two clients have the same {what}; remove one")


def next_file(directory: Path, name: str) -> Path:
    """Return the file for the key of a new client, whose number no other has. Raises OSError, SpecError."""
    used = [_FILE.fullmatch(path.name) for path in directory.iterdir()]
    taken = [match for match in used if match is not None]
    number = 1 + max((int(match[1]) for match in taken), default=0)
    path = directory / f"{number}-{name}"
    if not _FILE.fullmatch(path.name):
        raise SpecError(f"{name!r}: not a name; write up to 32 letters, digits, '_', '.' and '-'")
    if any(match[2] == name for match in taken):
        raise SpecError(f"{name}: has a key already; remove that first")
    return path


class ClientServer(Protocol):
    """The stage."""

    def serve(self, clients: Iterable[WormholeClient]) -> None:
        """Serve these clients from now on."""
        ...


class KeyDirectory:
    """Reads the clients' keys, by the broker once the service has given up its rights."""

    def __init__(self, directory: Path, rate_bps: float) -> None:
        self._directory, self._rate_bps = directory, rate_bps
        self._source = ReadAgain(directory, self._pack)
        self._task: asyncio.Task[None] | None = None
        self._is_wanted = False

    def _pack(self) -> int:
        texts = {name: key.hex() for name, key in read_keys(self._directory).items()}
        with SealedFile.of([json.dumps(texts).encode()]) as packed:
            return packed.release()

    def clients(self) -> list[WormholeClient]:
        """Return the clients whose keys are there now. Waits for the disk. Raises SpecError."""
        try:
            with SealedFile(self._source.read()) as packed:
                keys = json.loads(packed.read(_ALL_MAX))
        except OSError as e:
            why = e.strerror or str(e)  # a time-out has no strerror
            raise SpecError(f"{self._directory}: {why}; name a directory with the clients' keys") from None
        return clients_of(
            self._directory, {name: bytes.fromhex(key) for name, key in keys.items()}, self._rate_bps
        )

    def begin(self, server: ClientServer) -> None:
        """Begin to read again, and serve the clients. A fault is a warning, and nothing changes."""
        self._is_wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._go_on(server))

    async def _go_on(self, server: ClientServer) -> None:
        while self._is_wanted:  # asked again meanwhile: the keys may have changed once more
            self._is_wanted = False
            try:
                clients = await asyncio.to_thread(self.clients)  # frames go on meanwhile
            except VTLError as e:
                log.warning("%s; the clients of before stay", e)
                continue
            server.serve(clients)
