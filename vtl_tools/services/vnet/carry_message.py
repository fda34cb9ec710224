"""The messages of two daemons about a service for a pair of stations. Sans-IO."""

import json
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.services.vnet.long_paths import Pair

_WHY_MAX: Final = 200
_PORT_MAX: Final = 65534
"""The port after it is used as well."""


class CarryMessage(NamedTuple):
    """A message. pair: from the side of the daemon that has it. port: of a vtl-udt; 0: none is told."""

    said: str
    pair: Pair
    port: int = 0
    why: str = ""

    def to_octets(self) -> bytes:
        """Return the item."""
        pair = self.pair
        told = {
            "say": self.said, "port": self.port, "why": self.why, "ours": str(pair.ours),
            "theirs": str(pair.theirs), "our_mac": pair.our_mac.hex(), "their_mac": pair.their_mac.hex(),
        }  # fmt: skip
        return json.dumps(told).encode()

    @classmethod
    def of(cls, item: bytes) -> "CarryMessage":
        """Return what an item of the other daemon says. Raises Malformed."""
        try:
            told = json.loads(item)
            pair = Pair(
                ip_address(str(told["theirs"])), ip_address(str(told["ours"])),
                bytes.fromhex(told["their_mac"]), bytes.fromhex(told["our_mac"]),
            )  # fmt: skip
            said, port, why = told["say"], told["port"], told["why"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise Malformed("carry") from None
        if not _is_sane(pair):
            raise Malformed("carry.pair")
        if type(port) is not int or not 0 <= port <= _PORT_MAX:
            raise Malformed("carry.port")
        return cls(str(said), pair, port, _shown(why))


def _is_sane(pair: Pair) -> bool:
    """Return whether these can be two stations."""
    if "%" in str(pair):
        return False  # a zone may be any text, and the addresses become a part of specs and rules
    hosts = pair.ours.packed, pair.theirs.packed
    macs = pair.our_mac, pair.their_mac
    return (
        len(hosts[0]) == len(hosts[1])
        and all(map(is_single_host, hosts))
        and all(len(mac) == 6 and not mac[0] & 1 for mac in macs)
    )


def _shown(why: Any) -> str:
    """Return a reason that may be shown to people; "": it may not."""
    return why[:_WHY_MAX] if isinstance(why, str) and why.isprintable() else ""
