"""The stage of vtl-split without an uplink: the guest's whole network, through sockets of the host."""

import os
from functools import partial

from vtl_tools.common.device.batch import Batch
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.guest_network import GuestNetwork
from vtl_tools.common.relay.budget import DEFAULT_LIMITS, RelayLimits
from vtl_tools.common.relay.connector import Connector
from vtl_tools.common.relay.flow import RelayFlow
from vtl_tools.common.relay.relay import Relay
from vtl_tools.common.socks import Reason
from vtl_tools.common.stage import Stage
from vtl_tools.common.tcp.wire import Path
from vtl_tools.services.split.connector import SplitConnector
from vtl_tools.services.split.destinations import Destinations
from vtl_tools.services.split.tuning import Tuning


class SplitBySockets(Stage):
    """One port, the guest. Each TCP connection of it ends here, and continues from a socket of the host.

    destinations: where the guest may go. tuning: of the sockets. early_ack: see Relay.
    """

    def __init__(
        self,
        destinations: Destinations,
        tuning: Tuning,
        *,
        network: GuestAddresses,
        dhcp: bool = True,
        early_ack: bool = False,
        limits: RelayLimits = DEFAULT_LIMITS,
    ) -> None:
        super().__init__(ports=1)
        self._destinations, self._tuning = destinations, tuning
        self.relay = Relay(
            self._connect,
            os.urandom(32),
            limits=limits,
            send=partial(self.send, 0),
            drops=self.drops,
            on_non_tcp=self._on_non_tcp,
            on_end=self._on_end,
            early_ack=early_ack,
        )
        self.guest_network = GuestNetwork(
            network,
            dhcp=dhcp,
            on_dns=lambda pkt: False,
            send=self._send_frame,
            drop=self.relay.drop_frame,
        )
        self.sources = [self.relay]

    def on_mtu(self, port: int, octets: int) -> None:
        """Send packets that the link carries, and tell the guest its MTU."""
        self.relay.on_mtu(port, octets)
        self.guest_network.on_mtu(octets)

    def on_batch(self, port: int, batch: Batch, now: float) -> None:
        """Take the guest's frames."""
        self.relay.on_batch(port, batch, now)

    def _on_non_tcp(self, frame: memoryview, now: float) -> None:
        self.guest_network.on_frame(frame, now)

    def _send_frame(self, frame: bytes | bytearray, now: float) -> None:
        self.send(0, [(bytes(frame),)], now)

    def _connect(self, path: Path) -> Connector | Reason:
        """Return the connector for a path."""
        found = self._destinations.find(path.local, path.local_port)
        if isinstance(found, Reason):
            return found
        is_open = partial(self._destinations.is_still, path.local, path.local_port, found)
        return SplitConnector(found, self._tuning, is_open)

    def _on_end(self, flow: RelayFlow, now: float) -> None:
        self._tuning.release(flow.stream)

    # --- time

    def settle(self, now: float) -> None:
        """Carry what can be carried."""
        self.relay.settle(now)

    def deadline(self) -> float | None:
        """Return when the first of its parts is due."""
        parts = self.relay.deadline(), self.guest_network.deadline()
        return min((due for due in parts if due is not None), default=None)

    def wake(self, now: float) -> None:
        """Do what is due."""
        self.relay.wake(now)
        self.guest_network.wake(now)

    def on_stop(self, now: float) -> None:
        """Reset the guest's connections."""
        self.relay.on_stop(now)

    # --- what --json prints

    def list_flows(self, now: float) -> list[dict[str, object]]:
        """Return the status of each TCP connection."""
        return self.relay.list_flows(now)

    def status(self, now: float) -> dict[str, object]:
        """Return the settings, the connections and the counters."""
        carried = self.relay.status(now)
        split: dict[str, object] = {
            "congestion": self._tuning.congestion,
            "enlarged": self._tuning.enlarged,
        }
        return {"split": split, "connections": carried.pop("connections"), "carried": carried}
