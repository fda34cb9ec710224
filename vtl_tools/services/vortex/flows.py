"""The flows that came from outside: only these may be answered. And the record of what was sent."""

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Final

from vtl_tools.common.packet.address import format_ip
from vtl_tools.common.packet.ip import TCP, UDP

FLOWS_MAX: Final = 4096
PER_SOURCE_MAX: Final = 512
PROVEN_MAX: Final = 4096
IDLE_S: Final = {TCP: 300.0}
"""Seconds without traffic from outside after which a flow ends; others 30."""
PROVEN_S: Final = 600.0

FlowKey = tuple[int, bytes, int, int]
"""Protocol; the attacker's address and port; the volunteer's port. Of an echo both are its identifier."""


@dataclass(slots=True)
class WormholeFlow:
    """A flow that an attacker opened. local, own_mac: the volunteer's; hop_mac: where answers go."""

    key: FlowKey
    local: bytes
    own_mac: bytes
    hop_mac: bytes
    began: float
    seen: float
    octets_in: int = 0
    octets_out: int = 0
    frames_in: int = 0
    frames_out: int = 0
    is_proven: bool = False
    offset: int = 0
    """Of TCP: by how much sequence numbers of the backend are ahead of those that it knows."""
    expected_ack: int = -1
    """Of TCP: the acknowledgement of the SYN-ACK, which proves the source; -1: none was sent yet."""
    is_open: bool = False
    """Of TCP: whether it came."""
    guesses: int = 0
    """Of TCP: other acknowledgements that came before it."""
    scale: tuple[int, int] | None = None
    """Of TCP: the window scale of the backend, and that which the attacker was told."""
    ended: float | None = None

    def told(self, now: float) -> dict[str, object]:
        """Return the flow as `log` has it."""
        protocol, source, port, local_port = self.key
        return {
            "protocol": {TCP: "tcp", UDP: "udp"}.get(protocol, "icmp"),
            "from": format_ip(source),
            "from_port": port,
            "to": format_ip(self.local),
            "to_port": local_port,
            "age_s": round(now - self.began, 3),
            "ended": self.ended is not None,
            "proven": self.is_proven,
            "frames_in": self.frames_in,
            "octets_in": self.octets_in,
            "frames_out": self.frames_out,
            "octets_out": self.octets_out,
        }


class Flows:
    """The flows, in bounded memory. When there is no room, the flow that was quiet for longest ends.

    most: flows that are open, and ended ones that are remembered.
    """

    def __init__(self, most: int = FLOWS_MAX) -> None:
        self._most = most
        self._flows: OrderedDict[FlowKey, WormholeFlow] = OrderedDict()
        self._of_source: dict[bytes, int] = {}
        self._proven: OrderedDict[bytes, float] = OrderedDict()
        self._ended: deque[WormholeFlow] = deque(maxlen=most)
        self.opened = 0

    def __len__(self) -> int:
        return len(self._flows)

    def get(self, key: FlowKey) -> WormholeFlow | None:
        """Return a flow by its key."""
        return self._flows.get(key)

    def has_source(self, source: bytes) -> bool:
        """Return whether a source has a flow."""
        return source in self._of_source

    def touch(self, flow: WormholeFlow, now: float) -> None:
        """Note traffic from outside."""
        flow.seen = now
        self._flows.move_to_end(flow.key)

    def open(
        self, key: FlowKey, local: bytes, own_mac: bytes, hop_mac: bytes, now: float
    ) -> WormholeFlow | None:
        """Add a flow. None: its source has too many."""
        source = key[1]
        if self._of_source.get(source, 0) >= PER_SOURCE_MAX:
            return None
        if len(self._flows) >= self._most:
            self.end(next(iter(self._flows.values())), now)
        flow = WormholeFlow(key, local, own_mac, hop_mac, now, now)
        flow.is_proven = self.is_proven(source, now)
        self._flows[key] = flow
        self._of_source[source] = self._of_source.get(source, 0) + 1
        self.opened += 1
        return flow

    def end(self, flow: WormholeFlow, now: float) -> None:
        """Remove a flow, and remember it."""
        del self._flows[flow.key]
        source = flow.key[1]
        self._of_source[source] -= 1
        if not self._of_source[source]:
            del self._of_source[source]
        flow.ended = now
        self._ended.append(flow)

    def end_of_port(self, protocol: int, port: int, now: float) -> int:
        """End the flows to a port of the volunteer; return how many there were."""
        gone = [flow for key, flow in self._flows.items() if key[0] == protocol and key[3] == port]
        for flow in gone:
            self.end(flow, now)
        return len(gone)

    def end_all(self, now: float) -> None:
        """End all flows."""
        for flow in list(self._flows.values()):
            self.end(flow, now)

    def expire(self, now: float) -> None:
        """End the flows that were quiet for too long."""
        for flow in [f for f in self._flows.values() if now - f.seen > IDLE_S.get(f.key[0], 30.0)]:
            self.end(flow, now)

    def prove(self, flow: WormholeFlow, now: float) -> None:
        """Note that a flow's source receives what is sent to it: it completed a handshake of TCP."""
        flow.is_proven = True
        self._proven[flow.key[1]] = now
        self._proven.move_to_end(flow.key[1])
        if len(self._proven) > PROVEN_MAX:
            self._proven.popitem(last=False)

    def is_proven(self, source: bytes, now: float) -> bool:
        """Return whether a source completed a handshake in the last ten minutes."""
        return now - self._proven.get(source, -PROVEN_S) < PROVEN_S

    def told(self, now: float) -> Iterator[dict[str, object]]:
        """Yield flows, the ended ones first."""
        for flow in chain(self._ended, self._flows.values()):
            yield flow.told(now)
