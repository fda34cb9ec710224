"""The socket of a VTEP, which all evpn: links of one address and port share: each frame tells its VNI."""

import socket
from typing import Final, Protocol

from vtl_tools.common.device.peer import translated_errors
from vtl_tools.common.device.vxlan import tunnel_socket
from vtl_tools.common.errors import SpecError
from vtl_tools.services.vnet.evpn.spec import EvpnSpec

HOST_AT: Final = {socket.AF_INET: (4, 4), socket.AF_INET6: (8, 16)}
"""Where a host is in a struct sockaddr, and its octets."""


class TunnelUser(Protocol):
    """A link."""

    def hand_over(self, frame: memoryview, vtep: bytes) -> None:
        """Take a frame, behind its virtio_net_hdr, that another link has received from a VTEP."""
        ...


class TunnelEndpoint:
    """A bound socket, which is open while it has users. users: by VNI."""

    def __init__(self, spec: EvpnSpec) -> None:
        with translated_errors(spec.text):
            self._sock = tunnel_socket(spec.family, spec.dev)
            try:
                self._sock.bind((spec.network.vtep, spec.port))
            except BaseException:
                self._sock.close()
                raise
        self.users: dict[int, TunnelUser] = {}
        self.fileno = self._sock.fileno

    def leave(self, vni: int) -> None:
        """Let a user go; the socket is closed after the last one."""
        del self.users[vni]
        if not self.users:
            self._sock.close()
            for place in [place for place, one in _endpoints.items() if one is self]:
                del _endpoints[place]


_endpoints: dict[tuple[str, int, str], TunnelEndpoint] = {}


def enter(spec: EvpnSpec, user: TunnelUser) -> TunnelEndpoint:
    """Return the endpoint of a link, which leaves it at its end. Raises DeviceError, SpecError."""
    place = spec.network.vtep, spec.port, spec.dev
    endpoint = _endpoints.get(place)
    if endpoint is None:
        endpoint = _endpoints[place] = TunnelEndpoint(spec)
    if any((vni ^ spec.network.vni) & 0xFFFF == 0 for vni in endpoint.users):
        raise SpecError(f"{spec.text}: a link has this VNI, or one with the same lower 16 bits; give another")
    endpoint.users[spec.network.vni] = user
    return endpoint
