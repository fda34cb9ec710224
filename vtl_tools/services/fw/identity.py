"""Whether the VM sends as itself: its Ethernet and IP addresses, ARP, neighbour discovery, DHCP.

Its addresses are given, or learned. Its Ethernet address is then the first that it uses; its IPv4
address is the one that DHCP leases to it (`dhcp4.py`); an IPv6 address is its own when it was the first to
use it (`savi.py`), and it is link-local, of a prefix that a router of the network has announced, or leased
(`dhcp6.py`).

All that a router or a DHCP server says is the network's to say.

Another VM may take the place of the one that is known. The host tells by an *occupant*, a text that differs
once it has put another VM behind the link (Device.occupant). No frame is such a sign, as root in the guest
can send any. Reads no clock; `now` is in seconds.
"""

from collections.abc import Callable, Collection, Iterable
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
_ROUTERS: Final = frozenset((nd.ROUTER_ADVERT, icmp.V6_REDIRECT))
_LLADDRS: Final = frozenset((nd.SOURCE_LLADDR, nd.TARGET_LLADDR))

_NOTHING: Final = -1
_PARTIES4: Final = 12  # octets of two addresses and two ports
_PROTOCOL4: Final = quick.L3 + 9
_MAC: Final = slice(quick.SRC_MAC, quick.KIND)
_KIND: Final = slice(quick.KIND, quick.L3)
_V4: Final = ether.IPV4.to_bytes(2, "big")

Network = IPv4Network | IPv6Network


