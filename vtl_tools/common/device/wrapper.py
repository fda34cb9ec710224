"""Base of devices around another device: passes everything on that a subclass does not change."""

from typing import Any

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import Batch


def _inner(name: str) -> Any:
    """Return a property that forwards to the wrapped device."""

    def get(self: "Wrapper") -> object:
        return getattr(self.device, name)

    def put(self: "Wrapper", value: object) -> None:
        setattr(self.device, name, value)

    return property(get, put)


class Wrapper(Device):
    """Passes everything on to `device`, which also holds status and counters."""

    spec = _inner("spec")
    mtu = _inner("mtu")
    offload = _inner("offload")
    finished = _inner("finished")
    interface = _inner("interface")
    mark = _inner("mark")
    silent = _inner("silent")
    unwritten = _inner("unwritten")
    shared = _inner("shared")
    vm_mac = _inner("vm_mac")
    capabilities = _inner("capabilities")
    up = _inner("up")
    losses = _inner("losses")
    rx_frames = _inner("rx_frames")
    rx_octets = _inner("rx_octets")
    tx_frames = _inner("tx_frames")
    tx_octets = _inner("tx_octets")
    drops = _inner("drops")
    handle = _inner("handle")
    _joined = _inner("_joined")

    def __init__(self, device: Device) -> None:  # not super().__init__: there is nothing of its own
        self.device = device

    def connect(self) -> None:
        """Open the inner link."""
        self.device.connect()

    def read(self) -> Batch:
        """Read from the inner link."""
        return self.device.read()

    def write(self, batch: Batch) -> int:
        """Write to the inner link."""
        return self.device.write(batch)

    def fileno(self) -> int:
        """Return the inner link's descriptor."""
        return self.device.fileno()

    def occupant(self) -> str:
        """Return the inner link's occupant."""
        return self.device.occupant()

    def signal(self, wanted: bool) -> None:
        """Enable or disable wake-ups of the inner link."""
        self.device.signal(wanted)

    def status(self) -> dict[str, object]:
        """Return the inner link's status."""
        return self.device.status()

    def close(self) -> None:
        """Close the inner link. Idempotent."""
        self.device.close()
