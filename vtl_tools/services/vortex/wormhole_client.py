"""A client of vortex-backend: its key, the addresses that stand for it, and what it may and did."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from vtl_tools.common.errors import SpecError
from vtl_tools.common.packet import address
from vtl_tools.common.session.keys import key_id
from vtl_tools.services.vortex.flows import Flows
from vtl_tools.services.vortex.limits import Allowance

CLIENTS_MAX: Final = 1024
FLOWS_OF_CLIENT: Final = 1024
NUMBER_MAX: Final = 65534
KEY_MIN: Final = 16
_FILE: Final = re.compile(r"([1-9]\d{0,4})-([A-Za-z0-9][\w.-]{0,31})")
_NETWORK4: Final = address.ip("198.19.0.0")
_NETWORK6: Final = address.ip("2001:2:0:1::")


@dataclass
class WormholeClient:
    """A client. number: of 198.19.x.y and 2001:2:0:1::x, which its attackers seem to have called."""

    number: int
    name: str
    key: bytes
    rate_bps: float = 0.0
    remote: str = ""
    """Where it is connected from; "": it is not."""
    frames_in: int = 0
    frames_out: int = 0
    octets_in: int = 0
    octets_out: int = 0
    drops: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.addresses = {4: _numbered(_NETWORK4, self.number), 16: _numbered(_NETWORK6, self.number)}
        self.key_id = key_id(self.key)
        self.flows = Flows(FLOWS_OF_CLIENT)
        self.allowances = [Allowance(self.rate_bps) for _ in range(2)]

    def status(self) -> dict[str, object]:
        """Return the client's part of the status."""
        return {
            "address4": address.format_ip(self.addresses[4]),
            "address6": address.format_ip(self.addresses[16]),
            "remote": self.remote,
            "flows": len(self.flows),
            "opened": self.flows.opened,
            "frames_in": self.frames_in,
            "octets_in": self.octets_in,
            "frames_out": self.frames_out,
            "octets_out": self.octets_out,
            "drops": dict(self.drops),
        }


def _numbered(network: bytes, number: int) -> bytes:
    return network[:-2] + number.to_bytes(2, "big")


def is_of_clients(octets: bytes) -> bool:
    """Return whether an IP address stands for a client."""
    return octets[:-2] == (_NETWORK4 if len(octets) == 4 else _NETWORK6)[:-2]


def read_clients(directory: Path, rate_bps: float) -> list[WormholeClient]:
    """Return the clients whose keys are in a directory. Raises SpecError."""
    found = []
    try:
        for path in sorted(directory.iterdir()):
            if (match := _FILE.fullmatch(path.name)) is not None and path.is_file():
                key = path.read_bytes().strip()
                if len(key) < KEY_MIN:
                    raise SpecError(f"{path}: shorter than {KEY_MIN} octets; make it by 'keygen'")
                found.append(WormholeClient(int(match[1]), match[2], key, rate_bps))
    except OSError as e:
        raise SpecError(f"{e.filename}: {e.strerror}; name a directory with the clients' keys") from None
    _require_different(directory, found)
    return found


def _require_different(directory: Path, clients: Iterable[WormholeClient]) -> None:
    kept = list(clients)
    if not kept:
        raise SpecError(f"{directory}: has no key; make one: 'vortex-backend keygen {directory} NAME'")
    if len(kept) > CLIENTS_MAX or max(client.number for client in kept) > NUMBER_MAX:
        raise SpecError(f"{directory}: a backend has {CLIENTS_MAX} clients at most, numbered to {NUMBER_MAX}")
    for what in "number", "name", "key":
        values = [getattr(client, what) for client in kept]
        if len(set(values)) < len(values):
            raise SpecError(f"{directory}: two clients have the same {what}; remove one")


def next_file(directory: Path, name: str) -> Path:
    """Return the file for the key of a new client, whose number no other has. Raises SpecError."""
    used = [_FILE.fullmatch(path.name) for path in directory.iterdir()]
    taken = [match for match in used if match is not None]
    number = 1 + max((int(match[1]) for match in taken), default=0)
    path = directory / f"{number}-{name}"
    if not _FILE.fullmatch(path.name):
        raise SpecError(f"{name!r}: not a name; write up to 32 letters, digits, '_', '.' and '-'")
    if any(match[2] == name for match in taken):
        raise SpecError(f"{name}: has a key already; remove that first")
    return path
