"""Remembers the targets to which guests speak first: of streams to these the first ACK may be held.

Held ACKs fill the target's queue of SYNs. When it is full, the target's kernel answers by SYN cookies. If the
queue of connections is full as well, an ACK without octets is then lost for good, and a server that speaks
first never speaks. An ACK that carries octets of the guest is retransmitted with them.
"""

from typing import Final, final

from vtl_tools.common.bounded import BoundedTable
from vtl_tools.common.relay.flow import RelayFlow

_MAX: Final = 1024


@final
class GuestFirst:
    """The targets, which are told from each other by the address and the port that the guests call."""

    __slots__ = ("_targets",)

    def __init__(self) -> None:
        self._targets = BoundedTable[bytes, bool](_MAX)

    def includes(self, key: bytes) -> bool:
        """Tell whether the target of a flow with this key is one of them."""
        return _target_of(key) in self._targets

    def learn(self, flow: RelayFlow) -> None:
        """Note who spoke first on a flow that ends."""
        if flow.spoke_first:
            target = _target_of(flow.key)
            if target not in self._targets:
                self._targets.put(target, True)
        elif flow.written and self._targets:
            self._targets.pop(_target_of(flow.key), None)


def _target_of(key: bytes) -> bytes:
    size = (len(key) - 4) // 2  # of an address: there are two, and two ports
    return key[size : 2 * size] + key[-2:]
