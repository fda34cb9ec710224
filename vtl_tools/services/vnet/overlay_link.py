"""A link of the overlay: its devices, and its counts."""

from dataclasses import dataclass, field
from typing import Any

from vtl_tools.common.device.base import Device
from vtl_tools.common.session.base import PacketCounts
from vtl_tools.common.session.peer_link import PeerLink
from vtl_tools.services.vnet.available import Available
from vtl_tools.services.vnet.links import LinkSpec
from vtl_tools.services.vnet.switch import NET


@dataclass
class OverlayLink:
    """A link. devices: by side; none of a link that the runner has. port: of such a link.

    up: of each device, as it was told. rates: Mbit/s in and out. door: the listener that its daemon came
    through; up_at: when it was up last. over: the link to a daemon beside which it is a shortcut. control:
    the control socket of a service. available, packets: of a link to a daemon.
    """

    spec: LinkSpec
    port: int = -1
    devices: list[Device] = field(default_factory=list)
    up: list[bool] = field(default_factory=list)
    pid: int = 0
    starts: int = 0
    rates: tuple[float, float] = 0.0, 0.0
    octets: tuple[int, int] = 0, 0
    octets_in: int = 0
    octets_out: int = 0
    door: str = ""
    up_at: float = 0.0
    over: str = ""
    control: str = ""
    available: Available = field(default_factory=Available)
    packets: PacketCounts = field(default_factory=PacketCounts)

    def name_of(self, side: int) -> str:
        """Return the name of a side of it: of a service NAME.vm or NAME.net, else that of the link."""
        name = self.spec.name
        return f"{name}.{'net' if side == NET else 'vm'}" if self.spec.service else name

    def measure(self, elapsed_s: float, now: float) -> None:
        """Compute the rates since the call before."""
        before, self.octets = self.octets, (self.octets_in, self.octets_out)
        self.rates = (
            round(8e-6 * (self.octets[0] - before[0]) / elapsed_s, 3),
            round(8e-6 * (self.octets[1] - before[1]) / elapsed_s, 3),
        )
        if all(device.up for device in self.devices):
            self.up_at = now
        if self.devices and isinstance(self.devices[0], PeerLink):
            self._estimate(self.devices[0], now)

    def _estimate(self, device: PeerLink, now: float) -> None:
        """Estimate the available bandwidth by the last second."""
        state: Any = device.status()
        before, self.packets = self.packets, device.packets()
        lost, counted = self.packets.lost - before.lost, self.packets.counted - before.counted
        loss_percent = 100 * lost / counted if 0 <= lost < counted else 0.0  # else it is another connection
        self.available.note(self.rates[1], state["rtt_ms"], loss_percent, now)

    def status(self) -> dict[str, object]:
        """Return the link's part of --json."""
        first_device = self.devices[0] if self.devices else None
        remote = first_device.remote if isinstance(first_device, PeerLink) else None
        first = {} if first_device is None else first_device.status()
        return {
            "spec": self.spec.spec,
            "kind": "door" if self.spec.is_door else self.spec.role.kind.value,
            "door": self.door,
            "daemon": remote.name if remote is not None else "",
            "over": self.over,
            "up": all(device.up for device in self.devices),
            "in_mbit": self.rates[0],
            "out_mbit": self.rates[1],
            "octets_in": self.octets_in,
            "octets_out": self.octets_out,
            "rtt_ms": first.get("rtt_ms"),
            "loss_percent": first.get("loss_percent"),
            "available_mbit": None if self.available.mbit is None else round(self.available.mbit, 3),
            "available_is_least": self.available.is_least,
            "why": first.get("why", ""),
            "evpn": first.get("evpn"),
            "dropped": sum(sum(device.drops.values()) for device in self.devices),
            "losses": sum(device.losses for device in self.devices),
            "pid": self.pid,
            "starts": self.starts,
            "control": self.control,
        }
