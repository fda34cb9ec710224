"""A client of vortex-backend: its key, the addresses that stand for it, and what it may and did."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from vtl_tools.common.packet import address
from vtl_tools.common.session.keys import key_id
from vtl_tools.services.vortex.flows import Flows
from vtl_tools.services.vortex.limits import Allowance

FLOWS_OF_CLIENT: Final = 1024
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

    def is_same(self, other: "WormholeClient") -> bool:
        """Return whether number and key are the same."""
        return (self.number, self.key) == (other.number, other.key)

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
