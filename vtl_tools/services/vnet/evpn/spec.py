"""The specs of evpn: links.

evpn:VNI,local=ADDRESS[,gobgp=HOST:PORT|unix:PATH][,rt=AS:NUMBER][,port=N][,dev=NAME][,hold=SECONDS]
"""

import ipaddress
import re
import socket
from dataclasses import dataclass
from typing import Final

from vtl_tools.common.device.peer import Address, SocketAddress
from vtl_tools.common.device.vxlan import PORT
from vtl_tools.common.errors import SpecError
from vtl_tools.services.vnet.evpn.gobgp_api import OwnNetwork

HOLD_S: Final = 180.0
_FORM: Final = (
    "write evpn:VNI,local=ADDRESS[,gobgp=HOST:PORT][,rt=AS:NUMBER][,port=N][,dev=NAME][,hold=SECONDS]"
)
_WORD: Final = re.compile(
    r"local=(?P<local>[\da-fA-F.:]+)|gobgp=(?P<gobgp>unix:/[^,]{1,106}|[^,:\[\]]+:\d{1,5}|\[[^\]]+\]:\d{1,5})"
    r"|rt=(?P<rt>\d{1,5}:\d{1,10})|port=(?P<port>\d{1,5})|dev=(?P<dev>[^\s/:,]{1,15})|hold=(?P<hold>\d{1,5})"
)


@dataclass(frozen=True, slots=True)
class EvpnSpec:
    """An evpn: link as it was asked for. hold_s: how long stations are kept while gobgpd is silent."""

    text: str
    network: OwnNetwork
    gobgp: Address
    port: int
    dev: str
    hold_s: float

    @property
    def family(self) -> socket.AddressFamily:
        """The address family of the underlay."""
        return socket.AF_INET6 if ":" in self.network.vtep else socket.AF_INET

    def place_of(self, vtep: bytes) -> SocketAddress:
        """Return where a VTEP takes frames."""
        host = str(ipaddress.ip_address(vtep))
        return (host, self.port) if len(vtep) == 4 else (host, self.port, 0, 0)


def parse_evpn(spec: str) -> EvpnSpec:
    """Return the link of a spec. Raises SpecError."""
    vni, *words = spec.removeprefix("evpn:").split(",")
    found: dict[str, str] = {}
    for word in words:
        match = _WORD.fullmatch(word)
        if match is None or match.lastgroup in found:
            raise SpecError(f"{spec!r}: {word!r} is not understood; {_FORM}")
        found[match.lastgroup or ""] = match[match.lastgroup or 0]
    if not re.fullmatch(r"\d{1,8}", vni) or not 0 < int(vni) < 1 << 24:
        raise SpecError(f"{spec!r}: {vni!r} is not a network identifier; {_FORM}")
    try:
        local = ipaddress.ip_address(found.get("local", ""))
    except ValueError:
        raise SpecError(f"{spec!r}: needs the address of this host's VTEP; {_FORM}") from None
    where = found.get("gobgp", "127.0.0.1:50051")
    host, _, number = where.rpartition(":")
    ports = int(found.get("port", str(PORT))), 1 if where.startswith("unix:") else int(number)
    asn, _, local_part = found.get("rt", "0:0").partition(":")
    if not all(0 < port < 65536 for port in ports) or int(asn) > 65535 or int(local_part) > 0xFFFFFFFF:
        raise SpecError(f"{spec!r}: a number is too large; {_FORM}")
    gobgp: Address = where[5:] if where.startswith("unix:") else (host.strip("[]"), ports[1])
    network = OwnNetwork(int(vni), str(local), found.get("rt", ""))
    return EvpnSpec(spec, network, gobgp, ports[0], found.get("dev", ""), float(found.get("hold", HOLD_S)))
