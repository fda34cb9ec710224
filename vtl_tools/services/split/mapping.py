"""A socket of the host that stands for one endpoint of the guest, for all its destinations (RFC 4787)."""

import os
import re
import socket
import struct
from collections import Counter
from typing import Final

from vtl_tools.common.device.batch import Pieces
from vtl_tools.common.packet import build, ether, icmp, ip, vnet
from vtl_tools.common.packet.checksum import fold, ones_sum
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import U16
from vtl_tools.services.split.destinations import SocketAddress
from vtl_tools.services.split.socket_errors import IP_RECVERR, IPV6_RECVERR

Traits = tuple[int, int, bool]
"""TTL, type of service, and whether the packet must not be fragmented: options of the socket."""

UNKNOWN: Final[Traits] = (-1, -1, False)
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_TTL: Final = 64
_DONT_FRAGMENT: Final = 0x4000
_ECN: Final = 0x03

# vnet header, Ethernet header; IP; UDP
_UDP4: Final = struct.Struct("!24sBBHHHBBH8sHHHH")
_UDP6: Final = struct.Struct("!24sIHBB32sHHHH")
_CSUM4: Final = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, vnet.GSO_NONE, 0, 0, 14 + 20, UDP.SUM)
_CSUM6: Final = vnet.HEADER.pack(vnet.F_NEEDS_CSUM, vnet.GSO_NONE, 0, 0, 14 + 40, UDP.SUM)
SOL_UDP: Final = 17
_UDP_GRO: Final = 104
_SUPER_MAX: Final = 0xFFFF - IPv4.SIZE - UDP.SIZE
_TAKES_SUPER_FRAMES: Final = [int(n) for n in re.findall(r"\d+", os.uname().release)[:2]] >= [6, 2]
"""Whether interfaces take several datagrams in one frame (VIRTIO_NET_HDR_GSO_UDP_L4)."""
ECHO_HEADER: Final = 8


class MappingPeer:
    """One destination of a mapping. address: of the socket. local, port: as the guest knows it.

    is_router: the guest sends to its router, which passes it on. sender: as in DatagramArena. version,
    check_at: when it was last found to be open, and when to look again.
    """

    __slots__ = (
        "address", "check_at", "is_router", "local", "mapping", "port", "sender", "template", "version",
    )  # fmt: skip

    def __init__(
        self, mapping: "DatagramMapping", address: SocketAddress, sender: bytes, local: bytes, port: int
    ) -> None:
        self.mapping, self.address, self.sender, self.local, self.port = mapping, address, sender, local, port
        self.version, self.check_at = -1, 0.0
        self.is_router = False
        self.template: tuple[bytes, int, int, bytes] | None = None


