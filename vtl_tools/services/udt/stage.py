"""The stage of vtl-udt: TCP of the guest ends here and goes on as a flow of a session, and vice versa.

Paper section 3.3. Port 0 is the guest's link, port 1 the uplink, if there is one.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.addresses import GATEWAY_MAC, GuestAddresses
from vtl_tools.common.guest_net.guest_network import GuestNetwork
from vtl_tools.common.guest_net.hops import NextHops
from vtl_tools.common.packet import ip, quick
from vtl_tools.common.packet.address import is_multicast_mac
from vtl_tools.common.packet.nd import NeighborSolicit
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.tcp import ACK, FIN, RST, SYN
from vtl_tools.common.packet.vnet import VNET
from vtl_tools.common.relay.budget import DEFAULT_LIMITS, RelayLimits
from vtl_tools.common.relay.connector import Connector
from vtl_tools.common.relay.icmp_errors import read_error
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.socks import Reason
from vtl_tools.common.stage import Stage
from vtl_tools.common.tcp.wire import Path, Segment, is_intact, parse
from vtl_tools.services.udt.allowed import AllowList, Network
from vtl_tools.services.udt.far import FarSide
from vtl_tools.services.udt.near import FarModule, NearSide
from vtl_tools.services.udt.transport.answerer import Answerer
from vtl_tools.services.udt.transport.carrier import Carriers
from vtl_tools.services.udt.transport.flow import MuxFlow

GUEST, UPLINK = 0, 1
OnFlow = Callable[[MuxFlow, float], object]

_ETHERTYPE: Final = slice(VNET + 12, VNET + 14)
_ARP: Final = b"\x08\x06"
_IPV6: Final = b"\x86\xdd"
_IP: Final = (b"\x08\x00", _IPV6)
_PROTOCOL4: Final = quick.L3 + 9
_NEXT_HEADER6: Final = quick.L3 + 6
_NO_ERROR: Final = frozenset((ip.UDP, ip.ESP))
"""Protocols without a look at the rest of the packet."""
_DST_MAC: Final = slice(VNET, VNET + 6)
_OPENS: Final = SYN | ACK | RST | FIN
_ROUNDS: Final = 4
"""Times that settle() goes round: what one side passes to a session, the other may answer at once."""


class Transformer(Stage):
    """Terminates the guest's TCP connections to what is behind a peer, and makes those that peers ask for.

    behind: prefixes and their far modules. uplink: whether there is a second port, for all other traffic.
    has_bbr: whether this host has BBR. stations: Ethernet addresses of hosts that the uplink reaches as well:
    connections to these pass while the far module does not answer. takes: whether connections are taken that
    begin from now on; all others pass to the uplink.
    """

    def __init__(
        self,
        behind: Sequence[tuple[Network, FarModule]],
        allowed: AllowList,
        *,
        secret: bytes,
        uplink: bool = False,
        limits: RelayLimits = DEFAULT_LIMITS,
        has_bbr: bool = True,
        stations: Mapping[bytes, bytes] = MappingProxyType({}),
        takes: bool = True,
    ) -> None:
        super().__init__(ports=2 if uplink else 1)
        self._has_uplink, self._stations, self.takes = uplink, stations, takes
        self.near = NearSide(behind)
        send = partial(self.send, GUEST)
        self.relay = Relay(
            self._dial,
            secret,
            limits=limits,
            send=send,
            drops=self.drops,
            on_end=self.near.on_end,
            has_more=lambda: self._has_more,
        )
        self.hops = NextHops(GATEWAY_MAC, self._send_frame)
        self.guest_network = GuestNetwork(
            GuestAddresses(prefix=None),
            dhcp=False,
            on_dns=lambda _: False,
            send=self._send_frame,
            drop=self.relay.drop_frame,
        )
        self.far = FarSide(
            send,
            mac=GATEWAY_MAC,
            secret=secret,
            hops=self.hops,
            allowed=allowed,
            limits=limits,
            drops=self.drops,
            event=lambda name, **fields: self.event(name, **fields),
            has_bbr=has_bbr,
            stations=stations,
            losses=lambda: {name: one.counters().loss for name, one in self.answerers.items()},
        )
        self.answerers: dict[str, Answerer] = {}
        self._parts: list[Carriers] = [dialer for module in self.near.modules for dialer in module.dialers]
        self.sources = [self.relay, *self._parts]
        self._picked = Batch()
        self._now = 0.0

    def listen(self, name: str, make: Callable[[OnFlow], Answerer]) -> None:
        """Take the flows that come by a transport. make: returns what gives them to a function."""
        answerer = self.answerers[name] = make(partial(self.far.on_flow, name))
        self._parts.append(answerer)
        self.sources.append(answerer)

    def on_mtu(self, port: int, octets: int) -> None:
        """Send packets that the guest's link carries."""
        if port == GUEST:
            self.relay.on_mtu(port, octets)
            self.far.active.on_mtu(octets)
            self.guest_network.on_mtu(octets)

    # --- frames

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the guest's frames, and pass on those that are not for us; pass on what the uplink brings."""
        if port == UPLINK:
            self.out[GUEST](batch, now)
            return
        self._now = now
        passing = [i for i, frame in enumerate(batch) if not self._take(frame, now)]
        if passing:
            whole = len(passing) == batch.count
            self.out[UPLINK](batch if whole else self._picked.pick(batch, passing), now)

    def _take(self, frame: memoryview, now: float) -> bool:
        """Take a frame of the guest; False: it passes to the uplink."""
        is_ours = not self._has_uplink or frame[_DST_MAC] == GATEWAY_MAC
        kind = bytes(frame[_ETHERTYPE])
        if not is_ours and kind not in (*_IP, _ARP):
            return False  # also a VLAN tag: what is below it passes whole
        try:
            segment = parse(frame)
            if segment is None:
                return self._take_other(frame, kind, now, is_ours=is_ours)
        except Malformed:
            self.relay.drop_frame(frame, "malformed", now)
            return True
        if self.far.on_frame(segment, frame, now):
            return True
        if not is_ours and not self._is_opening(segment) and self.relay.find(segment.flow, now) is None:
            return False
        self.relay.on_segment(segment, frame, now)
        return True

    def _is_opening(self, segment: Segment) -> bool:
        """Tell whether a segment opens a connection to what is behind a peer."""
        if segment.flags & _OPENS != SYN or not self.takes:
            return False
        size = (len(segment.flow) - 4) // 2
        target = segment.flow[size : 2 * size]
        return self.near.is_reached(target) if target in self._stations else self.near.is_behind(target)

    def _take_other(self, frame: memoryview, kind: bytes, now: float, *, is_ours: bool) -> bool:
        """Take a frame that is no TCP segment: an error about one, a question for us, or any other for us."""
        if kind == _ARP or (kind == _IPV6 and frame[_NEXT_HEADER6] == ip.ICMPV6):
            pkt = Packet.at(frame)
            self.hops.hear(pkt, now)
            is_ours = is_ours or self._is_asked_for(pkt)
        if kind in _IP and self._is_error(frame, kind, now):
            return True
        if is_ours:
            self.guest_network.on_frame(frame, now)
        return is_ours

    def _is_error(self, frame: memoryview, kind: bytes, now: float) -> bool:
        """Take a frame if it is an ICMP error about a segment that we have sent."""
        protocol = frame[_PROTOCOL4 if kind == _IP[0] else _NEXT_HEADER6]
        if protocol in _NO_ERROR or (error := read_error(frame)) is None:
            return False
        if not (frame[0] & 3 or is_intact(frame)):
            return False
        return self.far.active.on_error(error, now) or self.relay.on_error(error, now)

    def _is_asked_for(self, pkt: Packet) -> bool:
        """Tell whether a packet looks for a neighbour that only we can answer for: one behind a peer."""
        if not is_multicast_mac(pkt.eth.dst):
            return False
        if pkt.arp is not None:
            target = pkt.arp.tpa
        elif isinstance(pkt.nd, NeighborSolicit):
            target = pkt.nd.target
        else:
            return False
        if target in self._stations:
            return False
        return self.near.is_named(target) or target in self.far.clients

    def _send_frame(self, frame: bytes | bytearray, now: float) -> None:
        self.send(GUEST, [(bytes(frame),)], now)

    def _dial(self, path: Path) -> Connector | Reason:
        return self.near.dial(path, self._now)

    # --- time

    @property
    def _has_more(self) -> bool:
        return self.far.has_more or any(part.has_more for part in self._parts)

    def settle(self, now: float) -> None:
        """Carry what can be carried."""
        for _ in range(_ROUNDS):
            self.relay.settle(now)
            self.far.settle(now)
            for part in self._parts:
                part.settle(now)
            if not self.far.has_more:
                break

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        parts = (
            self.relay.deadline(), self.near.deadline(), self.far.deadline(), self.hops.deadline(),
            self.guest_network.deadline(), *(part.deadline() for part in self._parts),
        )  # fmt: skip
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        self._now = now
        self.relay.wake(now)
        self.far.wake(now)
        self.hops.wake(now)
        self.guest_network.wake(now)
        for part in self._parts:
            part.wake(now)
        self.near.wake(self.relay.flows, now)

    def on_stop(self, now: float) -> None:
        """Reset all connections, and tell the peers."""
        self.relay.on_stop(now)
        self.far.on_stop(now)
        for part in self._parts:
            part.on_stop(now)

    # --- what a user and vtl-vnet ask

    def verbs(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Return the verbs beside `status`."""
        return {"carry": self._carry}

    def _carry(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin or cease to take connections; tell what is carried."""
        if request.get("take") is not None:
            self.takes = bool(request["take"])
        budgets = self.relay.budget, self.far.budget
        return {
            "taking": self.takes,
            "up": any(module.up for module in self.near.modules),
            "flows": len(self.relay.flows) + len(self.far.flows),
            "octets": sum(budget.octets_up + budget.octets_down for budget in budgets),
        }

    def status(self, now: float) -> dict[str, object]:
        """Return the peers, what listens, and the counters of both sides."""
        return {
            "peers": {module.name: module.status() for module in self.near.modules},
            "transports": {k: v for module in self.near.modules for k, v in module.transports(now).items()},
            "listeners": {name: part.status(now) for name, part in self.answerers.items()},
            "near": self.relay.status(now),
            "far": self.far.status(),
        }
