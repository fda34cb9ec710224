"""A DHCP server for one link (RFC 2131, RFC 2132): packets in, packets out.

A client is identified by its Ethernet address, not by the client identifier, which RFC 2131 section 2
prefers: so boot loader, installer and system of one machine get one address, and clones of a machine, which
share an identifier, get several. Relay agents are not supported: giaddr is ignored.
"""

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Final

from vtl_tools.common.guest_net import dhcp_wire as wire
from vtl_tools.common.guest_net.addresses import GuestAddresses
from vtl_tools.common.guest_net.dhcp_wire import DHCPMessage
from vtl_tools.common.guest_net.leases import LeaseTable
from vtl_tools.common.guest_net.search_list import encode_names
from vtl_tools.common.packet import address, build
from vtl_tools.common.packet.address import is_single_host
from vtl_tools.common.packet.packet import Packet

LEASE_S: Final = 3600
POOL_FIRST: Final = 15  # first address of the pool, as in QEMU's user network
POOL_MAX: Final = 1024  # addresses
CLIENT_ID_MAX: Final = 255  # maximum octets of an option

EVERYBODY: Final = b"\xff" * 4


class DHCPServer:
    """Leases addresses of the network to clients. lease_s: duration in seconds, at least 60.

    mac_of: returns the known user of an address, like NeighbourResponder.mac_of, since a guest may be
    configured statically. It replaces the probe before an offer (RFC 2131 section 2.2).
    """

    def __init__(
        self,
        network: GuestAddresses,
        *,
        lease_s: int = LEASE_S,
        mac_of: Callable[[bytes], bytes | None] | None = None,
    ) -> None:
        if not 60 <= lease_s < 0xFFFF_FFFF:
            raise ValueError(f"a lease of {lease_s} s: use 60 or more")
        self.network = network
        self.leases = LeaseTable(_pool(network))
        self._lease_s = lease_s
        self._mac_of = mac_of

    def answer(self, pkt: Packet, now: float) -> bytearray | None:
        """Return the frame that answers a DHCP client; None if there is no answer.

        Raises Malformed if the packet or its message is broken. The IP destination is ignored: a guest that
        renews with the server of another network learns sooner that it has moved.
        """
        net, datagram = pkt.ipv4, pkt.udp
        if net is None or datagram is None or net.is_fragment or datagram.dport != wire.SERVER_PORT:
            return None
        to_us = pkt.eth.dst == self.network.mac or address.is_multicast_mac(pkt.eth.dst)
        if not to_us or not pkt.verify():
            return None
        message = DHCPMessage.at(datagram.payload)
        if message.op != wire.BOOTREQUEST:
            return None
        reply = self._reply(message, net.src, now)
        return None if reply is None else self._frame(pkt, message, reply)

    def _reply(self, message: DHCPMessage, src: bytes, now: float) -> DHCPMessage | None:
        """Process a message (RFC 2131 section 4.3) and return the reply."""
        match message.kind:
            case wire.DISCOVER:
                return self._make(message, wire.OFFER, self._offer(message, now), lease=True)
            case wire.REQUEST:
                return self._on_request(message, now)
            case wire.DECLINE:
                declined = message.address(wire.REQUESTED_ADDRESS)
                if declined is not None and self._is_for_us(message):
                    self.leases.decline(message.chaddr, declined, now)
            case wire.RELEASE:
                if self._is_for_us(message):
                    self.leases.release(message.chaddr, message.ciaddr, now)
            case wire.INFORM:
                if is_single_host(message.ciaddr) and src in (message.ciaddr, bytes(4)):
                    return self._make(message, wire.ACK, bytes(4), lease=False)
        return None

    def _offer(self, message: DHCPMessage, now: float) -> bytes:
        wanted, mac_of = message.address(wire.REQUESTED_ADDRESS), self._mac_of
        if mac_of is None:
            return self.leases.offer(message.chaddr, wanted, now)
        return self.leases.offer(
            message.chaddr, wanted, now, lambda octets: mac_of(octets) not in (None, message.chaddr)
        )

    def _on_request(self, message: DHCPMessage, now: float) -> DHCPMessage | None:
        """Acknowledge or refuse a request (RFC 2131 section 4.3.2, table 4).

        A client without a record gets the address that it claims if that is free: there is no other server,
        and this one may have been restarted.
        """
        wanted, had = message.address(wire.REQUESTED_ADDRESS), self.leases.address_of(message.chaddr)
        if not self._is_for_us(message):
            if had is not None:
                self.leases.release(message.chaddr, had, now)
            return None
        renewing = any(message.ciaddr)
        if renewing:
            wanted = message.ciaddr
        if wanted is None:
            return None
        if self.leases.bind(message.chaddr, wanted, now + self._lease_s, now):
            return self._make(message, wire.ACK, wanted, lease=True)
        return self._make(message, wire.NAK, bytes(4), lease=False)

    def _is_for_us(self, message: DHCPMessage) -> bool:
        return message.address(wire.SERVER_ID) in (None, self.network.gateway)

    def _make(self, message: DHCPMessage, kind: int, yiaddr: bytes, *, lease: bool) -> DHCPMessage:
        """Return a reply with the options of RFC 2131 section 4.3.1, table 3."""
        network, options = self.network, {wire.MESSAGE_TYPE: bytes((kind,))}
        options[wire.SERVER_ID] = network.gateway
        if lease:
            for option, part in (wire.LEASE_TIME, 8), (wire.RENEWAL_TIME, 4), (wire.REBINDING_TIME, 7):
                options[option] = (self._lease_s * part // 8).to_bytes(4, "big")
        if kind == wire.NAK:
            options[wire.MESSAGE] = b"address not available"
        else:
            options[wire.SUBNET_MASK] = network.subnet.netmask.packed
            options[wire.ROUTER] = network.gateway
            options[wire.DNS] = b"".join(network.dns_servers)
            options[wire.INTERFACE_MTU] = network.mtu.to_bytes(2, "big")
            if network.search:
                options[wire.DOMAIN_NAME] = network.search[0].encode()
                options[wire.DOMAIN_SEARCH] = encode_names(network.search)
        client_id = message.options.get(wire.CLIENT_ID, b"")
        if 0 < len(client_id) <= CLIENT_ID_MAX:  # RFC 6842: a client may check it
            options[wire.CLIENT_ID] = client_id
        ciaddr = message.ciaddr if kind == wire.ACK else bytes(4)
        return DHCPMessage(
            wire.BOOTREPLY, message.xid, message.chaddr, message.flags & wire.BROADCAST,
            ciaddr=ciaddr, yiaddr=yiaddr, options=options,
        )  # fmt: skip

    def _frame(self, pkt: Packet, message: DHCPMessage, reply: DHCPMessage) -> bytearray:
        """Return the frame of a reply, with the destination of RFC 2131 section 4.1."""
        mac, dst = message.chaddr, reply.yiaddr
        if reply.kind == wire.NAK:
            mac, dst = address.BROADCAST, EVERYBODY
        elif is_single_host(message.ciaddr):
            dst = message.ciaddr
        elif message.flags & wire.BROADCAST:
            mac, dst = address.BROADCAST, EVERYBODY
        return build.udp(
            src_mac=self.network.mac, dst_mac=mac, src=self.network.gateway, dst=dst,
            sport=wire.SERVER_PORT, dport=wire.CLIENT_PORT, payload=reply.encode(),
            vlan=tuple(tag.tci for tag in pkt.vlans),
        )  # fmt: skip


def first_address(network: GuestAddresses) -> IPv4Address:
    """Return the address that the first guest gets."""
    return IPv4Address(_pool(network)[0])


def _pool(network: GuestAddresses) -> list[bytes]:
    """Return the subnet's addresses from the fifteenth on, or all of a small one, without our own."""
    size = network.subnet.num_addresses - 1
    first = POOL_FIRST if size > 2 * POOL_FIRST else 1
    numbers = range(first, min(size, first + POOL_MAX))
    base = int(network.subnet.network_address)  # to index the network takes ten times as long
    hosts = [(base + number).to_bytes(4, "big") for number in numbers]
    return [host for host in hosts if not network.is_ours(host)]