class DatagramMapping:
    """Base of the mappings. guest, port: the endpoint; the identifier of an echo counts as its port.

    macs: the gateway's Ethernet address, as the guest has it, and the guest's. ipv6: of the socket, which is
    not the guest's version where its DNS server is known by the other one. peers: by sender, for what
    may come in: RFC 4787 section 5, address-dependent filtering. hosts: how many peers an address has. keys:
    of its peers. used_at: time of the last datagram. segments: whether the kernel cuts large datagrams for
    this socket. failed: errors may wait there.
    """

    __slots__ = (
        "failed", "guest", "hosts", "ipv6", "key", "keys", "macs", "peers", "port", "segments", "sock",
        "traits", "used_at",
    )  # fmt: skip

    def __init__(self, key: bytes, macs: bytes, guest: bytes, port: int, ipv6: bool, now: float) -> None:
        self.key, self.macs, self.guest, self.port, self.ipv6 = key, macs, guest, port, ipv6
        self.peers: dict[bytes, MappingPeer] = {}
        self.keys: set[bytes] = set()
        self.hosts: Counter[bytes] = Counter()
        self.traits: Traits = UNKNOWN
        self.used_at = now
        self.segments, self.failed = True, False
        self.sock = self._open(socket.AF_INET6 if ipv6 else socket.AF_INET)
        if not ipv6:
            self.sock.setsockopt(socket.SOL_IP, IP_RECVERR, 1)
        else:
            self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            self.sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)

    def _open(self, family: int) -> socket.socket:
        raise NotImplementedError

    def frame(self, peer: MappingPeer, octets: memoryview, mtu: int) -> bytes | bytearray:
        """Return the frame that brings the guest what a peer sent; its checksums are full above the MTU."""
        raise NotImplementedError

    def super_frame(self, peer: MappingPeer, octets: memoryview, size: int, mtu: int) -> Pieces | None:
        """Return one frame for several datagrams, or None."""
        return None

    def quote(self, peer: MappingPeer, octets: bytes) -> bytearray:
        """Return the frame with which the guest sent octets, as an error reports them, to a peer."""
        raise NotImplementedError

    def adopt(self, traits: Traits) -> None:
        """Set the options of the socket as the guest's packet has them. Raises OSError."""
        ttl, tos, whole = traits
        was_ttl, was_tos, was_whole = self.traits
        sock = self.sock
        if not self.ipv6:
            level, names = socket.SOL_IP, (socket.IP_TTL, socket.IP_TOS, _IP_MTU_DISCOVER)
        else:
            names = (socket.IPV6_UNICAST_HOPS, socket.IPV6_TCLASS, _IPV6_MTU_DISCOVER)
            level = socket.IPPROTO_IPV6
        if ttl != was_ttl:
            sock.setsockopt(level, names[0], ttl)
        if tos != was_tos:
            sock.setsockopt(level, names[1], tos & ~_ECN)  # congestion marks would not find their way back
        if whole != was_whole or was_ttl < 0:
            sock.setsockopt(level, names[2], _PMTUDISC_DO if whole else _PMTUDISC_DONT)
        self.traits = traits

    def add(self, key: bytes, peer: MappingPeer) -> None:
        """Let a peer's datagrams in. key: of the peer, in the table of all."""
        self.keys.add(key)
        self.hosts[peer.sender[2:]] += 1
        self.peers[peer.sender] = peer

    def remove(self, key: bytes, peer: MappingPeer) -> None:
        """Let them in no longer."""
        self.keys.remove(key)
        if self.peers.get(peer.sender) is peer:
            del self.peers[peer.sender]
        host = peer.sender[2:]
        self.hosts[host] -= 1
        if self.hosts[host] <= 0:
            del self.hosts[host]

    def peer_of(self, sender: bytes) -> MappingPeer | None:
        """Return the peer that a datagram came from, or None if the guest has not sent to its address."""
        peer = self.peers.get(sender)
        if peer is None and sender[2:] in self.hosts:
            return MappingPeer(self, ("", 0), sender, sender[2:], int.from_bytes(sender[:2], "big"))
        return peer


