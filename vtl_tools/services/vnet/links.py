"""The links of vtl-vnet that come and go while it runs: the devices, and one Source that reads them all."""

import re
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from vtl_tools.common.device.base import Device
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.spec import open_device
from vtl_tools.common.errors import SpecError
from vtl_tools.common.session.tcp_link import TCPLink
from vtl_tools.services.vnet.keeper import LINK_NAME, ServiceSpec, parse_service
from vtl_tools.services.vnet.switch import LinkKind, LinkRole

LINKS_MAX: Final = 256
_TCP: Final = re.compile(r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\],]+)):(?P<port>\d{1,5})(?P<words>(?:,\w+)*)")
_AT_START: Final = ("tap", "libpcap")


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A link as it was asked for."""

    name: str
    spec: str
    role: LinkRole
    service: ServiceSpec | None = None


def parse_link(name: str, spec: str) -> LinkSpec:
    """Return the link of a name and a spec. Raises SpecError."""
    if not LINK_NAME.fullmatch(name):
        raise SpecError(f"link {name!r}: not a name; write up to 32 letters, digits, '_', '.' and '-'")
    kind, colon, rest = spec.partition(":")
    if not colon or kind in _AT_START:
        raise SpecError(
            f"{spec!r}: an interface is locked and guarded at the start; name it by --iface or --uplink"
        )
    if kind == "service":
        service = parse_service(spec)
        return LinkSpec(name, spec, LinkRole(LinkKind.SERVICE, service.sides), service)
    if kind == "tcp":
        _, _, transit = _tcp(spec, rest)
        return LinkSpec(name, spec, LinkRole(LinkKind.VNET, transit=transit))
    open_device(spec).close()
    return LinkSpec(name, spec, LinkRole())


def _tcp(spec: str, rest: str) -> tuple[tuple[str, int], bool, bool]:
    """Return address, server and transit."""
    match = _TCP.fullmatch(rest)
    words = match["words"].split(",")[1:] if match else []
    if match is None or not 0 < int(match["port"]) < 65536 or not set(words) <= {"server", "transit"}:
        raise SpecError(f"{spec!r}: not a link to a daemon; write tcp:HOST:PORT[,server][,transit]")
    return (match["v6"] or match["host"], int(match["port"])), "server" in words, "transit" in words


def make_link(link: LinkSpec, key: bytes | None) -> Device:
    """Return the device of a link that is no service. Raises SpecError."""
    kind, _, rest = link.spec.partition(":")
    if kind != "tcp":
        return open_device(link.spec)
    if key is None:
        raise SpecError(f"{link.spec}: needs a key; start with --key-file ('vtl-vnet keygen FILE' makes one)")
    address, server, _ = _tcp(link.spec, rest)
    return TCPLink(link.spec, address, server=server, key=key)


class LinkPool:
    """Devices in one epoll instance. on_batch: is given what each device read."""

    def __init__(self, on_batch: Callable[[Device, Batch, float], object]) -> None:
        self._epoll = select.epoll()
        self._devices: dict[int, Device] = {}
        self._on_batch = on_batch

    def add(self, device: Device) -> None:
        """Open a device and read it from now on. Raises VTLError."""
        device.__enter__()
        self._devices[device.fileno()] = device
        self._epoll.register(device.fileno(), select.EPOLLIN)

    def remove(self, device: Device) -> None:
        """Close a device."""
        del self._devices[device.fileno()]
        self._epoll.unregister(device.fileno())
        device.close()

    def fileno(self) -> int:
        """Return a descriptor that is readable when poll() has something to do."""
        return self._epoll.fileno()

    def poll(self, now: float) -> bool:
        """Read each device that has something, once."""
        moved = False
        for fd, _ in self._epoll.poll(0):
            device = self._devices.get(fd)
            if device is not None and (batch := device.read()).count:
                moved = True
                self._on_batch(device, batch, now)
        return moved

    def close(self) -> None:
        """Close all devices. Idempotent."""
        for device in list(self._devices.values()):
            self.remove(device)
        self._epoll.close()
