"""A VXLAN tunnel end point in user space (RFC 7348), for one peer and one network.

Compatible with the kernel's vxlan interface and with Open vSwitch. One thing of RFC 7348 is missing: a
source port by the hash of the flow, which spreads flows over paths (section 5), since a socket has one port.
"""

import socket
import struct
from typing import Final

from vtl_tools.common.device.base import Device, Drop
from vtl_tools.common.device.batch import Batch
from vtl_tools.common.device.datagram import NAME_SIZE, Inbox, Outbox, drop_frames
from vtl_tools.common.device.peer import BUFFER, SocketAddress, enlarge, resolve, translated_errors
from vtl_tools.common.device.plain import ETHERNET, Plain
from vtl_tools.common.errors import DeviceError
from vtl_tools.common.packet.vnet import VNET

PORT: Final = 4789  # RFC 7348 section 8

HEADER: Final = struct.Struct("!BxxxI")
"""Flags, three reserved octets, three octets of VNI, one reserved octet (section 5)."""

FLAG_I: Final = 0x08  # the VNI is valid

_UNDERLAY_MTU: Final = 1500  # while the route to the peer is unknown
_IP_MTU: Final = 14
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU: Final = 24
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_PROBE: Final = 3  # never fragment, and ignore ICMP errors about the MTU


class VxlanDevice(Device):
    """One peer's part of a VXLAN network.

    remote: the peer's host and port. local, port: the own address ("": any) and port. dev: the only interface
    for datagrams to and from the peer ("": any). The link is down when the network reports that the peer is
    unreachable, and up when a frame comes. Frames are sent in both states.
    """

    def __init__(
        self,
        spec: str,
        remote: tuple[str, int],
        vni: int,
        *,
        local: str = "",
        port: int = PORT,
        dev: str = "",
    ) -> None:
        super().__init__(spec)
        self._dev = dev
        self._remote, self._local, self._port = remote, local, port
        self._vni = vni
        self._header = HEADER.pack(FLAG_I, vni << 8)
        self._sock: socket.socket | None = None
        self._hosts: list[tuple[memoryview, bytes]] = []  # columns of senders' addresses, the peer's value
        self._batch = Batch()
        # The VXLAN header is received into the octets that become the virtio_net_hdr, at their end.
        self._at = VNET - HEADER.size
        self._inbox = Inbox(self._batch, self._at, HEADER.size + ETHERNET, named=True)
        self._outbox: Outbox | None = None
        self._plain = Plain(self)

    def connect(self) -> None:
        """Bind the port, and derive the network's MTU from the route to the peer."""
        with translated_errors(self.spec):
            family, where = resolve(self.spec, self._remote, socket.SOCK_DGRAM)
            self._outbox = Outbox(VNET, self._header, sockaddr(family, where))
            self._hosts = _host_columns(family, self._inbox.names, sockaddr(family, where))
            sock = self._sock = tunnel_socket(family, self._dev)
            any_address = "::" if family == socket.AF_INET6 else "0.0.0.0"  # noqa: S104 - told by `local`
            local_family, local = resolve(
                self.spec, (self._local or any_address, self._port), socket.SOCK_DGRAM
            )
            if local_family != family:
                raise DeviceError(f"{self.spec}: one end is IPv4, the other IPv6; use one version for both")
            sock.bind(local)
            self.mtu = path_mtu(family, where)
        self.handle.watch(sock.fileno())
        self.went_up()

    def read(self) -> Batch:
        """Receive up to a batch of frames. Drops those of other peers and other networks."""
        assert self._sock is not None
        batch = self._batch
        if not self.up:
            self.handle.alarm_expired()
        try:
            bad = self._inbox.receive(self._sock.fileno())
        except OSError as e:
            self.went_down(e.strerror)
            return batch
        if not batch:
            return batch
        n = batch.count
        strange = any(column[:n].tobytes() != part * n for column, part in self._hosts)
        for i, frame in enumerate(batch):
            if i in bad:
                continue
            flags, vni = HEADER.unpack_from(frame, self._at)
            # Reserved bits are ignored on receipt (section 5).
            if not flags & FLAG_I or vni >> 8 != self._vni or (strange and not self._is_peer(i)):
                bad[i] = Drop.FOREIGN
        if len(bad) < batch.count:
            self.went_up()
        batch.make_plain()
        drop_frames(self, batch, bad)
        return self.received(batch)

    def _is_peer(self, i: int) -> bool:
        """Return whether message i came from the peer's address. The port is a hash and is not checked."""
        return all(column[i : i + 1].tobytes() == part for column, part in self._hosts)

    def write(self, batch: Batch) -> int:
        """Send a batch as plain frames in VXLAN."""
        return sum(self._send(plain) for plain in self._plain(batch))

    def _send(self, batch: Batch) -> int:
        if self._sock is None or self._outbox is None:
            return self.refused(batch, Drop.LINK_DOWN)
        return self._outbox.send(self, self._sock.fileno(), batch)

    def close(self) -> None:
        """Close the socket. Idempotent."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
        super().close()


def tunnel_socket(family: socket.AddressFamily, dev: str) -> socket.socket:
    """Return a socket for VXLAN, not yet bound. dev: its only interface; "": any. Raises OSError."""
    sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        enlarge(sock, BUFFER)
        if dev:  # else a guest on another interface may spoof the peer's address
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, dev.encode())
        # "VTEPs MUST NOT fragment VXLAN packets" (section 4.3): a larger packet is not sent. ICMP errors
        # are ignored: anybody can quote our addresses and ports, which are no secret.
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
    except BaseException:
        sock.close()
        raise
    return sock


def sockaddr(family: socket.AddressFamily, where: SocketAddress) -> bytes:
    """Return a struct sockaddr_in or sockaddr_in6."""
    assert not isinstance(where, str)
    address = socket.inet_pton(family, where[0].partition("%")[0])
    head = struct.pack("=H", family) + struct.pack("!H", where[1])
    if family == socket.AF_INET:
        return head + address + bytes(8)
    return head + struct.pack("!I", where[2]) + address + struct.pack("=I", where[3])


def _host_columns(
    family: socket.AddressFamily, names: memoryview, peer: bytes
) -> list[tuple[memoryview, bytes]]:
    """Return views of the host part of every address in names, each with the peer's value.

    For IPv6 this includes the scope: a link-local address is valid on one link only.
    """
    if family == socket.AF_INET:
        return [(names.cast("I")[1 :: NAME_SIZE // 4], peer[4:8])]
    words = names.cast("Q")
    return [(words[i :: NAME_SIZE // 8], peer[8 * i : 8 * i + 8].ljust(8, b"\0")) for i in (1, 2, 3)]


def path_mtu(family: socket.AddressFamily, where: SocketAddress) -> int:
    """Return the MTU within the tunnel, from the MTU of the route to the peer."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        if probe.connect_ex(where):
            underlay = _UNDERLAY_MTU
        elif family == socket.AF_INET6:
            underlay = probe.getsockopt(socket.IPPROTO_IPV6, _IPV6_MTU)
        else:
            underlay = probe.getsockopt(socket.IPPROTO_IP, _IP_MTU)
    ip = 40 if family == socket.AF_INET6 else 20
    return underlay - ip - 8 - HEADER.size - ETHERNET
