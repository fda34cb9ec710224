"""Answers for all neighbours of a guest: ARP (RFC 826), neighbour discovery and the IPv6 router (RFC 4861).

Each neighbour that a guest looks for has our Ethernet address, so that all packets come to us. There is no
answer where it would take an address from a guest: to duplicate address detection (RFC 5227, RFC 4862
section 5.4), and to a request for an address that a guest is known to have.
"""

from collections import OrderedDict
from typing import Final

from vtl_tools.common.guest_net.addresses import PREFIX_BITS, GuestAddresses
from vtl_tools.common.guest_net.search_list import encode_names
from vtl_tools.common.packet import address, arp, build, derive, nd
from vtl_tools.common.packet.address import ALL_NODES, is_multicast_mac, is_single_host
from vtl_tools.common.packet.packet import Packet

HOP_LIMIT: Final = 255
"""Hop limit that proves that no router forwarded a message (RFC 4861 sections 6.1 and 7.1)."""

CUR_HOP_LIMIT: Final = 64
ADVERTISE_S: Final = 600.0  # MaxRtrAdvInterval, RFC 4861 section 6.2.1
LIFETIME_S: Final = 1800  # AdvDefaultLifetime, three times that
INITIAL: Final = 3  # MAX_INITIAL_RTR_ADVERTISEMENTS, RFC 4861 section 10
INITIAL_S: Final = 16.0  # MAX_INITIAL_RTR_ADVERT_INTERVAL
VALID_S: Final = 86_400  # of SLAAC addresses; each advertisement renews them
PREFERRED_S: Final = 14_400

ON_LINK: Final = 0x80  # flags of a prefix, RFC 4861 section 4.6.2
AUTONOMOUS: Final = 0x40

KNOWN_MAX: Final = 256
"""Maximum addresses of guests; the one silent for longest is evicted first."""


class NeighbourResponder:
    """Answers for every neighbour but the guests. now: seconds; the first advertisement is due then.

    A router should delay its answers randomly, up to half a second (RFC 4861 section 6.2.6), so that several
    routers do not answer at once. There is one router here, and it answers at once.
    """

    def __init__(self, network: GuestAddresses, now: float) -> None:
        self.network = network
        self._known: OrderedDict[bytes, bytes] = OrderedDict()
        self._advertised = 0
        self._due = None if network.prefix is None else now

    def answer(self, pkt: Packet, now: float) -> bytearray | None:
        """Return the answer to a request for a neighbour or a router; None if the packet is no such request.

        Learns the sender's address. Raises Malformed if the packet is broken.
        """
        eth = pkt.eth
        if eth.src == self.network.mac or is_multicast_mac(eth.src):
            return None
        if eth.dst != self.network.mac and not is_multicast_mac(eth.dst):
            return None  # between two guests
        if pkt.arp is not None:
            return self._on_arp(pkt)
        net, message = pkt.ipv6, pkt.nd
        if net is None or message is None or net.hop_limit != HOP_LIMIT or message.code or not pkt.verify():
            return None
        if isinstance(message, nd.NeighborSolicit):
            return self._on_solicit(pkt, message)
        if isinstance(message, nd.NeighborAdvert):
            self._learn(message.target, eth.src)
        elif isinstance(message, nd.RouterSolicit):
            return self._on_router_solicit(pkt, message, now)
        return None

    def mac_of(self, octets: bytes) -> bytes | None:
        """Return the Ethernet address of a guest that was learned from ARP or ND; None: unknown."""
        return self._known.get(octets)

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        return self._due

    def wake(self, now: float) -> bytearray | None:
        """Return the unsolicited router advertisement if it is due (RFC 4861 section 6.2.4)."""
        if self._due is None or now < self._due:
            return None
        self._put_off(now)
        return self._advertisement(address.multicast_mac(ALL_NODES), ALL_NODES, ())

    def _on_arp(self, pkt: Packet) -> bytearray | None:
        asked = pkt.arp
        assert asked is not None
        if asked.sha != pkt.eth.src or not is_single_host(asked.spa):
            return None  # a probe comes from 0.0.0.0 (RFC 5227 section 2.1.1)
        self._learn(asked.spa, asked.sha)
        if asked.oper != arp.REQUEST or not is_single_host(asked.tpa) or asked.tpa in self._known:
            return None
        return derive.arp_reply(pkt, self.network.mac)

    def _on_solicit(self, pkt: Packet, asked: nd.NeighborSolicit) -> bytearray | None:
        assert pkt.ipv6 is not None
        src = pkt.ipv6.src
        if address.is_unspecified(src):
            if is_single_host(asked.target):
                self._learn(asked.target, pkt.eth.src)
            return None
        if not is_single_host(src):
            return None
        self._learn(src, pkt.eth.src)
        if asked.target in self._known or not is_single_host(asked.target):
            return None
        return derive.nd_reply(pkt, self.network.mac, router=asked.target == self.network.link_local)

    def _on_router_solicit(self, pkt: Packet, asked: nd.RouterSolicit, now: float) -> bytearray | None:
        assert pkt.ipv6 is not None
        src, tags = pkt.ipv6.src, tuple(tag.tci for tag in pkt.vlans)
        if self.network.prefix is None:
            return None
        if address.is_unspecified(src):
            if asked.source_lladdr is not None:  # RFC 4861 section 6.1.1
                return None
            self._put_off(now)
            return self._advertisement(address.multicast_mac(ALL_NODES), ALL_NODES, tags)
        if not is_single_host(src):
            return None
        self._learn(src, pkt.eth.src)
        return self._advertisement(pkt.eth.src, src, tags)

    def _put_off(self, now: float) -> None:
        """Restart the interval, as an advertisement to all guests was just sent."""
        self._advertised += 1
        self._due = now + (INITIAL_S if self._advertised < INITIAL else ADVERTISE_S)

    def _advertisement(self, dst_mac: bytes, dst: bytes, tags: tuple[int, ...]) -> bytearray:
        network = self.network
        assert network.prefix is not None
        prefix = bytes((PREFIX_BITS, ON_LINK | AUTONOMOUS))
        prefix += VALID_S.to_bytes(4, "big") + PREFERRED_S.to_bytes(4, "big") + bytes(4)
        options = build.nd_option(nd.SOURCE_LLADDR, network.mac)
        options += build.nd_option(nd.MTU, bytes(2) + network.mtu.to_bytes(4, "big"))
        options += build.nd_option(nd.PREFIX_INFORMATION, prefix + network.prefix.network_address.packed)
        lifetime = bytes(2) + LIFETIME_S.to_bytes(4, "big")
        options += build.nd_option(nd.RDNSS, lifetime + b"".join(network.dns_servers6))
        if network.search:
            options += build.nd_option(nd.DNSSL, lifetime + encode_names(network.search))
        return build.nd_message(
            src_mac=network.mac,
            dst_mac=dst_mac,
            src=network.link_local,
            dst=dst,
            kind=nd.ROUTER_ADVERT,
            body=bytes((CUR_HOP_LIMIT, 0)) + LIFETIME_S.to_bytes(2, "big") + bytes(8),
            options=options,
            vlan=tags,
        )

    def _learn(self, octets: bytes, mac: bytes) -> None:
        """Record a guest's address. A claim of our own is ignored: other guests would lose their router."""
        if self.network.is_ours(octets):
            return
        self._known[octets] = mac
        self._known.move_to_end(octets)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
