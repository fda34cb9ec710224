"""Whether the VM sends as itself: its Ethernet and IP addresses, ARP, neighbour discovery, DHCP.

Its addresses are given, or learned. Its Ethernet address is then the first that it uses; its IPv4
address is the one that DHCP leases to it (`dhcp4.py`); an IPv6 address is its own when it was the first to
use it (`savi.py`), and it is link-local, of a prefix that a router of the network has announced, or leased
(`dhcp6.py`).

All that a router or a DHCP server says is the network's to say. Reads no clock; `now` is in seconds.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net import dhcp_wire
from vtl_tools.common.packet import address, arp, ether, icmp, ip, nd, quick
from vtl_tools.common.packet.ipv4 import IPv4
from vtl_tools.common.packet.ipv6 import IPv6
from vtl_tools.common.packet.packet import PORTS, Packet
from vtl_tools.common.packet.quick import Headers
from vtl_tools.common.packet.udp import UDP
from vtl_tools.common.packet.view import Buffer
from vtl_tools.services.fw import dhcp6, padding
from vtl_tools.services.fw.dhcp4 import SERVERS_MAX, DHCPv4Snooper, VMLease
from vtl_tools.services.fw.dhcp6 import IA, IAS_MAX, DHCPv6Snooper
from vtl_tools.services.fw.resolvers import RESOLVERS_MAX
from vtl_tools.services.fw.savi import CLAIMS_MAX, PREFIXES_MAX, Bindings, Sent

PLAIN_MAX: Final = 4096
"""Addresses of prefixes that are remembered to be of one; others are looked up again."""
HOP_LIMIT: Final = 255

_FROM_SERVERS: Final = frozenset((dhcp_wire.SERVER_PORT, dhcp6.SERVER_PORT))
_TO_CLIENTS: Final = frozenset((dhcp_wire.CLIENT_PORT, dhcp6.CLIENT_PORT))
_SPECIAL: Final = _FROM_SERVERS | _TO_CLIENTS
_MLD: Final = frozenset((131, 132, 143))  # RFC 2710, RFC 3810: also before there is an address
_LLADDRS: Final = frozenset((nd.SOURCE_LLADDR, nd.TARGET_LLADDR))

_PARTIES4: Final = 12  # octets of two addresses and two ports
_PROTOCOL4: Final = quick.L3 + 9
_KIND: Final = slice(quick.KIND, quick.L3)
_V4: Final = ether.IPV4.to_bytes(2, "big")

Network = IPv4Network | IPv6Network


@dataclass(slots=True)
class Learned:
    """The VM's Ethernet address, what DHCP leased to it and knows it by, and its IPv6 addresses.

    prefixes: what IPv6 addresses may be of, and until when. met, ias, leases6: as Dhcp4 and Dhcp6 have them.
    """

    mac: bytes | None = None
    lease: VMLease | None = None
    client_id: bytes | None = None
    met: dict[bytes, bytes] = field(default_factory=dict)
    duid: bytes | None = None
    ias: list[IA] = field(default_factory=list)
    leases6: dict[bytes, float] = field(default_factory=dict)
    prefixes: dict[IPv6Network, float] = field(default_factory=dict)
    claims: list[bytes] = field(default_factory=list)
    resolvers: dict[bytes, float] = field(default_factory=dict)


class Identity:
    """The addresses that one VM may send from.

    mac: None to learn it. networks: its addresses, of the versions of IP that are not to be learned. servers:
    the IPv4 addresses that DHCP's answers come from; empty: any.
    """

    def __init__(
        self, mac: bytes | None = None, networks: Iterable[Network] = (), servers: Collection[bytes] = ()
    ) -> None:
        given = list(networks)
        self.mac = mac
        self.given = [(net.network_address.packed, net.broadcast_address.packed) for net in given]
        self._fixed = {net.version for net in given}
        self._plain = {first for first, last in self.given if first == last}
        self.dhcp4 = DHCPv4Snooper(self._plain, self._owns, servers, is_learned=4 not in self._fixed)
        self.resolvers = self.dhcp4.resolvers
        self.dhcp6 = DHCPv6Snooper(self.resolvers)
        self.bindings = Bindings(self._plain)

    def refuse(self, frame: Buffer, now: float) -> str:
        """Return why a frame of the VM is not its own to send, as counters are called; or "".

        Octets behind its packet are overwritten by zeros, in place.
        """
        return self.check(frame, quick.read(frame), now)

    def check(self, frame: Buffer, headers: Headers | None, now: float) -> str:
        """Do what refuse() does. headers: as quick.read() returns them for the frame."""
        if headers is not None:
            src_mac, protocol, parties, _, _, _, _, _, _, end, _, _ = headers
            src = parties[:4] if len(parties) == _PARTIES4 else parties[:16]
            if src_mac == self.mac and src in self._plain and (protocol == ip.TCP or _is_common(parties)):
                if end != len(frame):
                    padding.fill(frame, end)
                return ""
        try:
            pkt = Packet.at(frame)
            padding.blank(pkt)
            return self._judge(pkt, now)
        except Malformed as err:
            return f"malformed-{err.what.partition('.')[0]}"

    def observe(self, frame: Buffer, now: float) -> None:
        """Learn from a frame that goes to the VM. Nothing is raised for foreign octets."""
        self.learn_from(frame, quick.read(frame), now)

    def learn_from(self, frame: Buffer, headers: Headers | None, now: float) -> None:
        """Do what observe() does. headers: as quick.read() returns them for the frame."""
        if headers is not None:
            if headers[1] == ip.TCP or _is_common(headers[2]):
                return
        elif len(frame) <= _PROTOCOL4 or (frame[_PROTOCOL4] != ip.UDP and bytes(frame[_KIND]) == _V4):
            return
        try:
            pkt = Packet.at(frame)
            net = pkt.ip
            if net is None or net.is_fragment:
                return
            if (datagram := pkt.udp) is not None:
                if isinstance(net, IPv4):
                    if datagram.dport == dhcp_wire.CLIENT_PORT:
                        self.dhcp4.observe(net, datagram, self.mac, now)
                elif datagram.dport == dhcp6.CLIENT_PORT:
                    self.dhcp6.observe(net, datagram, now)
                    self._leave(now)
            elif (message := pkt.nd) is not None and net.ttl == HOP_LIMIT and message.code == 0:
                self._neighbour_of_network(pkt, message, now)
        except Malformed:
            return

    def transmit(self) -> list[Sent]:
        """Return frames that ask who has an IPv6 address, each with the port that it is for; once."""
        return self.bindings.transmit()

    # --- time

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        lease = self.dhcp4.lease
        ends = None if lease is None else lease.until
        due = self.bindings.deadline(), self.dhcp6.deadline(), self.resolvers.deadline(), ends
        return min((when for when in due if when is not None), default=None)

    def wake(self, now: float) -> None:
        """Let go what has ended. Early is harmless."""
        lease = self.dhcp4.lease
        if lease is not None and lease.until <= now:
            self.dhcp4.let_go()
        self._leave(now)
        self.resolvers.expire(now)
        self.bindings.wake(now)

    def status(self) -> dict[str, object]:
        """Return what the VM is taken for."""
        own = [f"{address.format_ip(first)}-{address.format_ip(last)}" for first, last in self.given]
        own = [text if (ends := text.split("-"))[0] != ends[1] else ends[0] for text in own]
        if self.dhcp4.lease is not None:
            own.append(address.format_ip(self.dhcp4.lease.address))
        own += map(address.format_ip, self.bindings.valid)
        return {
            "mac": "" if self.mac is None else address.format_mac(self.mac),
            "addresses": ", ".join(own),
            "prefixes": ", ".join(map(str, self.bindings.prefixes)),
            "resolvers": [address.format_ip(octets) for octets in self.resolvers.known],
        }

    # --- over a restart

    def learned(self) -> Learned:
        """Return what the next one may be told by recall()."""
        four, six, bound = self.dhcp4, self.dhcp6, self.bindings
        return Learned(
            self.mac, four.lease, four.client_id, dict(four.met), six.duid, list(six.ias), dict(six.leases),
            dict(bound.prefixes), list(bound.valid), dict(self.resolvers.known),
        )  # fmt: skip

    def recall(self, learned: Learned, now: float) -> None:
        """Take up what an earlier one learned of the same VM, unless another is given now."""
        if learned.mac is None or self.mac not in (None, learned.mac):
            return
        self.mac = learned.mac
        self.dhcp4.client_id, self.dhcp6.duid = learned.client_id, learned.duid
        for server, source in list(learned.met.items())[-SERVERS_MAX:]:
            self.dhcp4.meet(server, source)
        self.resolvers.known.update(list(learned.resolvers.items())[-RESOLVERS_MAX:])
        self.dhcp6.ias.update(dict.fromkeys(learned.ias[:IAS_MAX]))
        self.dhcp6.leases.update(list(learned.leases6.items())[-dhcp6.LEASES_MAX :])
        if 4 not in self._fixed and learned.lease is not None and learned.lease.until > now:
            self.dhcp4.take(learned.lease)
        if 6 not in self._fixed:
            self.bindings.prefixes.update(list(learned.prefixes.items())[-PREFIXES_MAX:])
            for octets in learned.claims[-CLAIMS_MAX:]:
                self.bindings.bind(octets)

    # --- what the VM sends

    def _judge(self, pkt: Packet, now: float) -> str:
        src_mac = pkt.eth.src
        if self.mac is None and not address.is_multicast_mac(src_mac) and any(src_mac):
            self.mac = src_mac
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
            if datagram.dport in _TO_CLIENTS or datagram.sport in _FROM_SERVERS:
                return "rogue-dhcp"
            if datagram.dport in _FROM_SERVERS and (refused := self._asked(net, datagram, now)) is not None:
                return refused
        return "" if self._owns(net.src) else "spoofed-address"

    def _asked(self, net: IPv4 | IPv6, datagram: UDP, now: float) -> str | None:
        """Judge what goes to a DHCP server; None: it is none of this version of IP."""
        assert self.mac is not None
        if isinstance(net, IPv4):
            if datagram.dport != dhcp_wire.SERVER_PORT:
                return None
            return self.dhcp4.refuse(net, datagram, self.mac, now)
        if datagram.dport != dhcp6.SERVER_PORT:
            return None
        refused = self.dhcp6.refuse(net, datagram, now) if self._owns(net.src) else "spoofed-address"
        self._leave(now)
        return refused

    def _arp(self, pkt: Packet) -> str:
        said = pkt.arp
        if said is None or said.sha != self.mac:
            return "spoofed-arp"
        probes = address.is_unspecified(said.spa) and said.oper == arp.REQUEST  # RFC 5227 section 2.1.1
        return "" if self._owns(said.tpa if probes else said.spa) else "spoofed-arp"

    def _neighbour(self, pkt: Packet, message: nd.ND, now: float) -> str:
        net = pkt.ipv6
        assert net is not None
        for kind, data in message.options():
            if kind in _LLADDRS and data[:6] != self.mac:
                return "spoofed-nd"
        bare = address.is_unspecified(net.src)
        claimed = [] if bare else [net.src]
        if isinstance(message, nd.NeighborAdvert) or (isinstance(message, nd.NeighborSolicit) and bare):
            claimed.append(message.target)
        if bare and isinstance(message, nd.NeighborAdvert):
            return "spoofed-nd"
        believed = net.hop_limit == HOP_LIMIT and message.code == 0 and pkt.verify()
        for octets in claimed:
            if self._owns(octets):
                if believed and not bare:
                    self.bindings.used(octets)
            elif not (believed and self._claim(octets, pkt, now) and bare):
                return "spoofed-nd"  # a claim alone may go on before the address is the VM's
        return ""

    def _claim(self, octets: bytes, pkt: Packet, now: float) -> bool:
        """Begin to find out whether an address may become the VM's; say whether that is under way."""
        if 6 in self._fixed or self.mac is None:
            return False
        tags = tuple(tag.tci for tag in pkt.vlans)
        return self.bindings.claim(
            octets, self.mac, tags, now, leased=self.dhcp6.is_leased(octets, now)
        )  # fmt: skip

    # --- what is known

    def _leave(self, now: float) -> None:
        for lease in self.dhcp6.ended(now):
            self.bindings.leave(lease, now)

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

    def _neighbour_of_network(self, pkt: Packet, message: nd.ND, now: float) -> None:
        """Take note of the addresses that others have or claim, and of the link's prefixes."""
        net = pkt.ipv6
        if net is None or pkt.eth.src == self.mac or not pkt.verify():
            return
        if isinstance(message, nd.RouterAdvert) and IPv6Address(net.src).is_link_local:
            self.bindings.announced(message, now)
            self.resolvers.observe(message, now)
        octets = net.src
        if isinstance(message, nd.NeighborAdvert) or (
            isinstance(message, nd.NeighborSolicit) and address.is_unspecified(octets)
        ):
            octets = message.target
        if address.is_single_host(octets):
            self.bindings.observe(octets, pkt.eth.src, now)


def _is_common(parties: bytes) -> bool:
    """Say whether UDP's ports are not those of DHCP, whatever else they are."""
    sport, dport = PORTS.unpack_from(parties, len(parties) - PORTS.size)
    return sport not in _SPECIAL and dport not in _SPECIAL
