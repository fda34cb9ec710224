"""Whether the VM sends as itself: its Ethernet and IP addresses, ARP, neighbour discovery, DHCP.

What it may send as is given, or learned. Its Ethernet address is then the first that it uses; an IPv4
address is its own from the DHCP acknowledgement that it got until the lease ends; an IPv6 address is its own
when it was the first to claim it by neighbour discovery, as in FCFS SAVI (RFC 6620), it is link-local or of
a prefix that a router of the network has announced, and nobody on the network has been heard to use it.

All that a router or a DHCP server says is the network's to say. Reads no clock; `now` is in seconds.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.gateway import dhcp_wire
from vtl_tools.common.packet import address, arp, ether, icmp, ip, nd
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import PORTS, Packet
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import Buffer
from vtl_tools.common.packet.vnet import VNET

CLAIMS_MAX: Final = 64
"""IPv6 addresses of the VM, of which it makes new ones each day (RFC 8981); the oldest goes first."""
OTHERS_MAX: Final = 1024
LEASES_MAX: Final = 16
PREFIXES_MAX: Final = 16
PREFIX_BITS_MIN: Final = 32
"""Of a shorter prefix, most is elsewhere, whoever says that it is here."""
PLAIN_MAX: Final = 4096
"""Addresses of prefixes that are remembered to be of one; others are looked up again."""
LEASE_S: Final = 3600.0
"""Of an acknowledgement that does not say how long it holds (RFC 2131 table 3 has it say so)."""
HOP_LIMIT: Final = 255

_DHCP6_CLIENT: Final = 546
_DHCP6_SERVER: Final = 547
_SERVERS: Final = frozenset((dhcp_wire.SERVER_PORT, _DHCP6_SERVER))
_CLIENTS: Final = frozenset((dhcp_wire.CLIENT_PORT, _DHCP6_CLIENT))
_MLD: Final = frozenset((131, 132, 143))  # RFC 2710, RFC 3810: also before there is an address
_PREFIX_FLAGS: Final = 0xC0  # L and A (RFC 4861 section 4.6.2)
_LLADDRS: Final = frozenset((nd.SOURCE_LLADDR, nd.TARGET_LLADDR))

_HEAD: Final = slice(VNET + 6, VNET + 38)  # from the source address to the end of IPv6's source
_V4: Final = ether.IPV4.to_bytes(2, "big")
_V6: Final = ether.IPV6.to_bytes(2, "big")
_PROTOCOL4, _PROTOCOL6 = VNET + 14 + 9, VNET + 14 + 6
_PORTS4, _PORTS6 = VNET + 14 + 20, VNET + 14 + 40
_KIND: Final = slice(VNET + 12, VNET + 14)
_NO_OPTIONS: Final = 0x45  # IPv4's version and header length

Network = IPv4Network | IPv6Network


@dataclass(slots=True)
class Learned:
    """The VM's Ethernet address, its leases and when they end, its IPv6 addresses, and those of others.

    prefixes: what IPv6 addresses may be of, and until when.
    """

    mac: bytes | None = None
    leases: dict[bytes, float] = field(default_factory=dict)
    prefixes: dict[IPv6Network, float] = field(default_factory=dict)
    claims: list[bytes] = field(default_factory=list)
    others: list[bytes] = field(default_factory=list)


class Identity:
    """What one VM may send as. mac: None to learn it. networks: its addresses, of the versions of IP that
    are not to be learned.
    """

    def __init__(self, mac: bytes | None = None, networks: Iterable[Network] = ()) -> None:
        given = list(networks)
        self.mac = mac
        self.given = [(net.network_address.packed, net.broadcast_address.packed) for net in given]
        self.leases: dict[bytes, float] = {}
        self.prefixes: dict[IPv6Network, float] = {}
        self.claims: OrderedDict[bytes, None] = OrderedDict()
        self._others: OrderedDict[bytes, None] = OrderedDict()
        self._fixed = {net.version for net in given}
        self._plain = {first for first, last in self.given if first == last}
        self._plain_v4 = self._plain_v6 = b""
        if mac is not None:
            self._take(mac)

    def refuse(self, frame: Buffer, now: float) -> str:
        """Return why a frame of the VM is not its own to send, as counters are called; or ""."""
        head = bytes(frame[_HEAD])
        if len(head) == 32:  # ordinary TCP or UDP, of which there is most
            kind = head[:8]
            if kind == self._plain_v4:
                if head[20:24] in self._plain and (
                    head[17] == ip.TCP
                    or (head[17] == ip.UDP and head[8] == _NO_OPTIONS and _is_common(frame, _PORTS4))
                ):
                    return ""
            elif (
                kind == self._plain_v6
                and head[16:] in self._plain
                and (head[14] == ip.TCP or (head[14] == ip.UDP and _is_common(frame, _PORTS6)))
            ):
                return ""
        try:
            return self._judge(Packet.at(frame), now)
        except Malformed as err:
            return f"malformed-{err.what.partition('.')[0]}"

    def heard(self, frame: Buffer, now: float) -> None:
        """Learn from a frame that goes to the VM. Nothing is raised for foreign octets."""
        if len(frame) <= _PROTOCOL4:
            return
        kind = bytes(frame[_KIND])
        if kind == _V4 and frame[_PROTOCOL4] != ip.UDP:
            return
        if kind == _V6 and frame[_PROTOCOL6] in (ip.TCP, ip.UDP):
            return
        try:
            pkt = Packet.at(frame)
            net = pkt.ip
            if net is None or net.is_fragment:
                return
            if (datagram := pkt.udp) is not None:
                if isinstance(net, IPv4) and datagram.dport == dhcp_wire.CLIENT_PORT:
                    self._acknowledged(datagram.payload, now)
            elif (message := pkt.nd) is not None and net.ttl == HOP_LIMIT:
                self._neighbour_of_network(pkt, message, now)
        except Malformed:
            return

    # --- time

    def deadline(self) -> float | None:
        """Return when the first lease ends; None: never."""
        return min(self.leases.values(), default=None)

    def wake(self, now: float) -> None:
        """Let leases go that have ended. Early is harmless."""
        for leased in [leased for leased, until in self.leases.items() if until <= now]:
            self._release(leased)

    def status(self) -> dict[str, object]:
        """Return what the VM is taken for."""
        own = [f"{address.format_ip(first)}-{address.format_ip(last)}" for first, last in self.given]
        own = [text if (ends := text.split("-"))[0] != ends[1] else ends[0] for text in own]
        own += [address.format_ip(octets) for octets in (*self.leases, *self.claims)]
        return {"mac": "" if self.mac is None else address.format_mac(self.mac), "addresses": ", ".join(own)}

    # --- over a restart

    def learned(self) -> Learned:
        """Return what the next one may be told by recall()."""
        prefixes, leases = dict(self.prefixes), dict(self.leases)
        return Learned(self.mac, leases, prefixes, list(self.claims), list(self._others))

    def recall(self, learned: Learned, now: float) -> None:
        """Take up what an earlier one learned of the same VM, unless another is given now."""
        if learned.mac is None or self.mac not in (None, learned.mac):
            return
        self._take(learned.mac)
        self._others.update(dict.fromkeys(learned.others[-OTHERS_MAX:]))
        if 4 not in self._fixed:
            held = {octets: until for octets, until in learned.leases.items() if until > now}
            self.leases.update(list(held.items())[-LEASES_MAX:])
        if 6 not in self._fixed:
            self.prefixes.update(list(learned.prefixes.items())[-PREFIXES_MAX:])
            self.claims.update(dict.fromkeys(learned.claims[-CLAIMS_MAX:]))
        self._plain.update(self.leases, self.claims)

    # --- what the VM sends

    def _judge(self, pkt: Packet, now: float) -> str:
        src_mac = pkt.eth.src
        if self.mac is None and not address.is_multicast_mac(src_mac) and any(src_mac):
            self._take(src_mac)
        if src_mac != self.mac:
            return "spoofed-mac"
        if pkt.ethertype == ether.ARP:
            return self._arp(pkt)
        net = pkt.ip
        if net is None:
            return ""
        if net.is_fragment:  # of the packet that they make, all is asked
            return "" if self._owns(net.src) else "spoofed-address"
        message = pkt.icmp
        if isinstance(net, IPv6) and message is not None:
            if message.type in (nd.ROUTER_ADVERT, icmp.V6_REDIRECT):
                return "rogue-router"
            if (neighbour := pkt.nd) is not None:
                return self._neighbour(pkt, neighbour, now)
            if message.type in _MLD and address.is_unspecified(net.src):
                return ""
        if (datagram := pkt.udp) is not None:
            if datagram.dport in _CLIENTS or datagram.sport in _SERVERS:
                return "rogue-dhcp"
            if isinstance(net, IPv4) and datagram.dport == dhcp_wire.SERVER_PORT:
                return self._asked(net, datagram)
        return "" if self._owns(net.src) else "spoofed-address"

    def _arp(self, pkt: Packet) -> str:
        said = pkt.arp
        if said is None or said.sha != self.mac:
            return "spoofed-arp"
        if address.is_unspecified(said.spa) and said.oper == arp.REQUEST:
            return ""  # a probe (RFC 5227 section 2.1.1)
        return "" if self._owns(said.spa) else "spoofed-arp"

    def _neighbour(self, pkt: Packet, message: nd.ND, now: float) -> str:
        net = pkt.ipv6
        assert net is not None
        for kind, data in message.options():
            if kind in _LLADDRS and data[:6] != self.mac:
                return "spoofed-nd"
        bare = address.is_unspecified(net.src)
        believed = net.hop_limit == HOP_LIMIT and message.code == 0 and pkt.verify()
        claimed = [] if bare else [net.src]
        if isinstance(message, nd.NeighborAdvert) or (isinstance(message, nd.NeighborSolicit) and bare):
            claimed.append(message.target)
        if bare and isinstance(message, nd.NeighborAdvert):
            return "spoofed-nd"
        for octets in claimed:
            if not self._owns(octets) and not (believed and self._claim(octets, now)):
                return "spoofed-nd"
        return ""

    def _asked(self, net: IPv4, datagram: UDP) -> str:
        """Judge what goes to a DHCP server: another's hardware address would take addresses from others."""
        message = dhcp_wire.Message.at(datagram.payload)
        if message.op != dhcp_wire.BOOTREQUEST or message.chaddr != self.mac:
            return "spoofed-dhcp"
        if not address.is_unspecified(net.src) and not self._owns(net.src):
            # What was leased before this service was there is asked for again (RFC 2131 section 4.3.2)
            again = message.kind == dhcp_wire.REQUEST and message.ciaddr == net.src
            if not again or 4 in self._fixed:
                return "spoofed-address"
        if message.kind == dhcp_wire.RELEASE:
            self._release(message.ciaddr)
        return ""

    # --- what is known

    def _take(self, mac: bytes) -> None:
        self.mac, self._plain_v4, self._plain_v6 = mac, mac + _V4, mac + _V6

    def _owns(self, octets: bytes) -> bool:
        if octets in self._plain:
            return True
        if any(
            len(octets) == len(first) and first <= octets <= last and address.is_single_host(octets)
            for first, last in self.given
        ):
            if len(self._plain) < PLAIN_MAX:
                self._plain.add(octets)
            return True
        return False

    def _claim(self, octets: bytes, now: float) -> bool:
        if 6 in self._fixed or octets in self._others or not address.is_single_host(octets):
            return False
        asked = IPv6Address(octets)
        if not asked.is_link_local and not any(
            until > now and asked in prefix for prefix, until in self.prefixes.items()
        ):
            return False
        if len(self.claims) >= CLAIMS_MAX:
            self._plain.discard(self.claims.popitem(last=False)[0])
        self.claims[octets] = None
        self._plain.add(octets)
        return True

    def _acknowledged(self, payload: Buffer, now: float) -> None:
        message = dhcp_wire.Message.at(payload)
        leased = message.yiaddr
        if 4 in self._fixed or message.kind != dhcp_wire.ACK or message.chaddr != self.mac:
            return
        if message.op != dhcp_wire.BOOTREPLY or not address.is_single_host(leased):
            return
        if len(self.leases) >= LEASES_MAX and leased not in self.leases:
            self._release(next(iter(self.leases)))
        seconds = message.options.get(dhcp_wire.LEASE_TIME, b"")
        self.leases[leased] = now + (int.from_bytes(seconds, "big") if len(seconds) == 4 else LEASE_S)
        self._plain.add(leased)

    def _release(self, octets: bytes) -> None:
        if self.leases.pop(octets, None) is not None:
            self._plain.discard(octets)

    def _neighbour_of_network(self, pkt: Packet, message: nd.ND, now: float) -> None:
        """Remember whose address somebody else's is; one that is defended is the VM's no more."""
        net = pkt.ipv6
        if net is None or pkt.eth.src == self.mac or not pkt.verify():
            return
        if isinstance(message, nd.RouterAdvert) and IPv6Address(net.src).is_link_local:
            self._announced(message, now)
        defended = isinstance(message, nd.NeighborAdvert)
        octets = message.target if isinstance(message, nd.NeighborAdvert) else net.src
        if address.is_unspecified(octets):
            return
        if octets in self.claims:
            if not defended:
                return
            del self.claims[octets]
            self._plain.discard(octets)
        self._others[octets] = None
        self._others.move_to_end(octets)
        if len(self._others) > OTHERS_MAX:
            self._others.popitem(last=False)

    def _announced(self, message: nd.RouterAdvert, now: float) -> None:
        """Learn prefixes of the link, or that hosts may make addresses of (RFC 4861 section 6.3.4)."""
        for octets, length, flags, valid_s, _ in message.prefixes:
            if not flags & _PREFIX_FLAGS or not PREFIX_BITS_MIN <= length <= 128:
                continue
            prefix = IPv6Network((octets, length), strict=False)
            self.prefixes.pop(prefix, None)
            if valid_s:
                if len(self.prefixes) >= PREFIXES_MAX:
                    del self.prefixes[next(iter(self.prefixes))]
                self.prefixes[prefix] = now + valid_s


def _is_common(frame: Buffer, at: int) -> bool:
    """Say whether UDP's ports are not those of DHCP, whatever else they are."""
    if len(frame) < at + 4:
        return False
    sport, dport = PORTS.unpack_from(frame, at)
    return sport not in _SERVERS and dport not in _CLIENTS and dport != dhcp_wire.SERVER_PORT
