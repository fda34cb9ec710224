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
from vtl_tools.common.session.items import LINK_NAME, Hello
from vtl_tools.common.session.tcp_link import TCPDoor, TCPLink
from vtl_tools.services.vnet.service_spec import ENDS_TCP, ServiceSpec, parse_service
from vtl_tools.services.vnet.switch import LinkKind, LinkRole
from vtl_tools.services.vnet.udp_link import UDPDoor, UDPLink

LINKS_MAX: Final = 256
_PEER: Final = re.compile(
    r"(?:\[(?P<v6>[^\]]+)\]|(?P<host>[^:\[\],]+)):(?P<port>\d{1,5})(?P<words>(?:,\w+)*)"
)
_KINDS: Final = ("tcp", "udp")
"""Of links between daemons."""
_AT_START: Final = ("tap", "libpcap")


@dataclass(frozen=True, slots=True)
class LinkSpec:
    """A link as it was asked for. is_door: it is none itself, and listens for daemons."""

    name: str
    spec: str
    role: LinkRole
    service: ServiceSpec | None = None
    is_door: bool = False


def parse_link(name: str, spec: str) -> LinkSpec:
    """Return the link of a name and a spec. Raises SpecError."""
    if not LINK_NAME.fullmatch(name):
        raise SpecError(f"link {name!r}: not a name; write up to 32 letters, digits, '_', '.' and '-'")
    kind, colon, _ = spec.partition(":")
    if not colon or kind in _AT_START:
        raise SpecError(
            f"{spec!r}: an interface is locked and guarded at the start; name it by --iface or --uplink"
        )
    if kind == "service":
        service = parse_service(spec)
        role = LinkRole(LinkKind.SERVICE, service.sides, ends_tcp=service.name in ENDS_TCP)
        return LinkSpec(name, spec, role, service)
    if kind == "evpn":
        _evpn(spec).close()
        return LinkSpec(name, spec, LinkRole(told=True))
    if kind in _KINDS:
        peer = _peer(spec)
        return LinkSpec(name, spec, LinkRole(LinkKind.VNET, transit=peer.transit), is_door=peer.listen)
    open_device(spec).close()
    return LinkSpec(name, spec, LinkRole())


@dataclass(frozen=True, slots=True)
class _PeerSpec:
    """The spec of a link between daemons, read."""

    kind: str
    address: tuple[str, int]
    server: bool
    listen: bool
    transit: bool


def _peer(spec: str) -> _PeerSpec:
    kind, _, rest = spec.partition(":")
    match = _PEER.fullmatch(rest)
    words = match["words"].split(",")[1:] if match else []
    is_known = set(words) <= {"server", "listen", "transit"} and len({"server", "listen"} & set(words)) < 2
    if match is None or not 0 < int(match["port"]) < 65536 or not is_known:
        raise SpecError(
            f"{spec!r}: not a link to a daemon; write {kind}:HOST:PORT[,server | ,listen][,transit]"
        )
    address = match["v6"] or match["host"], int(match["port"])
    return _PeerSpec(kind, address, "server" in words, "listen" in words, "transit" in words)


def _evpn(spec: str) -> Device:
    try:
        from vtl_tools.services.vnet.evpn.link import EvpnLink
        from vtl_tools.services.vnet.evpn.spec import parse_evpn
    except ImportError:
        raise SpecError(f"{spec!r}: needs the library h2; install python3-h2 and start again") from None
    return EvpnLink(parse_evpn(spec))


def door_of(spec: str) -> str:
    """Return the spec by which other daemons call a door."""
    return spec.partition(",")[0]


def make_link(link: LinkSpec, key: bytes | None, hello: Hello) -> Device:
    """Return the device of a link that is no service. Raises SpecError."""
    if link.role.told:
        return _evpn(link.spec)
    if link.role.kind is not LinkKind.VNET:
        return open_device(link.spec)
    if key is None:
        raise SpecError(f"{link.spec}: needs a key; start with --key-file ('vtl-vnet keygen FILE' makes one)")
    peer = _peer(link.spec)
    if peer.listen:
        door = UDPDoor if peer.kind == "udp" else TCPDoor
        return door(link.spec, peer.address, key=key, hello=hello)
    way = UDPLink if peer.kind == "udp" else TCPLink
    return way(link.spec, peer.address, server=peer.server, key=key, hello=hello)


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
