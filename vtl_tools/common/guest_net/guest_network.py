"""The guest network: answers ARP, ND, DHCP and DNS, and rejects or drops all other frames but TCP."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from vtl_tools.common.errors import Malformed
from vtl_tools.common.guest_net.addresses import MTU_MIN, GuestAddresses
from vtl_tools.common.guest_net.dhcp import DHCPServer
from vtl_tools.common.guest_net.dhcp_wire import SERVER_PORT
from vtl_tools.common.guest_net.neighbours import NeighbourResponder
from vtl_tools.common.packet import derive, icmp
from vtl_tools.common.packet.packet import Packet
from vtl_tools.common.packet.vnet import VNET

if TYPE_CHECKING:
    from vtl_tools.common.packet.udp import UDP

DNS_PORT: Final = 53
MTU_MAX: Final = 1500
"""The largest MTU that a guest is told, whatever the link carries: every guest can use it."""

KINDS: Final = {
    123: "ntp",
    443: "quic",
    547: "dhcpv6",
    1900: "ssdp",
    3478: "stun",
    5353: "mdns",
    5355: "llmnr",
}
"""Reasons that dropped datagrams are counted under, by destination port; all others are "udp"."""


class GuestNetwork:
    """Answers frames that are no TCP segments. dhcp: lease addresses.

    on_dns: gets packets with DNS queries over UDP; returns whether it took the query. send: puts a frame on
    the guest's link. drop: counts a frame that goes no further, by reason.
    """

    def __init__(
        self,
        network: GuestAddresses,
        *,
        dhcp: bool,
        on_dns: Callable[[Packet], bool],
        send: Callable[[bytes | bytearray, float], object],
        drop: Callable[[memoryview, str, float], object],
    ) -> None:
        self._network, self._dhcp, self._on_dns, self._send, self._drop = network, dhcp, on_dns, send, drop
        self.on_mtu(MTU_MAX)

    def on_mtu(self, octets: int) -> None:
        """Tell the guest the MTU of the link."""
        network = replace(self._network, mtu=min(max(octets, MTU_MIN), MTU_MAX))
        self._neighbours = NeighbourResponder(network, 0.0)
        self._leases = DHCPServer(network, mac_of=self._neighbours.mac_of)

    def on_frame(self, frame: memoryview, now: float) -> None:
        """Answer a frame, or drop it."""
        try:
            reason = self._on_packet(Packet.at(frame), now)
        except Malformed:
            reason = "malformed"
        if reason:
            self._drop(frame, reason, now)

    def _on_packet(self, pkt: Packet, now: float) -> str:
        """Answer a packet; return the reason if it is dropped, else ""."""
        if pkt.l3_off != VNET + 14:
            return "vlan"
        if pkt.arp is not None or pkt.nd is not None:
            if (answer := self._neighbours.answer(pkt, now)) is not None:
                self._send(answer, now)
            return ""
        net = pkt.ip
        if net is None:
            return "ethertype"
        if net.is_fragment:
            return "fragment"
        if (datagram := pkt.udp) is not None:
            return self._on_datagram(pkt, datagram, now)
        if pkt.tcp is not None:  # the relay refused it
            return "source-route" if net.has_source_route else "tcp"
        return "icmp" if pkt.icmp is not None else "protocol"

    def _on_datagram(self, pkt: Packet, datagram: "UDP", now: float) -> str:
        if datagram.dport == SERVER_PORT and pkt.ipv4 is not None:
            if not self._dhcp:
                return "dhcp"
            if (answer := self._leases.answer(pkt, now)) is not None:
                self._send(answer, now)
            return ""
        if not pkt.verify():
            return "checksum"
        if datagram.dport == DNS_PORT:
            return "" if self._on_dns(pkt) else "dns"
        self._reject(pkt, now)
        return KINDS.get(datagram.dport, "udp")

    def _reject(self, pkt: Packet, now: float) -> None:
        """Answer that the port is unreachable, so that a client of QUIC falls back to TCP at once."""
        assert pkt.ip is not None
        if len(pkt.ip.dst) == 4:
            kind, code = icmp.UNREACHABLE, icmp.PORT_UNREACHABLE
        else:
            kind, code = icmp.V6_UNREACHABLE, icmp.V6_PORT_UNREACHABLE
        if (error := derive.icmp_error(pkt, kind, code, src=pkt.ip.dst)) is not None:
            self._send(error, now)

    def deadline(self) -> float | None:
        """Return when wake() is due; None: never."""
        return self._neighbours.deadline()

    def wake(self, now: float) -> None:
        """Advertise the router, if that is due."""
        if (advertisement := self._neighbours.wake(now)) is not None:
            self._send(advertisement, now)