@dataclass(slots=True)
class Learned:
    """The VM's Ethernet address, what DHCP leased to it and knows it by, and its IPv6 addresses.

    prefixes: what IPv6 addresses may be of, and until when. met, ias, leases6: as Dhcp4 and Dhcp6 have them.
    occupant: of the link, when this was learned; "": unknown.
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
    occupant: str = ""
    resolvers: dict[bytes, float] = field(default_factory=dict)


class Identity:
    """The addresses that one VM may send from.

    mac: None to learn it. networks: its addresses, of the versions of IP that are not to be learned. servers:
    the IPv4 addresses that DHCP's answers come from; empty: any. follows: whether the next Ethernet address
    may be another VM's when the link has another occupant.
    """

    def __init__(
        self,
        mac: bytes | None = None,
        networks: Iterable[Network] = (),
        servers: Collection[bytes] = (),
        *,
        follows: bool = False,
    ) -> None:
        given = list(networks)
        self.mac = self.given_mac = mac
        self.former: bytes | None = None
        """The Ethernet address of the VM before, whose addresses are kept until the present one sends."""
        self.follows = follows
        self.occupant = ""
        self.look: Callable[[], str] = lambda: ""
        """Returns the link's occupant now; its news may come later than the frames of another VM."""
        self.is_moved = False
        """Whether the link has another occupant than when the Ethernet address was learned."""
        self.refused = b""
        """The address for which the last refused frame was refused; empty: not for an address."""
        self.replaced: Callable[[bytes, bytes, float], object] = lambda former, mac, now: None
        """Takes the Ethernet addresses of a VM and of the one that took its place, and the time."""
        self.given = [(net.network_address.packed, net.broadcast_address.packed) for net in given]
        self._named = [str(net if net.num_addresses > 1 else net.network_address) for net in given]
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
            start, protocol, parties, _, _, _, _, _, _, end, _, _ = headers
            src = parties[:4] if len(parties) == _PARTIES4 else parties[:16]
            is_own = start[_MAC] == self.mac and src in self._plain
            if is_own and (protocol == ip.TCP or _is_common(parties)):
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

    # --- another VM

    def has_other(self, occupant: str) -> bool:
        """Return whether the link had another occupant before."""
        return self.occupant not in ("", occupant)

    def is_changing(self) -> bool:
        """Return whether another VM may be there already, of which meet() is to be told."""
        return self.follows and self.has_other(self.look() or self.occupant)

    def meet(self, occupant: str) -> None:
        """Take note of the link's occupant. After another one, the next VM to send may be another.

        The same VM keeps its addresses, as one does that was suspended. Its DHCP identifiers are learned
        again, as it may run another system.
        """
        has_other, self.occupant = self.has_other(occupant), occupant
        if not has_other or self.mac is None:
            return
        if not self.follows:
            self.is_moved = True
            return
        if self.given_mac is None:
            self.former, self.mac = self.mac, None
        self.dhcp4.client_id = self.dhcp6.duid = None
        self.dhcp6.ias.clear()

    def forget(self) -> None:
        """Discard what is known of the VM, but not what the network said, nor what it spent of its rates."""
        self.mac, self.former, self.is_moved = self.given_mac, None, False
        self.dhcp4.forget()
        self.dhcp6.forget()
        self.bindings.forget()

    def _begin(self, mac: bytes, now: float) -> None:
        """Learn the VM's Ethernet address; if it is another VM, forget the one before."""
        former, self.former = self.former, None
        self.occupant = self.look() or self.occupant
        if former is None or former == mac:
            self.mac = mac
            return
        self.forget()
        self.mac = mac
        self.replaced(former, mac, now)

    # --- what is known, for people

    def origins(self) -> dict[str, str]:
        """Return the VM's addresses, each with what gave it: option, dhcp or nd."""
        found = dict.fromkeys(self._named, "option")
        if self.dhcp4.lease is not None:
            found[address.format_ip(self.dhcp4.lease.address)] = "dhcp"
        for octets in self.bindings.valid:
            found[address.format_ip(octets)] = "dhcp" if octets in self.dhcp6.leases else "nd"
        return found

    def status(self) -> dict[str, object]:
        """Return what the VM is taken for."""
        mac = self.mac or self.former
        origins = self.origins()
        return {
            "mac": "" if mac is None else address.format_mac(mac),
            "addresses": list(origins),
            "prefixes": [str(prefix) for prefix in self.bindings.prefixes],
            "resolvers": [address.format_ip(octets) for octets in self.resolvers.known],
            "awaits_next": self.former is not None,
            "learned_by": origins,
        }

    # --- over a restart

    def learned(self) -> Learned:
        """Return what the next one may be told by recall()."""
        four, six, bound = self.dhcp4, self.dhcp6, self.bindings
        return Learned(
            self.mac or self.former, four.lease, four.client_id, dict(four.met), six.duid, list(six.ias),
            dict(six.leases), dict(bound.prefixes), list(bound.valid), self.occupant,
            dict(self.resolvers.known),
        )  # fmt: skip

    def recall(self, learned: Learned, now: float) -> None:
        """Take up what an earlier one learned of the same VM, unless another is given now."""
        if learned.mac is None or self.mac not in (None, learned.mac):
            return
        self.mac, self.occupant = learned.mac, learned.occupant
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

    def by_addresses(
        self, mac: bytes, ethertype: int, src: bytes, *, message: int, ports: tuple[int, int]
    ) -> str | None:
        """Return why a packet is not the VM's to send; "" if it is; None if its contents decide.

        src: its IP source; empty: it is not IP. message: the type of ICMPv6; -1: another protocol. ports:
        UDP's; -1: another protocol. Changes nothing: this is asked for frames, and for what an operator asks.
        """
        if mac != self.mac and (self.mac is not None or not _is_station(mac)):
            return "spoofed-mac"
        if ethertype == ether.ARP:
            return None
        if not src:
            return ""
        if message in _ROUTERS:
            return "rogue-router"
        if message in nd.MESSAGES:
            return None
        if message in _MLD and address.is_unspecified(src):
            return ""
        sport, dport = ports
        if dport in _TO_CLIENTS or sport in _FROM_SERVERS:
            return "rogue-dhcp"
        if dport == (dhcp_wire.SERVER_PORT if len(src) == 4 else dhcp6.SERVER_PORT):
            return None
        return "" if self.owns(src, mac) else "spoofed-address"

    def owns(self, octets: bytes, mac: bytes) -> bool:
        """Return whether an IP address is the VM's, if the VM is the one with an Ethernet address."""
        if self.mac is None and self.former not in (None, mac):
            return self._is_given(octets)  # all else would be forgotten
        return self._owns(octets)

    def _judge(self, pkt: Packet, now: float) -> str:
        mac, net = pkt.eth.src, pkt.ip
        if self.mac is None and _is_station(mac):
            self._begin(mac, now)
        src, message, ports = b"", _NOTHING, (_NOTHING, _NOTHING)
        if net is not None:
            src = net.src
            if not net.is_fragment:  # of the packet that they make, all is asked
                if len(src) == 16 and (told := pkt.icmp) is not None:
                    message = told.type
                elif (datagram := pkt.udp) is not None:
                    ports = datagram.sport, datagram.dport
        if mac != self.mac:
            self.refused = mac
        else:
            self.refused, self.is_moved = src, False  # the same VM is there
        refused = self.by_addresses(mac, pkt.ethertype, src, message=message, ports=ports)
        if refused is not None:
            return refused
        if net is None:
            return self._arp(pkt)
        if (neighbour := pkt.nd) is not None:
            return self._neighbour(pkt, neighbour, now)
        datagram = pkt.udp
        assert datagram is not None
        return self._asked(net, datagram, now)

    def _asked(self, net: IPv4 | IPv6, datagram: UDP, now: float) -> str:
        """Judge what goes to a DHCP server."""
        assert self.mac is not None
        if isinstance(net, IPv4):
            return self.dhcp4.refuse(net, datagram, self.mac, now)
        refused = self.dhcp6.refuse(net, datagram, now) if self._owns(net.src) else "spoofed-address"
        self._leave(now)
        return refused

    def _arp(self, pkt: Packet) -> str:
        said = pkt.arp
        self.refused = b"" if said is None else said.sha
        if said is None or said.sha != self.mac:
            return "spoofed-arp"
        probes = address.is_unspecified(said.spa) and said.oper == arp.REQUEST  # RFC 5227 section 2.1.1
        self.refused = claimed = said.tpa if probes else said.spa
        return "" if self._owns(claimed) else "spoofed-arp"

    def _neighbour(self, pkt: Packet, message: nd.ND, now: float) -> str:
        net = pkt.ipv6
        assert net is not None
        for kind, data in message.options():
            if kind in _LLADDRS and data[:6] != self.mac:
                self.refused = data[:6]
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
                self.refused = octets
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
        if self._is_given(octets):
            if len(self._plain) < PLAIN_MAX:
                self._plain.add(octets)
            return True
        return False

    def _is_given(self, octets: bytes) -> bool:
        return any(
            len(octets) == len(first) and first <= octets <= last and address.is_single_host(octets)
            for first, last in self.given
        )

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


def _is_station(mac: bytes) -> bool:
    """Return whether an Ethernet address can be a VM's."""
    return not address.is_multicast_mac(mac) and any(mac)


def _is_common(parties: bytes) -> bool:
    """Say whether UDP's ports are not those of DHCP, whatever else they are."""
    sport, dport = PORTS.unpack_from(parties, len(parties) - PORTS.size)
    return sport not in _SPECIAL and dport not in _SPECIAL
