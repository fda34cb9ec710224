"""The stage of vtl-split with an uplink: the second connection leaves by it from the client's own address."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.relay.active import ACTIVE
from vtl_tools.common.relay.budget import DEFAULT_LIMITS, RelayLimits
from vtl_tools.common.relay.flow import RELAYED
from vtl_tools.common.stage import Stage
from vtl_tools.services.split.side import SplitSide, Stations

BUFFER_MAX: Final = 128 << 20
"""Octets up to which a buffer grows: a gigabit a second over half a second, twice, since a lost segment keeps
what was sent after it for another round trip."""
_HALF_OPEN: Final = 1024
"""Connections that are being opened at once from the network: each costs the guest a connection, too."""


class SplitByUplink(Stage):
    """Two ports. Each TCP connection ends at the link at which it came in, and continues on the other one.

    It does so from the client's own addresses, also the Ethernet address, so that neither end sees anything
    of it. All that is not TCP passes, and so do frames with a VLAN tag, and signed segments.

    congestion: name of the congestion control towards the network. limits: of each direction of opening.
    early_ack: answer the guest's SYN at once, and not when the far side has answered. on_demand: take only
    connections that begin while the control socket asks for it; all others pass.
    """

    def __init__(
        self, *, limits: RelayLimits = DEFAULT_LIMITS, early_ack: bool = False, on_demand: bool = False,
        congestion: str = "bbr",
    ) -> None:  # fmt: skip
        super().__init__()
        self.on_demand = on_demand
        self.early_ack, self.congestion = early_ack, congestion
        most = min(BUFFER_MAX, limits.memory * 3 // 4)  # with less than all of it the other flows still move
        make = partial(SplitSide, secret=os.urandom(32), stations=Stations(), drops=self.drops)
        guest = make(
            partial(self.send, 0),
            faces_guest=True,
            config=replace(RELAYED, buffer_max=most),
            limits=limits,
            early_ack=early_ack,
        )
        network = make(
            partial(self.send, 1),
            faces_guest=False,
            config=replace(ACTIVE, buffer_max=most, congestion=congestion),
            limits=replace(limits, half_open=min(limits.half_open, _HALF_OPEN)),
            early_ack=False,
        )
        guest.other, network.other = network, guest
        guest.passes_old = network.passes_old = on_demand
        guest.takes = network.takes = not on_demand
        self.sides = guest, network
        self._picked = Batch()
        self.sources = [side.relay for side in self.sides]

    def on_mtu(self, port: int, octets: int) -> None:
        """Send packets that each link carries."""
        side = self.sides[port]
        side.relay.on_mtu(port, octets)
        side.active.on_mtu(octets)

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the segments, and pass on the rest."""
        take = self.sides[port].take
        passing = [i for i, frame in enumerate(batch) if not take(frame, now)]
        if passing:
            whole = len(passing) == batch.count
            self.out[1 - port](batch if whole else self._picked.pick(batch, passing), now)

    # --- time

    def settle(self, now: float) -> None:
        """Carry what can be carried, and send it."""
        for side in self.sides:
            side.relay.settle(now)
        for side in self.sides:
            side.active.settle(now)

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        parts = [due for side in self.sides for due in (side.relay.deadline(), side.active.deadline())]
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        for side in self.sides:
            side.relay.wake(now)
            side.active.wake(now)

    def on_stop(self, now: float) -> None:
        """Reset all connections, at both ends."""
        for side in self.sides:
            side.relay.on_stop(now)
        for side in self.sides:
            side.active.on_stop(now)

    # --- what vtl-vnet asks

    def verbs(self) -> dict[str, Callable[[dict[str, Any]], dict[str, Any]]]:
        """Return the verbs beside `status` and `flows`."""
        return {"carry": self._carry} if self.on_demand else {}

    def _carry(self, request: dict[str, Any]) -> dict[str, Any]:
        """Begin or cease to take connections; tell what is carried."""
        if request.get("take") is not None:
            for side in self.sides:
                side.takes = bool(request["take"])
        budgets = [side.relay.budget for side in self.sides]
        return {
            "taking": self.sides[0].takes,
            "up": True,
            "flows": sum(len(side.relay.flows) for side in self.sides),
            "octets": sum(budget.octets_up + budget.octets_down for budget in budgets),
        }

    # --- what --json prints

    def list_flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each connection."""
        return [flow for side in self.sides for flow in side.list_flows(now)]

    def status(self, now: float) -> dict[str, object]:
        """Return the settings, and the connections and counters of each direction of opening."""
        split: dict[str, object] = {"congestion": self.congestion, "early_ack": self.early_ack}
        guest, network = (side.status(now) for side in self.sides)
        return {"split": split, **guest, "from_network": network}