class UDPMapping(DatagramMapping):
    """A UDP endpoint of the guest."""

    __slots__ = ()

    def _open(self, family: int) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        if _TAKES_SUPER_FRAMES:
            sock.setsockopt(SOL_UDP, _UDP_GRO, 1)
        return sock

    def frame(self, peer: MappingPeer, octets: memoryview, mtu: int) -> bytes | bytearray:
        """Return the frame that brings the guest a datagram."""
        if (IPv4.SIZE if len(self.guest) == 4 else IPv6.SIZE) + UDP.SIZE + len(octets) > mtu:
            return build.udp(
                src_mac=self.macs[:6], dst_mac=self.macs[6:], src=peer.local, dst=self.guest,
                sport=peer.port, dport=self.port, payload=octets,
            )  # fmt: skip
        return self._head(peer, UDP.SIZE + len(octets)) + octets

    def super_frame(self, peer: MappingPeer, octets: memoryview, size: int, mtu: int) -> Pieces | None:
        """Return the frame that brings the guest datagrams of one size, the last may be shorter.

        None: it has to be cut, as the datagrams do not fit the MTU, or all of them no frame.
        """
        header = IPv4.SIZE if len(self.guest) == 4 else IPv6.SIZE
        if header + UDP.SIZE + size > mtu or len(octets) > _SUPER_MAX:
            return None
        head = self._head(peer, UDP.SIZE + len(octets))
        link = 14 + header
        start = vnet.HEADER.pack(
            vnet.F_NEEDS_CSUM, vnet.GSO_UDP_L4, link + UDP.SIZE, size, link, UDP.SUM
        )  # fmt: skip
        return start + head[vnet.VNET :], octets

    def _head(self, peer: MappingPeer, length: int) -> bytes:
        """Return the headers of a frame. length: of the UDP header and the data."""
        prefix, ip_sum, pseudo, parties = peer.template or self._template(peer)
        partial = fold(pseudo + length)
        if len(parties) == 8:
            total = IPv4.SIZE + length
            head = _UDP4.pack(
                prefix, 0x45, 0, total, 0, _DONT_FRAGMENT, _TTL, ip.UDP, ~fold(ip_sum + total) & 0xFFFF,
                parties, peer.port, self.port, length, partial,
            )  # fmt: skip
        else:
            head = _UDP6.pack(
                prefix, 6 << 28, length, ip.UDP, _TTL, parties, peer.port, self.port, length, partial
            )
        return head

    def _template(self, peer: MappingPeer) -> tuple[bytes, int, int, bytes]:
        """Return what all frames from a peer share: the start, the sums, the addresses."""
        parties = peer.local + self.guest
        pseudo = ones_sum(parties) + ip.UDP
        if len(parties) == 8:
            start = _CSUM4 + self.macs[6:] + self.macs[:6] + ether.IPV4.to_bytes(2, "big")
            ip_sum = 0x4500 + _DONT_FRAGMENT + (_TTL << 8) + pseudo
        else:
            start, ip_sum = _CSUM6 + self.macs[6:] + self.macs[:6] + ether.IPV6.to_bytes(2, "big"), 0
        peer.template = start, ip_sum, pseudo, parties
        return peer.template

    def quote(self, peer: MappingPeer, octets: bytes) -> bytearray:
        """Return the frame with which the guest sent a datagram."""
        return build.udp(
            src_mac=self.macs[6:], dst_mac=self.macs[:6], src=self.guest, dst=peer.local,
            sport=self.port, dport=peer.port, payload=octets,
        )  # fmt: skip


class EchoMapping(DatagramMapping):
    """An echo identifier of the guest, for which a ping socket stands (icmp(7)). Raises PermissionError."""

    __slots__ = ()

    def __init__(self, key: bytes, macs: bytes, guest: bytes, port: int, ipv6: bool, now: float) -> None:
        super().__init__(key, macs, guest, port, ipv6, now)
        self.segments = False

    def _open(self, family: int) -> socket.socket:
        protocol = socket.IPPROTO_ICMP if family == socket.AF_INET else socket.IPPROTO_ICMPV6
        return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, protocol)

    def frame(self, peer: MappingPeer, octets: memoryview, mtu: int) -> bytearray:
        """Return the frame that brings the guest an answer."""
        return self._echo(peer, octets, reply=True)

    def quote(self, peer: MappingPeer, octets: bytes) -> bytearray:
        """Return the frame with which the guest sent a request."""
        return self._echo(peer, memoryview(octets), reply=False)

    def _echo(self, peer: MappingPeer, octets: memoryview, *, reply: bool) -> bytearray:
        sequence = U16.unpack_from(octets, 6)[0] if len(octets) >= ECHO_HEADER else 0
        here, there = (self.macs[:6], peer.local), (self.macs[6:], self.guest)
        (src_mac, src), (dst_mac, dst) = (here, there) if reply else (there, here)
        return build.icmp_echo(
            src_mac=src_mac, dst_mac=dst_mac, src=src, dst=dst, identifier=self.port, sequence=sequence,
            payload=octets[ECHO_HEADER:], reply=reply,
        )  # fmt: skip


def echo_request(guest: bytes, sequence: int, payload: memoryview) -> bytes:
    """Return an echo request as a ping socket takes it: the kernel writes identifier and checksum."""
    kind = icmp.ECHO_REQUEST if len(guest) == 4 else icmp.V6_ECHO_REQUEST
    return icmp.ICMP.HEADER.pack(kind, 0, 0, sequence) + payload
