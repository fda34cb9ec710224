"""The stage of vtl-split with an uplink: the second connection leaves by it from the client's own address."""

import os
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.errors import Malformed
from vtl_tools.common.packet import ip, quick
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.relay.active import ACTIVE, ActiveEndpoints
from vtl_tools.common.relay.budget import DEFAULT_LIMITS, RelayLimits
from vtl_tools.common.relay.connector import Connector
from vtl_tools.common.relay.icmp_errors import read_error
from vtl_tools.common.relay.relay import RELAYED, Relay
from vtl_tools.common.socks import Reason
from vtl_tools.common.stage import Stage
from vtl_tools.common.tcp.config import Config
from vtl_tools.common.tcp.wire import Path, is_intact, parse

BUFFER_MAX: Final = 64 << 20
"""Octets up to which a buffer grows: a gigabit a second over half a second."""
_HALF_OPEN: Final = 1024
"""Connections that are being opened at once from the network: each costs the guest a connection, too."""

_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_PROTOCOL4: Final = quick.L3 + 9
_NEXT_HEADER6: Final = quick.L3 + 6
_DIRECT: Final = frozenset((ip.UDP, ip.ESP))
"""Protocols without a look at the rest of the packet."""


class Side:
    """One of the two links. relay: of the connections that come in here; active: of those that leave here.

    Each connection is in the relay of one side, and in the active endpoints of the other.
    """

    def __init__(self, stage: "SplitByUplink", port: int, config: Config, limits: RelayLimits) -> None:
        self._stage, self._port = stage, port
        self.drops: Counter[str] = stage.drops
        send = partial(stage.send, port)
        self.relay = Relay(
            self._dial,
            stage.secret,
            config=config,
            limits=limits,
            send=send,
            drops=self.drops,
            has_more=lambda: stage.other(port).active.has_more,
            early_ack=stage.early_ack and port == 0,
        )
        self.active = ActiveEndpoints(
            send,
            stage.secret,
            config=config,
            drops=self.drops,
            is_full=lambda: stage.other(port).relay.budget.is_full,
        )

    def take(self, frame: memoryview, now: float) -> bool:
        """Take a frame; False: it passes to the other link."""
        kind = frame[quick.KIND : quick.L3]
        if kind not in (_IPV4, _IPV6):
            return False  # also a VLAN tag: what is below it passes whole
        try:
            segment = parse(frame)
            if segment is None:
                return self._take_other(frame, kind == _IPV4, now)
        except Malformed:
            self.drops["malformed"] += 1
            return True
        if not self.active.on_frame(segment, frame, now):
            self.relay.on_segment(segment, frame, now)
        return True

    def _take_other(self, frame: memoryview, is4: bool, now: float) -> bool:
        """Take an IP packet if it is a part of a segment, or an error about one."""
        if frame[_PROTOCOL4 if is4 else _NEXT_HEADER6] in _DIRECT:
            return False
        net = Packet.at(frame).ip
        assert net is not None
        if net.protocol == ip.TCP:
            self.drops["fragment"] += 1
            return True
        if net.protocol != (ip.ICMP if is4 else ip.ICMPV6):
            return False
        error = read_error(frame)
        if error is None:
            return False
        if not frame[0] & 3 and not is_intact(frame):
            self.drops["checksum"] += 1
        elif not (self.active.on_error(error, now) or self.relay.on_error(error, now)):
            self.drops["icmp-no-connection"] += 1
        return True

    def _dial(self, path: Path) -> Connector | Reason:
        if path.remote_mac[0] & 1:  # nobody can send from there
            return Reason.PROHIBITED
        return self._stage.other(self._port).active.connector(_turned(path), self._stage.now)


class SplitByUplink(Stage):
    """Two ports. Each TCP connection ends at the link at which it came in, and continues on the other one.

    It does so from the client's own addresses, also the Ethernet address, so that neither end sees anything
    of it. All that is not TCP passes, and so does what has a VLAN tag.

    congestion: name of the congestion control of both endpoints of a connection. limits: of each direction of
    opening. early_ack: answer the guest's SYN at once, and not when the far side has answered.
    """

    def __init__(
        self,
        *,
        limits: RelayLimits = DEFAULT_LIMITS,
        early_ack: bool = False,
        congestion: str = "newreno",
    ) -> None:
        super().__init__()
        self.secret, self.early_ack, self.congestion = os.urandom(32), early_ack, congestion
        self.now = 0.0
        most = min(BUFFER_MAX, limits.memory // 2)
        from_network = replace(limits, half_open=min(limits.half_open, _HALF_OPEN))
        self._sides = (
            Side(self, 0, replace(RELAYED, buffer_max=most), limits),
            Side(self, 1, replace(ACTIVE, buffer_max=most), from_network),
        )
        self._picked = Batch()
        self.sources = [side.relay for side in self._sides]

    def other(self, port: int) -> Side:
        """Return the side of the other port."""
        return self._sides[1 - port]

    def on_mtu(self, port: int, octets: int) -> None:
        """Send packets that each link carries."""
        side = self._sides[port]
        side.relay.on_mtu(port, octets)
        side.active.on_mtu(octets)

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the segments, and pass on the rest."""
        self.now = now
        take = self._sides[port].take
        passing = [i for i, frame in enumerate(batch) if not take(frame, now)]
        if passing:
            whole = len(passing) == batch.count
            self.out[1 - port](batch if whole else self._picked.pick(batch, passing), now)

    # --- time

    def settle(self, now: float) -> None:
        """Carry what can be carried, and send it."""
        self.now = now
        for side in self._sides:
            side.relay.settle(now)
        for side in self._sides:
            side.active.settle(now)

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        parts = [due for side in self._sides for due in (side.relay.deadline(), side.active.deadline())]
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        self.now = now
        for side in self._sides:
            side.relay.wake(now)
            side.active.wake(now)

    def on_stop(self, now: float) -> None:
        """Reset all connections, at both ends."""
        for side in self._sides:
            side.relay.on_stop(now)
        for side in self._sides:
            side.active.on_stop(now)

    # --- what --json prints

    def list_flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each connection."""
        return [flow for side in self._sides for flow in side.relay.list_flows(now)]

    def status(self, now: float) -> dict[str, object]:
        """Return the settings, and the connections and counters by the side that opens."""
        guest, network = self._sides
        return {
            "split": {"congestion": self.congestion, "early_ack": self.early_ack},
            "from_guest": {**guest.relay.status(now), "far": network.active.status()},
            "from_network": {**network.relay.status(now), "far": guest.active.status()},
        }


def _turned(path: Path) -> Path:
    """Return the path on the other link: we speak for the client there, and not for the server."""
    return Path(path.remote_mac, path.local_mac, path.remote, path.local, path.remote_port, path.local_port)
